from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamdet.analytics.tracker import Track
from streamdet.analytics.zones import Zones, contains, crossing, distance
from streamdet.config import StreamConfig
from streamdet.types import Crossing, Detection, Point

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
    return Detection(label, 0.9, (x * SIZE[0] - 2, y * SIZE[1] - 30, x * SIZE[0] + 2, y * SIZE[1]), track_id)


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
    found = [at(0.1, 0.5), at(0.3, 0.5), at(0.3, 0.5, label="car"), at(0.9, 0.5)]
    marked, _ = zones.see(found, SIZE, 1.0, {})
    assert [found.zones for found in marked] == [("left",), ("left", "middle"), ("left",), ()]


def test_masks_hide_what_stands_in_them() -> None:
    zones = zones_of(masks=[{"name": "street", "polygon": LEFT, "labels": ["car"]}])
    kept, _ = zones.see([at(0.1, 0.5), at(0.1, 0.5, label="car"), at(0.9, 0.5, label="car")], SIZE, 1.0, {})
    assert [(found.label, found.box[0]) for found in kept] == [("person", 18), ("car", 178)]


class Watch:
    """Shows one frame after the other, a tenth of a second apart."""

    def __init__(self, **shapes: Any) -> None:
        self.zones = zones_of(**shapes)
        self.now = 1.0

    def see(self, *found: Detection, size: tuple[int, int] = SIZE) -> tuple[list[Detection], list[Crossing]]:
        self.now += 0.1
        tracks = {one.track_id: Track(one.track_id, one, self.now) for one in found if one.track_id is not None}
        kept, crossed = self.zones.see(found, size, self.now, tracks)
        return kept, list(crossed)

    def walk(self, *heights: float, track_id: int = 7, x: float = 0.5) -> list[Crossing]:
        return [one for y in heights for one in self.see(at(x, y, track_id))[1]]

    def zones_on(self, *steps: Detection, size: tuple[int, int] = SIZE) -> str:
        """For each frame I where the object is in a zone, - where it is not; nothing where a mask hides it."""
        return "".join("I" if one.zones else "-" for step in steps for one in self.see(step, size=size)[0])


GATE = [{"name": "gate", "points": HALF}]


def test_a_walk_over_a_line_is_reported_once_and_in_its_direction() -> None:
    watch = Watch(lines=GATE)
    assert watch.walk(0.3, 0.4, 0.45) == []
    assert watch.walk(0.55, 0.6) == [Crossing("gate", "in", 7, "person")]
    assert watch.walk(0.55, 0.5, 0.45, 0.4) == [Crossing("gate", "out", 7, "person")]


def test_who_trembles_on_the_line_crosses_it_once() -> None:
    watch = Watch(lines=GATE)
    assert watch.walk(0.4, *[0.498, 0.502, 0.5] * 20, 0.6) == [Crossing("gate", "in", 7, "person")]
    assert Watch(lines=GATE).walk(*[0.502, 0.498, 0.5] * 20, 0.7) == []


FRAME = (768, 576)


def person(foot: float, height: float = 120.0, x: float = 300.0, track_id: int = 7) -> Detection:
    return Detection("person", 0.9, (x - 20, foot - height, x + 20, foot), track_id)


@given(st.lists(st.floats(-0.09, 0.09), min_size=5, max_size=60), st.floats(20, 300))
def test_whatever_a_box_trembles_by_in_units_of_its_height_counts_as_standing_still(
    noise: list[float], height: float
) -> None:
    """Measured on people who stand still: feet within 0.18 of the height from top to bottom."""
    watch = Watch(lines=GATE, zones=[{"name": "low", "polygon": [[0, 0.5], [1, 0.5], [1, 1], [0, 1]]}])
    steps = [person(288 + height * part, height) for part in noise]
    crossed = [one for step in steps for one in watch.see(step, size=FRAME)[1]]
    assert crossed == []
    assert len(set(watch.zones_on(*steps, size=FRAME))) == 1


def test_two_people_who_become_one_box_for_a_moment_cross_nothing() -> None:
    watch = Watch(lines=GATE, zones=[{"name": "low", "polygon": [[0, 0.5], [1, 0.5], [1, 1], [0, 1]]}])
    one, both = person(250), person(250 + 90, 120 + 90)
    steps = [*[one] * 5, *[both] * 3, *[one] * 4, both, one, both, *[one] * 5]
    assert [crossing for step in steps for crossing in watch.see(step, size=FRAME)[1]] == []
    assert watch.zones_on(*steps, size=FRAME) == "-" * len(steps)


def test_a_box_that_stays_larger_is_believed_and_has_crossed_nothing() -> None:
    watch = Watch(lines=GATE, zones=[{"name": "low", "polygon": [[0, 0.5], [1, 0.5], [1, 1], [0, 1]]}])
    seen = [watch.see(step, size=FRAME) for step in [*[person(250)] * 5, *[person(340, 210)] * 10]]
    assert [crossing for _, crossed in seen for crossing in crossed] == []
    assert [bool(kept[0].zones) for kept, _ in seen] == [False] * 10 + [True] * 5
    back = [person(foot, 210) for foot in (300, 260, 230)]
    assert [one.direction for step in back for one in watch.see(step, size=FRAME)[1]] == ["out"]


def test_two_objects_that_swap_their_ids_cross_nothing() -> None:
    """One of two people of the same size who stand on both sides of a line is found, then the other, under one id."""
    watch = Watch(lines=GATE)
    steps = [*[person(240)] * 6, *[person(340)] * 3, *[person(240)] * 4, person(340), person(240), *[person(340)] * 2]
    assert [one for step in steps for one in watch.see(step, size=FRAME)[1]] == []


@pytest.mark.parametrize("frames_apart", [1, 2, 5])
def test_a_quick_walk_is_counted_at_any_rate(frames_apart: int) -> None:
    """0.9 heights a second, growing by a third meanwhile: towards the camera."""
    zones = zones_of(lines=GATE)
    crossed: list[Crossing] = []
    for number in range(0, 30, frames_apart):
        foot = 200 + number * 9
        found = person(foot, foot / 2)
        crossed += zones.see([found], FRAME, 1 + number / 10, {7: Track(7, found, 1)})[1]
    assert [one.direction for one in crossed] == ["in"]


def test_a_line_near_the_edge_of_the_picture_counts_who_leaves() -> None:
    watch = Watch(lines=[{"name": "exit", "points": [[0, 0.97], [1, 0.97]]}])
    feet = [500, 520, 540, 560, 575.5]
    assert [c.direction for foot in feet for c in watch.see(person(foot), size=FRAME)[1]] == ["in"]


def test_a_zone_is_entered_and_left_by_a_clear_step() -> None:
    half = {"name": "low", "polygon": [[0, 0.5], [1, 0.5], [1, 1], [0, 1]]}
    watch = Watch(zones=[half])
    into, out = [250, 270, 290, 300, 312, 340], [330, 315, 300, 285, 270, 264, 250]
    assert watch.zones_on(*map(person, into), size=FRAME) == "-----I"
    assert watch.zones_on(*map(person, out), size=FRAME) == "IIIIII-"


def test_a_zone_that_ends_at_the_edge_of_the_picture_has_no_margin_there() -> None:
    watch = Watch(zones=[{"name": "strip", "polygon": [[0.3, 0.2], [0.5, 0.2], [0.5, 0.99], [0.3, 0.99]]}])
    assert watch.zones_on(*[person(565, x=x) for x in (180, 200, 230, 270, 300)], size=FRAME)[-1] == "I"


def test_a_zone_narrower_than_the_margin_can_be_entered() -> None:
    watch = Watch(zones=[{"name": "slot", "polygon": [[0.3, 0.2], [0.33, 0.2], [0.33, 0.9], [0.3, 0.9]]}])
    steps = [person(400, 200, x=x) for x in (180, 200, 220, 242, 242, 242, 242, 280, 320)]
    assert "I" in watch.zones_on(*steps, size=FRAME)
    assert not watch.see(steps[-1], size=FRAME)[0][0].zones


def test_who_trembles_at_the_edge_of_a_mask_does_not_come_and_go() -> None:
    watch = Watch(masks=[{"name": "street", "polygon": [[0, 0.5], [1, 0.5], [1, 1], [0, 1]]}])
    assert watch.zones_on(*[person(foot) for foot in [285, 291, 284, 292] * 5], size=FRAME) == "-" * 20


def test_a_line_ends_where_it_ends() -> None:
    watch = Watch(lines=[{"name": "gate", "points": [[0.4, 0.5], [0.6, 0.5]]}])
    assert watch.walk(0.3, 0.7, x=0.2) == []
    assert len(watch.walk(0.3, 0.7, x=0.5, track_id=8)) == 1


def test_lines_count_their_labels_and_tracks_only() -> None:
    watch = Watch(lines=[{"name": "gate", "points": HALF, "labels": ["car"]}])
    assert watch.walk(0.4, 0.6) == []
    for y in (0.4, 0.6):
        _, crossed = watch.see(at(0.2, y, 1, "car"), at(0.3, 1 - y, 2, "car"), at(0.4, y, None, "car"))
    assert crossed == [Crossing("gate", "in", 1, "car"), Crossing("gate", "out", 2, "car")]


def test_tracks_that_ended_are_forgotten() -> None:
    zone = {"name": "low", "polygon": LEFT}
    watch = Watch(lines=GATE, zones=[zone], masks=[zone | {"labels": ["car"]}])
    for track_id in range(100):
        watch.see(at(0.5, 0.4, track_id), at(0.2, 0.4, 1000 + track_id, "car"))
    zones = watch.zones
    assert len(zones._places) == 2
    areas, lines = (*zones._zones.values(), *zones._masks.values()), zones._lines.values()
    kept = [*(area.stays for area in areas), *(line.clear_points for line in lines)]
    assert all(len(each) <= 2 for each in kept)


def test_the_geometry_is_that_of_the_configuration() -> None:
    assert zones_of().geometry is None
    geometry = zones_of(lines=GATE, masks=[{"name": "m", "polygon": LEFT}]).geometry
    assert geometry is not None
    assert geometry.zones == ()
    assert geometry.lines[0].points == ((0.0, 0.5), (1.0, 0.5))
    assert [mask.name for mask in geometry.masks] == ["m"]
