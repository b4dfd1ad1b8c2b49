"""A rate that may not be exceeded for long."""

from __future__ import annotations

import time
from collections.abc import Callable


class Rate:
    """Lets `per_second` things pass per second, and after a pause as many at once; for one thread.

    Args:
        per_second: how many.
        clock: monotonic seconds.
    """

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self._clock = clock
        self._left = float(per_second)
        self._at = clock()

    def passes(self) -> bool:
        """Whether another one may pass now; if so, it has."""
        now = self._clock()
        self._left = min(self._left + (now - self._at) * self.per_second, float(self.per_second))
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
