"""Zones, lines and masks: where objects stand, and which lines they go over. Pure geometry.

An object stands where the middle of its box's lower edge is: its feet, its wheels. All points are parts of the
picture's width and height, so shapes stay right when the size of the picture changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from streamdet.config.shapes import LineConfig, PolygonConfig, side_of
from streamdet.types import Crossing, Detection, Direction, Geometry, Point, Shape

# An object counts as being on one side of a line only when it is this far from it, in parts of the picture's size:
# one that stands upon the line and trembles crosses it once, not at every frame.
_CLEAR_OF_LINE = 0.005


class ShapesConfig(Protocol):
    """The part of a stream's configuration that is used here."""

    @property
    def zones(self) -> tuple[PolygonConfig, ...]:
        """Areas that detections name."""

    @property
    def lines(self) -> tuple[LineConfig, ...]:
        """Lines whose crossings are told."""

    @property
    def masks(self) -> tuple[PolygonConfig, ...]:
        """Areas in which nothing is told."""


class Zones:
    """The shapes of one stream, and on which side of its lines each tracked object was.

    Args:
        config: the shapes.
    """

    def __init__(self, config: ShapesConfig) -> None:
        self._zones = [(zone.name, zone.polygon, frozenset(zone.labels)) for zone in config.zones]
        self._masks = [(mask.polygon, frozenset(mask.labels)) for mask in config.masks]
        self._lines = [(line.name, line.points[0], line.points[1], frozenset(line.labels)) for line in config.lines]
        # By the name of the line: where each track was when it was last clear of it.
        self._clear_points: dict[str, dict[int, Point]] = {name: {} for name, *_ in self._lines}
        self.geometry = _geometry(config)

    def __bool__(self) -> bool:
        return self.geometry is not None

    def mark(self, detections: Iterable[Detection], size: tuple[int, int]) -> list[Detection]:
        """Leaves out what a mask hides, and names the zones of the rest."""
        kept: list[Detection] = []
        for found in detections:
            point = anchor(found, size)
            if any(_means(labels, found) and contains(polygon, point) for polygon, labels in self._masks):
                continue
            names = tuple(
                name for name, polygon, labels in self._zones if _means(labels, found) and contains(polygon, point)
            )
            kept.append(Detection(found.label, found.score, found.box, found.track_id, names) if names else found)
        return kept

    def crossings(
        self, detections: Sequence[Detection], size: tuple[int, int], alive: Collection[int]
    ) -> tuple[Crossing, ...]:
        """Lines that the objects have gone over since they were last clear of them.

        Args:
            detections: of one frame, with track ids.
            size: width and height of the frame in pixels.
            alive: tracks that may still come; what is known of others is forgotten.
        """
        crossed: list[Crossing] = []
        for name, start, end, labels in self._lines:
            points = self._clear_points[name]
            for gone in points.keys() - alive:
                del points[gone]
            for found in detections:
                if found.track_id is None or not _means(labels, found):
                    continue
                point = anchor(found, size)
                if distance(start, end, point) < _CLEAR_OF_LINE:
                    continue
                before = points.get(found.track_id)
                points[found.track_id] = point
                direction = None if before is None else crossing(start, end, before, point)
                if direction is not None:
                    crossed.append(Crossing(name, direction, found.track_id, found.label))
        return tuple(crossed)


def anchor(found: Detection, size: tuple[int, int]) -> Point:
    """Where an object stands: the middle of its box's lower edge."""
    x1, _, x2, y2 = found.box
    return (x1 + x2) / 2 / size[0], y2 / size[1]


def contains(polygon: Sequence[Point], point: Point) -> bool:
    """Whether a point lies within a polygon (even-odd rule); a point upon its edge may count either way.

    A ray to the right meets the sides an odd number of times. Each side takes its upper end and not its lower one,
    so that a ray through a corner counts once, and of two zones that share a side exactly one takes a point upon it.
    """
    x, y = point
    inside = False
    x1, y1 = polygon[-1]
    for x2, y2 in polygon:
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            inside = not inside
        x1, y1 = x2, y2
    return inside


def crossing(start: Point, end: Point, before: Point, after: Point) -> Direction | None:
    """In which direction the way from `before` to `after` goes over the line; None where it does not.

    Who goes from the left of the line to its right, as seen from its start towards its end, goes "in".
    """
    was, now = side_of(start, end, before), side_of(start, end, after)
    if (was < 0) == (now < 0) or (side_of(before, after, start) < 0) == (side_of(before, after, end) < 0):
        return None
    return "in" if was < 0 else "out"


def distance(start: Point, end: Point, point: Point) -> float:
    """From a point to the nearest point of a segment."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((point[0] - start[0]) * dx + (point[1] - start[1]) * dy) / (dx * dx + dy * dy)
    along = min(max(along, 0.0), 1.0)
    x, y = point[0] - start[0] - along * dx, point[1] - start[1] - along * dy
    return float((x * x + y * y) ** 0.5)


def _means(labels: frozenset[str], found: Detection) -> bool:
    return not labels or found.label in labels


def _geometry(config: ShapesConfig) -> Geometry | None:
    zones, masks = (
        tuple(Shape(shape.name, shape.polygon) for shape in shapes) for shapes in (config.zones, config.masks)
    )
    lines = tuple(Shape(line.name, line.points) for line in config.lines)
    return Geometry(zones, lines, masks) if zones or lines or masks else None
