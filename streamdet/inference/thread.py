"""The inference thread: takes batches, detects, hands the detections on. It alone owns the detector."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from streamdet.detector.failures import first_line, is_device_lost, is_out_of_memory
from streamdet.detector.pool import DetectorPool
from streamdet.detector.stages.square_pixels import detect_with_square_pixels
from streamdet.errors import DetectorError, DeviceLostError
from streamdet.inference.batch_queue import BatchQueue
from streamdet.inference.sequence import ResultSequencer
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.opentelemetry import Tracer
from streamdet.monitoring.unexpected import describe
from streamdet.types import Detection, Drop, Frame, Picture
from streamdet.worker import Worker

OnUnusable = Callable[[Frame, str], None]
"""Told of a frame that the detector cannot use, and why in one line; from an inference thread."""

_log = logging.getLogger(__name__)

_TAKE_TIMEOUT_SECONDS = 1.0
# After memory ran out, smaller batches are used for this long; then the full size is tried again, because whatever
# took the memory may have given it back.
_SMALLER_BATCH_SECONDS = 60.0


class Detector(Protocol):
    """Finds objects in pictures."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that a detection may carry."""

    def detect(self, pictures: Sequence[Picture]) -> list[list[Detection]]:
        """The detections of each picture, by falling score."""

    def warm_up(self) -> None:
        """Runs the largest batch once, so that memory errors happen at the start."""


class Inference(Worker):
    """Takes batches from the queue until it is closed and empty.

    When memory runs out the batch is halved, until it fits; no frame is lost by that. A batch that fails for another
    reason is detected again frame by frame. A frame that fails alone is dropped (`decode_error`) and told of, if the
    detector still gets through a picture that it got through before; otherwise it is the detector that is broken.
    That, a device that is lost, and any error outside of the detector end the thread; the frames in hand are then
    dropped (`shutdown`), so that the ledger balances.

    Args:
        queue: where batches come from; stopping closes it, and what waits is still detected.
        detector: used by this thread alone.
        put_detections: takes each frame with its detections; may wait.
        metrics: gets batch sizes, waiting times, and batches that were halved.
        on_error: told when the thread has ended by an error.
        sequencer: shared with the other workers on the same queue; one of its own when not given.
        number: of the worker, from 1.
        tracer: follows some of the frames.
        stuck_after_seconds: how long frames may be due without one coming out; longer than the slowest batch.
        on_unusable: told of each frame that cannot be detected, and why in one line.
    """

    def __init__(
        self,
        queue: BatchQueue,
        detector: Detector,
        put_detections: Callable[[Frame, list[Detection]], None],
        metrics: Metrics,
        on_error: Callable[[Worker], None] | None = None,
        *,
        stuck_after_seconds: float = 60.0,
        sequencer: ResultSequencer | None = None,
        number: int = 1,
        tracer: Tracer | None = None,
        on_unusable: OnUnusable = lambda _frame, _why: None,
    ) -> None:
        super().__init__("inference" if number == 1 else f"inference-{number}", on_error)
        self._queue = queue
        self._sequencer = sequencer or ResultSequencer(queue, put_detections, 1)
        self._detector = detector
        self._metrics = metrics
        self._tracer = tracer
        self._on_unusable = on_unusable
        self._stuck_after_seconds = stuck_after_seconds
        self._in_hand: deque[Frame] = deque()
        self._batch_began_at: float | None = None
        self._batch_limit: int | None = None
        self._batch_limit_ends_at = 0.0
        # Frames in hand that were in a batch that failed.
        self._alone = 0
        # The newest one with something in it: it has been through all stages of the detector.
        self._sound_picture: Picture = _GreyPicture()

    def run(self) -> None:
        """Detects until the queue is closed and empty."""
        while True:
            batch = self._sequencer.take(_TAKE_TIMEOUT_SECONDS)
            if batch:
                self._process(batch)
            elif self._queue.drained:
                return

    def wake(self) -> None:
        """Closes the queue, so that `take` waits no more."""
        self._queue.close()

    def in_hand(self) -> int:
        """Frames taken from the queue and not handed on yet."""
        return len(self._in_hand)

    def is_stuck(self, now: float | None = None) -> bool:
        """Whether frames have been due for `stuck_after_seconds` and none came out.

        A slow detector that still yields frames is not stuck, nor is an idle one.

        Args:
            now: monotonic seconds; None for the present.
        """
        return self.seconds_without_progress(now) > self._stuck_after_seconds

    @property
    def batch_began_at(self) -> float | None:
        """Since when (monotonic seconds) it works on its batch; None while it has none."""
        return self._batch_began_at

    def seconds_without_progress(self, now: float | None = None) -> float:
        """How long frames have been due since the last one came out; 0 while none is due.

        Args:
            now: monotonic seconds; None for the present.
        """
        return _seconds_without_progress([self], self._queue, now)

    def _process(self, batch: list[Frame]) -> None:
        self._in_hand.extend(batch)
        self._batch_began_at = time.monotonic()
        for frame in batch:
            self._metrics.queue_wait_seconds.observe(self._batch_began_at - frame.captured_monotonic_seconds)
        self._alone = 0
        try:
            while self._in_hand:
                self._detect_some()
        except BaseException:
            # Raised again, whatever it is: the frames in hand must be in the ledger before the thread ends.
            for frame in self._in_hand:
                self._metrics.frame_dropped(frame.stream, Drop.SHUTDOWN)
                self._sequencer.drop(frame)
            self._in_hand.clear()
            raise
        finally:
            self._batch_began_at = None
            self._sequencer.end()

    def _detect_some(self) -> None:
        """Detects as many of the frames in hand as fit into memory, and hands them on."""
        if time.monotonic() >= self._batch_limit_ends_at:
            self._batch_limit = None
        frames = list(self._in_hand)[: 1 if self._alone else self._batch_limit]
        results = self._detect(frames)
        if isinstance(results, _Failed):
            self._go_on_after(results, frames)
            return
        self._alone = max(self._alone - 1, 0)
        self._metrics.batch_size.observe(len(frames))
        for frame, detections in zip(frames, results, strict=True):
            # From here on the frame is the receiver's, whatever happens.
            self._in_hand.popleft()
            if detections:
                self._sound_picture = frame.picture
            self._sequencer.hand_on(frame, detections)
            self.beat()

    def _detect(self, frames: list[Frame]) -> list[list[Detection]] | _Failed:
        """The detections of each frame; or what to know of the failure, where it may lie with a frame."""
        taken_at = self._batch_began_at or time.monotonic()
        try:
            with self._tracer.batch(frames, taken_at) if self._tracer else nullcontext():
                return detect_with_square_pixels(self._detector, [frame.picture for frame in frames])
        except Exception as error:
            if is_out_of_memory(error):
                if len(frames) == 1 and not self._detects_test_picture():
                    why = f"memory ran out on a single frame of {_size(frames[0])} ({first_line(error)})"
                    message = f"{why}: use a smaller model"
                    raise DetectorError(message) from error
            elif is_device_lost(error):
                message = f"the accelerator is lost, only a new process can use it: {first_line(error)}"
                raise DeviceLostError(message) from error
            elif self._alone and not self._detects_test_picture():
                raise
            return self._failure(error, frames)

    def _failure(self, error: Exception, frames: list[Frame]) -> _Failed:
        """What is known of an error, without the error: its traceback holds the tensors that filled memory."""
        memory_ran_out = is_out_of_memory(error)
        if memory_ran_out:
            why = f"memory does not suffice for pictures of {_size(frames[0])}"
        else:
            why = f"the picture cannot be used: {describe(error)}"
        if self._alone or (memory_ran_out and len(frames) == 1):
            self._metrics.unexpected.report("detection", error, "a frame is dropped", frames[0].stream)
        return _Failed(memory_ran_out, why)

    def _go_on_after(self, failed: _Failed, frames: list[Frame]) -> None:
        """Tries fewer frames, or each alone; a frame that fails then is dropped."""
        if failed.memory_ran_out and len(frames) > 1:
            self._halve(len(frames))
            return
        if not failed.memory_ran_out and not self._alone:
            self._alone = len(frames)
            return
        frame = self._in_hand.popleft()
        self._alone = max(self._alone - 1, 0)
        self._metrics.frame_dropped(frame.stream, Drop.DECODE_ERROR)
        self._sequencer.drop(frame)
        self._on_unusable(frame, failed.why)
        self.beat()

    def _detects_test_picture(self) -> bool:
        """Whether the detector still gets through what it got through before, so that a frame is at fault."""
        try:
            detect_with_square_pixels(self._detector, [self._sound_picture])
        except Exception as error:
            if is_device_lost(error):
                message = f"the accelerator is lost, only a new process can use it: {first_line(error)}"
                raise DeviceLostError(message) from error
            _log.warning("the detector fails on a picture that it got through before, too: %s", describe(error))
            return False
        return True

    def _halve(self, size: int) -> None:
        self._metrics.out_of_memory_total.inc()
        self._batch_limit = (size + 1) // 2
        self._batch_limit_ends_at = time.monotonic() + _SMALLER_BATCH_SECONDS
        _log.warning("memory ran out on a batch of %d: going on with %d (see max_batch_size)", size, self._batch_limit)


@dataclass(frozen=True, slots=True)
class _Failed:
    """Detection failed; whether for want of memory, and in one line why a frame that was alone cannot be used."""

    memory_ran_out: bool
    why: str


class _GreyPicture:
    """A picture of an ordinary size, as the detector has seen when it was warmed up."""

    width, height = 640, 480

    def to_rgb(self) -> NDArray[np.uint8]:
        """uint8 [480, 640, 3]."""
        return np.full((self.height, self.width, 3), 128, np.uint8)


def _size(frame: Frame) -> str:
    return f"{frame.picture.width}x{frame.picture.height}"


class InferenceGroup:
    """As many workers as the detector has parts, on one queue; a context manager that starts and stops them all.

    Args:
        queue: where batches come from; stopping closes it, and what waits is still detected.
        detector: a `DetectorPool`, each of them used by a thread of its own; or any other, used by one thread.
        put_detections: as for `Inference`; called by one thread at a time.
        metrics: as for `Inference`.
        on_error: as for `Inference`.
        stuck_after_seconds: as for `Inference`.
        tracer: as for `Inference`.
        on_unusable: as for `Inference`.
    """

    def __init__(
        self,
        queue: BatchQueue,
        detector: Detector,
        put_detections: Callable[[Frame, list[Detection]], None],
        metrics: Metrics,
        on_error: Callable[[Worker], None] | None = None,
        *,
        stuck_after_seconds: float = 60.0,
        tracer: Tracer | None = None,
        on_unusable: OnUnusable = lambda _frame, _why: None,
    ) -> None:
        detectors = detector.detectors if isinstance(detector, DetectorPool) else [detector]
        shares = isinstance(detector, DetectorPool) and detector.shares
        self._sequencer = sequencer = ResultSequencer(queue, put_detections, len(detectors), shares=shares)
        self.workers = [
            Inference(
                queue,
                each,
                put_detections,
                metrics,
                on_error,
                sequencer=sequencer,
                number=number,
                tracer=tracer,
                on_unusable=on_unusable,
            )
            for number, each in enumerate(detectors, 1)
        ]
        self._queue = queue
        self._metrics = metrics
        self._stuck_after_seconds = stuck_after_seconds
        metrics.batches_at_once.set(len(detectors))

    def __enter__(self) -> Self:
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            worker.join()

    def limit(self, at_once: int) -> None:
        """Lets so many workers detect at the same time, from 1; no more than there are."""
        at_once = min(at_once, len(self.workers))
        self._sequencer.limit(at_once)
        self._metrics.batches_at_once.set(at_once)

    def in_hand(self) -> int:
        """Frames taken from the queue and not handed on yet."""
        return sum(worker.in_hand() for worker in self.workers) + self._sequencer.held()

    def is_stuck(self, now: float | None = None) -> bool:
        """Whether one of the workers is."""
        return self.seconds_without_progress(now) > self._stuck_after_seconds

    def seconds_without_progress(self, now: float | None = None) -> float:
        """As for `Inference`, of all workers together."""
        return _seconds_without_progress(self.workers, self._queue, now)


def _seconds_without_progress(workers: Sequence[Inference], queue: BatchQueue, now: float | None) -> float:
    """The longest of any worker for its batch, and of all of them for what waits in the queue."""
    last_out = max(worker.heartbeat_monotonic_seconds for worker in workers)
    # Read once: a worker may be done meanwhile.
    batches = [(worker.batch_began_at, worker.heartbeat_monotonic_seconds) for worker in workers]
    began = [max(moment, heartbeat) for moment, heartbeat in batches if moment is not None]
    if (pending_since := queue.pending_since()) is not None:
        began.append(max(pending_since, last_out))
    now = time.monotonic() if now is None else now
    return max((now - moment for moment in began), default=0.0)
