"""Limits how much decoding a live stream may cause, so that one camera cannot take the CPU from all others."""

from __future__ import annotations

import time
from collections.abc import Callable

from streamdet.errors import SourceError
from streamdet.security.limits import Rate
from streamdet.types import Reason

# Twice what fast cameras send; and as much more at once as comes after a short break of the network.
MOST_FRAMES_PER_SECOND = 240.0
BURST_SECONDS = 5.0
# If a stream takes nearly a whole core for this long, the daemon cannot keep up with it.
MOST_CORES = 0.95
CPU_WINDOW_SECONDS = 20.0


class LoadLimit:
    """Counts what was decoded of one stream, over all its connections; for its thread alone.

    Args:
        clock: monotonic seconds.
        cpu_clock: seconds of the processor that the calling thread has used.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu_clock: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._rate = Rate(MOST_FRAMES_PER_SECOND, clock, burst=MOST_FRAMES_PER_SECOND * BURST_SECONDS)
        self._window_at = self._window_cpu = 0.0

    def begin(self) -> None:
        """A connection has been opened; what opening took does not count."""
        self._window_at, self._window_cpu = self._clock(), self._cpu_clock()

    def frame(self) -> None:
        """A frame has been decoded.

        Raises:
            SourceError: overload.
        """
        if not self._rate.passes():
            raise SourceError(Reason.OVERLOAD, f"it sends more than {MOST_FRAMES_PER_SECOND:g} frames a second")
        seconds = self._clock() - self._window_at
        if seconds >= CPU_WINDOW_SECONDS:
            cores = (self._cpu_clock() - self._window_cpu) / seconds
            self.begin()
            if cores > MOST_CORES:
                detail = f"decoding it takes a whole core ({cores:.0%} over {CPU_WINDOW_SECONDS:g} s)"
                raise SourceError(Reason.OVERLOAD, detail)
