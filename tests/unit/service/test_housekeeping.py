from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from streamdet.inference.thread import InferenceGroup
from streamdet.monitoring import systemd
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.rates import Fps, Rates
from streamdet.service.housekeeping import Housekeeping, SpareCores
from streamdet.service.streams import Streams
from streamdet.types import Drop


class Idle:
    """Rates and streams of a daemon that has none."""

    def sample(self) -> None:
        pass

    def fps(self) -> dict[str, object]:
        return {}

    def cpu_seconds(self) -> float:
        return 0.0

    def statuses(self) -> dict[str, object]:
        return {}

    def settle_log(self) -> None:
        pass


class Batches:
    """Workers whose batches take so many seconds each, and begin one after the other; the time is the test's."""

    def __init__(self, workers: int, batch_seconds: float) -> None:
        self.now = 0.0
        self.hung: int | None = None
        self.limits: list[int] = []
        self._offsets = [batch_seconds * number / workers for number in range(workers)]
        self._batch_seconds = batch_seconds

    def seconds_without_progress(self, _now: float | None = None) -> float:
        """Of the worker whose last batch ended first; the hung one never ended any."""
        return max(
            self.now if number == self.hung else (self.now - offset) % self._batch_seconds
            for number, offset in enumerate(self._offsets)
        )

    def limit(self, at_once: int) -> None:
        self.limits.append(at_once)


def housekeeping(
    batches: Batches, cores: int | None = None, trim: Callable[[], None] = lambda: None, **options: Any
) -> Housekeeping:
    idle, group = Idle(), cast("InferenceGroup", batches)
    return Housekeeping(cast("Rates", idle), cast("Streams", idle), group, cores, trim, **options)


def feedings(batches: Batches, seconds: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the watchdog is fed."""
    fed: list[float] = []
    monkeypatch.setattr(systemd, "watchdog", lambda: fed.append(batches.now))
    beats = housekeeping(batches, clock=lambda: batches.now)
    while batches.now < seconds:
        beats.beat()
        batches.now += 1
    return fed


@pytest.mark.parametrize(("workers", "batch_seconds"), [(1, 0.03), (1, 7.5), (8, 7.5), (64, 12.2)])
def test_slow_batches_feed_the_watchdog(workers: int, batch_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = feedings(Batches(workers, batch_seconds), 120, monkeypatch)
    longest = max(later - earlier for earlier, later in zip(fed, [*fed[1:], 120.0], strict=True))
    assert longest <= batch_seconds + 1.0


def test_one_worker_that_hangs_starves_it_whatever_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(4, 0.5)
    batches.hung = 2
    assert feedings(batches, 120, monkeypatch) == [0.0]


def test_inference_is_held_to_the_cores_where_it_shares_them() -> None:
    for cores, wanted in ((3, [3]), (None, [])):
        batches = Batches(3, 0.5)
        housekeeping(batches, cores).beat()
        assert batches.limits == wanted


def test_memory_is_given_back_at_the_start_and_then_once_in_a_while() -> None:
    batches, given_back = Batches(1, 0.5), []
    beats = housekeeping(
        batches, trim_seconds=60.0, trim=lambda: given_back.append(batches.now), clock=lambda: batches.now
    )
    while batches.now < 200:
        beats.beat()
        batches.now += 1
    assert given_back == [0, 60, 120, 180]


class Moment:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_max_fps_leaves_out_is_distinguished_from_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, clock = Ledger(), Moment()
    rates = Rates(ledger, clock)
    ledger.set_stream("yard")
    rates.sample()
    clock.now = 2.0
    for _ in range(20):
        ledger.captured("yard")
    for drop, count in {Drop.RATE_LIMITED: 10, Drop.SUPERSEDED: 3, Drop.STALE: 1, Drop.SHUTDOWN: 1}.items():
        for _ in range(count):
            ledger.dropped("yard", drop)
    for _ in range(5):
        ledger.published("yard")
    assert rates.fps() == {"yard": Fps(captured=10, published=2.5, rate_limited=5, overload=2)}
    said: list[str] = []
    monkeypatch.setattr(systemd, "status", said.append)
    idle, batches = Idle(), Batches(1, 1.0)
    group = cast("InferenceGroup", batches)
    Housekeeping(rates, cast("Streams", idle), group, None, lambda: None).beat()
    assert said == ["0 of 0 streams up, 10.0 fps in, 2.5 fps out (5.0 left out by max_fps, 2.0 by overload)"]


class Machine:
    """A process whose captures use so many cores."""

    def __init__(self) -> None:
        self.now = 100.0
        self.captures = 7.0

    def run(self, seconds: float, captures: float) -> None:
        self.now += seconds
        self.captures += seconds * captures

    def spare(self, cores: int) -> SpareCores:
        return SpareCores(cores, lambda: self.captures, lambda: self.now)


@pytest.mark.parametrize(
    ("cores", "captures", "fit"), [(2, 0.0, 2), (2, 0.9, 2), (2, 1.2, 1), (2, 2.5, 1), (16, 4.5, 12), (1, 0.5, 1)]
)
def test_detection_gets_what_captures_leave(cores: int, captures: float, fit: int) -> None:
    machine = Machine()
    spare = machine.spare(cores)
    for _ in range(40):
        machine.run(1.0, captures)
        found = spare.sample()
    assert found == fit


def test_one_busy_second_changes_little_and_ten_do() -> None:
    machine = Machine()
    spare = machine.spare(8)
    machine.run(1.0, 4.0)
    assert spare.sample() == 7
    for _ in range(10):
        machine.run(1.0, 4.0)
        found = spare.sample()
    assert found == 5


def test_samples_at_one_moment_are_no_division_by_zero() -> None:
    spare = Machine().spare(4)
    assert spare.sample() == spare.sample() == 4


def test_captures_that_end_take_their_time_with_them() -> None:
    machine = Machine()
    spare = machine.spare(4)
    machine.run(1.0, -7.0)
    assert spare.sample() == 4
