"""The geometry of zones and lines beside shapely's, on any shapes; on the grid of eighths both compute exactly."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from shapely import LinearRing, LineString, Polygon
from shapely import Point as ShapelyPoint
from shapely import box as shapely_box

from streamdet.analytics.zones import contains, crossing, distance, touches
from streamdet.config.stream import crossing_sides, segments_meet
from streamdet.types import Box, Point

eighths = st.integers(0, 8).map(lambda value: value / 8)
grid_points = st.tuples(eighths, eighths)
shares = st.floats(0, 1)
points = st.one_of(grid_points, st.tuples(shares, shares))
grid_polygons = st.lists(grid_points, min_size=3, max_size=8, unique=True).map(tuple)
SMALL = 1e-9


@st.composite
def stars(draw: st.DrawFn) -> tuple[Point, ...]:
    """Polygons that do not cross themselves: each corner can be seen from the middle."""
    radii = draw(st.lists(st.floats(0.05, 0.5), min_size=3, max_size=16))
    first = draw(st.floats(0, 1))
    turns = [2 * math.pi * (first + number) / len(radii) for number in range(len(radii))]
    return tuple((0.5 + r * math.cos(turn), 0.5 + r * math.sin(turn)) for r, turn in zip(radii, turns, strict=True))


polygons = st.one_of(stars(), grid_polygons.filter(lambda corners: Polygon(corners).is_valid))


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    (x1, y1), (x2, y2) = draw(points), draw(points)
    assume(x1 != x2)
    assume(y1 != y2)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


@given(polygons, points)
def test_a_point_is_inside_where_shapely_says_so(polygon: tuple[Point, ...], point: Point) -> None:
    shape = Polygon(polygon)
    # A point on the edge may count either way.
    assume(shape.exterior.distance(ShapelyPoint(point)) > SMALL)
    assert contains(polygon, point) == shape.contains(ShapelyPoint(point))


@given(points, points, points)
def test_the_distance_to_a_line_is_shapelys(start: Point, end: Point, point: Point) -> None:
    assume(math.dist(start, end) > 1e-6)
    expected = LineString([start, end]).distance(ShapelyPoint(point))
    assert distance(start, end, point) == pytest.approx(expected, abs=SMALL)


@given(grid_points, grid_points, points, points)
def test_a_line_is_crossed_where_the_way_meets_it(start: Point, end: Point, before: Point, after: Point) -> None:
    assume(start != end)
    line, way = LineString([start, end]), LineString([before, after])
    # What stands on the line, or passes by its very end, may count either way.
    ends = [(line, before), (line, after), (way, start), (way, end)]
    assume(all(other.distance(ShapelyPoint(point)) > SMALL for other, point in ends))
    assert (crossing(start, end, before, after) is not None) == line.intersects(way)


@given(grid_points, grid_points, grid_points, grid_points)
def test_segments_meet_where_shapely_says_so(start: Point, end: Point, other_start: Point, other_end: Point) -> None:
    assume(start != end)
    assume(other_start != other_end)
    expected = LineString([start, end]).intersects(LineString([other_start, other_end]))
    assert segments_meet(start, end, other_start, other_end) == expected


@given(grid_polygons)
@example(((0.0, 0.0), (1.0, 0.0), (0.5, 0.0), (0.5, 1.0)))
@example(((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)))
@example(((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.0), (0.0, 1.0)))
def test_a_polygon_crosses_itself_where_shapely_says_so(polygon: tuple[Point, ...]) -> None:
    assert (crossing_sides(polygon) is None) == LinearRing(polygon).is_simple


@given(polygons, boxes())
@example(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)), (0.25, 0.25, 0.5, 0.5))
@example(((0.25, 0.25), (0.5, 0.25), (0.5, 0.5)), (0.0, 0.0, 1.0, 1.0))
@example(((0.0, 0.0), (0.5, 0.0), (0.0, 0.5)), (0.25, 0.25, 0.5, 0.5))
def test_a_box_touches_a_polygon_where_shapely_says_so(polygon: tuple[Point, ...], box: Box) -> None:
    shape, other = Polygon(polygon), shapely_box(*box)
    if shape.disjoint(other):
        assume(shape.distance(other) > SMALL)
        assert not touches(polygon, box)
    elif shape.intersection(other).area > SMALL:
        assert touches(polygon, box)
