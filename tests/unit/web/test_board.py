"""What the page knows: rates, the list of events, states, and pictures for those who look."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from streamdet.client.subscription import Gap
from streamdet.types import (
    AlertEvent,
    Crossing,
    Detection,
    DetectionEvent,
    FrameInfo,
    ObjectEvent,
    Reason,
    State,
    StateEvent,
    ZoneChange,
    ZoneVisit,
)
from streamdet.web.board import Board, EventRates
from streamdet.web.journal import MAX_CROSSINGS, MAX_NOTES, MAX_OBJECTS, MAX_SIGHTINGS, Filter, Journal
from streamdet.web.occurrences import MAX_OCCURRENCES, Wanted
from streamdet.web.pictures import LEASE_SECONDS, Pictures
from support.occurring import FRAME, alert_event, object_event

PERSON = Detection("person", 0.9, (1.0, 2.0, 3.0, 4.0))
CAR = Detection("car", 0.4, (1.0, 2.0, 3.0, 4.0))


def seen(
    seq: int, *found: Detection, stream: str = "gate", epoch: str = "a", frame: int | None = None, **fields: Any
) -> DetectionEvent:
    info = FrameInfo(frame or seq, None, 1000.0, "daemon", 640, 360)
    return DetectionEvent(stream, epoch, seq, 1000.1, frame=info, detections=found, **fields)


def state(
    state: State = State.UP, reason: Reason | None = None, *, stream: str = "gate", epoch: str = "a", since: float = 1.0
) -> StateEvent:
    return StateEvent(stream, epoch, 1, 1000.0, state=state, reason=reason, detail="", since=since)


def rows(board: Board) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads(board.overview(0))["streams"]}


def listed(board: Board, **wanted: Any) -> list[dict[str, Any]]:
    return board.events(0, Filter(**wanted), 100)[1]


def event_at(number: int, fps: float, *, frames: int = 1, epoch: str = "a") -> DetectionEvent:
    """The event with this number of a stream that publishes so many per second, each with a new `frames`th frame."""
    at = 1000 + number / fps
    info = FrameInfo(number * frames, None, at - 0.1, "daemon", 640, 360)
    return DetectionEvent("gate", epoch, number, at, frame=info, detections=())


@pytest.mark.parametrize("fps", [0.4, 1.0, 10.0, 60.0])
def test_rates_are_frames_and_events_per_second(fps: float) -> None:
    rates = EventRates()
    number = 0
    for second in range(1, 31):
        while (number + 1) / fps <= second:
            number += 1
            rates.note(event_at(number, fps, frames=3), number / fps)
        rates.tick(float(second))
    for sample in list(rates.samples)[-15:]:
        assert sample.fps_out == pytest.approx(fps, rel=0.01)
        assert sample.fps_in == pytest.approx(3 * fps, rel=0.01)
    assert rates.newest_latency()[0] == pytest.approx(0.1)


def test_rates_fall_to_zero_in_silence_and_begin_again_after_it_and_after_a_restart() -> None:
    rates = EventRates()
    for number in range(1, 51):
        rates.note(event_at(number, 10), number / 10)
        if number % 10 == 0:
            rates.tick(number / 10)
    for second in range(6, 12):
        sample = rates.tick(float(second))
    assert sample == (0.0, 0.0, None, None)
    assert rates.newest_latency() == (None, None)
    for number in range(500, 521):
        rates.note(event_at(number, 10), number / 10)
    assert rates.tick(52.0).fps_out == pytest.approx(10)
    for number in range(1, 31):
        rates.note(event_at(number, 5, epoch="b"), 112 + number / 5)
        if number % 5 == 0:
            assert rates.tick(112 + number / 5).fps_out == pytest.approx(5)


def test_the_list_keeps_notes_however_much_is_seen() -> None:
    journal = Journal()
    journal.note("state", "gate", 1.0, state="down")
    for number in range(MAX_SIGHTINGS + 10):
        journal.saw(seen(1, *[PERSON] * (number % 2 + 1)))
    newest_first = journal.select(0, Filter(), 10_000)
    assert len(newest_first) == MAX_SIGHTINGS + 1
    assert newest_first[-1]["kind"] == "state"
    assert [entry["id"] for entry in newest_first] == sorted((entry["id"] for entry in newest_first), reverse=True)
    for _ in range(MAX_NOTES + 10):
        journal.note("gap", "gate", 1.0)
    assert len(journal.select(0, Filter(objects=False), 10_000)) == MAX_NOTES


def test_what_stays_the_same_is_reported_once() -> None:
    journal = Journal()
    for _ in range(5):
        journal.saw(seen(1, PERSON))
    journal.saw(seen(1))
    journal.saw(seen(1, PERSON))
    assert len(journal.select(0, Filter(), 10)) == 2


def test_the_list_is_filtered_by_stream_label_score_and_kind() -> None:
    board = Board("tcp://127.0.0.1:1")
    for stream in ("gate", "gate-2", "yard"):
        board.note(state(stream=stream), 1.0)
        board.note(seen(1, PERSON, CAR, stream=stream), 1.0)
    board.tick(1.0)
    assert {entry["stream"] for entry in listed(board, stream="gat")} == {"gate", "gate-2"}
    assert {entry["stream"] for entry in listed(board, only="gate")} == {"gate"}
    assert {entry["kind"] for entry in listed(board, notes=False)} == {"seen"}
    assert {entry["kind"] for entry in listed(board, objects=False)} == {"state"}
    (entry,) = listed(board, only="gate", notes=False, min_score=0.5)
    assert [found["label"] for found in entry["objects"]] == ["person"]
    assert listed(board, notes=False, label="car", min_score=0.5) == []


def test_states_gaps_and_restarts_are_reported() -> None:
    board = Board("tcp://127.0.0.1:1")
    board.note(state(State.DOWN, Reason.REFUSED), 1.0)
    board.note(state(State.DOWN, Reason.REFUSED), 2.0)
    board.note(Gap("gate", "detections/gate/", 3, 4), 2.0)
    board.note(seen(1, PERSON), 2.0)
    board.note(state(epoch="b", since=3.0), 3.0)
    kinds = [entry["kind"] for entry in listed(board, objects=False)]
    assert kinds == ["state", "restart", "gap", "state"]
    row = rows(board)["gate"]
    assert (row["state"], row["reason"], row["lost"]) == ("up", None, 4)


def test_a_crossing_is_listed_with_the_objects() -> None:
    board = Board("tcp://127.0.0.1:1")
    board.note(state(), 1.0)
    board.note(object_event("gate", epoch="a", phase="begin"), 1.0)
    of_person, of_car = Crossing("kerb", "in", 5, "person"), Crossing("kerb", "out", 6, "car")
    board.note(seen(1, replace(PERSON, track_id=5), crossings=(of_person, of_car)), 2.0)
    assert [entry["kind"] for entry in listed(board, notes=False)] == ["crossing", "crossing", "object"]
    assert [entry["kind"] for entry in listed(board, objects=False)] == ["state"]
    (entry,) = listed(board, notes=False, label="car")
    assert (entry["line"], entry["direction"], entry["track_id"]) == ("kerb", "out", 6)
    for _ in range(MAX_CROSSINGS):
        board.note(seen(2, crossings=(of_car,)), 2.0)
    assert len(board.events(0, Filter(notes=False), 10_000)[1]) == MAX_CROSSINGS + 1


def test_a_stream_that_is_tried_in_vain_is_reported_once_and_down_all_the_time() -> None:
    board = Board("tcp://127.0.0.1:1")
    board.note(state(State.CONNECTING, since=1.0), 1.0)
    board.note(state(since=2.0), 2.0)
    for second in range(3, 300, 3):
        board.note(state(State.DOWN, Reason.TIMEOUT, since=float(second)), float(second))
        board.note(state(State.CONNECTING, Reason.TIMEOUT, since=second + 1.0), second + 1.0)
    assert [entry["state"] for entry in listed(board)] == ["down", "up", "connecting"]
    assert rows(board)["gate"]["state"] == "connecting"
    assert rows(board)["gate"]["since"] == 3.0
    board.note(state(State.DOWN, Reason.REFUSED, since=301.0), 301.0)
    board.note(state(since=302.0), 302.0)
    assert [(entry["state"], entry["at"]) for entry in listed(board)][:2] == [("up", 302.0), ("down", 301.0)]
    assert rows(board)["gate"]["since"] == 302.0
    # Someone resumes it, or the daemon was started again: what was before does not count.
    board.note(state(State.DOWN, Reason.PAUSED, since=400.0), 400.0)
    board.note(state(State.CONNECTING, since=500.0), 500.0)
    assert rows(board)["gate"]["since"] == 500.0


def test_a_stream_that_left_the_configuration_goes_and_one_that_is_only_down_stays() -> None:
    board = Board("tcp://127.0.0.1:1")
    for second in range(100):
        board.note(state(State.DOWN, Reason.REFUSED, stream="down"), float(second))
        if second < 10:
            board.note(state(stream="removed"), float(second))
        board.tick(float(second))
    assert set(rows(board)) == {"down"}
    assert listed(board)[0]["kind"] == "gone"


def test_a_stream_that_is_removed_before_its_second_state_goes_as_well() -> None:
    board = Board("tcp://127.0.0.1:1")
    for second in range(100):
        board.note(state(stream="stays"), float(second))
        if second == 50:
            board.note(state(stream="brief"), float(second))
        board.tick(float(second))
    assert set(rows(board)) == {"stays"}
    assert [entry["stream"] for entry in listed(board) if entry["kind"] == "gone"] == ["brief"]


def test_a_stream_that_is_reported_as_removed_goes_at_once_and_no_end_of_an_object_brings_it_back() -> None:
    board = Board("tcp://127.0.0.1:1")
    for stream in ("gate", "yard"):
        board.note(state(stream=stream), 1.0)
    before = board.revision
    board.note(state(State.DOWN, Reason.REMOVED, since=1500.0), 2.0)
    assert set(rows(board)) == {"yard"}
    assert board.revision > before
    board.note(object_event("gate", phase="end"), 2.0)
    board.note(alert_event("gate", phase="cleared"), 2.0)
    board.note(Gap("gate", "detections/gate/", 1, 1), 2.0)
    board.note(state(State.DOWN, Reason.REMOVED), 3.0)
    assert set(rows(board)) == {"yard"}
    assert [entry["at"] for entry in listed(board) if entry["kind"] == "gone"] == [1500.0]
    board.note(state(), 4.0)
    assert set(rows(board)) == {"gate", "yard"}


def test_that_a_daemon_has_no_streams_holds_until_one_is_heard_of_or_the_connection_ends() -> None:
    board = Board("tcp://127.0.0.1:1")

    def has_none() -> Any:
        return json.loads(board.overview(0))["has_none"]

    assert not board.is_bare
    board.connected(yes=True)
    assert board.is_bare
    assert has_none() is False
    before = board.revision
    board.note_none()
    assert has_none() is True
    assert board.revision > before
    board.note(state(), 1.0)
    board.note_none()  # an answer from before
    assert (has_none(), board.is_bare) == (False, False)
    board.note(state(State.DOWN, Reason.REMOVED), 2.0)
    board.note_none()
    board.connected(yes=False)
    assert (has_none(), board.is_bare) == (False, False)


def test_a_silent_daemon_takes_no_stream_away() -> None:
    board = Board("tcp://127.0.0.1:1")
    for second in range(10):
        board.note(state(), float(second))
    for second in range(10, 500):
        board.tick(float(second))
    assert set(rows(board)) == {"gate"}


def test_streams_of_a_daemon_before_go_when_another_one_has_come() -> None:
    board = Board("tcp://127.0.0.1:1")
    for stream in ("gate", "yard"):
        board.note(state(stream=stream), 1.0)
    board.note(state(stream="gate", epoch="b"), 10.0)
    board.note(state(stream="roof", epoch="b"), 10.0)
    board.tick(11.0)
    assert set(rows(board)) == {"gate", "yard", "roof"}
    board.tick(13.0)
    assert set(rows(board)) == {"gate", "roof"}


def test_a_frame_is_as_old_as_when_it_was_captured() -> None:
    board = Board("tcp://127.0.0.1:1")
    now = time.monotonic()
    board.note(state(), now)
    assert rows(board)["gate"]["age_seconds"] is None
    # It was captured 0.1 s before it was published.
    board.note(seen(1, PERSON), now - 5.0)
    board.tick(now)
    assert 5.1 <= rows(board)["gate"]["age_seconds"] < 10
    # By the clock of a camera nothing can be said about that.
    board.note(replace(seen(2), frame=FrameInfo(2, None, 1.0, "source", 640, 360)), now - 1.0)
    board.tick(now)
    assert 1.0 <= rows(board)["gate"]["age_seconds"] < 5


def test_only_seconds_that_a_browser_does_not_know_are_reported() -> None:
    board = Board("tcp://127.0.0.1:1")
    board.note(seen(1, PERSON), 0.5)
    for second in range(1, 11):
        board.tick(float(second))
    assert len(rows(board)["gate"]["samples"]) == 10
    assert len(json.loads(board.overview(7))["streams"][0]["samples"]) == 3
    assert len(json.loads(board.overview(99))["streams"][0]["samples"]) == 0


def test_what_a_browser_missed_beyond_the_history_is_one_answer_for_all() -> None:
    board = Board("tcp://127.0.0.1:1")
    board.note(seen(1, PERSON), 0.5)
    for second in range(1, 301):
        board.tick(float(second))
    assert board.overview(1) is board.overview(200) is board.overview(0)
    assert board.overview(1) is not board.overview(290)


def test_five_hundred_streams_are_reported_within_a_moment() -> None:
    board = Board("tcp://127.0.0.1:1")
    for number in range(500):
        board.note(seen(1, PERSON, stream=f"s{number}"), 1.0)
    for second in range(90):
        board.tick(float(second))
    began = time.thread_time()  # not that of threads which an earlier test has left to a library
    first, later = board.overview(0), board.overview(89)
    assert time.thread_time() - began < 2
    assert len(json.loads(first)["streams"]) == 500
    assert len(later) < 250_000


def test_pictures_are_kept_only_while_someone_looks() -> None:
    pictures = Pictures()
    pictures.put("gate", b"", b"no one looks", 1.0)
    pictures.want(["gate"], 100.0)
    assert pictures.newer({"gate": 0}) == []
    pictures.put("gate", b"head", b"one", 1.0)
    pictures.put("gate", b"head", b"two", 2.0)
    ((stream, shot),) = pictures.newer({"gate": 0, "yard": 0})
    assert (stream, shot.jpeg) == ("gate", b"two")
    assert pictures.newer({"gate": shot.id}) == []
    assert pictures.wanted(100.0 + LEASE_SECONDS) == {"gate"}
    assert pictures.wanted(100.1 + LEASE_SECONDS) == set()
    assert pictures.newer({"gate": 0}) == []


def test_an_object_is_one_entry_that_changes() -> None:
    board = Board("")
    board.note(object_event("gate", object_id="o1", phase="begin", began_at=5.0), 1.0)
    for _ in range(5):
        board.note(object_event("gate", object_id="o1", began_at=5.0), 1.0)
    board.note(object_event("gate", object_id="o2", label="car", phase="begin"), 1.0)
    (_, car), (_, person) = ((entry["kind"], entry) for entry in listed(board))
    assert (car["label"], person["label"], person["is_over"], person["at"]) == ("car", "person", False, 5.0)
    newest = board.events(0, Filter(), 100)[0]
    change = ZoneChange("enter", "bay", 0.0)
    visit = ZoneVisit("bay", 0.0, inside=True)
    board.note(object_event("gate", object_id="o1", changes=(change,), zones=(visit,)), 1.0)
    (changed,) = board.events(newest, Filter(), 100)[1]
    assert (changed["key"], changed["zones"]) == ("o1", ["bay"])
    board.note(object_event("gate", object_id="o1", phase="end", seconds=9.0), 1.0)
    assert [(entry["key"], entry["is_over"]) for entry in listed(board)] == [("o1", True), ("o2", False)]
    assert [entry["key"] for entry in listed(board, label="car")] == ["o2"]
    assert listed(board, objects=False) == []


def test_an_alert_is_one_entry_until_it_is_over() -> None:
    board = Board("")
    board.note(alert_event("gate"), 1.0)
    raised_at = FRAME.captured_at - 2.5  # after ten seconds in which the condition was met
    board.note(alert_event("gate", phase="cleared", raised_at=raised_at, seconds=12.5), 1.0)
    (alert,) = listed(board)
    assert (alert["rule"], alert["is_over"], alert["seconds"]) == ("at the door", True, 2.5)
    assert listed(board, alerts=False) == []


def test_many_objects_displace_no_alert() -> None:
    board = Board("")
    board.note(alert_event("gate"), 1.0)
    for number in range(MAX_OBJECTS + 10):
        board.note(object_event("gate", object_id=f"o{number}", phase="begin"), 1.0)
    (alert,) = listed(board, objects=False)
    assert alert["rule"] == "at the door"


@pytest.mark.parametrize("clock", ["daemon", "camera"])
@pytest.mark.parametrize("event", [
    object_event(phase="end", seconds=9.0), alert_event(raised_at=1760000000.0), alert_event(phase="cleared"),
])  # fmt: skip
def test_the_list_and_the_review_agree_when_something_happened(event: ObjectEvent | AlertEvent, clock: Any) -> None:
    board = Board("")
    board.note(replace(event, frame=replace(event.frame, clock=clock)), 1.0)
    (entry,) = listed(board)
    (kept,) = board.occurrences.newest_first()
    of = kept.occurrence
    assert entry["listed_at"] == pytest.approx(of.ended_at if of.rule is None else of.began_at)


def test_frames_are_listed_only_of_streams_without_objects() -> None:
    board = Board("")
    board.note(seen(1, replace(PERSON, track_id=5)), 1.0)
    board.tick(2.0)
    board.note(seen(2, PERSON), 2.5)
    board.note(seen(1, PERSON, stream="yard"), 2.5)
    board.tick(3.0)
    assert [(entry["kind"], entry["stream"]) for entry in listed(board)] == [("seen", "yard")]


def test_what_happened_lately_is_kept_once_each_and_bounded() -> None:
    occurrences = Board("").occurrences
    assert not occurrences.note(object_event(phase="begin"))
    for number in range(MAX_OCCURRENCES + 50):
        assert occurrences.note(object_event(object_id=f"o{number}", phase="end"))
    occurrences.note(alert_event())
    number = occurrences.last_number
    occurrences.note(alert_event(phase="cleared"))
    assert [entry.occurrence.phase for entry in occurrences.newest_first(number)] == ["cleared"]
    ids = [entry.occurrence.id for entry in occurrences.newest_first()]
    assert len(ids) == len(set(ids)) == MAX_OCCURRENCES
    assert ids[0] == "e1-a1"


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"kind": "objects"}, False),
        ({"kind": "alerts", "stream": "gate", "label": "person", "zone": "door", "rule": "at the door"}, True),
        ({"stream": "yard"}, False),
        ({"zone": "bay"}, False),
        ({"since": 1.5, "until": 2.0}, True),
        ({"until": 1.5}, False),
        ({"reviewed": "no"}, True),
        ({"reviewed": "yes"}, False),
    ],
)
def test_what_happened_is_chosen(wanted: dict[str, Any], fits: bool) -> None:
    board = Board("")
    board.note(alert_event("gate"), 1.0)
    (entry,) = board.occurrences.newest_first()
    assert Wanted(**wanted).fits(entry.stream, entry.occurrence, is_reviewed=False) == fits
