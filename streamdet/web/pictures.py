"""The newest picture of every stream that a browser shows, and which streams are still shown."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NamedTuple

# A browser asks at least once a second; one that is silent for so long looks no more.
LEASE_SECONDS = 3.0
# Boxes of one picture as JSON: a thousand detections at the very most.
MAX_JPEG_BYTES = 1 << 20


class Shot(NamedTuple):
    """One picture, encoded once and sent to every browser unchanged.

    Attributes:
        id: larger than that of every picture before, of any stream.
        head: `"frame":{...},"detections":[...]`, the inside of a JSON object: what was found in this very picture.
        jpeg: the picture.
        taken_at: monotonic seconds at which it was captured.
    """

    id: int
    head: bytes
    jpeg: bytes
    taken_at: float


class Pictures:
    """Keeps one picture per stream as long as a browser shows it; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}
        self._newest: dict[str, Shot] = {}
        self._last_id = 0

    def want(self, streams: Iterable[str], now: float) -> None:
        """Records that a browser shows these streams at this monotonic time in seconds."""
        with self._lock:
            self._until.update(dict.fromkeys(streams, now + LEASE_SECONDS))

    def wanted(self, now: float) -> frozenset[str]:
        """Streams that a browser shows; the pictures of all others are deleted."""
        with self._lock:
            for stream in [stream for stream, until in self._until.items() if until < now]:
                del self._until[stream]
                self._newest.pop(stream, None)
            return frozenset(self._until)

    def put(self, stream: str, head: bytes, jpeg: bytes, taken_at: float) -> None:
        """Stores a picture, captured at this monotonic time in seconds; ignored if no browser shows its stream."""
        with self._lock:
            if stream in self._until:
                self._last_id += 1
                self._newest[stream] = Shot(self._last_id, head, jpeg, taken_at)

    def newer(self, seen: dict[str, int]) -> list[tuple[str, Shot]]:
        """The pictures that are newer than those that a browser has, by stream."""
        with self._lock:
            shots = [(stream, self._newest.get(stream)) for stream in seen]
            return [(stream, shot) for stream, shot in shots if shot is not None and shot.id > seen[stream]]
