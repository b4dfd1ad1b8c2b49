from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamdet.config import load_config
from streamdet.config.stream import StreamConfig, crossing_sides, keeps_connection, segments_meet
from streamdet.errors import ConfigError
from streamdet.types import Point

STREAM = '[[streams]]\nname = "yard"\nurl = "rtsp://192.0.2.5/x"\n'
TRIANGLE = "[[0, 0], [1, 1], [1, 0]]"
BAD = {
    "two points": (
        'zones = [{ name = "a", polygon = [[0, 0], [1, 1]] }]',
        "zones[#1].polygon: has 2 points; a polygon has 3 to 64",
    ),
    "too many points": (
        f'zones = [{{ name = "a", polygon = [{"[0, 0]," * 65}] }}]',
        "zones[#1].polygon: has 65 points",
    ),
    "crosses itself": (
        'zones = [{ name = "a", polygon = [[0, 0], [1, 1], [1, 0], [0, 1]] }]',
        "zones[#1].polygon: crosses itself: side 1 meets side 3; give the corners in their order",
    ),
    "runs back": (
        'masks = [{ name = "a", polygon = [[0, 0], [1, 0], [0.5, 0], [0.5, 1]] }]',
        "masks[#1].polygon: crosses itself: side 1 meets side 2",
    ),
    "no area": ('masks = [{ name = "a", polygon = [[0, 0], [0.5, 0.5], [1, 1]] }]', "masks[#1].polygon: has no area"),
    "closed": (
        'zones = [{ name = "a", polygon = [[0, 0], [1, 1], [1, 0], [0, 0]] }]',
        "zones[#1].polygon: has a point twice; leave the second one out",
    ),
    "in pixels": (
        'zones = [{ name = "a", polygon = [[0, 0], [640, 0], [1, 1]] }]',
        "zones[#1].polygon[#2]: must be a point: two numbers from 0 to 1, such as [0.5, 1.0]",
    ),
    "not a number": (
        'zones = [{ name = "a", polygon = [[0, 0], [nan, 0], [1, 1]] }]',
        "zones[#1].polygon[#2]: must be a point",
    ),
    "three numbers": (
        'zones = [{ name = "a", polygon = [[0, 0], [0, 0, 1], [1, 1]] }]',
        "zones[#1].polygon[#2]: must be a point",
    ),
    "switch for a number": (
        'zones = [{ name = "a", polygon = [[0, 0], [0, true], [1, 1]] }]',
        "zones[#1].polygon[#2]: must be a point",
    ),
    "no name": (
        f"zones = [{{ polygon = {TRIANGLE} }}]",
        'zones[#1].name: is missing; add a line such as name = "door"',
    ),
    "no points": ('lines = [{ name = "a" }]', "lines[#1].points: is missing; add points = [[0.0, 0.75], [1.0, 0.75]]"),
    "bad name": (
        f'zones = [{{ name = "Door 1", polygon = {TRIANGLE} }}]',
        'zones[#1].name: is "Door 1"; must be 1 to 64 small letters',
    ),
    "unknown key": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE}, label = "car" }}]',
        'zones[#1].label: is not a known key; did you mean "labels"?',
    ),
    "not a table": ("zones = [7]", 'zones[#1]: is 7; must be a table, such as { name = "door"'),
    "not a list": ("masks = 7", "masks: is 7; must be a list of tables, such as masks = [{ name"),
    "no list of points": (
        'lines = [{ name = "a", points = 7 }]',
        "lines[#1].points: is 7; must be a list of two points",
    ),
    "one word": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE}, labels = "car" }}]',
        'zones[#1].labels: is "car"; must be a list of words',
    ),
    "unknown label": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE}, labels = ["persn"] }}]',
        'zones[#1].labels: hold "persn", which is not a published label; did you mean "person"?',
    ),
    "same name": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE} }}, {{ name = "a", polygon = {TRIANGLE} }}]',
        'zones: hold the name "a" twice',
    ),
    "too many": (
        "zones = [" + "".join(f'{{ name = "z{index}", polygon = {TRIANGLE} }},' for index in range(17)) + "]",
        "zones: are 17; at most 16 are allowed",
    ),
    "line of three": (
        f'lines = [{{ name = "a", points = {TRIANGLE} }}]',
        "lines[#1].points: has 3 points; a line has 2",
    ),
    "line of none": ('lines = [{ name = "a", points = [[0, 0], [0, 0]] }]', "lines[#1].points: begins where it ends"),
    "size that nothing has": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE}, min_size = 0.5, max_size = 0.2 }}]',
        "zones[#1].max_size: is 0.2; must be above min_size, 0.5",
    ),
    "size in pixels": (
        f'masks = [{{ name = "a", polygon = {TRIANGLE}, min_size = 40 }}]',
        "masks[#1].min_size: is 40; must be a number from 0 to 1",
    ),
    "unknown anchor": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE}, anchor = "feet" }}]',
        'zones[#1].anchor: is "feet"; must be one of "bottom", "center", "any"',
    ),
    "anchor that cannot cross": (
        'lines = [{ name = "a", points = [[0, 0], [0, 1]], anchor = "any" }]',
        'lines[#1].anchor: is "any"; must be one of "bottom", "center"',
    ),
    "score of a mask": (
        f'masks = [{{ name = "a", polygon = {TRIANGLE}, min_score = 0.5 }}]',
        "masks[#1].min_score: is not a known key",
    ),
    "score in percent": (
        'lines = [{ name = "a", points = [[0, 0], [0, 1]], min_score = 70 }]',
        "lines[#1].min_score: is 70; must be a number from 0 to 1",
    ),
    "durations fall": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE}, dwell_seconds = ["1 min", 10] }}]',
        "zones[#1].dwell_seconds: has 60 s before 10 s; give the shortest first",
    ),
    "duration twice": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE}, dwell_seconds = [10, "10 s"] }}]',
        "zones[#1].dwell_seconds: has 10 s twice; leave one out",
    ),
    "too many durations": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE}, dwell_seconds = [1, 2, 3, 4, 5, 6, 7, 8, 9] }}]',
        "zones[#1].dwell_seconds: has 9 durations; at most 8 are allowed",
    ),
    "one duration": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE}, dwell_seconds = 10 }}]',
        "zones[#1].dwell_seconds: is 10; must be a list of durations, such as [10, 60]",
    ),
    "no duration": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE}, dwell_seconds = [0] }}]',
        "zones[#1].dwell_seconds[#1]: is 0; must be a number above 0 and at most 86,400 seconds",
    ),
    "unknown unit": (
        f'zones = [{{ name = "a", polygon = {TRIANGLE}, loiter_seconds = "5 minutes" }}]',
        'zones[#1].loiter_seconds: is "5 minutes"; must be a number, or one with a unit',
    ),
    "durations without tracks": (
        f'track = false\nzones = [{{ name = "a", polygon = {TRIANGLE}, loiter_seconds = 5 }}]',
        'zones: hold durations for "a", which need track ids; set track = true, or delete them',
    ),
    "no tracks": (
        'track = false\nlines = [{ name = "a", points = [[0, 0], [0, 1]] }]',
        "lines: need track ids; set track = true, or delete them",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_wrong_shape_is_one_line(case: str, tmp_path: Path) -> None:
    text, complaint = BAD[case]
    file = tmp_path / "streamdet.toml"
    file.write_text(STREAM + text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}:{4 + text.count(chr(10))}: streams[yard].{complaint}")
    assert len(problem.splitlines()) == 1


def test_labels_are_those_that_are_published(tmp_path: Path) -> None:
    file = tmp_path / "streamdet.toml"
    zone = f'zones = [{{ name = "a", polygon = {TRIANGLE}, labels = ["car"] }}]\n'
    file.write_text('[detector]\nlabels = ["person"]\n' + STREAM + zone, encoding="utf-8")
    with pytest.raises(ConfigError, match=r'hold "car", which is not a published label; published are person'):
        load_config(file, {})
    file.write_text(
        '[detector]\nweights = "coco"\nmodel = "fasterrcnn_resnet50_fpn"\n' + STREAM + zone, encoding="utf-8"
    )
    assert load_config(file, {}).streams[0].zones[0].labels == ("car",)


def test_tracks_and_shapes_change_without_a_new_connection() -> None:
    keys = {"name": "a", "url": "rtsp://192.0.2.5/x"}
    before = StreamConfig.model_validate(keys)
    zone = {"name": "a", "polygon": [[0, 0], [1, 1], [1, 0]]}
    line = {"name": "a", "points": [[0, 0], [1, 1]]}
    for change in (
        {"zones": [zone]},
        {"masks": [zone]},
        {"lines": [line]},
        {"track": False},
        {"track_start_score": 0.5},
    ):
        after = StreamConfig.model_validate({**keys, **change})
        assert after != before
        assert keeps_connection(before, after)


eighths = st.integers(0, 8).map(lambda value: value / 8)
points = st.tuples(eighths, eighths)


@given(points, points, points, points)
def test_segments_meet_where_one_comes_to_the_other(
    start: Point, end: Point, other_start: Point, other_end: Point
) -> None:
    """By another method: how near many points of the one come to the other.

    Segments between eighths that do not meet are 1/64 / sqrt(2) apart at the least.
    """
    assume(start != end)
    assume(other_start != other_end)
    near = min(_distance(other_start, other_end, _between(start, end, step / 400)) for step in range(401))
    assert segments_meet(start, end, other_start, other_end) == (near < 0.005)


@given(st.integers(3, 20), st.floats(0.05, 0.45))
def test_a_polygon_with_its_corners_in_their_order_crosses_nothing(corners: int, radius: float) -> None:
    turns = [2 * math.pi * index / corners for index in range(corners)]
    polygon = tuple((0.5 + radius * math.sin(turn), 0.5 + radius * math.cos(turn)) for turn in turns)
    assert crossing_sides(polygon) is None
    if corners >= 4:
        exchanged = (polygon[1], polygon[0], *polygon[2:])
        assert crossing_sides(exchanged) is not None


def test_all_orders_of_a_square() -> None:
    square = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    simple = [order for order in itertools.permutations(square) if crossing_sides(order) is None]
    # Four beginnings, two ways round; the other two thirds are hourglasses.
    assert len(simple) == 8


def _between(start: Point, end: Point, part: float) -> Point:
    return start[0] + (end[0] - start[0]) * part, start[1] + (end[1] - start[1]) * part


def _distance(start: Point, end: Point, point: Point) -> float:
    length = math.dist(start, end) ** 2
    part = ((point[0] - start[0]) * (end[0] - start[0]) + (point[1] - start[1]) * (end[1] - start[1])) / length
    return math.dist(point, _between(start, end, min(max(part, 0.0), 1.0)))
