"""How many pictures a batch may have to be over in time, as measured while it is detected."""

from __future__ import annotations

import math
import threading

# Of a new measurement, in the mean: twenty batches are about a second of a CPU that is busy.
_NEWEST_SHARE = 0.1
# A larger batch is tried where it is expected to take at most this part of the time. It takes less than that, as a
# picture takes less time in a larger batch; so the limit seldom goes up and down. With a smaller part, batches stay
# small for good after a few seconds that were slow, such as those in which all streams connect.
_ROOM = 0.9


class BatchLimit:
    """Lowers the size of batches while they take too long, as they do on a CPU beside captures, and raises it again.

    The trial of the engines times batches on a machine that does nothing else. Thread-safe.

    Args:
        largest: pictures of a batch at the most, however fast they are.
        longest_seconds: that a batch may take; None where batches are never too slow.

    Attributes:
        pictures: of a batch, from 1 to `largest`.
    """

    def __init__(self, largest: int, longest_seconds: float | None) -> None:
        self.pictures = largest
        self._largest = largest
        self._longest_seconds = longest_seconds
        self._lock = threading.Lock()
        self._picture_seconds: float | None = None

    def note(self, pictures: int, seconds: float) -> None:
        """A batch was detected.

        Args:
            pictures: that it had, from 1.
            seconds: that it took.
        """
        if self._longest_seconds is None:
            return
        with self._lock:
            newest = seconds / pictures
            if self._picture_seconds is None:
                self._picture_seconds = newest
            self._picture_seconds += _NEWEST_SHARE * (newest - self._picture_seconds)
            in_time = self._longest_seconds / self._picture_seconds
            if in_time < self.pictures:
                self.pictures = max(math.floor(in_time), 1)
            elif _ROOM * in_time >= self.pictures + 1:
                self.pictures = min(self.pictures + 1, self._largest)
