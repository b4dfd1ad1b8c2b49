"""The inference threads: each takes batches, has its detector detect, and hands the detections on in order.

One batch after the other: what the queue hands out is detected, and what is in the frames goes to the publisher
through the sequencer, which keeps each stream's order. A thread alone uses its detector.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from streamdet.detector.failures import first_line, is_device_lost, is_out_of_memory
from streamdet.detector.pool import Detector, DetectorPool
from streamdet.detector.stages.square_pixels import detect_with_square_pixels
from streamdet.detector.stages.tiles import detect_with_tiles
from streamdet.errors import DetectorError, DeviceLostError
from streamdet.inference.batch_limit import BatchLimit
from streamdet.inference.batch_queue import BatchQueue
from streamdet.inference.sequence import ResultSequencer
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.opentelemetry import Tracer
from streamdet.monitoring.unexpected import describe
from streamdet.types import Detection, DetectionSettings, Drop, Frame, Picture
from streamdet.worker import Worker

OnUnusable = Callable[[Frame, str], None]
"""Gets a frame that the detector cannot use, and why in one line; called by an inference thread."""

_log = logging.getLogger(__name__)

_TAKE_TIMEOUT_SECONDS = 1.0


class InferenceGroup:
    """An inference thread for each detector, all on one queue; a context manager that starts and stops them.

    Args:
        queue: where batches come from; stopping closes it, and what waits is still detected.
        pool: the detectors.
        put_detections: takes each frame with its detections; called by one thread at a time; may wait.
        metrics: counts batches and their waiting times.
        on_error: called when a thread has ended by an error.
        stuck_after_seconds: how long frames may be due without one coming out; longer than the slowest batch.
        smaller_batch_seconds: for how long smaller batches are used after memory ran out.
        max_held_results: results that may wait for older ones of their stream, with their pictures.
        tracer: follows some of the frames.
        on_unusable: gets each frame that cannot be detected, and why in one line.

    Attributes:
        workers: the threads.
    """

    def __init__(
        self,
        queue: BatchQueue,
        pool: DetectorPool,
        put_detections: Callable[[Frame, list[Detection]], None],
        metrics: Metrics,
        on_error: Callable[[Worker], None] | None = None,
        *,
        stuck_after_seconds: float = 60.0,
        smaller_batch_seconds: float = 60.0,
        max_held_results: int = 64,
        tracer: Tracer | None = None,
        on_unusable: OnUnusable = lambda _frame, _why: None,
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._stuck_after_seconds = stuck_after_seconds
        count = len(pool.detectors)
        self._batch_limit = BatchLimit(queue.max_batch_size, pool.longest_batch_seconds)
        self._sequencer = ResultSequencer(queue, put_detections, count, shares=pool.shares, max_held=max_held_results)
        self.workers: list[Inference] = [
            Inference(
                number,
                queue,
                detector,
                self._sequencer,
                metrics,
                on_error,
                on_batch=self._on_batch,
                smaller_batch_seconds=smaller_batch_seconds,
                tracer=tracer,
                on_unusable=on_unusable,
            )
            for number, detector in enumerate(pool.detectors, 1)
        ]
        metrics.batches_at_once.set(count)
        metrics.batch_limit.set(queue.max_batch_size)

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
        """Sets how many workers may detect at the same time, from 1; no more than there are."""
        at_once = min(at_once, len(self.workers))
        self._sequencer.limit(at_once)
        self._metrics.batches_at_once.set(at_once)

    def _on_batch(self, pictures: int, seconds: float) -> None:
        self._batch_limit.note(pictures, seconds)
        self._queue.limit(self._batch_limit.pictures)
        self._metrics.batch_limit.set(self._batch_limit.pictures)

    def in_hand(self) -> int:
        """Frames taken from the queue and not handed on yet."""
        return sum(worker.in_hand() for worker in self.workers) + self._sequencer.held()

    def is_stuck(self, now: float | None = None) -> bool:
        """Whether frames have been due for `stuck_after_seconds` and none came out.

        A slow detector that still yields frames is not stuck, nor is an idle one.

        Args:
            now: monotonic seconds; None for the present.
        """
        return self.seconds_without_progress(now) > self._stuck_after_seconds

    def seconds_without_progress(self, now: float | None = None) -> float:
        """How long frames have been due since the last one came out; 0 while none is due.

        That is the longest of any worker for its batch, and of all of them for what waits in the queue.

        Args:
            now: monotonic seconds; None for the present.
        """
        last_out = max(worker.heartbeat_monotonic_seconds for worker in self.workers)
        # Read once: a worker may be done meanwhile.
        batches = [(worker.batch_began_at, worker.heartbeat_monotonic_seconds) for worker in self.workers]
        began = [max(moment, heartbeat) for moment, heartbeat in batches if moment is not None]
        if (pending_since := self._queue.pending_since()) is not None:
            began.append(max(pending_since, last_out))
        now = time.monotonic() if now is None else now
        return max((now - moment for moment in began), default=0.0)


class Inference(Worker):
    """Takes batches from the queue until it is closed and empty.

    The detector gets as many pictures at once as a batch may have: a frame with more tiles goes in several parts.

    When memory runs out the batch is halved, until it fits; no frame is lost by that. A batch that fails for another
    reason is detected again frame by frame. A frame that fails alone is dropped (`decode_error`) and reported, if the
    detector still gets through a picture that it got through before; otherwise it is the detector that is broken.
    That, a device that is lost, and any error outside of the detector end the thread; the frames in hand are then
    dropped (`shutdown`), so that the ledger balances.

    Args:
        number: of the worker, from 1.
        queue: closed by stopping; what waits is still detected.
        detector: used by this thread alone.
        sequencer: hands out batches and takes results; shared with the other workers on the queue.
        metrics: gets batch sizes, waiting times, and batches that were halved.
        on_error: called when the thread has ended by an error.
        on_batch: gets the pictures of each batch that was detected, and the seconds that it took.
        smaller_batch_seconds: for how long smaller batches are used after memory ran out; then the full size is tried
            again, because the process that took the memory may have given it back.
        tracer: follows some of the frames.
        on_unusable: gets each frame that cannot be detected, and why in one line.

    Attributes:
        batch_began_at: since when (monotonic seconds) it works on its batch; None while it has none.
    """

    def __init__(
        self,
        number: int,
        queue: BatchQueue,
        detector: Detector,
        sequencer: ResultSequencer,
        metrics: Metrics,
        on_error: Callable[[Worker], None] | None,
        *,
        on_batch: Callable[[int, float], None],
        smaller_batch_seconds: float,
        tracer: Tracer | None,
        on_unusable: OnUnusable,
    ) -> None:
        super().__init__("inference" if number == 1 else f"inference-{number}", on_error)
        self._queue = queue
        self._detector = detector
        self._sequencer = sequencer
        self._metrics = metrics
        self._on_batch = on_batch
        self._smaller_batch_seconds = smaller_batch_seconds
        self._tracer = tracer
        self._on_unusable = on_unusable
        self.batch_began_at: float | None = None
        self._in_hand: deque[Frame] = deque()
        self._smaller_batch: int | None = None
        self._smaller_until = 0.0
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
        """Closes the queue, which ends a wait of `take`."""
        self._queue.close()

    def in_hand(self) -> int:
        """Frames taken from the queue and not handed on yet."""
        return len(self._in_hand)

    def _process(self, batch: list[Frame]) -> None:
        self._in_hand.extend(batch)
        self.batch_began_at = time.monotonic()
        for frame in batch:
            self._metrics.queue_wait_seconds.observe(self.batch_began_at - frame.captured_monotonic_seconds)
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
            self.batch_began_at = None
            self._sequencer.end()

    def _detect_some(self) -> None:
        """Detects as many of the frames in hand as fit into memory, and hands them on."""
        if time.monotonic() >= self._smaller_until:
            self._smaller_batch = None
        at_once = self._smaller_batch or self._queue.max_batch_size
        frames = [self._in_hand[0]] if self._alone else self._first_frames(at_once)
        began = time.monotonic()
        results = self._detect(frames, at_once)
        if isinstance(results, _Failed):
            self._go_on_after(results, frames)
            return
        self._alone = max(self._alone - 1, 0)
        self._metrics.batch_size.observe(len(frames))
        self._on_batch(sum(frame.settings.looks for frame in frames), time.monotonic() - began)
        for frame, detections in zip(frames, results, strict=True):
            # From here on the frame is the receiver's, whatever happens.
            self._in_hand.popleft()
            if detections:
                self._sound_picture = frame.picture
            self._sequencer.hand_on(frame, detections)
            self.beat()

    def _first_frames(self, pictures: int) -> list[Frame]:
        """Of the frames in hand as many as have this number of pictures, with their tiles; at least one."""
        sums = list(itertools.accumulate(frame.settings.looks for frame in self._in_hand))
        return list(self._in_hand)[: max(bisect.bisect_right(sums, pictures), 1)]

    def _detect(self, frames: list[Frame], at_once: int) -> list[list[Detection]] | _Failed:
        """The detections of each frame; or what is known of a failure that a frame may have caused.

        Args:
            frames: to detect.
            at_once: how many pictures the detector gets at most; each frame is one, and so is each of its tiles.
        """
        taken_at = self.batch_began_at or time.monotonic()
        try:
            with self._tracer.batch(frames, taken_at) if self._tracer else nullcontext():
                pictures, settings = [frame.picture for frame in frames], [frame.settings for frame in frames]
                return detect_with_tiles(self._detector, pictures, settings, at_once)
        except Exception as error:
            size = min(at_once, sum(frame.settings.looks for frame in frames))
            if is_out_of_memory(error):
                if size == 1 and not self._detects_test_picture():
                    why = f"memory ran out on a single frame of {_size(frames[0])} ({first_line(error)})"
                    message = f"{why}: use a smaller model"
                    raise DetectorError(message) from error
            elif is_device_lost(error):
                message = f"the accelerator is lost, only a new process can use it: {first_line(error)}"
                raise DeviceLostError(message) from error
            elif self._alone and not self._detects_test_picture():
                raise
            return self._failure(error, frames, size)

    def _failure(self, error: Exception, frames: list[Frame], size: int) -> _Failed:
        """What is known of an error, without the error: its traceback holds the tensors that filled memory."""
        memory_ran_out = is_out_of_memory(error)
        if memory_ran_out:
            why = f"not enough memory for pictures of {_size(frames[0])}"
        else:
            why = f"the picture cannot be used: {describe(error)}"
        if size == 1 if memory_ran_out else self._alone:
            self._metrics.unexpected.report("detection", error, "a frame is dropped", frames[0].stream)
        return _Failed(memory_ran_out, size, why)

    def _go_on_after(self, failed: _Failed, frames: list[Frame]) -> None:
        """Tries fewer frames, or each alone; a frame that fails then is dropped."""
        if failed.memory_ran_out and failed.size > 1:
            self._halve(failed.size)
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
        """Whether the detector still works on a picture that it detected before, so that the frame is at fault."""
        try:
            detect_with_square_pixels(self._detector, [self._sound_picture], [DetectionSettings()])
        except Exception as error:
            if is_device_lost(error):
                message = f"the accelerator is lost, only a new process can use it: {first_line(error)}"
                raise DeviceLostError(message) from error
            _log.warning("the detector also fails on a picture that it detected before: %s", describe(error))
            return False
        return True

    def _halve(self, size: int) -> None:
        self._metrics.out_of_memory_total.inc()
        self._smaller_batch = (size + 1) // 2
        self._smaller_until = time.monotonic() + self._smaller_batch_seconds
        _log.warning(
            "memory ran out on a batch of %d: going on with %d (see max_batch_size)", size, self._smaller_batch
        )


@dataclass(frozen=True, slots=True)
class _Failed:
    """Detection failed: whether memory ran out, on how many pictures, and in one line why a frame cannot be used."""

    memory_ran_out: bool
    size: int
    why: str


class _GreyPicture:
    """A picture of an ordinary size, which the detector has detected in its warm-up."""

    width, height = 640, 480

    def to_rgb(self) -> NDArray[np.uint8]:
        """uint8 [480, 640, 3]."""
        return np.full((self.height, self.width, 3), 128, np.uint8)


def _size(frame: Frame) -> str:
    return f"{frame.picture.width}x{frame.picture.height}"
