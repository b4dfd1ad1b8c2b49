"""The frame ledger: captured = published + dropped by reason + in flight, exact per stream at every moment."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from streamdet.types import Drop

_CAPTURED = "captured"
_PUBLISHED = "published"


@dataclass(frozen=True)
class StreamLedger:
    """What became of the frames of one stream.

    Attributes:
        captured: frames received since the stream was added: decoded, or left out as `decode` wants it.
        published: frames whose detection event was handed to ZeroMQ.
        dropped: frames that were not, for every reason.
        in_flight: frames on their way.
    """

    captured: int
    published: int
    dropped: dict[Drop, int]

    @property
    def in_flight(self) -> int:
        """Frames that wait in the queue, are being detected, or wait to be published."""
        return self.captured - self.published - sum(self.dropped.values())


class Ledger:
    """Counts frames; any thread may write, and a snapshot is consistent.

    A removed stream is not shown any more. If it is added again while frames of its earlier life are still on
    their way, it begins with those as captured, so that the sum stays exact when they arrive.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[str, dict[str, int]] = {}
        self._in_flight_of_removed: dict[str, int] = {}

    def set_stream(self, stream: str) -> None:
        """Begins to count a stream; does nothing when it is counted already."""
        with self._lock:
            if stream not in self._streams:
                counts = dict.fromkeys((_CAPTURED, _PUBLISHED, *Drop), 0)
                counts[_CAPTURED] = self._in_flight_of_removed.pop(stream, 0)
                self._streams[stream] = counts

    def remove_stream(self, stream: str) -> None:
        """Forgets a stream, whose capture has ended."""
        with self._lock:
            counts = self._streams.pop(stream, None)
            if counts is None:
                return
            in_flight = _close(counts).in_flight
            if in_flight:
                self._in_flight_of_removed[stream] = in_flight

    def captured(self, stream: str) -> None:
        """A frame was received."""
        self._count(stream, _CAPTURED)

    def published(self, stream: str) -> None:
        """A frame's event was handed to ZeroMQ."""
        self._count(stream, _PUBLISHED)

    def dropped(self, stream: str, reason: Drop) -> None:
        """A frame will not be published."""
        self._count(stream, reason)

    def snapshot(self) -> dict[str, StreamLedger]:
        """The counts of all streams at one moment."""
        with self._lock:
            return {stream: _close(counts) for stream, counts in self._streams.items()}

    def counts_of(self, stream: str) -> StreamLedger | None:
        """The counts of one stream; None where it is not known."""
        with self._lock:
            counts = self._streams.get(stream)
            return None if counts is None else _close(counts)

    def is_on_its_way(self, stream: str) -> bool:
        """Whether a frame of a stream was captured and is neither published nor dropped yet."""
        with self._lock:
            counts = self._streams.get(stream)
            return counts is not None and _close(counts).in_flight > 0

    def _count(self, stream: str, what: str) -> None:
        with self._lock:
            counts = self._streams.get(stream)
            if counts is not None:
                counts[what] += 1
            elif stream in self._in_flight_of_removed:
                self._in_flight_of_removed[stream] += 1 if what == _CAPTURED else -1
                if not self._in_flight_of_removed[stream]:
                    del self._in_flight_of_removed[stream]


def _close(counts: dict[str, int]) -> StreamLedger:
    return StreamLedger(counts[_CAPTURED], counts[_PUBLISHED], {reason: counts[reason] for reason in Drop})
