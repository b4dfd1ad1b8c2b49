"""Measures how many cores captures leave free, so that detection takes these and no more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# Of what was measured last, in the mean that is used: some seconds count, not one of them.
_NEWEST_SHARE = 0.3


class SpareCores:
    """How many threads that detect the cores have room for; for one thread.

    More of them than that would take from captures what these need, and from each other: on two cores, beside 16
    captures that used 1.3, one detected 14 frames/s and two 10; beside captures that used 0.3, two 27 and one 20.

    What detection itself uses is not asked for: OpenVINO computes in threads of its own.

    Args:
        cores: that the process may use.
        captures_seconds: CPU time that captures have taken so far; it may fall when one ends.
        clock: monotonic seconds.
    """

    def __init__(
        self, cores: int, captures_seconds: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cores = cores
        self._captures_seconds = captures_seconds
        self._clock = clock
        self._measured_at = clock()
        self._seconds = captures_seconds()
        self._captures_cores = 0.0

    def sample(self) -> int:
        """The number of threads that fit, 1 to `cores`; a core of which captures use a part still counts.

        Call it about once a second.
        """
        now, seconds = self._clock(), self._captures_seconds()
        if now > self._measured_at:
            used = max(seconds - self._seconds, 0.0) / (now - self._measured_at)
            self._captures_cores += _NEWEST_SHARE * (used - self._captures_cores)
            self._measured_at, self._seconds = now, seconds
        return min(max(math.ceil(self._cores - self._captures_cores), 1), self._cores)
