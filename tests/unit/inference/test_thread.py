from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streamdet.detector.failures import is_device_lost, is_out_of_memory
from streamdet.detector.pool import Detector, DetectorPool
from streamdet.errors import EXIT_DEVICE_LOST, EXIT_UNAVAILABLE, DetectorError, DeviceLostError
from streamdet.inference.batch_queue import BatchQueue
from streamdet.inference.thread import Inference, InferenceGroup, OnUnusable
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Detection, DetectionSettings, Drop, Frame, Picture
from streamdet.worker import Worker
from support.waiting import join, wait_until

_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Pixels:
    value: int
    width: int = 64
    height: int = 48

    def to_rgb(self) -> NDArray[np.uint8]:
        return np.full((self.height, self.width, 3), self.value, np.uint8)


@dataclass(frozen=True)
class Rules:
    name: str
    pace: str = "realtime"
    max_fps: float | None = None
    max_frame_age_seconds: float = 1000.0
    weight: float = 1.0


class StandIn:
    """Finds one object per picture, whose score is the picture's brightness.

    Args:
        before: called with the number of pictures before each detection; may raise.
    """

    labels = ("person",)

    def __init__(self, before: Callable[[int], None] = lambda _: None) -> None:
        self.sizes: list[int] = []
        self._before = before

    def warm_up(self) -> None:
        pass

    def detect(self, pictures: Sequence[Picture], *settings: object) -> list[list[Detection]]:
        self.sizes.append(len(pictures))
        self._before(len(pictures))
        return [
            [Detection("person", float(picture.to_rgb().mean()) / 255, (0, 0, picture.width, picture.height))]
            for picture in pictures
        ]


class Line:
    """A queue, an inference thread and a ledger, fed by hand."""

    def __init__(
        self,
        detector: Detector,
        *,
        streams: int = 8,
        on_error: Callable[[Worker], None] | None = None,
        put_detections: Callable[[Frame, list[Detection]], None] | None = None,
        stuck_after_seconds: float = 60.0,
        on_unusable: OnUnusable = lambda _frame, _why: None,
        smaller_batch_seconds: float = 60.0,
    ) -> None:
        self.ledger = Ledger()
        self.metrics = Metrics(self.ledger)
        self.queue = BatchQueue(8, 0.02, self.metrics.frame_dropped)
        self.names = [f"stream-{n}" for n in range(streams)]
        for name in self.names:
            self.metrics.set_stream(name, ["person"])
            self.queue.set_stream(Rules(name))
        self.published: list[tuple[Frame, list[Detection]]] = []
        self.group = InferenceGroup(
            self.queue,
            DetectorPool([detector]),
            put_detections or self.publish,
            self.metrics,
            on_error,
            stuck_after_seconds=stuck_after_seconds,
            smaller_batch_seconds=smaller_batch_seconds,
            on_unusable=on_unusable,
        )
        (self.inference,) = self.group.workers

    def publish(self, frame: Frame, detections: list[Detection]) -> None:
        self.published.append((frame, detections))
        self.metrics.frame_published(frame.stream, 0.0, [detection.label for detection in detections])

    def put(self, name: str, seq: int = 1) -> None:
        now = time.monotonic()
        self.metrics.frame_captured(name, time.time())
        self.queue.put(Frame(name, seq, None, time.time(), "daemon", now, Pixels(seq % 256)))

    def put_all(self) -> None:
        for seq, name in enumerate(self.names, 1):
            self.put(name, seq)

    def in_flight(self) -> int:
        return sum(counts.in_flight for counts in self.ledger.snapshot().values())

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


def end(line: Line) -> BaseException:
    """Runs what is pending to the error."""
    line.put_all()
    line.inference.start()
    assert line.inference.join()
    assert line.inference.error is not None
    return line.inference.error


def test_every_frame_gets_its_own_detections() -> None:
    line = Line(StandIn())
    line.put_all()
    with line.inference:
        wait_until(lambda: len(line.published) == 8)
    for frame, (detection,) in line.published:
        assert detection.score == pytest.approx(frame.seq / 255)
    assert line.value("streamdet_batch_size_sum") == 8
    assert line.value("streamdet_queue_wait_seconds_count") == 8
    assert line.in_flight() == 0


def test_stopping_drains_the_queue() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(_size: int) -> None:
        begun.set()
        go_on.wait(_PATIENCE_SECONDS)

    line = Line(StandIn(hold), streams=20)
    line.put_all()
    with line.inference:
        assert begun.wait(_PATIENCE_SECONDS)
        line.inference.stop()
        line.put("stream-0", 99)
        go_on.set()
    assert line.inference.error is None
    assert sorted(frame.stream for frame, _ in line.published) == sorted(line.names)
    assert line.ledger.snapshot()["stream-0"].dropped[Drop.SHUTDOWN] == 1
    assert line.in_flight() == 0
    assert line.queue.drained


def test_an_idle_thread_stops_at_once() -> None:
    line = Line(StandIn())
    with line.inference:
        pass
    assert not line.inference.is_alive()
    assert line.inference.error is None


class NoMemory:
    """Raises an error when there are more pictures than fit."""

    def __init__(self, fits: int, error: Exception) -> None:
        self.fits = fits
        self._error = error

    def __call__(self, size: int) -> None:
        if size > self.fits:
            raise self._error


def torch_error(name: str, base: type[Exception]) -> type[Exception]:
    """A class that looks like torch's, without torch."""
    return type(name, (base,), {"__module__": "torch"})


@pytest.mark.parametrize(
    "error",
    [
        torch_error("OutOfMemoryError", RuntimeError)("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch_error("AcceleratorError", RuntimeError)("CUDA error: out of memory\nSearch for it ..."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=repr,
)
def test_when_memory_runs_out_the_batch_is_halved_and_no_frame_lost(error: Exception) -> None:
    detector = StandIn(NoMemory(3, error))
    line = Line(detector)
    line.put_all()
    with line.inference:
        wait_until(lambda: len(line.published) == 8)
        line.put_all()
        wait_until(lambda: len(line.published) == 16)
    # 8 and 4 do not fit; then 2 at a time, and so it stays for a while.
    assert detector.sizes[:6] == [8, 4, 2, 2, 2, 2]
    assert max(detector.sizes[6:]) == 2
    assert line.value("streamdet_out_of_memory_total") == 2
    assert sorted(frame.seq for frame, _ in line.published[:8]) == list(range(1, 9))
    assert line.in_flight() == 0


def test_the_full_batch_is_tried_again_after_a_while() -> None:
    memory = NoMemory(4, MemoryError())
    detector = StandIn(memory)
    line = Line(detector, smaller_batch_seconds=0.0)
    line.put_all()
    with line.inference:
        # It would try 8 for ever: the others gave back their memory.
        wait_until(lambda: len(detector.sizes) >= 3)
        memory.fits = 8
        wait_until(lambda: len(line.published) == 8)
    assert set(detector.sizes) == {8}


TILED = DetectionSettings(tiles=2)  # a frame of five pictures


def test_tiles_are_pictures_of_the_batch_and_one_frame_of_the_ledger() -> None:
    detector = StandIn()
    line = Line(detector)
    line.queue.set_stream(Rules("stream-0"), TILED)
    line.queue.set_stream(Rules("stream-1"), DetectionSettings(tiles=3))
    with line.inference:
        line.put("stream-0", 51)
        wait_until(lambda: len(line.published) == 1)
        # Ten pictures: more than a batch may have.
        line.put("stream-1", 102)
        wait_until(lambda: len(line.published) == 2)
    assert detector.sizes == [5, 8, 2]
    # What the stand-in finds fills the tiles, and so ends at their borders.
    assert [[found.score for found in detections] for _, detections in line.published] == [[0.2], [0.4]]
    assert line.value("streamdet_batch_size_count") == line.value("streamdet_batch_size_sum") == 2
    assert line.in_flight() == 0


def test_when_memory_runs_out_on_a_frame_with_tiles_these_are_detected_in_parts() -> None:
    detector = StandIn(NoMemory(1, MemoryError()))
    line = Line(detector, streams=2)
    line.queue.set_stream(Rules("stream-0"), TILED)
    line.put("stream-0", 51)
    with line.inference:
        wait_until(lambda: len(line.published) == 1)
    assert detector.sizes == [5, 3, 2, 1, 1, 1, 1, 1]
    assert line.inference.error is None
    assert line.in_flight() == 0


def test_a_frame_with_tiles_that_does_not_fit_even_in_parts_ends_the_process() -> None:
    line = Line(StandIn(NoMemory(0, MemoryError("unable to allocate 12 GiB"))), streams=1)
    line.queue.set_stream(Rules("stream-0"), TILED)
    assert str(end(line)).startswith("memory ran out on a single frame of 64x48")
    assert line.in_flight() == 0


def test_a_single_frame_that_does_not_fit_ends_the_process() -> None:
    line = Line(StandIn(NoMemory(0, MemoryError("unable to allocate 12 GiB"))))
    error = end(line)
    assert type(error) is DetectorError
    assert error.exit_code == EXIT_UNAVAILABLE
    assert str(error) == "memory ran out on a single frame of 64x48 (unable to allocate 12 GiB): use a smaller model"
    assert line.in_flight() == 0
    assert sum(counts.dropped[Drop.SHUTDOWN] for counts in line.ledger.snapshot().values()) == 8


@pytest.mark.parametrize(
    "cause",
    [
        torch_error("AcceleratorError", RuntimeError)("CUDA error: device-side assert triggered\nCompile with ..."),
        RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
    ids=repr,
)
def test_a_dead_cuda_context_ends_the_process_with_its_own_code(cause: Exception) -> None:
    reported: list[Worker] = []
    line = Line(StandIn(NoMemory(0, cause)), on_error=reported.append)
    error = end(line)
    assert isinstance(error, DeviceLostError)
    assert error.exit_code == EXIT_DEVICE_LOST
    assert error.__cause__ is cause
    assert "\n" not in str(error)
    assert reported == [line.inference]
    assert line.in_flight() == 0


def test_any_other_error_is_not_touched() -> None:
    cause = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert end(Line(StandIn(NoMemory(0, cause)))) is cause


class Odd:
    """Pictures of some streams cannot be detected, for a reason of theirs."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls: list[int] = []

    labels = ("person",)

    def warm_up(self) -> None:
        pass

    def detect(self, pictures: Sequence[Picture], *settings: object) -> list[list[Detection]]:
        self.calls.append(len(pictures))
        if any(isinstance(picture, Pixels) and picture.value % 3 == 0 for picture in pictures):
            raise self.error
        return [[Detection("person", 0.5, (0, 0, 1, 1))] for _ in pictures]


@pytest.mark.parametrize("error", [ValueError("no conversion"), MemoryError("16 TB")], ids=repr)
def test_only_the_frame_that_cannot_be_detected_is_dropped_and_reported(error: Exception) -> None:
    unusable: list[tuple[str, str]] = []
    line = Line(Odd(error), on_unusable=lambda frame, why: unusable.append((frame.stream, why)))
    with line.inference:
        for _ in range(2):
            line.put_all()
            wait_until(lambda: line.in_flight() == 0)
    # Pictures 3 and 6 of 8, twice.
    assert sorted(name for name, _ in unusable) == ["stream-2", "stream-2", "stream-5", "stream-5"]
    assert len(line.published) == 12
    for name, counts in line.ledger.snapshot().items():
        assert counts.dropped[Drop.DECODE_ERROR] == (2 if name in {"stream-2", "stream-5"} else 0)
    reasons = {why for _, why in unusable}
    assert reasons <= {
        "the picture cannot be used: ValueError: no conversion",
        "not enough memory for pictures of 64x48",
    }
    assert line.inference.error is None


def test_a_failure_that_does_not_happen_again_costs_no_frame() -> None:
    failures = iter([ValueError("once")])

    def once(_: int) -> None:
        for error in failures:
            raise error

    line = Line(StandIn(once), streams=1)
    with line.inference:
        line.put("stream-0")
        wait_until(lambda: line.published)


def test_a_detector_that_fails_on_what_it_got_through_before_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        message = "broken"
        raise ValueError(message)

    detector = Odd(ValueError("broken"))
    line = Line(detector, streams=2)
    with line.inference:
        line.put_all()
        wait_until(lambda: len(line.published) == 2)
        monkeypatch.setattr(detector, "detect", broken)
        line.put_all()
        wait_until(lambda: line.inference.error)
    assert str(line.inference.error) == "broken"
    assert line.in_flight() == 0


def test_an_error_of_the_receiver_ends_the_thread_and_the_ledger_still_balances() -> None:
    taken: list[Frame] = []

    def put_detections(frame: Frame, detections: list[Detection]) -> None:
        if len(taken) == 3:
            message = "no more"
            raise OSError(message)
        taken.append(frame)
        line.publish(frame, detections)

    line = Line(StandIn(), put_detections=put_detections)
    assert isinstance(end(line), OSError)
    counts = line.ledger.snapshot().values()
    assert sum(c.published for c in counts) == 3
    assert sum(c.dropped[Drop.SHUTDOWN] for c in counts) == 4
    # The frame on which it failed was the receiver's.
    assert line.in_flight() == 1


def test_a_detector_that_forgets_a_picture_is_found_out() -> None:
    class Forgetful(StandIn):
        def detect(self, pictures: Sequence[Picture], *settings: object) -> list[list[Detection]]:
            return super().detect(pictures, *settings)[1:]

    assert isinstance(end(Line(Forgetful())), ValueError)


def test_in_flight_is_what_is_really_held() -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def hold(_size: int) -> None:
        begun.release()
        assert go_on.acquire(timeout=_PATIENCE_SECONDS)

    line = Line(StandIn(hold), streams=12)
    held_by_hand = 0
    with line.inference:
        for turn in range(20):
            for name in line.names:
                line.put(name, turn)
            assert begun.acquire(timeout=_PATIENCE_SECONDS)
            # The detector holds a batch, the queue holds the rest, and nothing moves.
            held = sum(line.queue.pending().values()) + line.inference.in_hand()
            assert line.in_flight() == held > 0
            held_by_hand += line.inference.in_hand() > 0
            go_on.release()
            wait_until(lambda: line.inference.in_hand() == 0 or begun._value)
        go_on.release(20)
    assert held_by_hand == 20
    assert line.in_flight() == 0
    for counts in line.ledger.snapshot().values():
        assert counts.captured == 20 == counts.published + sum(counts.dropped.values())


def test_a_thread_is_stuck_only_when_frames_are_due_and_none_comes_out() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(_size: int) -> None:
        begun.set()
        go_on.wait(_PATIENCE_SECONDS)

    line = Line(StandIn(hold), stuck_after_seconds=30)
    with line.inference:
        # Idle for an hour is not stuck.
        assert line.group.seconds_without_progress(time.monotonic() + 3600) == 0
        assert not line.group.is_stuck(time.monotonic() + 3600)
        line.put("stream-0")
        assert begun.wait(_PATIENCE_SECONDS)
        assert not line.group.is_stuck()
        assert line.group.is_stuck(time.monotonic() + 31)
        go_on.set()
        wait_until(lambda: line.published)
        wait_until(lambda: not line.group.is_stuck(time.monotonic() + 3600))


def test_a_worker_that_hangs_is_seen_whatever_others_do() -> None:
    line = Line(StandIn())
    line.group.workers = [
        cast("Inference", SimpleNamespace(batch_began_at=began_at, heartbeat_monotonic_seconds=heartbeat))
        for began_at, heartbeat in ((1.0, 0.5), (99.0, 99.5), (None, 98.0))
    ]
    assert line.group.seconds_without_progress(100.0) == 99.0


def test_a_dead_thread_with_frames_waiting_is_stuck() -> None:
    line = Line(StandIn(NoMemory(0, ValueError("broken"))), stuck_after_seconds=30)
    end(line)
    assert not line.group.is_stuck(time.monotonic() + 31)
    line.put("stream-0")
    assert line.group.is_stuck(time.monotonic() + 31)


def test_a_receiver_that_blocks_is_stuck_and_a_slow_detector_is_not() -> None:
    go_on = threading.Event()

    def put_detections(frame: Frame, detections: list[Detection]) -> None:
        line.publish(frame, detections)
        if len(line.published) == 2:
            go_on.wait(_PATIENCE_SECONDS)

    line = Line(StandIn(), streams=2, put_detections=put_detections, stuck_after_seconds=30)
    line.put_all()
    with line.inference:
        wait_until(lambda: len(line.published) == 2)
        assert line.group.is_stuck(time.monotonic() + 31)
        # A frame came out just now, though the batch began long ago.
        line.inference.beat()
        line.inference.batch_began_at = time.monotonic() - 3600
        assert not line.group.is_stuck()
        go_on.set()


def test_the_errors_of_torch_itself_are_recognised() -> None:
    with pytest.raises(RuntimeError) as too_large:
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RuntimeError) as wrong_shape:
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))
    lost = torch.AcceleratorError("CUDA error: unspecified launch failure")
    assert is_out_of_memory(too_large.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(lost)
    assert is_device_lost(lost)
    assert not is_out_of_memory(wrong_shape.value)
    assert not is_device_lost(wrong_shape.value)


class Slow(StandIn):
    """Takes longer for every second batch, so that later ones overtake it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(lambda _: time.sleep(seconds))


def group_of(line: Line, count: int, first: Slow, on_error: Callable[[Worker], None] | None = None) -> InferenceGroup:
    detector = DetectorPool([first, *(Slow(0.0) for _ in range(count - 1))])
    return InferenceGroup(line.queue, detector, line.publish, line.metrics, on_error, stuck_after_seconds=30)


def test_results_of_several_workers_leave_in_the_order_of_the_frames() -> None:
    line = Line(StandIn(), streams=3)
    with group_of(line, 3, Slow(0.03)):
        for seq in range(1, 61):
            for name in line.names:
                line.put(name, seq)
            time.sleep(0.002)
    seqs: dict[str, list[int]] = {name: [] for name in line.names}
    for frame, (detection,) in line.published:
        assert detection.score == pytest.approx(frame.seq / 255)
        seqs[frame.stream].append(frame.seq)
    assert all(found == sorted(found) and len(found) > 2 for found in seqs.values())
    assert line.in_flight() == 0


class HeldFirst(StandIn):
    """The first batch of all takes until it is let go; later ones, whichever thread detects them, take no time."""

    def __init__(self, go_on: threading.Event, begun: list[int]) -> None:
        super().__init__(self.hold)
        self._go_on = go_on
        self._begun = begun

    def hold(self, size: int) -> None:
        self._begun.append(size)
        if len(self._begun) == 1:
            self._go_on.wait(_PATIENCE_SECONDS)


def test_a_batch_overtaken_by_another_still_leaves_first() -> None:
    go_on = threading.Event()
    begun: list[int] = []
    line = Line(StandIn(), streams=1)
    detectors = DetectorPool([HeldFirst(go_on, begun) for _ in range(2)])
    group = InferenceGroup(line.queue, detectors, line.publish, line.metrics, stuck_after_seconds=30)
    with group:
        line.put("stream-0", 1)
        wait_until(lambda: len(begun) == 1)
        line.put("stream-0", 2)
        wait_until(lambda: len(begun) == 2)
        assert group.in_hand() == 2
        assert not group.is_stuck()
        assert group.is_stuck(time.monotonic() + 31)
        assert line.published == []
        go_on.set()
        wait_until(lambda: len(line.published) == 2)
        wait_until(lambda: not group.is_stuck(time.monotonic() + 3600))
    assert [frame.seq for frame, _ in line.published] == [1, 2]


@contextmanager
def held_first(
    line: Line, at_once: int = 2, max_held: int = 64
) -> Iterator[tuple[threading.Event, list[int], InferenceGroup]]:
    """Two workers, one of which has the first frame of stream-0 until the event; sizes of batches as they begin."""
    go_on = threading.Event()
    begun: list[int] = []
    detectors = DetectorPool([HeldFirst(go_on, begun) for _ in range(2)])
    with InferenceGroup(
        line.queue, detectors, line.publish, line.metrics, stuck_after_seconds=30, max_held_results=max_held
    ) as group:
        group.limit(at_once)
        line.put("stream-0", 1)
        wait_until(lambda: len(begun) == 1)
        yield go_on, begun, group


def test_streams_do_not_wait_for_a_slow_batch_of_others() -> None:
    line = Line(StandIn(), streams=2)
    with held_first(line) as (go_on, _, group):
        for seq in range(1, 6):
            line.put("stream-1", seq)
            wait_until(lambda seq=seq: len(line.published) == seq)
        # What comes out of the other one does not hide that it hangs.
        assert group.is_stuck(time.monotonic() + 31)
        go_on.set()
        wait_until(lambda: len(line.published) == 6)
    assert [frame.stream for frame, _ in line.published] == ["stream-1"] * 5 + ["stream-0"]
    assert line.in_flight() == 0


def test_few_results_are_held_for_one_that_hangs() -> None:
    line = Line(StandIn(), streams=1)
    with held_first(line, max_held=3) as (go_on, _, group):
        for seq in range(2, 5):
            line.put("stream-0", seq)
            wait_until(lambda seq=seq: group.in_hand() == seq)
        line.put("stream-0", 5)
        time.sleep(0.2)
        assert line.queue.pending() == {"stream-0": 1}
        assert group.in_hand() == 4
        go_on.set()
        wait_until(lambda: len(line.published) == 5)
    assert [frame.seq for frame, _ in line.published] == [1, 2, 3, 4, 5]


def test_batches_become_smaller_while_they_take_too_long() -> None:
    def work(pictures: int) -> None:
        time.sleep(0.018 * pictures)

    line = Line(StandIn(), streams=8)
    detector = StandIn(work)
    pool = DetectorPool([detector], longest_batch_seconds=0.05)
    line.put_all()
    with InferenceGroup(line.queue, pool, line.publish, line.metrics):
        wait_until(lambda: len(line.published) == 8)
        wait_until(lambda: line.value("streamdet_batch_limit") in {1, 2})
        line.put_all()
        wait_until(lambda: len(line.published) == 16)
    first, *others = detector.sizes
    assert first == 8
    assert max(others) <= 2


def test_no_more_workers_detect_than_may() -> None:
    line = Line(StandIn(), streams=2)
    with held_first(line, at_once=1) as (go_on, begun, group):
        assert line.value("streamdet_batches_at_once") == 1
        line.put("stream-1", 1)
        time.sleep(0.2)
        assert len(begun) == 1
        group.limit(2)
        wait_until(lambda: len(line.published) == 1)
        go_on.set()
    assert line.in_flight() == 0


def test_the_limit_can_be_set_while_the_receiver_is_at_a_standstill() -> None:
    go_on = threading.Event()
    line = Line(StandIn(), streams=1)

    def put_detections(frame: Frame, detections: list[Detection]) -> None:
        line.publish(frame, detections)
        go_on.wait(_PATIENCE_SECONDS)

    with InferenceGroup(line.queue, DetectorPool([StandIn()]), put_detections, line.metrics) as group:
        line.put_all()
        wait_until(lambda: line.published)
        setting = threading.Thread(target=group.limit, args=(1,), daemon=True)
        setting.start()
        setting.join(_PATIENCE_SECONDS)
        stuck = setting.is_alive()
        go_on.set()
        join(setting)
    assert not stuck


@pytest.mark.parametrize(("shares", "first_batch"), [(True, 2), (False, 4)])
def test_workers_share_what_waits_where_they_should(*, shares: bool, first_batch: int) -> None:
    go_on = threading.Event()
    begun: list[int] = []
    line = Line(StandIn(), streams=4)
    detectors = DetectorPool([HeldFirst(go_on, begun) for _ in range(2)], shares=shares)
    line.put_all()
    with InferenceGroup(line.queue, detectors, line.publish, line.metrics):
        wait_until(lambda: begun)
        go_on.set()
        wait_until(lambda: len(line.published) == 4)
    assert begun[0] == first_batch


def test_what_was_held_for_a_frame_that_is_lost_leaves() -> None:
    class FailsAtLast(HeldFirst):
        def hold(self, size: int) -> None:
            is_first = not self._begun
            super().hold(size)
            if is_first:
                raise MemoryError

    go_on = threading.Event()
    begun: list[int] = []
    line = Line(StandIn(), streams=1)
    detectors = DetectorPool([FailsAtLast(go_on, begun) for _ in range(2)])  # either may have the first frame
    group = InferenceGroup(line.queue, detectors, line.publish, line.metrics)
    with group:
        line.put("stream-0", 1)
        wait_until(lambda: len(begun) == 1)
        line.put("stream-0", 2)
        wait_until(lambda: group.in_hand() == 2 and len(begun) == 2)
        go_on.set()
        wait_until(lambda: line.published)
    assert [frame.seq for frame, _ in line.published] == [2]
    assert line.in_flight() == 0


def test_the_error_of_one_worker_is_reported_and_the_ledger_balances() -> None:
    reported: list[Worker] = []
    slow = Slow(0.0)
    slow._before = NoMemory(0, ValueError("broken"))
    line = Line(StandIn(), streams=4)
    with group_of(line, 2, slow, reported.append):
        for _ in range(1000):
            line.put_all()
            if reported:
                break
            time.sleep(0.01)
    assert [str(worker.error) for worker in reported] == ["broken"]
    assert line.in_flight() == 0


def test_a_detector_of_its_own_has_one_worker() -> None:
    line = Line(StandIn())
    assert [worker.name for worker in line.group.workers] == ["inference"]
