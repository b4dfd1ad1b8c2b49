from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamdet.config import StreamConfig
from streamdet.types import Crossing, Detection, Point
from streamdet.zones import Zones, anchor, contains, crossing, distance

SIZE = (200, 100)
HALF = [[0.0, 0.5], [1.0, 0.5]]
LEFT = [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]
RIGHT = [[0.5, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]]
shares = st.floats(0, 1)
points = st.tuples(shares, shares)


def zones_of(**keys: Any) -> Zones:
    return Zones(StreamConfig.model_validate({"name": "a", "url": "rtsp://192.0.2.5/x", **keys}))


def at(x: float, y: float, track_id: int | None = None, label: str = "person") -> Detection:
    """A detection that stands at this point."""
    return Detection(label, 0.9, (x * SIZE[0] - 2, y * SIZE[1] - 8, x * SIZE[0] + 2, y * SIZE[1]), track_id)


@given(points)
def test_an_object_stands_in_the_middle_of_its_lower_edge(point: Point) -> None:
    assert anchor(at(*point), SIZE) == pytest.approx(point)


@given(st.lists(points, min_size=3, max_size=12), points)
def test_inside_agrees_with_the_winding_of_angles(polygon: list[Point], point: Point) -> None:
    """By another method: how often the corners go round the point, whole turns; odd for even-odd polygons."""
    turns, previous = 0.0, polygon[-1]
    for corner in polygon:
        assume(distance_or_zero(previous, corner, point) > 1e-6)
        one = math.atan2(previous[1] - point[1], previous[0] - point[0])
        two = math.atan2(corner[1] - point[1], corner[0] - point[0])
        turns += (two - one + math.pi) % (2 * math.pi) - math.pi
        previous = corner
    assert contains(polygon, point) == bool(round(turns / (2 * math.pi)) % 2)


def distance_or_zero(start: Point, end: Point, point: Point) -> float:
    return distance(start, end, point) if math.dist(start, end) > 1e-6 else math.dist(start, point)


@given(points)
def test_zones_side_by_side_share_no_point_and_leave_none_out(point: Point) -> None:
    assume(point[0] < 1 and point[1] < 1)
    assert contains([(x, y) for x, y in LEFT], point) != contains([(x, y) for x, y in RIGHT], point)


def test_inside_agrees_with_opencv_on_a_star() -> None:
    star = [
        (0.5 + r * math.sin(a), 0.5 - r * math.cos(a))
        for a, r in ((i * math.pi / 5, (0.45, 0.18)[i % 2]) for i in range(10))
    ]
    contour = np.array(star, np.float32).reshape(-1, 1, 2)
    compared = 0
    for point in np.random.default_rng(1).random((500, 2)):
        side = cv2.pointPolygonTest(contour, (float(point[0]), float(point[1])), measureDist=True)
        if abs(side) > 1e-4:
            compared += 1
            assert contains(star, (point[0], point[1])) == (side > 0)
    assert compared > 400


@given(points, points, points, points)
def test_a_line_is_crossed_only_where_the_ways_meet(start: Point, end: Point, before: Point, after: Point) -> None:
    """By another method: the two parameters of the intersection, both within 0 and 1."""
    line, way = np.subtract(end, start), np.subtract(after, before)
    determinant = line[0] * way[1] - line[1] * way[0]
    assume(abs(determinant) > 1e-6)
    offset = np.subtract(before, start)
    on_line = (offset[0] * way[1] - offset[1] * way[0]) / determinant
    on_way = (offset[0] * line[1] - offset[1] * line[0]) / determinant
    assume(all(abs(part - edge) > 1e-6 for part in (on_line, on_way) for edge in (0, 1)))
    direction = crossing(start, end, before, after)
    assert (direction is not None) == (0 < on_line < 1 and 0 < on_way < 1)
    if direction:
        assert crossing(start, end, after, before) == {"in": "out", "out": "in"}[direction]
        assert crossing(end, start, before, after) == {"in": "out", "out": "in"}[direction]


def test_in_is_from_left_to_right_of_the_line() -> None:
    # Seen from (0, 0.5) towards (1, 0.5), the right hand points down.
    assert crossing((0, 0.5), (1, 0.5), (0.5, 0.4), (0.5, 0.6)) == "in"
    assert crossing((0, 0.5), (1, 0.5), (0.5, 0.6), (0.5, 0.4)) == "out"


def test_detections_name_their_zones() -> None:
    zones = zones_of(zones=[
        {"name": "left", "polygon": LEFT},
        {"name": "middle", "polygon": [[0.25, 0], [0.75, 0], [0.75, 1], [0.25, 1]], "labels": ["person"]},
    ])  # fmt: skip
    marked = zones.mark([at(0.1, 0.5), at(0.3, 0.5), at(0.3, 0.5, label="car"), at(0.9, 0.5)], SIZE)
    assert [found.zones for found in marked] == [("left",), ("left", "middle"), ("left",), ()]


def test_masks_hide_what_stands_in_them() -> None:
    zones = zones_of(masks=[{"name": "street", "polygon": LEFT, "labels": ["car"]}])
    kept = zones.mark([at(0.1, 0.5), at(0.1, 0.5, label="car"), at(0.9, 0.5, label="car")], SIZE)
    assert [(found.label, anchor(found, SIZE)[0]) for found in kept] == [("person", 0.1), ("car", 0.9)]


def walk(zones: Zones, *heights: float, track_id: int = 7, x: float = 0.5) -> list[Crossing]:
    return [one for y in heights for one in zones.crossings([at(x, y, track_id)], SIZE, {track_id})]


def test_a_walk_over_a_line_is_told_once_and_in_its_direction() -> None:
    zones = zones_of(lines=[{"name": "gate", "points": HALF}])
    assert walk(zones, 0.3, 0.4, 0.45) == []
    assert walk(zones, 0.55, 0.6) == [Crossing("gate", "in", 7, "person")]
    assert walk(zones, 0.4) == [Crossing("gate", "out", 7, "person")]


def test_who_trembles_upon_the_line_crosses_it_once() -> None:
    zones = zones_of(lines=[{"name": "gate", "points": HALF}])
    assert walk(zones, 0.4, *[0.498, 0.502, 0.5] * 20, 0.6) == [Crossing("gate", "in", 7, "person")]
    assert walk(zones, *[0.502, 0.498, 0.5] * 20, 0.7) == []


def test_a_line_ends_where_it_ends() -> None:
    zones = zones_of(lines=[{"name": "gate", "points": [[0.4, 0.5], [0.6, 0.5]]}])
    assert walk(zones, 0.3, 0.7, x=0.2) == []
    assert len(walk(zones, 0.3, 0.7, x=0.5, track_id=8)) == 1


def test_lines_count_their_labels_and_tracks_only() -> None:
    zones = zones_of(lines=[{"name": "gate", "points": HALF, "labels": ["car"]}])
    assert walk(zones, 0.4, 0.6) == []
    for y in (0.4, 0.6):
        crossed = zones.crossings(
            [at(0.2, y, 1, "car"), at(0.3, 1 - y, 2, "car"), at(0.4, y, None, "car")], SIZE, {1, 2}
        )
    assert crossed == (Crossing("gate", "in", 1, "car"), Crossing("gate", "out", 2, "car"))


def test_tracks_that_ended_are_forgotten() -> None:
    zones = zones_of(lines=[{"name": "gate", "points": HALF}])
    for track_id in range(100):
        zones.crossings([at(0.5, 0.4, track_id)], SIZE, {track_id})
    assert len(zones._clear_points["gate"]) == 1


def test_the_geometry_is_that_of_the_configuration() -> None:
    assert zones_of().geometry is None
    assert not zones_of()
    geometry = zones_of(lines=[{"name": "gate", "points": HALF}], masks=[{"name": "m", "polygon": LEFT}]).geometry
    assert geometry is not None
    assert geometry.zones == ()
    assert geometry.lines[0].points == ((0.0, 0.5), (1.0, 0.5))
    assert [mask.name for mask in geometry.masks] == ["m"]
