"""Rates and shares of time that may not be exceeded for long."""

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


class Share:
    """Lets work take a share of the time, and after a pause a burst of it; for one thread.

    Args:
        share: of the time, above 0 and at most 1.
        burst_seconds: of work that may be done at once after a pause.
        clock: monotonic seconds.
    """

    def __init__(self, share: float, burst_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._burst_seconds = burst_seconds
        self._clock = clock
        self._left_seconds = burst_seconds
        self._at = clock()

    def wait_seconds(self) -> float:
        """How long to wait before more may be done; 0 when it may be done now."""
        self._refill()
        return 0.0 if self._left_seconds > 0 else -self._left_seconds / self._share

    def worked(self, seconds: float) -> None:
        """Notes that so much time was spent."""
        self._refill()
        self._left_seconds -= seconds

    def _refill(self) -> None:
        now = self._clock()
        self._left_seconds = min(self._left_seconds + (now - self._at) * self._share, self._burst_seconds)
        self._at = now
