"""Rates over the last seconds, for people; Prometheus computes its own from the counters.

`Rates` compares the counts of the ledger, `Recent` keeps what happened in a stream, `RecentEvents` counts what a
subscriber sees.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from streamdet.monitoring.ledger import Ledger, StreamLedger
from streamdet.types import Drop

_WINDOW_SECONDS = 5.0
_SAMPLE_SECONDS = 0.9
_HOUR_SECONDS = 3600.0
_MAX_ALERTS = 10_000
# Of a fast stream, those of the newest seconds are enough.
_MAX_LATENCIES = 250

_Counts = tuple[int, int, int, int, int, int]


class Fps(NamedTuple):
    """Frames per second of a stream.

    Attributes:
        captured: came in.
        published: went out as events.
        rate_limited: were left out because of `max_fps`.
        overload: were left out because the detector was busy: a newer one came first, or they were too old.
        not_decoded: were not decoded, as `decode` wants it.
        gated: were left out by the motion gate, because they showed nothing new.
    """

    captured: float
    published: float
    rate_limited: float = 0.0
    overload: float = 0.0
    not_decoded: float = 0.0
    gated: float = 0.0


class Rates:
    """Compares the ledger with what it was some seconds ago; for one thread.

    Args:
        ledger: where frames are counted.
        clock: monotonic seconds.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._samples: deque[tuple[float, dict[str, _Counts]]] = deque()

    def sample(self) -> None:
        """Keeps the counts of this moment, unless it just did so; to be called about once a second."""
        now = self._clock()
        if self._samples and now - self._samples[-1][0] < _SAMPLE_SECONDS:
            return
        self._samples.append((now, self._counts()))
        while now - self._samples[0][0] > _WINDOW_SECONDS:
            self._samples.popleft()

    def fps(self) -> dict[str, Fps]:
        """Of each stream that exists now; 0 for a new one."""
        now, counts = self._clock(), self._counts()
        rates = {}
        for stream, present in counts.items():
            rates[stream] = Fps(0.0, 0.0)
            for at, earlier in self._samples:
                # A stream that was removed and added again counts from 0.
                if stream in earlier and now > at and earlier[stream][0] <= present[0]:
                    pairs = zip(present, earlier[stream], strict=True)
                    rates[stream] = Fps(*(max(count - before, 0) / (now - at) for count, before in pairs))
                    break
        return rates

    def _counts(self) -> dict[str, _Counts]:
        return {name: _counts_of(stream) for name, stream in self._ledger.snapshot().items()}


def _counts_of(stream: StreamLedger) -> _Counts:
    """As the attributes of `Fps`, in frames."""
    dropped = stream.dropped
    overload = dropped[Drop.SUPERSEDED] + dropped[Drop.STALE]
    return (
        stream.captured,
        stream.published,
        dropped[Drop.RATE_LIMITED],
        overload,
        dropped[Drop.NOT_DECODED],
        dropped[Drop.GATED],
    )


class Recent:
    """The latencies of one stream's newest events, and its alerts of the last hour. Thread-safe.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latencies: deque[tuple[float, float]] = deque(maxlen=_MAX_LATENCIES)
        self._alerts: deque[float] = deque(maxlen=_MAX_ALERTS)

    def published(self, latency_seconds: float) -> None:
        """A frame's event was published, this long after capture."""
        self._latencies.append((self._clock(), latency_seconds))

    def alert_raised(self) -> None:
        """A rule raised an alert."""
        self._alerts.append(self._clock())

    def latency_seconds(self) -> tuple[float, float] | None:
        """Median and 95th percentile over the last five seconds; None without events."""
        since = self._clock() - _WINDOW_SECONDS
        values = sorted(latency for at, latency in self._latencies.copy() if at >= since)
        if not values:
            return None
        return round(values[len(values) // 2], 4), round(values[int(len(values) * 0.95)], 4)

    def alerts_last_hour(self) -> int:
        """Alerts that were raised in the last hour, 10,000 at most."""
        since = self._clock() - _HOUR_SECONDS
        return sum(at >= since for at in self._alerts.copy())


class RecentEvents:
    """The events of one stream in the last seconds, each with a value such as its latency; for one thread."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float = 0.0) -> None:
        """Takes an event that came now, in monotonic seconds."""
        self._events.append((now, value))
        self._drop_old(now)

    def values(self) -> list[float]:
        """The values of the newest events."""
        return [value for _, value in self._events]

    def per_second(self, now: float) -> float:
        """Events per second; 0 for fewer than two."""
        self._drop_old(now)
        if len(self._events) < 2:
            return 0.0
        return (len(self._events) - 1) / max(now - self._events[0][0], 1e-3)

    def _drop_old(self, now: float) -> None:
        while self._events and self._events[0][0] < now - _WINDOW_SECONDS:
            self._events.popleft()
