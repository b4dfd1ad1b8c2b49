"""The order in which several inference workers take batches from one queue and hand on their results."""

from __future__ import annotations

import threading

from streamdet.batch_queue import BatchQueue
from streamdet.types import Frame


class Turns:
    """Lets several workers share a queue, and hand results on in the order in which they took the batches.

    A batch gets its number while no one else takes one, and each worker waits, when it has results, until the batch
    before its own has left: so what leaves of one stream is in the order of its frames, whoever detected them.

    Args:
        queue: where batches come from.
    """

    def __init__(self, queue: BatchQueue) -> None:
        self._queue = queue
        self._taking = threading.Lock()
        self._changed = threading.Condition()
        self._taken = 0
        self._left = 0

    def take(self, timeout_seconds: float) -> tuple[int, list[Frame]]:
        """The next batch with its number; see `BatchQueue.take`."""
        with self._taking:
            batch = self._queue.take(timeout_seconds)
            if batch:
                self._taken += 1
            return self._taken, batch

    def wait(self, number: int) -> None:
        """Waits until all batches before this one have left."""
        with self._changed:
            self._changed.wait_for(lambda: self._left >= number - 1)

    def pass_on(self, number: int) -> None:
        """Says that this batch has left, or never will; waits for those before it."""
        with self._changed:
            self._changed.wait_for(lambda: self._left >= number - 1)
            self._left = number
            self._changed.notify_all()
