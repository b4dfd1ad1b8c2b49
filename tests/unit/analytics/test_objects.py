"""The life of objects, seen through the analytics of one stream."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdet.analytics.objects import ObjectChange, PathPoint, thinned
from streamdet.analytics.stream_analytics import Seen, StreamAnalytics
from streamdet.config import StreamConfig
from streamdet.types import Box, Detection, EndReason, FrameInfo
from streamdet.wire import MAX_PATH_POINTS

WIDTH, HEIGHT = 1000, 500
DOOR = {"name": "door", "polygon": [[0.4, 0.0], [0.6, 0.0], [0.6, 1.0], [0.4, 1.0]]}


def config_of(**keys: Any) -> StreamConfig:
    return StreamConfig.model_validate({"name": "a", "url": "rtsp://192.0.2.5/x", **keys})


class Scene:
    """Shows one frame after the other to the analytics of a stream, 0.1 s apart, and keeps what is published."""

    def __init__(self, **keys: Any) -> None:
        numbers = itertools.count(1)
        self.analytics = StreamAnalytics(
            config_of(**keys), itertools.count(1), lambda: f"e-{next(numbers)}", lambda: "e-a1"
        )
        self.seq, self.seconds = 0, 0.0
        self.published: list[ObjectChange] = []

    def show(self, *found: Detection, after: float = 0.1, pts: float | None = None) -> Seen:
        self.seq += 1
        self.seconds += after
        frame = FrameInfo(self.seq, pts, 5000.0 + self.seconds, "daemon", WIDTH, HEIGHT)
        seen = self.analytics.see(found, frame, 100.0 + self.seconds)
        self.published += seen.objects
        return seen

    def phases(self) -> list[str]:
        return [change.phase for change in self.published]


def person(x: float, foot: float = 300, score: float = 0.9, label: str = "person", height: float = 100) -> Detection:
    """A detection with its feet at this place."""
    return Detection(label, score, (x - height / 5, foot - height, x + height / 5, foot))


def box_of(change: ObjectChange) -> Box:
    return change.object.box


def test_an_object_begins_is_updated_once_a_second_and_ends_once() -> None:
    scene = Scene()
    for frame in range(35):
        scene.show(person(100 + 10 * frame))
    assert scene.phases() == ["begin", "update", "update", "update"]
    for _ in range(40):
        scene.show()
    assert scene.phases() == ["begin", "update", "update", "update", "end"]
    assert [change.frame.seq for change in scene.published] == [3, 13, 23, 33, 35]
    assert {change.object.object_id for change in scene.published} == {"e-1"}
    assert len({change.object.track_id for change in scene.published}) == 1
    assert [change.reason for change in scene.published] == [None] * 4 + [EndReason.LOST]
    last = scene.published[-1]
    assert last.object.began_at == pytest.approx(5000.1)
    assert last.object.seconds == pytest.approx(3.4, abs=1e-4)
    assert box_of(last) == person(440).box
    assert last.object.path[0] == pytest.approx((0.1, 0.6, 0.0))
    assert last.object.path[-1] == pytest.approx((0.44, 0.6, 3.4), abs=1e-4)


@pytest.mark.parametrize(("pause", "is_object"), [(0.47, True), (0.4, False)])
def test_two_frames_a_second_that_jitter_show_an_object_as_soon_as_even_ones(pause: float, *, is_object: bool) -> None:
    scene = Scene()
    for found in ([person(100)], [person(100)], []):
        scene.show(*found, after=pause)
    assert scene.phases() == ["begin"] * is_object


@pytest.mark.parametrize(("fps", "shown", "is_object"), [
    (10, 2, False), (10, 3, True), (5, 2, False), (5, 3, True), (2, 2, True), (1, 2, True), (1, 1, False),
])  # fmt: skip
def test_what_is_seen_once_or_for_a_moment_is_no_object(fps: float, shown: int, is_object: bool) -> None:
    scene = Scene()
    for frame in range(shown):
        scene.show(person(100 + frame), after=1 / fps)
    for _ in range(50):
        scene.show(after=1 / fps)
    assert scene.phases() == (["begin", "end"] if is_object else [])


def test_an_object_that_stands_still_is_updated_every_ten_seconds() -> None:
    scene = Scene()
    for frame in range(350):
        scene.show(person(100 + 4 * (frame % 2)))
    at = [round(change.frame.seq / 10) for change in scene.published]
    assert at == [0, 1, 2, 3, 13, 23, 33]
    assert [change.object.is_stationary for change in scene.published] == [False] * 3 + [True] * 4
    for frame in range(20):
        scene.show(person(100 + 10 * frame))
    assert not scene.published[-1].object.is_stationary


def test_the_label_is_voted_over_the_life_of_an_object() -> None:
    scene = Scene()
    for frame in range(40):
        label = "truck" if frame % 4 == 0 else "car"
        scene.show(person(100 + frame, label=label))
    assert [change.object.label for change in scene.published] == ["car"] * 4
    scene = Scene()
    for frame in range(40):
        scene.show(person(100 + frame, label=("car", "truck")[frame % 2]))
    assert len({change.object.label for change in scene.published}) == 1


def test_the_best_view_is_large_sure_and_whole() -> None:
    scene = Scene()
    for seq, (foot, score, height) in enumerate([
        (300, 0.9, 100), (300, 0.9, 110), (310, 0.9, 130), (310, 0.95, 130), (340, 0.97, 160), (380, 0.7, 180),
        (499.5, 0.99, 200), (499.5, 0.99, 200),
    ], 1):  # fmt: skip
        scene.show(person(100, foot, score, height=height))
        live = next(iter(scene.analytics.objects))
        assert (live.best.frame_seq == seq) == (seq in (1, 3, 4, 5)) or seq == 2
    ended = scene.analytics.end(EndReason.STOPPING).objects[0].object
    assert (ended.best.frame_seq, ended.best.score) == (5, 0.97)
    assert ended.best.captured_at == pytest.approx(5000.5)
    assert ended.score == 0.99


def test_of_an_object_that_is_always_cut_the_best_cut_view_counts() -> None:
    scene = Scene()
    for height in (100, 150, 120):
        scene.show(person(100, 499.9, height=height))
    assert scene.published[0].object.best.frame_seq == 2


@pytest.mark.parametrize("hidden_frames", [5, 18])
def test_who_is_hidden_or_not_shown_for_a_while_is_the_same_object_in_the_same_visit(hidden_frames: int) -> None:
    for frames_come in (True, False):
        scene = Scene(zones=[DOOR])
        for frame in range(20):
            scene.show(person(420 + 4 * frame))
        if frames_come:
            for _ in range(hidden_frames):
                scene.show()
        else:
            scene.seconds += hidden_frames / 10
        for frame in range(20 + hidden_frames, 70 + hidden_frames):
            scene.show(person(420 + 4 * frame))
        changes = [change for one in scene.published for change in one.changes]
        assert [change.change for change in changes] == ["enter", "leave"]
        assert {one.object.object_id for one in scene.published} == {"e-1"}
        assert changes[1].seconds == pytest.approx(4.5, abs=0.15)


def test_who_does_not_come_back_was_in_the_zone_until_last_seen() -> None:
    scene = Scene(zones=[DOOR])
    for _ in range(20):
        scene.show(person(500))
    for _ in range(30):
        scene.show()
    (visit,) = scene.published[-1].object.zones
    assert (visit.zone, visit.inside) == ("door", True)
    assert visit.seconds == pytest.approx(1.9, abs=1e-4)


def test_crossings_and_zones_make_updates_at_once() -> None:
    scene = Scene(zones=[DOOR], lines=[{"name": "gate", "points": [[0.2, 1.0], [0.2, 0.0]]}])
    for frame in range(100):
        scene.show(person(100 + 6 * frame))
    lines = [(change.frame.seq, one.direction) for change in scene.published for one in change.crossings]
    assert [direction for _, direction in lines] == ["in"]
    zones = [(change.frame.seq, one.change) for change in scene.published for one in change.changes]
    assert [name for _, name in zones] == ["enter", "leave"]


def test_a_mask_hides_objects() -> None:
    scene = Scene(masks=[{"name": "street", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}])
    for frame in range(30):
        scene.show(person(100 + frame), person(800 + frame))
    assert {box_of(change)[0] > 500 for change in scene.published} == {True}


def test_silence_ends_objects_after_the_time_for_which_they_may_be_lost() -> None:
    scene = Scene()
    for _ in range(10):
        scene.show(person(500), person(100))
    for _ in range(10):
        scene.show(person(100))
    assert scene.analytics.silent(0.9, is_up=False) == Seen()
    (one,) = scene.analytics.silent(1.1, is_up=True).objects
    assert (one.phase, one.reason, box_of(one)) == ("end", EndReason.LOST, person(500).box)
    assert scene.analytics.silent(1.9, is_up=False) == Seen()
    (other,) = scene.analytics.silent(2.1, is_up=False).objects
    assert (other.phase, other.reason) == ("end", EndReason.STREAM_DOWN)
    for pause in (2.2, 0.1, 0.1):
        scene.show(person(100), after=pause)
    assert scene.published[-1].object.object_id == "e-3"


def test_a_reload_ends_objects_only_where_tracking_changes() -> None:
    scene = Scene(zones=[DOOR])
    for _ in range(10):
        scene.show(person(500))
    assert scene.analytics.set_config(config_of(zones=[], max_fps=3)) == Seen()
    scene.show(person(500))
    assert [change.change for change in scene.published[-1].changes] == ["leave"]
    ended = scene.analytics.set_config(config_of(zones=[], track_max_lost_seconds=3)).objects
    assert [(one.phase, one.reason) for one in ended] == [("end", EndReason.RELOAD)]
    for _ in range(3):
        scene.show(person(500))
    assert scene.published[-1].object.object_id == "e-2"
    assert [one.reason for one in scene.analytics.end(EndReason.REMOVED).objects] == [EndReason.REMOVED]
    assert scene.analytics.end(EndReason.REMOVED) == Seen()


paths = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=100).map(
    lambda points: [(x, y, float(second)) for second, (x, y) in enumerate(points)]
)


@given(paths, st.integers(2, 64))
def test_a_thinned_path_keeps_its_ends_and_its_order(path: list[PathPoint], points: int) -> None:
    thin = thinned(path, points)
    assert len(thin) == min(points, len(path))
    assert (thin[0], thin[-1]) == (path[0], path[-1])
    assert [point for point in path if point in set(thin)] == thin


def test_a_long_path_keeps_its_shape_and_its_times() -> None:
    """Twice round a circle, with a stop of a minute after the first time."""
    way = [(0.5 + 0.3 * math.cos(a / 50), 0.5 + 0.3 * math.sin(a / 50), a / 10) for a in range(315)]
    way += [(x, y, second + 60) for x, y, second in way]
    path: list[PathPoint] = []
    for point in way:
        path.append(point)
        if len(path) > MAX_PATH_POINTS:
            path = thinned(path, 40)
    for x, y, second in way:
        after = next(index for index, point in enumerate(path) if point[2] >= second)
        (x1, y1, t1), (x2, y2, t2) = path[max(after - 1, 0)], path[after]
        part = (second - t1) / (t2 - t1) if t2 > t1 else 0.0
        assert math.dist((x, y), (x1 + part * (x2 - x1), y1 + part * (y2 - y1))) < 0.05


def dwells_of(scene: Scene) -> list[tuple[float, str, float]]:
    return [
        (round(change.frame.captured_at - 5000, 1), one.change, one.seconds)
        for change in scene.published
        for one in change.changes
        if one.change != "enter"
    ]


def test_a_visit_reports_each_of_its_durations_once_and_the_next_visit_again() -> None:
    scene = Scene(zones=[DOOR | {"dwell_seconds": [1, 2], "loiter_seconds": 2}])
    for _ in range(2):
        for _ in range(25):
            scene.show(person(500))
        for step in range(20):
            scene.show(person(500 + 15 * step))
        for step in range(20):
            scene.show(person(785 - 15 * step))
    once = [("dwell", 1.0), ("dwell", 2.0), ("loiter", 2.0), ("leave", pytest.approx(3.1, abs=0.2))]
    again = [*once[:3], ("leave", pytest.approx(3.8, abs=0.2))]
    assert [(change, seconds) for _, change, seconds in dwells_of(scene)] == [*once, *again]
    assert [at for at, _, _ in dwells_of(scene)][:3] == [1.1, 2.1, 2.1]


def test_a_duration_that_ends_while_the_object_is_hidden_is_reported_when_it_is_seen_again_or_never() -> None:
    for comes_back in (True, False):
        scene = Scene(zones=[DOOR | {"dwell_seconds": [2]}])
        for _ in range(15):
            scene.show(person(500))
        for _ in range(15):
            scene.show()
        for _ in range(30):
            scene.show(*[person(500)] * comes_back)
        assert dwells_of(scene) == ([(3.1, "dwell", 2.0)] if comes_back else [])


@pytest.mark.parametrize("pts_after", [0.0, 9.0, 5000.0, None])
def test_a_short_reconnect_neither_ends_an_object_nor_resets_its_visit(pts_after: float | None) -> None:
    """Frames come again after 1.5 s, and their presentation times begin anywhere."""
    scene = Scene(zones=[DOOR | {"dwell_seconds": [5]}])
    for frame in range(30):
        scene.show(person(500), pts=5 + frame / 10)
    assert scene.analytics.silent(1.4, is_up=False) == Seen()
    scene.seconds += 1.4
    for frame in range(30):
        scene.show(person(500), pts=None if pts_after is None else pts_after + frame / 10)
    assert {change.object.object_id for change in scene.published} == {"e-1"}
    ((at, change, _),) = dwells_of(scene)
    assert (at, change) == (pytest.approx(5.1, abs=0.5), "dwell")


def test_durations_change_on_reload_and_none_is_lost_or_reported_twice() -> None:
    scene = Scene(zones=[DOOR | {"dwell_seconds": [1, 3]}])
    for _ in range(25):
        scene.show(person(500))
    scene.analytics.set_config(config_of(zones=[DOOR | {"dwell_seconds": [1, 2, 4]}]))
    for _ in range(12):
        scene.show(person(500))
    # One that is due, but hidden, is not lost where something else changes.
    for _ in range(5):
        scene.show()
    scene.analytics.set_config(config_of(zones=[DOOR | {"dwell_seconds": [1, 2, 4]}], masks=[DOOR | {"labels": ["x"]}]))
    for _ in range(5):
        scene.show(person(500))
    assert dwells_of(scene) == [(1.1, "dwell", 1.0), (4.3, "dwell", 4.0)]


anything = st.builds(
    lambda x, y, w, h, score, label: Detection(label, score, (x, y, min(x + w, WIDTH), min(y + h, HEIGHT))),
    st.floats(0, WIDTH - 1),
    st.floats(0, HEIGHT - 1),
    st.one_of(st.floats(1e-3, 200), st.just(80.0)),
    st.one_of(st.floats(1e-3, 200), st.just(150.0)),
    st.floats(0, 1),
    st.sampled_from(["person", "car"]),
)
CONFIGS = [
    {},
    {"zones": [DOOR | {"dwell_seconds": [0.5, 1], "loiter_seconds": 0.7, "labels": ["person"]}]},
    {"zones": [DOOR | {"anchor": "any", "min_size": 0.1}, DOOR | {"name": "other", "anchor": "center"}]},
    {"masks": [DOOR | {"anchor": "any", "max_size": 0.3}], "lines": [{"name": "gate", "points": [[0.5, 0], [0.5, 1]]}]},
    {"zones": [DOOR | {"min_score": 0.8}], "track_max_lost_seconds": 0.5},
]
steps = st.one_of(
    st.tuples(st.just("show"), st.lists(anything, max_size=5), st.floats(0.001, 1), st.none() | st.floats(-20, 20)),
    st.tuples(st.just("stay"), anything, st.integers(3, 12)),
    st.tuples(st.just("silent"), st.floats(0, 4)),
    st.tuples(st.just("config"), st.sampled_from(CONFIGS)),
    st.tuples(st.just("end")),
)


def act(scene: Scene, kind: str, *rest: Any) -> None:
    analytics = scene.analytics
    if kind == "show":
        found, after, pts = rest
        scene.show(*found, after=after, pts=pts)
    elif kind == "stay":
        for _ in range(rest[1]):
            scene.show(rest[0])
    elif kind == "silent":
        scene.published += analytics.silent(rest[0], is_up=False).objects
    elif kind == "config":
        scene.published += analytics.set_config(config_of(**rest[0])).objects
    else:
        scene.published += analytics.end(EndReason.REMOVED).objects


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=25))
def test_whatever_comes_each_object_lives_in_order(steps: list[Any]) -> None:
    scene = Scene(**CONFIGS[1])
    for step in [*steps, ("end",)]:
        act(scene, *step)
    lives: dict[str, list[ObjectChange]] = {}
    for change in scene.published:
        lives.setdefault(change.object.object_id, []).append(change)
    for life in lives.values():
        assert [change.phase for change in life] == ["begin", *["update"] * (len(life) - 2), "end"]
        assert [change.reason is None for change in life] == [True] * (len(life) - 1) + [False]
        seconds = [change.object.seconds for change in life]
        assert seconds == sorted(seconds)
        inside: dict[str, set[float]] = {}
        for change in life:
            one = change.object
            assert 2 <= len(one.path) <= MAX_PATH_POINTS
            assert one.path[-1][2] == pytest.approx(one.seconds)
            assert all(0 <= visit.seconds <= one.seconds + 1e-6 for visit in one.zones)
            follow(change, inside)


def follow(change: ObjectChange, inside: dict[str, set[float]]) -> None:
    """Keeps the zones that an object is in, with the durations that each visit has reached, and checks them."""
    for each in change.changes:
        assert (each.zone in inside) == (each.change != "enter")
        if each.change == "enter":
            inside[each.zone] = set()
        elif each.change == "leave":
            del inside[each.zone]
        elif each.change == "dwell":
            assert each.seconds not in inside[each.zone]
            inside[each.zone].add(each.seconds)
    assert {visit.zone for visit in change.object.zones if visit.inside} == inside.keys()
