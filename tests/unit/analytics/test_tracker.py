from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdet.analytics.tracker import StreamClock, Tracker, _overlap
from streamdet.types import Box, Detection
from support.paths import DATA

SIZE = (1920, 1080)


def tracker_of(max_lost_seconds: float = 2.0, start_score: float = 0.6) -> Tracker:
    return Tracker(itertools.count(1), max_lost_seconds, start_score)


def person(x: float, y: float, score: float = 0.9, label: str = "person", width: float = 60) -> Detection:
    """A detection with this centre."""
    height = width * 2.5
    return Detection(label, score, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))


def overlap(one: Box, other: Box) -> float:
    (x1, y1, x2, y2), (left, top, right, bottom) = one, other
    dx, dy = abs(x1 + x2 - left - right) / 2, abs(y1 + y2 - top - bottom) / 2
    return _overlap(dx, dy, x2 - x1, y2 - y1, right - left, bottom - top)


def ids_of(found: Sequence[Detection]) -> list[int | None]:
    return [one.track_id for one in found]


def test_an_object_keeps_its_id_and_two_have_two() -> None:
    tracker = tracker_of()
    for frame in range(50):
        found = tracker.update([person(100 + 5 * frame, 300), person(900 - 5 * frame, 800)], 1 + frame / 10, SIZE)
        assert ids_of(found) == [1, 2]
    assert tracker.tracks().keys() == {1, 2}


def test_detections_come_back_as_they_were() -> None:
    detections = [person(900, 300), person(100, 300, 0.3), person(500, 300)]
    found = tracker_of().update(detections, 1.0, SIZE)
    assert [(one.label, one.score, one.box) for one in found] == [(d.label, d.score, d.box) for d in detections]
    assert ids_of(found) == [1, None, 2]


@pytest.mark.parametrize("fps", [5, 10, 25])
@pytest.mark.parametrize("noise", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_people_that_cross_keep_their_ids(fps: int, noise: float, seed: int) -> None:
    """They pass each other at 150 pixels a second each, the one behind hidden for a quarter of a second."""
    dice = np.random.default_rng(seed)
    tracker = tracker_of()
    for frame in range(6 * fps):
        seconds = frame / fps
        left, right = 200 + 150 * seconds, 1100 - 150 * seconds
        boxes = [person(left + dice.normal(0, noise), 500), person(right + dice.normal(0, noise), 510)]
        visible = boxes[:1] if abs(left - right) < 40 else boxes
        found = tracker.update(visible, 1 + seconds, SIZE)
        assert ids_of(found) == [1, 2][: len(visible)]


@given(
    st.lists(st.floats(0.02, 0.35), min_size=5, max_size=60),
    st.floats(-200, 200),
    st.floats(-100, 100),
    st.integers(0, 1000),
)
def test_the_rate_of_frames_may_change_all_the_time(pauses: list[float], vx: float, vy: float, seed: int) -> None:
    dice, tracker, now = np.random.default_rng(seed), tracker_of(), 0.0
    for pause in pauses:
        now += pause
        x, y = 3000 + vx * now + dice.normal(0, 1), 3000 + vy * now + dice.normal(0, 1)
        assert ids_of(tracker.update([person(x, y, width=100)], now, (6000, 6000))) == [1]


@pytest.mark.parametrize(("hidden_seconds", "same"), [(0.4, True), (1.8, True), (2.4, False)])
def test_who_is_hidden_for_a_short_time_keeps_the_id(hidden_seconds: float, same: bool) -> None:
    tracker = tracker_of()
    for frame in range(30):
        tracker.update([person(100 + 8 * frame, 300)], 1 + frame / 10, SIZE)
    now = 1 + 29 / 10
    tracker.update([], now + hidden_seconds / 2, SIZE)
    found = tracker.update([person(100 + 8 * (29 + 10 * hidden_seconds), 300)], now + hidden_seconds, SIZE)
    assert ids_of(found) == [1 if same else 2]


def test_what_was_seen_only_once_is_given_up_soon() -> None:
    tracker = tracker_of(max_lost_seconds=5)
    tracker.update([person(300, 300)], 1.0, SIZE)
    tracker.update([], 1.3, SIZE)
    assert ids_of(tracker.update([person(300, 300)], 1.6, SIZE)) == [2]


def test_one_frame_a_second_is_enough() -> None:
    tracker = tracker_of()
    for second in range(20):
        assert ids_of(tracker.update([person(300 + 30 * second, 300)], 1.0 + second, SIZE)) == [1]


def test_an_unsure_detection_continues_a_track_and_begins_none() -> None:
    tracker = tracker_of(start_score=0.6)
    assert ids_of(tracker.update([person(300, 300, 0.5)], 1.0, SIZE)) == [None]
    assert ids_of(tracker.update([person(300, 300, 0.7)], 1.1, SIZE)) == [1]
    assert ids_of(tracker.update([person(302, 300, 0.4)], 1.2, SIZE)) == [1]
    # The sure one chooses first, though the unsure one lies better.
    assert ids_of(tracker.update([person(304, 300, 0.4), person(310, 300, 0.9)], 1.3, SIZE)) == [None, 1]


def test_another_label_is_another_object_unless_it_lies_in_the_same_place() -> None:
    tracker = tracker_of()
    tracker.update([person(300, 300, label="car")], 1.0, SIZE)
    assert ids_of(tracker.update([person(301, 300, label="truck")], 1.1, SIZE)) == [1]
    both = [person(301, 300, label="truck"), person(330, 300, label="person")]
    assert ids_of(tracker.update(both, 1.2, SIZE)) == [1, 2]
    # A person walks in front of the car, which is not seen behind it.
    tracker = tracker_of()
    tracker.update([person(300, 300, label="car")], 1.0, SIZE)
    assert ids_of(tracker.update([person(330, 300, label="person")], 1.1, SIZE)) == [2]


def test_an_object_keeps_its_id_where_the_picture_comes_in_another_size() -> None:
    tracker = tracker_of()
    for frame in range(10):
        tracker.update([person(300 + 15 * frame, 300)], 1 + frame / 10, SIZE)
    smaller = person(300, 200, width=40)
    assert ids_of(tracker.update([smaller], 2.0, (1280, 720))) == [1]
    assert tracker.tracks().keys() == {1}


boxes = st.builds(
    lambda x, y, w, h, score, label: Detection(label, score, (x, y, x + w, y + h)),
    st.floats(0, 1800),
    st.floats(0, 900),
    st.floats(0.01, 120),
    st.floats(0.01, 180),
    st.floats(0, 1),
    st.sampled_from(["person", "car"]),
)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.lists(boxes, max_size=8), st.floats(0.001, 5)), max_size=20))
def test_whatever_comes_ids_are_unique_rise_and_never_return(frames: list[tuple[list[Detection], float]]) -> None:
    tracker, now, given_up, highest = tracker_of(), 0.0, set[int](), 0
    for detections, pause in frames:
        now += pause
        before = tracker.tracks().keys()
        found = tracker.update(detections, now, SIZE)
        ids = [one.track_id for one in found if one.track_id is not None]
        assert len(ids) == len(set(ids))
        assert [one.track_id is None for one in found if one.score >= 0.6] == [False] * sum(
            one.score >= 0.6 for one in found
        )
        new = [track_id for track_id in ids if track_id not in before]
        assert all(track_id > highest for track_id in new)
        highest = max([highest, *ids])
        assert not given_up & set(ids)
        given_up |= before - tracker.tracks().keys()


def test_who_turns_between_two_frames_that_are_far_apart_keeps_the_id() -> None:
    tracker = tracker_of()
    for frame in range(10):
        tracker.update([person(300 + 15 * frame, 300)], 1 + frame / 10, SIZE)
    assert ids_of(tracker.update([person(420, 300)], 2.6, SIZE)) == [1]


@pytest.mark.parametrize(
    ("comes_out", "ids"),
    [
        ([person(445, 300)], [1]),  # it has stopped
        ([person(445, 345)], [1]),  # it has turned; nothing else is missing, and nothing else is there
        ([person(445, 345), person(1500, 300)], [2, 3]),
        ([person(445, 300), person(1500, 300)], [1, 2]),
        ([person(445, 300, width=80)], [2]),
        ([person(445, 480)], [2]),
    ],
)
def test_who_stops_behind_something_keeps_the_id_and_others_who_come_out_there_do_not_get_it(
    comes_out: list[Detection], ids: list[int]
) -> None:
    tracker = tracker_of()
    for frame in range(10):
        tracker.update([person(300 + 15 * frame, 300)], 1 + frame / 10, SIZE)
    for frame in range(10, 20):
        tracker.update([], 1 + frame / 10, SIZE)
    assert ids_of(tracker.update(comes_out, 3.0, SIZE)) == ids


def test_who_comes_in_at_the_edge_does_not_get_the_id_of_one_who_has_left_there() -> None:
    tracker = tracker_of()
    for frame in range(10):
        tracker.update([person(165 - 15 * frame, 300)], 1 + frame / 10, SIZE)
    for frame in range(10, 20):
        tracker.update([], 1 + frame / 10, SIZE)
    assert ids_of(tracker.update([person(32, 345)], 3.0, SIZE)) == [2]


def test_an_object_with_two_labels_keeps_its_id_where_they_take_turns() -> None:
    tracker = tracker_of()
    for frame in range(30):
        label = "truck" if frame % 3 == 1 else "car"
        # The first time both boxes overlap well; later they need not.
        x = 300 + (0 if frame < 4 else 30 * (frame % 2))
        assert ids_of(tracker.update([person(x, 300, label=label)], 1 + frame / 10, SIZE)) == [1]


def test_a_mistake_that_comes_again_after_a_while_is_no_certain_object() -> None:
    tracker = tracker_of()
    for frame in range(7):
        tracker.update([person(300, 300)] if frame in (0, 6) else [], 1 + frame / 12, SIZE)
    assert not tracker.tracks()[1].is_confirmed()
    for frame in range(2):
        tracker.update([person(700, 300)], 3 + frame / 2, SIZE)
    assert tracker.tracks()[2].is_confirmed()


def test_a_track_has_the_label_with_the_most_votes_and_the_best_score() -> None:
    tracker = tracker_of()
    for frame, (label, score) in enumerate(
        [("car", 0.7), ("truck", 0.75), ("truck", 0.8), ("car", 0.99), ("car", 0.9)]
    ):
        tracker.update([person(300, 300, score, label)], 1 + frame / 10, SIZE)
        assert tracker.tracks()[1].label == ("car", "car", "truck", "truck", "car")[frame]
    assert tracker.tracks()[1].score == 0.99


def test_the_clock_follows_the_presentation_times_and_survives_their_jumps() -> None:
    clock = StreamClock()
    at = [clock.at(pts, captured) for pts, captured in [
        (5.0, 100.0), (5.1, 100.5), (5.2, 100.5), (0.0, 100.7), (0.1, 100.8), (None, 101.0), (9.0, 101.1), (9.1, 99.0),
        (9.1, 99.0), (5000.0, 99.2),
    ]]  # fmt: skip
    steps = [after - before for before, after in itertools.pairwise(at)]
    assert steps == pytest.approx([0.1, 0.1, 0.2, 0.1, 0.2, 0.1, 0.1, 0.001, 0.2], abs=1e-3)


def test_the_clock_does_not_jump_with_that_of_a_camera() -> None:
    """Frames of 10 per second, 3 s late from the 50th on and soon on time again; the camera sets its clock at the 80th.

    That the frames between are late changes nothing.
    """
    clock, at = StreamClock(), list[float]()
    for frame in range(120):
        late = max(0.0, 3 - (frame - 50) / 10) if frame >= 50 else 0.0
        at.append(clock.at(frame / 10 + (4 if frame >= 80 else 0), 100 + frame / 10 + late))
    assert at[-1] - at[0] == pytest.approx(11.9, abs=0.2)
    assert max(after - before for before, after in itertools.pairwise(at)) < 0.3


@given(st.lists(st.floats(0.001, 0.9), min_size=1, max_size=300))
@settings(max_examples=50, deadline=None)
def test_the_clock_is_the_same_for_times_as_events_round_them(steps: list[float]) -> None:
    live, past = StreamClock(is_paced=False), StreamClock(is_paced=False)
    for pts_seconds in itertools.accumulate(steps):
        assert live.at(pts_seconds, 0.0) == past.at(round(pts_seconds, 6), 0.0)


def test_the_clock_of_a_file_that_is_read_as_fast_as_possible_is_its_own() -> None:
    clock = StreamClock(is_paced=False)
    at = [clock.at(5.0 * frame, 100 + frame / 100) for frame in range(10)]
    assert at[-1] - at[0] == pytest.approx(45)


def test_a_crowd_of_people_keeps_its_ids() -> None:
    """On what the detector found in 20 seconds of the sample clip: x1, y1, x2, y2 and percent of score.

    No person was ever named by hand. But where two boxes of successive frames overlap by more than half, and each
    overlaps no other one better, they show the same person nearly always.
    """
    recorded = json.loads((DATA / "clip_detections.json").read_text())
    tracker = tracker_of()
    frames = []
    for index, boxes in enumerate(recorded):
        found = [Detection("person", score / 100, (x1, y1, x2, y2)) for x1, y1, x2, y2, score in boxes]
        frames.append(tracker.update(found, 1 + index / 10, (768, 576)))
    same, switched = 0, 0
    for before, after in itertools.pairwise(frames):
        overlaps = np.array([[overlap(one.box, other.box) for other in after] for one in before])
        for row, one in enumerate(before):
            column = int(overlaps[row].argmax())
            other = after[column]
            if overlaps[row, column] > 0.5 and overlaps[:, column].argmax() == row and one.track_id and other.track_id:
                same += one.track_id == other.track_id
                switched += one.track_id != other.track_id
    assert same > 1500
    assert switched / same < 0.02
    lengths = Counter(one.track_id for frame in frames for one in frame if one.track_id)
    assert sum(length >= 100 for length in lengths.values()) >= 8
