"""What may be drawn over a stream's picture: `zones`, `lines` and `masks`, in parts of its width and height."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field, field_validator

from streamdet.config.tables.base import table
from streamdet.config.values import refuse
from streamdet.types import Point
from streamdet.wire import MAX_POINTS, MAX_SHAPES

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"


def _point(value: object) -> object:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(type(side) in (int, float) and 0 <= side <= 1 for side in value)
    ):
        refuse("must be a point: two numbers from 0 to 1, such as [0.5, 1.0]")
    return tuple(value)


_Point = Annotated[tuple[float, float], BeforeValidator(_point)]


class _Shape(BaseModel):
    model_config = table("on reload")

    name: str = Field(
        pattern=NAME_PATTERN,
        description="Its name in events and metrics: small letters, digits, - _ . (1 to 64), the first one a letter or "
        "digit; no two of a stream may share one.",
        examples=["door"],
    )
    labels: tuple[str, ...] = Field(
        (), description="Only objects with these labels count; empty for all.", examples=[["person"]]
    )


class PolygonConfig(_Shape):
    """A zone or a mask: the area within a polygon."""

    polygon: tuple[_Point, ...] = Field(
        description="Its corners, [x, y], as parts of the picture's width and height from the top left; 3 to 64.",
        examples=[[[0.1, 0.5], [0.4, 0.5], [0.4, 1.0], [0.1, 1.0]]],
    )

    @field_validator("polygon")
    @classmethod
    def _is_simple(cls, polygon: tuple[Point, ...]) -> tuple[Point, ...]:
        if not 3 <= len(polygon) <= MAX_POINTS:
            refuse(f"has {len(polygon)} points; a polygon has 3 to {MAX_POINTS}")
        if len(set(polygon)) < len(polygon):
            refuse("has a point twice; leave the second one out, the polygon closes by itself")
        if all(side_of(polygon[0], polygon[1], corner) == 0 for corner in polygon):
            refuse("has no area; its corners lie on one line")
        if crossing := crossing_sides(polygon):
            first, second = crossing
            refuse(f"crosses itself: side {first + 1} meets side {second + 1}; give the corners in their order")
        return polygon


class LineConfig(_Shape):
    """A line that objects go over."""

    points: tuple[_Point, ...] = Field(
        description="Its two ends, [x, y], as in `polygon`. Who goes from its left to its right, as seen from the "
        'first end towards the second, goes "in".',
        examples=[[[0.0, 0.75], [1.0, 0.75]]],
    )

    @field_validator("points")
    @classmethod
    def _is_a_line(cls, points: tuple[Point, ...]) -> tuple[Point, ...]:
        if len(points) != 2:
            refuse(f"has {len(points)} points; a line has 2")
        if points[0] == points[1]:
            refuse("begins where it ends")
        return points


SHAPES: dict[str, type[PolygonConfig | LineConfig]] = {
    "zones": PolygonConfig,
    "lines": LineConfig,
    "masks": PolygonConfig,
}
"""What stands in the lists of a stream."""


def side_of(start: Point, end: Point, point: Point) -> float:
    """Above 0 to the right of the line as seen from its start (y points down), below 0 to its left, 0 upon it."""
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])


def segments_meet(start: Point, end: Point, other_start: Point, other_end: Point) -> bool:
    """Whether two segments have a point in common, their ends included."""
    one, two = side_of(start, end, other_start), side_of(start, end, other_end)
    three, four = side_of(other_start, other_end, start), side_of(other_start, other_end, end)
    if (one > 0) != (two > 0) and (three > 0) != (four > 0) and 0 not in (one, two, three, four):
        return True
    return any(
        side == 0 and _within(*ends, point)
        for side, ends, point in (
            (one, (start, end), other_start),
            (two, (start, end), other_end),
            (three, (other_start, other_end), start),
            (four, (other_start, other_end), end),
        )
    )


def crossing_sides(polygon: tuple[Point, ...]) -> tuple[int, int] | None:
    """Two sides of a polygon, counted from 0, that meet elsewhere than in a corner they share; None when none do."""
    count = len(polygon)
    sides = [(polygon[index], polygon[(index + 1) % count]) for index in range(count)]
    for first in range(count):
        for second in range(first + 1, count):
            if second == first + 1 or (first == 0 and second == count - 1):
                # Neighbours share a corner; they cross only where one runs back along the other.
                near, far = (first, second) if second == first + 1 else (second, first)
                if _runs_back(sides[near][0], sides[near][1], sides[far][1]):
                    return first, second
            elif segments_meet(*sides[first], *sides[second]):
                return first, second
    return None


def _within(start: Point, end: Point, point: Point) -> bool:
    """Whether a point on the line through both ends lies between them."""
    low_x, high_x = sorted((start[0], end[0]))
    low_y, high_y = sorted((start[1], end[1]))
    return low_x <= point[0] <= high_x and low_y <= point[1] <= high_y


def _runs_back(start: Point, corner: Point, end: Point) -> bool:
    forward = (corner[0] - start[0]) * (end[0] - corner[0]) + (corner[1] - start[1]) * (end[1] - corner[1])
    return side_of(start, corner, end) == 0 and forward < 0


def check_shapes(shapes: tuple[PolygonConfig, ...] | tuple[LineConfig, ...]) -> None:
    """Refuses what cannot stand in one list.

    Raises:
        ValueError: there are too many, or two have the same name.
    """
    if len(shapes) > MAX_SHAPES:
        refuse(f"are {len(shapes)}; there may be {MAX_SHAPES} at most")
    names = [shape.name for shape in shapes]
    for name in names:
        if names.count(name) > 1:
            refuse(f'hold the name "{name}" twice; every one needs a name of its own')
