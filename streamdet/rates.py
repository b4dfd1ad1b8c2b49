"""Frames per second of each stream over the last seconds, for people; Prometheus computes its own from the counters."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from streamdet.ledger import Ledger

_WINDOW_SECONDS = 5.0
_SAMPLE_SECONDS = 0.9


class Fps(NamedTuple):
    """Frames per second that came in and went out as events."""

    captured: float
    published: float


class Rates:
    """Compares the ledger with what it was some seconds ago; for one thread.

    Args:
        ledger: where frames are counted.
        clock: monotonic seconds.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._samples: deque[tuple[float, dict[str, tuple[int, int]]]] = deque()

    def sample(self) -> None:
        """Notes the counts of this moment, unless it did so just now; to be called about once a second."""
        now = self._clock()
        if self._samples and now - self._samples[-1][0] < _SAMPLE_SECONDS:
            return
        self._samples.append((now, self._counts()))
        while now - self._samples[0][0] > _WINDOW_SECONDS:
            self._samples.popleft()

    def fps(self) -> dict[str, Fps]:
        """Of each stream that is there now; 0 for one that has just come."""
        now, counts = self._clock(), self._counts()
        rates = {}
        for stream, (captured, published) in counts.items():
            rates[stream] = Fps(0.0, 0.0)
            for at, earlier in self._samples:
                # A stream that was removed and added again counts from 0.
                if stream in earlier and now > at and earlier[stream][0] <= captured:
                    seconds = now - at
                    before = earlier[stream]
                    rates[stream] = Fps((captured - before[0]) / seconds, max(published - before[1], 0) / seconds)
                    break
        return rates

    def _counts(self) -> dict[str, tuple[int, int]]:
        return {name: (stream.captured, stream.published) for name, stream in self._ledger.snapshot().items()}
