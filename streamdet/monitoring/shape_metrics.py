"""What the metrics page says of zones and lines."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from streamdet.types import Crossing, Direction

_DIRECTIONS: tuple[Direction, ...] = ("in", "out")


class ShapeMetrics:
    """The series of every stream's zones and lines: there, at zero, from `set` on; gone after `remove`.

    Any thread may call; what is reported about a shape that is not there is ignored.

    Args:
        registry: what the metrics page shows.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._crossings = Counter(
            "streamdet_line_crossings",
            "Objects that went over a line.",
            ["stream", "line", "direction"],
            registry=registry,
        )
        self._objects = Gauge(
            "streamdet_zone_objects",
            "Objects that stand in a zone; 0 while the stream is not up.",
            ["stream", "zone"],
            registry=registry,
        )
        self._lock = threading.Lock()
        self._zones: dict[str, dict[str, Gauge]] = {}
        self._lines: dict[str, dict[tuple[str, Direction], Counter]] = {}

    def set(self, stream: str, zones: Sequence[str], lines: Sequence[str]) -> None:
        """Makes these the shapes of a stream; those that it had already go on counting."""
        with self._lock:
            keys = [(line, direction) for line in lines for direction in _DIRECTIONS]
            for zone in self._zones.get(stream, {}).keys() - {*zones}:
                self._objects.remove(stream, zone)
            for key in self._lines.get(stream, {}).keys() - {*keys}:
                self._crossings.remove(stream, *key)
            self._zones[stream] = {zone: self._objects.labels(stream, zone) for zone in zones}
            self._lines[stream] = {key: self._crossings.labels(stream, *key) for key in keys}

    def remove(self, stream: str) -> None:
        """Forgets a stream."""
        self.set(stream, (), ())
        with self._lock:
            del self._zones[stream], self._lines[stream]

    def seen(self, stream: str, zone_counts: Mapping[str, int], crossings: Iterable[Crossing]) -> None:
        """In a frame so many objects stood in each zone, and these lines were crossed."""
        zones = self._zones.get(stream, {})
        for zone, count in zone_counts.items():
            if zone in zones:
                zones[zone].set(count)
        lines = self._lines.get(stream, {})
        for crossing in crossings:
            counter = lines.get((crossing.line, crossing.direction))
            if counter is not None:
                counter.inc()

    def nothing_seen(self, stream: str) -> None:
        """The stream is not up: what stood there last must not stand there for ever."""
        for zone in self._zones.get(stream, {}).values():
            zone.set(0)
