from __future__ import annotations

from typing import cast

import pytest

from streamdet.inference.thread import InferenceGroup
from streamdet.monitoring import systemd
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.rates import Fps, Rates
from streamdet.service import housekeeping as pulse
from streamdet.service.housekeeping import Housekeeping
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


def feedings(batches: Batches, seconds: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the watchdog is fed."""
    fed: list[float] = []
    idle = Idle()
    monkeypatch.setattr(systemd, "watchdog", lambda: fed.append(batches.now))
    monkeypatch.setattr(pulse.time, "monotonic", lambda: batches.now)
    beats = Housekeeping(cast("Rates", idle), cast("Streams", idle), cast("InferenceGroup", batches))
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
    idle = Idle()
    for cores, wanted in ((3, [3]), (None, [])):
        batches = Batches(3, 0.5)
        Housekeeping(cast("Rates", idle), cast("Streams", idle), cast("InferenceGroup", batches), cores).beat()
        assert batches.limits == wanted


class Moment:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_max_fps_leaves_out_is_told_apart_from_overload(monkeypatch: pytest.MonkeyPatch) -> None:
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
    Housekeeping(rates, cast("Streams", idle), cast("InferenceGroup", batches)).beat()
    assert said == ["0 of 0 streams up, 10.0 fps in, 2.5 fps out (5.0 left out by max_fps, 2.0 by overload)"]
