from __future__ import annotations

import math
import random
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
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
    kept = [*(area.stays for area in areas), *(line.clears for line in lines)]
    assert all(len(each) <= 2 for each in kept)


def test_the_geometry_is_that_of_the_configuration() -> None:
    assert zones_of().geometry is None
    geometry = zones_of(lines=GATE, masks=[{"name": "m", "polygon": LEFT}]).geometry
    assert geometry is not None
    assert geometry.zones == ()
    assert geometry.lines[0].points == ((0.0, 0.5), (1.0, 0.5))
    assert [mask.name for mask in geometry.masks] == ["m"]


LOW = {"name": "low", "polygon": [[0, 0.5], [1, 0.5], [1, 1], [0, 1]]}
EDGE = 288  # of LOW, in pixels of FRAME


@pytest.mark.parametrize(("anchor", "enters_at"), [("bottom", EDGE), ("center", EDGE + 60), ("any", EDGE)])
def test_the_anchor_is_what_must_be_inside(anchor: str, enters_at: float) -> None:
    watch = Watch(zones=[LOW | {"anchor": anchor}])
    for foot in range(200, 420, 10):
        (kept,), _ = watch.see(person(foot), size=FRAME)
        if kept.zones:
            break
    # By a fifth of the height, 24 pixels, and a little of the picture's.
    assert enters_at + 24 < foot <= enters_at + 24 + 20
    for back in range(foot, 100, -10):
        (kept,), _ = watch.see(person(back), size=FRAME)
        if not kept.zones:
            break
    assert enters_at - 24 - 20 <= back < enters_at - 24


def test_a_box_touches_an_area_that_no_corner_of_it_is_in() -> None:
    watch = Watch(zones=[{"name": "pole", "polygon": [[0.39, 0], [0.41, 0], [0.41, 1], [0.39, 1]], "anchor": "any"}])
    steps = [person(300, x=x) for x in (200, 260, 290, 300, 310, 330, 400)]
    assert watch.zones_on(*steps, size=FRAME) == "--IIII-"


@given(
    st.lists(st.floats(-0.09, 0.09), min_size=5, max_size=60),
    st.floats(20, 200),
    st.sampled_from(["bottom", "center", "any"]),
)
def test_jitter_makes_nothing_come_and_go_whatever_counts(noise: list[float], height: float, anchor: str) -> None:
    watch = Watch(zones=[LOW | {"anchor": anchor}])
    middle = EDGE + (height / 2 if anchor == "center" else 0)
    steps = [person(middle + height * part, height) for part in noise]
    assert len(set(watch.zones_on(*steps, size=FRAME))) == 1


def test_who_stays_just_inside_or_outside_counts_after_a_second() -> None:
    """By 15 pixels, where a margin of 24 is asked for at once; within 9, it may be jitter for ever."""
    watch = Watch(zones=[LOW])
    steps = [person(foot) for foot in [250] * 5 + [EDGE + 18] * 15 + [EDGE - 18] * 15 + [EDGE + 9] * 30]
    seen = watch.zones_on(*steps, size=FRAME)
    assert seen.count("I") == pytest.approx(15, abs=2)
    assert 14 <= seen.index("I") <= 17
    assert seen[-30:] == "-" * 30


def test_only_objects_of_the_right_size_are_in_a_zone_and_jitter_of_their_size_changes_nothing() -> None:
    zone = LOW | {"min_size": 0.2, "max_size": 0.4}
    for height, inside in ((100, "-"), (130, "I"), (220, "I"), (250, "-")):
        watch = Watch(zones=[zone])
        assert watch.zones_on(*[person(400, height)] * 3, size=FRAME) == inside * 3
    watch = Watch(zones=[zone])
    grows = [person(400, 100 + step) for step in (0, 5, 10, 15, 20, 25, 18, 12, 20, 11, 14, 20, 10)]
    assert watch.zones_on(*grows, size=FRAME) in ("-" * at + "I" * (13 - at) for at in range(3, 9))
    single, _ = watch.see(person(400, 100), person(400, 130, track_id=8), size=FRAME)
    untracked, _ = watch.zones.see([at(0.5, 0.7)], SIZE, 100.0, {})
    assert [bool(found.zones) for found in (*single, *untracked)] == [True, True, True]


def test_an_object_counts_from_when_it_is_sure_and_was_in_the_zone_before() -> None:
    zones = zones_of(zones=[LOW | {"min_score": 0.8}])
    seen, track = [], None
    for step, score in enumerate((0.7, 0.75, 0.85, 0.6, 0.5)):
        found = Detection("person", score, person(400).box, 7)
        track = track or Track(7, found, 1.0)
        track.correct(found, 1 + step / 10)
        seen.append(bool(zones.see([found], FRAME, 1 + step / 10, {7: track})[0][0].zones))
    assert seen == [False, False, True, True, True]
    assert zones.since("low", 7) == 1.0


def test_labels_that_flip_neither_enter_nor_leave_nor_cross() -> None:
    zones = zones_of(zones=[LOW | {"labels": ["car"]}], lines=[GATE[0] | {"labels": ["car"]}])
    seen, crossed, track = [], [], None
    for step in range(30):
        found = Detection(("truck", "car")[step % 3 > 0], 0.9, person(200 + 8 * step).box, 7)
        track = track or Track(7, found, 1.0)
        track.correct(found, 1 + step / 10)
        kept, crossings = zones.see([found], FRAME, 1 + step / 10, {7: track})
        seen.append("I" if kept[0].zones else "-")
        crossed += crossings
    assert "".join(seen).strip("-") == "I" * seen.count("I")
    assert crossed == [Crossing("gate", "in", 7, "car")]


def test_a_mask_hides_a_person_whose_label_is_mistaken_for_once() -> None:
    zones = zones_of(masks=[LOW | {"labels": ["person"]}])
    track = Track(7, person(400), 1.0)
    for label in ("person", "dog"):
        found = Detection(label, 0.9, person(400).box, 7)
        track.correct(found, 1.1)
        assert zones.see([found], FRAME, 1.1 + (label == "dog"), {7: track})[0] == []


def test_a_mask_hides_all_that_touches_it_where_it_is_to() -> None:
    for anchor, hidden in (("bottom", False), ("any", True)):
        watch = Watch(masks=[{"name": "window", "polygon": [[0.2, 0.1], [0.6, 0.1], [0.6, 0.8]], "anchor": anchor}])
        assert (not watch.see(person(300), size=FRAME)[0]) == hidden


def test_a_line_is_crossed_by_the_anchor_of_objects_of_the_right_size_and_score() -> None:
    line = GATE[0] | {"anchor": "center", "min_size": 0.15, "min_score": 0.9}
    watch = Watch(lines=[line])
    feet = range(250, 420, 10)
    at_foot = {foot: watch.see(person(foot), size=FRAME)[1] for foot in feet}
    assert [EDGE + 60 + 24 < foot < EDGE + 60 + 45 for foot, crossed in at_foot.items() if crossed] == [True]
    watch = Watch(lines=[line])
    assert [one for foot in feet for one in watch.see(person(foot, height=60), size=FRAME)[1]] == []
    watch = Watch(lines=[line | {"min_score": 0.95}])
    assert [one for foot in feet for one in watch.see(person(foot), size=FRAME)[1]] == []


@pytest.mark.parametrize("frames_apart", [1, 4, 10])
def test_a_visit_begins_and_ends_where_the_edge_was_crossed(frames_apart: int) -> None:
    """One pixel each hundredth of a second, there and back; the feet cross the edge after 0.88 s, and after 3.12 s."""
    zones = zones_of(zones=[LOW])
    since = {}
    for number in range(0, 400, 5 * frames_apart):
        found = person(200 + (number if number < 200 else 400 - number))
        kept, _ = zones.see([found], FRAME, 1 + number / 100, {7: Track(7, found, 1.0)})
        since[bool(kept[0].zones)] = zones.since("low", 7)
    assert since[True] == pytest.approx(1.88, abs=0.1)
    assert since[False] == pytest.approx(4.12, abs=0.1)


def test_shapes_that_stay_know_where_objects_are_and_new_ones_do_not() -> None:
    zones = zones_of(zones=[LOW], lines=GATE)

    def see(foot: float, now: float) -> tuple[list[Detection], tuple[Crossing, ...]]:
        found = person(foot)
        return zones.see([found], FRAME, now, {7: Track(7, found, 1.0)})

    for step in range(8):
        see(200 + 14 * step, 1 + step / 10)
    assert zones.turned("low", 7) is not None
    other = {"name": "other", "polygon": LOW["polygon"]}
    zones.set_config(StreamConfig.model_validate({"name": "a", "url": "x", "zones": [LOW, other], "lines": GATE}))
    kept, _ = see(EDGE + 8, 2.1)
    assert kept[0].zones == ("other",)
    assert zones.since("other", 7) == 2.1
    assert zones.since("gone", 7) is None
    assert [one.line for foot in (310, 330) for one in see(foot, 2 + foot / 1000)[1]] == ["gate"]


def test_everything_goes_on_where_the_picture_comes_in_another_size() -> None:
    zones = zones_of(zones=[LOW], lines=GATE)
    seen: list[tuple[bool, int]] = []
    for step in range(30):
        factor = 1 if step % 8 < 4 else 2
        x1, y1, x2, y2 = person(200 + 6 * step).box
        found = Detection("person", 0.9, (factor * x1, factor * y1, factor * x2, factor * y2), 7)
        size = factor * FRAME[0], factor * FRAME[1]
        kept, crossed = zones.see([found], size, 1 + step / 10, {7: Track(7, found, 1.0)})
        seen.append((bool(kept[0].zones), len(crossed)))
    assert [inside for inside, _ in seen] == sorted(inside for inside, _ in seen)
    assert sum(crossed for _, crossed in seen) == 1


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_shapes_that_are_compared_now_and_then_give_the_same_as_in_every_frame(seed: int) -> None:
    """Places from which nothing can be reached are not compared; here, beside zones that compare each one."""
    dice = random.Random(seed)  # noqa: S311 - the same each time
    shapes = {
        "zones": [
            {"name": "a", "polygon": [[0.1, 0.5], [0.4, 0.4], [0.45, 0.99], [0.1, 0.9]], "min_size": 0.2},
            {"name": "b", "polygon": [[0.5, 0.1], [0.9, 0.2], [0.8, 0.7]], "anchor": "any", "labels": ["car"]},
            {"name": "c", "polygon": [[0.3, 0.2], [0.7, 0.2], [0.7, 0.8]], "anchor": "center", "min_score": 0.9},
        ],
        "lines": [{"name": "g", "points": [[0.2, 0.6], [0.8, 0.7]], "labels": ["person"]}],
        "masks": [{"name": "m", "polygon": [[0.8, 0.5], [1, 0.5], [1, 1], [0.8, 1]], "labels": ["person"]}],
    }
    lazy, eager = zones_of(**shapes), zones_of(**shapes)
    x, foot, height, now, track = 300.0, 300.0, 120.0, 1.0, None
    vx, vy = dice.uniform(-150, 150), dice.uniform(-60, 60)
    for _ in range(120):
        step = dice.choice([0.04, 0.1, 0.1, 0.5])
        now += step
        vx, vy = vx + dice.gauss(0, 30), vy + dice.gauss(0, 15)
        x, foot = (x + vx * step) % FRAME[0], 150 + (foot - 150 + vy * step) % (FRAME[1] - 150)
        height = min(max(height * math.exp(dice.gauss(0, 0.03)), 40), 250)
        jump = 90 if dice.random() < 0.03 else 0
        label, score = dice.choice(["person", "person", "car"]), dice.uniform(0.4, 0.99)
        box = (x - height / 5, foot - height, x + height / 5, foot + jump)
        found = Detection(label, score, box, 7)
        if track is None:
            track = Track(7, found, now)
        else:
            track.correct(found, now)
        for place in eager._places.values():
            place.unsettle()
        assert lazy.see([found], FRAME, now, {7: track}) == eager.see([found], FRAME, now, {7: track})
        for zone in "abc":
            assert lazy.since(zone, 7) == pytest.approx(eager.since(zone, 7))
            assert lazy.turned(zone, 7) == pytest.approx(eager.turned(zone, 7))
