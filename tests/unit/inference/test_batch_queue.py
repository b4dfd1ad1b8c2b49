from __future__ import annotations

import heapq
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdet.config import StreamConfig
from streamdet.detector.pipeline import ArrayPicture
from streamdet.inference.batch_queue import BatchQueue
from streamdet.types import DetectionSettings, Drop, Frame
from support.queueing import Flood, Rules, frame
from support.waiting import join, wait_until

_PATIENCE_SECONDS = 20.0


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class Drops:
    def __init__(self) -> None:
        self.seen: list[tuple[str, Drop]] = []

    def __call__(self, stream: str, reason: Drop) -> None:
        self.seen.append((stream, reason))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def drops() -> Drops:
    return Drops()


@pytest.fixture
def running() -> Iterator[Callable[[Callable[[], object]], threading.Thread]]:
    threads: list[threading.Thread] = []

    def run(function: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=function, daemon=True)
        threads.append(thread)
        thread.start()
        return thread

    yield run
    for thread in threads:
        thread.join(_PATIENCE_SECONDS)
        assert not thread.is_alive()


def make(clock: Clock, drops: Drops, *streams: Rules, size: int = 8, delay: float = 0.0) -> BatchQueue:
    queue = BatchQueue(size, delay, drops, clock)
    for stream in streams:
        queue.set_stream(stream)
    return queue


def take(queue: BatchQueue) -> list[tuple[str, int]]:
    return [(taken.stream, taken.seq) for taken in queue.take(0)]


def test_the_newest_frame_wins(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, Rules("a"))
    for seq in (1, 2, 3):
        queue.put(frame("a", seq, clock.now))
    assert queue.pending() == {"a": 1}
    assert take(queue) == [("a", 3)]
    assert drops.seen == [("a", Drop.SUPERSEDED)] * 2
    assert queue.pending() == {"a": 0}


def test_an_empty_queue_gives_nothing_at_the_time_out(clock: Clock, drops: Drops) -> None:
    assert take(make(clock, drops, Rules("a"))) == []
    assert BatchQueue(8, 0.0, drops).take(0.01) == []


def test_of_streams_that_are_equally_due_the_newest_frame_leaves_first(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *(Rules(name) for name in "abc"), size=1)
    order = ""
    for name in "cab":
        clock.now += 0.01
        queue.put(frame(name, captured=clock.now))
    for name in "bbbbbb":
        clock.now += 0.01
        # However often one stream offers a frame, the others have their turn.
        order += take(queue)[0][0]
        queue.put(frame(name, captured=clock.now))
    assert order[:3] == "bac"
    assert set(order[3:]) == {"b"}


def test_a_stream_that_sends_less_than_its_share_leaves_before_those_that_have_had_theirs(
    clock: Clock, drops: Drops
) -> None:
    queue = make(clock, drops, *map(Rules, ("rare", "a", "b", "c")), size=1)
    for seq in range(100):
        clock.now += 0.1
        if seq % 10 == 5:
            queue.put(frame("rare", seq, clock.now))
        for name in "abc":
            # Always newer than what the rare one has sent.
            queue.put(frame(name, seq, clock.now + 0.05))
        left = take(queue)
        assert seq < 15 or seq % 10 != 5 or left == [("rare", seq)]


@dataclass(frozen=True)
class Overload:
    """A detector that takes four times as long as frames come, on a simulated clock.

    Attributes:
        detection_seconds: of one frame, in each worker.
        workers: batches at the same time.
        fps: of each stream.
        batch: frames of a batch at most.
        gain: share of `detection_seconds` that each further frame of a batch takes.
    """

    detection_seconds: float
    workers: int
    fps: float
    batch: int = 1
    gain: float = 1.0

    def batch_seconds(self, frames: int) -> float:
        return self.detection_seconds * (1 + self.gain * (frames - 1))

    @property
    def best_fps(self) -> float:
        return self.workers * self.batch / self.batch_seconds(self.batch)

    def run(self, seconds: float = 30.0, seed: int = 3) -> tuple[list[float], Counter[str]]:
        """Seconds from the capture of each frame to its detections, and frames of each stream."""
        chance = np.random.default_rng(seed)
        clock = Clock(0.0)
        names = [f"s{n}" for n in range(round(4 * self.best_fps / self.fps))]
        queue = make(clock, Drops(), *map(Rules, names), size=self.batch)
        begins_at, numbers, idle = 2.0, iter(range(1 << 30)), self.workers
        coming: list[tuple[float, int, str, list[Frame]]] = [
            (chance.random() / self.fps, next(numbers), name, []) for name in names
        ]
        heapq.heapify(coming)
        ages: list[float] = []
        frames: Counter[str] = Counter()
        while coming[0][0] < begins_at + seconds:
            clock.now, number, name, done = heapq.heappop(coming)
            if name:
                queue.put(frame(name, number, clock.now))
                at = clock.now + (1 + chance.uniform(-0.1, 0.1)) / self.fps
                heapq.heappush(coming, (at, next(numbers), name, []))
            idle += not name
            if clock.now > begins_at:
                ages += [clock.now - each.captured_monotonic_seconds for each in done]
                frames.update(each.stream for each in done)
            while idle and (batch := queue.take(0)):
                idle -= 1
                heapq.heappush(coming, (clock.now + self.batch_seconds(len(batch)), next(numbers), "", batch))
        return ages, frames


@pytest.mark.parametrize(
    "load",
    [
        Overload(0.02, 1, 5), Overload(0.02, 2, 10), Overload(0.08, 1, 5), Overload(0.08, 2, 10), Overload(0.08, 2, 25),
        Overload(0.3, 2, 5), Overload(0.3, 8, 10), Overload(0.005, 2, 25, batch=4, gain=0.5),
        Overload(0.08, 2, 10, batch=4, gain=0.7),
    ],
    ids=str,
)  # fmt: skip
def test_under_overload_events_stay_young_streams_equal_and_the_detector_busy(load: Overload) -> None:
    ages, frames = load.run()
    assert np.quantile(ages, 0.95) < 4 * load.detection_seconds + 0.1
    assert max(frames.values()) <= max(1.1 * min(frames.values()), min(frames.values()) + 2)
    assert len(ages) > 0.95 * load.best_fps * 30


def test_what_does_not_fill_a_batch_is_shared(clock: Clock, drops: Drops) -> None:
    queue = BatchQueue(4, 0.0, drops, clock)
    names = [f"stream-{number}" for number in range(7)]
    for name in names:
        queue.set_stream(Rules(name))
        queue.put(frame(name, captured=clock.now))
    taken = []
    while batch := queue.take(0.0, shares=2):
        taken.append([each.stream for each in batch])
    # Seven fill a batch; of the three that are left, one taker gets two.
    assert taken == [names[:4], names[4:6], names[6:]]


def test_batches_are_no_larger_than_the_limit_says(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *(Rules(name) for name in "abcd"), size=4)
    queue.limit(3)
    for name in "abcd":
        queue.put(frame(name, captured=clock.now))
    assert [len(queue.take(0)), len(queue.take(0))] == [3, 1]
    queue.limit(4)
    for name in "abcd":
        queue.put(frame(name, captured=clock.now))
    assert len(queue.take(0)) == 4


def test_a_batch_that_a_lower_limit_fills_leaves_at_once(
    drops: Drops, running: Callable[..., threading.Thread]
) -> None:
    queue = BatchQueue(8, 3600, drops)
    for name in "abcd":
        queue.set_stream(Rules(name))
        if name != "d":
            queue.put(frame(name, captured=time.monotonic()))
    taken: list[list[Frame]] = []
    taking = running(lambda: taken.append(queue.take(3600)))
    queue.limit(3)
    taking.join(_PATIENCE_SECONDS)
    assert [len(batch) for batch in taken] == [3]


def test_a_superseded_stream_keeps_its_place(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, Rules("a"), Rules("b"), size=1)
    queue.put(frame("a", 1, clock.now))
    clock.now += 0.01
    queue.put(frame("b", 1, clock.now))
    clock.now += 0.01
    queue.put(frame("a", 2, clock.now))
    assert take(queue) == [("a", 2)]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("weight", [0.5, 2.0, 3.0])
def test_under_overload_shares_follow_the_weights(clock: Clock, drops: Drops, size: int, weight: float) -> None:
    names = [f"plain-{n}" for n in range(9)]
    queue = make(clock, drops, Rules("special", weight=weight), *map(Rules, names), size=size)
    taken: Counter[str] = Counter()
    for seq in range(4000):
        for name in ("special", *names):
            queue.put(frame(name, seq, clock.now))
        # The detector takes 0.1 s per frame: ten streams wait in turn.
        clock.now += 0.1 * size
        taken.update(name for name, _ in take(queue))
    plain = sum(taken[name] for name in names) / len(names)
    assert taken["special"] / plain == pytest.approx(weight, rel=0.01)
    assert max(taken[name] for name in names) - min(taken[name] for name in names) <= 0.02 * plain + 1


def test_a_pause_saves_nothing_up(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "abc"), size=1)
    for seq in range(100):
        for name in "ab":
            queue.put(frame(name, seq, clock.now))
        take(queue)
    order = ""
    for seq in range(12):
        for name in "abc":
            queue.put(frame(name, seq, clock.now))
        order += take(queue)[0][0]
    assert 4 <= order.count("c") <= 5


@pytest.mark.parametrize(("weight", "share"), [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0)])
def test_shares_hold_for_streams_that_are_not_always_waiting(
    clock: Clock, drops: Drops, weight: float, share: float
) -> None:
    """30 streams at 25 fps, jittering, and a detector that does 300 frames a second in batches of 8."""
    chance = np.random.default_rng(3)
    names = ["special", *(f"plain-{n}" for n in range(29))]
    queue = make(clock, drops, Rules("special", weight=weight), *map(Rules, names[1:]))
    arrivals = [(clock.now + 0.04 * chance.random(), name) for name in names]
    heapq.heapify(arrivals)
    taken: Counter[str] = Counter()
    free_at = clock.now
    while free_at < 130:
        while arrivals[0][0] <= free_at:
            clock.now, name = arrivals[0]
            queue.put(frame(name, 1, clock.now))
            heapq.heapreplace(arrivals, (clock.now + 0.04 + chance.uniform(-0.005, 0.005), name))
        clock.now = free_at
        batch = queue.take(0)
        taken.update(item.stream for item in batch)
        free_at += len(batch) / 300 or 0.001
    plain = [taken[name] for name in names[1:]]
    assert taken["special"] / np.mean(plain) == pytest.approx(share, rel=0.02)
    assert max(plain) - min(plain) <= 2


def test_a_weight_starves_no_one(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, Rules("rich", weight=100), Rules("poor", weight=0.1), size=1)
    taken: Counter[str] = Counter()
    for seq in range(5000):
        for name in ("rich", "poor"):
            queue.put(frame(name, seq, clock.now))
        clock.now += 0.1
        taken.update(name for name, _ in take(queue))
    assert taken["poor"] >= 4


@pytest.mark.parametrize(("source_fps", "max_fps"), [(25, 10), (30, 10), (29.97, 10), (25, 24), (12, 10), (25, 0.5)])
@pytest.mark.parametrize("jitter_periods", [0.0, 0.4])
def test_max_fps_is_met_exactly_on_average(
    clock: Clock, drops: Drops, source_fps: float, max_fps: float, jitter_periods: float
) -> None:
    queue = make(clock, drops, Rules("a", max_fps=max_fps))
    chance = np.random.default_rng(7)
    seconds = 200
    passed = 0
    for seq in range(round(source_fps * seconds)):
        at = 100 + (seq + jitter_periods * chance.uniform(-1, 1)) / source_fps
        clock.now = max(clock.now, at)
        queue.put(frame("a", seq, at))
        passed += len(take(queue))
    assert passed / seconds == pytest.approx(max_fps, abs=2 / seconds)
    assert set(drops.seen) == {("a", Drop.RATE_LIMITED)}
    assert passed + len(drops.seen) == round(source_fps * seconds)


@pytest.mark.parametrize("source_fps", [10.0, 9.0, 3.0])
def test_max_fps_takes_nothing_from_a_source_that_keeps_to_it(clock: Clock, drops: Drops, source_fps: float) -> None:
    queue = make(clock, drops, Rules("a", max_fps=10))
    chance = np.random.default_rng(7)
    for seq in range(1000):
        clock.now = 100 + (seq + (0.2 * chance.uniform(-1, 1) if seq else 0)) / source_fps
        queue.put(frame("a", seq, clock.now))
        assert take(queue) == [("a", seq)]
    assert drops.seen == []


def test_no_burst_follows_a_pause(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, Rules("a", max_fps=10))
    queue.put(frame("a", 0, clock.now))
    take(queue)
    clock.now += 60
    passed = 0
    for seq in range(10):
        queue.put(frame("a", seq, clock.now + seq / 1000))
        passed += len(take(queue))
    assert passed <= 2


def test_a_frame_that_is_too_old_does_not_leave(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, Rules("a", max_frame_age_seconds=0.5), Rules("b", max_frame_age_seconds=5), size=1)
    queue.put(frame("a", 1, clock.now))
    queue.put(frame("b", 1, clock.now))
    clock.now += 1
    # The stale one takes no place in the batch.
    assert take(queue) == [("b", 1)]
    assert drops.seen == [("a", Drop.STALE)]
    assert take(queue) == []


def test_a_batch_leaves_when_it_is_full(drops: Drops, running: Callable[..., threading.Thread]) -> None:
    queue = BatchQueue(3, 3600, drops)
    for name in "abcd":
        queue.set_stream(Rules(name))
    batches: list[list[Frame]] = []
    taker = running(lambda: batches.append(queue.take(3600)))
    for name in "abc":
        # The taker is most likely asleep when the batch gets full, and must be woken.
        time.sleep(0.05)
        queue.put(frame(name, captured=time.monotonic()))
    taker.join(_PATIENCE_SECONDS)
    assert [sorted(taken.stream for taken in batch) for batch in batches] == [["a", "b", "c"]]


def test_the_window_opens_at_the_first_frame_and_waits_for_no_one(drops: Drops) -> None:
    queue = BatchQueue(8, 0.2, drops)
    for name in "abc":  # nothing is known yet of when "c" sends
        queue.set_stream(Rules(name))
    timer = threading.Timer(0.05, lambda: queue.put(frame("b", captured=time.monotonic())))
    began = time.monotonic()
    queue.put(frame("a", captured=time.monotonic()))
    timer.start()
    batch = queue.take(3600)
    waited_seconds = time.monotonic() - began
    join(timer)
    assert sorted(taken.stream for taken in batch) == ["a", "b"]
    assert waited_seconds >= 0.19


def test_the_window_closes_early_where_no_frame_is_expected(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "abc"), delay=0.01)
    for seq in range(3):
        for name, at in (("a", 0.0), ("b", 0.005), ("c", 0.05)):
            clock.now = 100 + 0.1 * seq + at
            queue.put(frame(name, seq, clock.now))
            # With a clock that stands still, a window that stays open would never end.
            if seq == 2 and name != "a":
                taken = take(queue)
                assert sorted(taken) == ([("a", 2), ("b", 2)] if name == "b" else [("c", 2)])
        if seq < 2:
            queue.discard()


def test_the_window_closes_early_when_every_stream_has_a_frame(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "ab"), delay=3600.0)
    for name in "ab":
        queue.put(frame(name, captured=clock.now))
    assert len(take(queue)) == 2


def test_no_window_waits_for_a_stream_that_has_fallen_silent(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "ab"), delay=0.05)
    for seq in range(40):
        clock.now = 100 + 0.1 * seq
        queue.put(frame("a", seq, clock.now))
        if seq < 3:
            queue.put(frame("b", seq, clock.now))
            assert len(take(queue)) == 2
        elif seq > 4:
            assert take(queue) == [("a", seq)]
        else:
            queue.discard()


def test_a_late_taker_does_not_wait_again(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, Rules("a"), Rules("b"), delay=3600.0)
    queue.put(frame("a", 1, clock.now + 3600))
    clock.now += 3600
    assert take(queue) == [("a", 1)]


def test_after_close_what_waits_is_drained_and_the_rest_dropped(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "abc"), size=2, delay=3600.0)
    for name in "abc":
        queue.put(frame(name, 1, clock.now))
    queue.close()
    queue.put(frame("a", 2, clock.now))
    assert drops.seen == [("a", Drop.SHUTDOWN)]
    assert not queue.drained
    assert take(queue) == [("a", 1), ("b", 1)]
    assert take(queue) == [("c", 1)]
    assert queue.drained
    assert queue.take(3600) == []


def test_discard_drops_what_waits(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "ab"))
    queue.put(frame("b", 1, clock.now))
    queue.discard()
    assert drops.seen == [("b", Drop.SHUTDOWN)]
    assert queue.pending() == {"a": 0, "b": 0}
    assert take(queue) == []


def test_close_wakes_a_waiting_taker(drops: Drops, running: Callable[..., threading.Thread]) -> None:
    queue = BatchQueue(8, 0.0, drops)
    batches: list[list[Frame]] = []
    running(lambda: batches.append(queue.take(3600)))
    queue.close()
    wait_until(lambda: batches == [[]])


def test_removing_a_stream_drops_its_frame(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "ab"))
    queue.put(frame("a", 1, clock.now))
    queue.remove_stream("a")
    queue.put(frame("a", 2, clock.now))
    queue.remove_stream("never-there")
    assert drops.seen == [("a", Drop.SHUTDOWN)] * 2
    assert queue.pending() == {"b": 0}
    assert queue.pending_since() is None


def test_another_configuration_holds_at_once_and_keeps_the_frame(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, Rules("a"))
    queue.put(frame("a", 1, clock.now))
    queue.set_stream(Rules("a", max_fps=1))
    assert take(queue) == [("a", 1)]
    queue.put(frame("a", 2, clock.now))
    queue.put(frame("a", 3, clock.now))
    assert take(queue) == [("a", 2)]
    assert drops.seen == [("a", Drop.RATE_LIMITED)]


def test_since_when_something_waits(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "ab"))
    assert queue.pending_since() is None
    queue.put(frame("a", 1, clock.now))
    clock.now += 5
    queue.put(frame("a", 2, clock.now))
    queue.put(frame("b", 1, clock.now))
    assert queue.pending_since() == 100.0


def test_the_fastest_pace_loses_nothing(drops: Drops, running: Callable[..., threading.Thread]) -> None:
    queue = BatchQueue(4, 0.0, drops)
    queue.set_stream(Rules("file", pace="fastest", max_fps=1, max_frame_age_seconds=1e-9))
    taken: list[int] = []

    def put_all() -> None:
        for seq in range(300):
            queue.put(frame("file", seq, time.monotonic()))

    running(put_all)
    wait_until(lambda: taken.extend(item.seq for item in queue.take(0.1)) or len(taken) == 300)
    assert taken == list(range(300))
    assert drops.seen == []


@pytest.mark.parametrize("end", ["close", "remove", "discard after close"])
def test_a_blocked_put_wakes_at_the_end(end: str, drops: Drops, running: Callable[..., threading.Thread]) -> None:
    queue = BatchQueue(4, 0.0, drops)
    queue.set_stream(Rules("file", pace="fastest"))
    queue.put(frame("file", 1, time.monotonic()))
    putter = running(lambda: queue.put(frame("file", 2, time.monotonic())))
    wait_until(lambda: queue.pending() == {"file": 2})
    if end == "remove":
        queue.remove_stream("file")
    else:
        queue.close()
    if end == "discard after close":
        queue.discard()
    putter.join(_PATIENCE_SECONDS)
    assert not putter.is_alive()
    still_pending = 1 if end == "close" else 0
    assert drops.seen == [("file", Drop.SHUTDOWN)] * (2 - still_pending)
    assert sum(queue.pending().values()) == still_pending


def test_a_blocked_put_goes_on_when_its_stream_becomes_real_time(
    drops: Drops, running: Callable[..., threading.Thread]
) -> None:
    queue = BatchQueue(4, 0.0, drops)
    queue.set_stream(Rules("file", pace="fastest"))
    queue.put(frame("file", 1, time.monotonic()))
    running(lambda: queue.put(frame("file", 2, time.monotonic())))
    wait_until(lambda: queue.pending() == {"file": 2})
    queue.set_stream(Rules("file"))
    wait_until(lambda: drops.seen == [("file", Drop.SUPERSEDED)])
    assert take(queue) == [("file", 2)]


def test_drops_are_reported_without_the_lock(clock: Clock) -> None:
    seen: list[dict[str, int]] = []
    other: list[threading.Thread] = []

    def on_drop(_stream: str, _reason: Drop) -> None:
        # Another thread gets at the queue while this one reports the drop.
        thread = threading.Thread(target=lambda: seen.append(queue.pending()), daemon=True)
        other.append(thread)
        thread.start()
        thread.join(_PATIENCE_SECONDS)

    queue = BatchQueue(8, 0.0, on_drop, clock)
    queue.set_stream(Rules("a", max_frame_age_seconds=1))
    queue.put(frame("a", 1, clock.now))
    queue.put(frame("a", 2, clock.now))
    clock.now += 10
    take(queue)
    queue.put(frame("a", 3, clock.now))
    queue.remove_stream("a")
    assert seen == [{"a": 1}, {"a": 0}, {}]


@pytest.fixture
def _threads_switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_threads_switch_often")
@pytest.mark.parametrize("disturbance", ["none", "close", "remove", "remove and close"])
@pytest.mark.parametrize("seed", range(2))
def test_32_producers_and_an_exact_ledger(seed: int, disturbance: str) -> None:
    flood = Flood(seed)
    consumer = threading.Thread(target=flood.consume, daemon=True)
    producers = [threading.Thread(target=flood.produce, args=(name,), daemon=True) for name in flood.names]
    for thread in (consumer, *producers):
        thread.start()
    if "remove" in disturbance:
        flood.queue.remove_stream(flood.names[0])
    if "close" in disturbance:
        time.sleep(0.05)
        flood.queue.close()
    for thread in producers:
        thread.join(_PATIENCE_SECONDS)
    flood.queue.close()
    consumer.join(_PATIENCE_SECONDS)
    assert not flood.problems
    assert sum(flood.queue.pending().values()) == 0
    for name, counts in flood.ledger.snapshot().items():
        assert counts.captured == flood.frames_per_stream, name
        assert counts.in_flight == 0, (name, counts)


def test_several_takers_share_the_frames() -> None:
    drops = Drops()
    queue = BatchQueue(3, 0.001, drops)
    names = [f"file-{n}" for n in range(8)]
    for name in names:
        queue.set_stream(Rules(name, pace="fastest"))
    taken: list[tuple[str, int]] = []

    def consume() -> None:
        while not queue.drained:
            taken.extend((item.stream, item.seq) for item in queue.take(3600))

    def produce(name: str) -> None:
        for seq in range(100):
            queue.put(frame(name, seq, time.monotonic()))

    consumers = [threading.Thread(target=consume, daemon=True) for _ in range(3)]
    producers = [threading.Thread(target=produce, args=(name,), daemon=True) for name in names]
    for thread in (*consumers, *producers):
        thread.start()
    for thread in producers:
        thread.join(_PATIENCE_SECONDS)
    queue.close()
    for thread in consumers:
        thread.join(_PATIENCE_SECONDS)
    assert sorted(taken) == sorted((name, seq) for name in names for seq in range(100))
    assert drops.seen == []


_STREAMS = st.sampled_from("abc")
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _STREAMS),
        st.tuples(st.just("wait"), st.floats(0, 3)),
        st.tuples(st.just("take"), st.none()),
        st.tuples(st.just("remove"), _STREAMS),
        st.tuples(st.just("add"), _STREAMS),
        st.tuples(st.just("close"), st.none()),
        st.tuples(st.just("discard"), st.none()),
    ),
    max_size=60,
)


def overtaken_by(
    before: Counter[tuple[str, str]], left: list[str], pending: dict[str, int]
) -> Counter[tuple[str, str]]:
    """How often each waiting stream has seen each other one leave since it began to wait."""
    after = Counter({pair: count for pair, count in before.items() if pending.get(pair[0]) and pair[0] not in left})
    after.update((waiting, gone) for waiting in pending for gone in left if pending[waiting] and waiting not in left)
    return after


@settings(max_examples=150, deadline=None)
@given(steps=_STEPS, size=st.integers(1, 3), max_fps=st.sampled_from([None, 1.0]))
def test_whatever_happens_every_frame_has_one_fate(
    steps: list[tuple[str, str | float | None]], size: int, max_fps: float | None
) -> None:
    """A frame put is pending, or taken, or dropped; batches are small and never stale; no one waits for ever."""
    clock, drops = Clock(), Drops()
    queue = make(clock, drops, *(Rules(name, max_fps=max_fps, max_frame_age_seconds=1) for name in "abc"), size=size)
    overtaken: Counter[tuple[str, str]] = Counter()
    put = taken = 0
    closed = False
    for action, value in steps:
        if action == "put":
            put += 1
            queue.put(frame(str(value), put, clock.now))
        elif action == "wait":
            clock.now += float(value or 0)
        elif action == "take":
            batch = queue.take(0)
            taken += len(batch)
            assert len(batch) <= size
            assert len({item.stream for item in batch}) == len(batch)
            assert all(clock.now - item.captured_monotonic_seconds <= 1 for item in batch)
            overtaken = overtaken_by(overtaken, [item.stream for item in batch], queue.pending())
        elif action == "remove":
            queue.remove_stream(str(value))
        elif action == "add" and value not in queue.pending():
            queue.set_stream(Rules(str(value), max_fps=max_fps, max_frame_age_seconds=1))
        elif action == "close":
            queue.close()
            closed = True
        elif action == "discard":
            queue.discard()
        assert all(count <= 3 for count in overtaken.values())
        pending = queue.pending()
        assert all(count in {0, 1} for count in pending.values())
        assert put == taken + len(drops.seen) + sum(pending.values())
        assert (queue.pending_since() is None) == (sum(pending.values()) == 0)
        assert queue.drained == (closed and not sum(pending.values()))


def test_the_configuration_of_a_stream_fits(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops)
    queue.set_stream(StreamConfig(name="door", url="rtsp://192.0.2.1/", max_fps=5))
    queue.put(frame("door", 1, clock.now))
    queue.put(frame("door", 2, clock.now))
    assert take(queue) == [("door", 1)]
    assert drops.seen == [("door", Drop.RATE_LIMITED)]


def test_a_frame_leaves_with_the_settings_that_its_stream_has_then(clock: Clock, drops: Drops) -> None:
    before, after = DetectionSettings(score_threshold=0.5), DetectionSettings(score_threshold=0.1)
    queue = make(clock, drops, Rules("b"))
    queue.set_stream(Rules("a"), before)
    for name in "ab":
        queue.put(frame(name, captured=clock.now))
    queue.set_stream(Rules("a"), after)
    assert {each.stream: each.settings for each in queue.take(0)} == {"a": after, "b": DetectionSettings()}


def test_demand_is_what_the_queue_will_let_pass(clock: Clock, drops: Drops) -> None:
    queue = BatchQueue(4, 0.0, drops, clock)
    demand = queue.demand("a")
    assert (demand.max_fps, demand.is_due(0.0)) == (None, True)  # no such stream yet
    queue.set_stream(Rules("a", max_fps=2))
    random = np.random.default_rng(2)
    at, passed = 100.0, 0
    for seq in range(400):
        at += float(random.uniform(0.01, 0.08))
        is_due, before = demand.is_due(at), len(drops.seen)
        queue.put(frame("a", seq, at))
        queue.take(0.0)
        assert is_due is (len(drops.seen) == before)
        passed += is_due
    assert passed == pytest.approx(2 * (at - 100), abs=2)
    queue.set_stream(Rules("a", max_fps=2, pace="fastest"))
    assert (demand.max_fps, demand.is_due(at)) == (None, True)
    queue.set_stream(Rules("a", max_fps=4))
    assert demand.max_fps == 4


def test_what_the_gate_holds_back_takes_no_place_and_is_counted(clock: Clock, drops: Drops) -> None:
    queue = BatchQueue(4, 0.0, drops, clock)
    queue.set_stream(Rules("a"))
    queue.put(frame("a", 1, clock.now))
    queue.put(replace(frame("a", 2), is_gated=True))
    assert drops.seen == [("a", Drop.GATED)]
    assert queue.pending() == {"a": 1}
    (first,) = queue.take(0)
    queue.put(replace(frame("a", 3), is_gated=True))
    queue.put(frame("a", 4, clock.now))
    queue.put(replace(frame("a", 5), is_gated=True))  # after it
    (second,) = queue.take(0)
    assert [(one.seq, one.gated_before) for one in (first, second)] == [(1, 0), (4, 2)]


def test_only_what_max_fps_lets_pass_is_gated(clock: Clock, drops: Drops) -> None:
    queue = BatchQueue(4, 0.0, drops, clock)
    queue.set_stream(Rules("a", max_fps=5.0))
    for number in range(100):
        queue.put(replace(frame("a", number, number / 25), is_gated=True))
    counts = Counter(reason for _, reason in drops.seen)
    assert counts == {Drop.GATED: 21, Drop.RATE_LIMITED: 79}


def test_a_frame_that_is_gated_does_not_wait_for_its_place(clock: Clock, drops: Drops) -> None:
    queue = BatchQueue(4, 0.0, drops, clock)
    queue.set_stream(Rules("film", pace="fastest"))
    queue.put(frame("film", 1))
    queue.put(replace(frame("film", 2), is_gated=True))  # would wait for ever
    assert drops.seen == [("film", Drop.GATED)]
    queue.close()
    queue.put(replace(frame("film", 3), is_gated=True))
    assert drops.seen[1:] == [("film", Drop.SHUTDOWN)]


def test_a_gated_picture_is_not_prepared_for(clock: Clock, drops: Drops) -> None:
    prepared: list[object] = []
    queue = BatchQueue(4, 0.0, drops, clock, prepare=prepared.append)
    queue.set_stream(Rules("a"))
    queue.put(replace(frame("a", 1), is_gated=True))
    assert prepared == []
    queue.put(frame("a", 2))
    assert len(prepared) == 1


TILED = DetectionSettings(tiles=2)  # a frame of five pictures


def test_a_batch_holds_so_many_pictures_and_the_tiles_of_a_frame_are_some_of_them(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "abcd"), size=8)
    queue.set_stream(Rules("a"), TILED)
    queue.set_stream(Rules("b"), TILED)
    for name in "abcd":
        clock.now += 0.01
        queue.put(frame(name, captured=clock.now))
    # The newest leave first; of two that take five places each the second one waits.
    assert take(queue) == [("d", 1), ("c", 1), ("b", 1)]
    assert take(queue) == [("a", 1)]
    assert queue.take(0) == []


def test_a_frame_of_more_pictures_than_a_batch_leaves_alone(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "ab"), size=2)
    queue.set_stream(Rules("a"), TILED)
    for name in reversed("ab"):
        clock.now += 0.01
        queue.put(frame(name, captured=clock.now))
    assert take(queue) == [("a", 1)]
    assert take(queue) == [("b", 1)]


def test_the_tiles_of_one_frame_can_fill_a_batch(drops: Drops, running: Callable[..., threading.Thread]) -> None:
    queue = BatchQueue(5, 3600, drops)
    queue.set_stream(Rules("a"), TILED)
    queue.set_stream(Rules("never"))
    batches: list[list[Frame]] = []
    taker = running(lambda: batches.append(queue.take(3600)))
    queue.put(frame("a", captured=time.monotonic()))
    taker.join(_PATIENCE_SECONDS)
    assert [taken.stream for batch in batches for taken in batch] == ["a"]


def test_what_waits_is_counted_by_the_settings_that_its_stream_has_now(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "ab"), size=5, delay=3600.0)
    queue.put(frame("a", captured=clock.now))
    queue.set_stream(Rules("a"), TILED)
    # The batch is full now: with a clock that stands still, a window that stays open would never end.
    assert take(queue) == [("a", 1)]
    queue.put(frame("a", 2, clock.now))
    queue.set_stream(Rules("a"))
    queue.set_stream(Rules("b"), TILED)
    queue.remove_stream("a")
    assert queue.pending_since() is None
    queue.close()
    assert queue.drained


def test_streams_with_tiles_share_the_detector_and_not_the_frames(clock: Clock, drops: Drops) -> None:
    queue = make(clock, drops, *map(Rules, "abc"), size=1)
    queue.set_stream(Rules("a"), TILED)
    queue.set_stream(Rules("b", weight=2.0), TILED)
    left: Counter[str] = Counter()
    for _ in range(800):
        clock.now += 0.1
        for name in "abc":
            queue.put(frame(name, captured=clock.now))
        left.update(name for name, _ in take(queue))
    # By pictures: 1 to 2 to 1.
    assert left["b"] == pytest.approx(2 * left["a"], abs=2)
    assert left["c"] == pytest.approx(5 * left["a"], abs=6)


def test_a_tile_is_prepared_for_as_well(clock: Clock, drops: Drops) -> None:
    prepared: list[tuple[int, int]] = []
    queue = BatchQueue(4, 0.0, drops, clock, prepare=lambda picture: prepared.append((picture.width, picture.height)))
    queue.set_stream(Rules("a"), TILED)
    queue.put(replace(frame("a", 1), picture=ArrayPicture(np.zeros((600, 1000, 3), np.uint8))))
    assert prepared == [(1000, 600), (556, 334)]
