"""Measures how many cores everything but detection leaves free, so that detection takes these and no more."""

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

    Args:
        cores: that the process may use.
        detecting_seconds: CPU time that detecting has taken so far.
        process_seconds: CPU time that the whole process has taken so far.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        cores: int,
        detecting_seconds: Callable[[], float],
        process_seconds: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cores = cores
        self._detecting_seconds = detecting_seconds
        self._process_seconds = process_seconds
        self._clock = clock
        self._measured_at = clock()
        self._seconds = self._others_seconds()
        self._others_cores = 0.0

    def sample(self) -> int:
        """The number of threads that fit, 1 to `cores`; a core of which others use a part still counts.

        Call it about once a second.
        """
        now, seconds = self._clock(), self._others_seconds()
        if now > self._measured_at:
            used = (seconds - self._seconds) / (now - self._measured_at)
            self._others_cores += _NEWEST_SHARE * (used - self._others_cores)
            self._measured_at, self._seconds = now, seconds
        return min(max(math.ceil(self._cores - self._others_cores), 1), self._cores)

    def _others_seconds(self) -> float:
        return self._process_seconds() - self._detecting_seconds()
