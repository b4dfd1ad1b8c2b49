"""Lets several inference workers share a queue, and passes their results on in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from streamdet.inference.batch_queue import BatchQueue
from streamdet.types import Detection, Frame


class ResultSequencer:
    """Hands results on so that those of a stream leave in the order of its frames, whichever worker detected them.

    A result that is ready before one of an older frame of its stream is held until that one has left. The worker goes
    on: batches differ in size, so one that waited for all older batches would often be idle. Streams do not wait for
    each other.

    Thread-safe.

    Args:
        queue: where batches come from.
        put_detections: takes each frame with its detections; called by one thread at a time; may wait.
        at_once: how many batches may be out at the same time.
        shares: whether a worker leaves the others their part of what waits, unless that fills a batch. A worker that
            is about to be done takes the rest sooner than it would leave in a larger batch; where large batches gain
            little, as on a CPU, that costs next to nothing.
        max_held: results that may wait for older ones, with their pictures (3 MB for 1080p); then no batch is handed
            out. They are a few, unless a worker hangs.
    """

    def __init__(
        self,
        queue: BatchQueue,
        put_detections: Callable[[Frame, list[Detection]], None],
        at_once: int,
        *,
        shares: bool = False,
        max_held: int = 64,
    ) -> None:
        self._queue = queue
        self._put_detections = put_detections
        self._taking = threading.Lock()
        self._changed = threading.Condition()
        self._pending: dict[str, deque[_Pending]] = {}
        self._held = 0
        self._max_held = max_held
        self._at_once = at_once
        self._shares = shares
        self._out = 0

    def take(self, timeout_seconds: float) -> list[Frame]:
        """The next batch; each of its frames must be handed on or dropped, and then `end` be called.

        Waits while `at_once` batches are out, or many results are held; for the rest see `BatchQueue.take`.
        """
        with self._taking:
            with self._changed:
                if not self._changed.wait_for(self._may_take, timeout_seconds):
                    return []
            batch = self._queue.take(timeout_seconds, self._at_once if self._shares else 1)
            with self._changed:
                self._out += bool(batch)
                for frame in batch:
                    self._pending.setdefault(frame.stream, deque()).append(_Pending(frame))
            return batch

    def hand_on(self, frame: Frame, detections: list[Detection]) -> None:
        """Takes the detections of a frame: it leaves, with those that waited for it, or is held itself."""
        self._finish(frame, detections)

    def drop(self, frame: Frame) -> None:
        """Lets the frames of a stream that waited for this one leave; it will never be handed on itself."""
        self._finish(frame, None)

    def end(self) -> None:
        """Ends a batch: another one may be taken."""
        with self._changed:
            self._out -= 1
            self._changed.notify_all()

    def limit(self, at_once: int) -> None:
        """Sets how many batches may be out at the same time, from 1; takes effect within the time-out of a `take`.

        Never waits, unlike what hands results on: the receiver may be at a standstill.
        """
        self._at_once = at_once

    def held(self) -> int:
        """Results that wait for older ones."""
        return self._held

    def _may_take(self) -> bool:
        return self._held < self._max_held and self._out < self._at_once

    def _finish(self, frame: Frame, detections: list[Detection] | None) -> None:
        with self._changed:
            results = self._pending[frame.stream]
            result = next(result for result in results if result.frame is frame)
            result.is_done, result.detections = True, detections
            self._held += 1
            try:
                while results and results[0].is_done:
                    first = results.popleft()
                    self._held -= 1
                    if first.detections is not None:
                        self._put_detections(first.frame, first.detections)
            finally:
                if not results:
                    del self._pending[frame.stream]
                self._changed.notify_all()


@dataclass(slots=True, eq=False)
class _Pending:
    """A frame that a worker has; `detections` is None before it is done, and for good if it was dropped."""

    frame: Frame
    is_done: bool = False
    detections: list[Detection] | None = None
