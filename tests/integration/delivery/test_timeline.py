from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from streamdet import wire
from streamdet.delivery import timeline as module
from streamdet.delivery.event_store import EventStore, Record
from streamdet.delivery.timeline import Timeline, TimelineQuery, read_timeline
from streamdet.types import Reason, State, StateEvent
from support.occurring import FRAME, alert_event, object_event

_AT = 1760000000.0
_QUERY = TimelineQuery(_AT, _AT + 100, 10)


class Kept:
    """The events of one spool, each at a time of its own after `_AT`, and sums of them."""

    def __init__(self, directory: Path) -> None:
        self.store = EventStore(directory, 2**30, "e1", {})
        self.seq = 0

    def put(self, at: float, event: Any, epoch: str = "e1") -> None:
        self.seq += 1
        event = replace(event, seq=self.seq, epoch=epoch, published_at=_AT + at)
        topic, payload = wire.to_message(event)
        self.store.append([Record(epoch, topic.decode(), self.seq, _AT + at, payload)])

    def put_object(self, begin: float, end: float, stream: str = "a", **changes: Any) -> None:
        frame = replace(FRAME, captured_at=_AT + end)
        changes = {"phase": "end", "began_at": _AT + begin, "seconds": end - begin, "frame": frame, **changes}
        self.put(end + 2, object_event(stream, **changes))

    def put_state(self, at: float, state: State, reason: Reason | None = None, stream: str = "a", **of: Any) -> None:
        event = StateEvent(stream, "", 1, _AT + at, state=state, reason=reason, detail="", since=_AT + at)
        self.put(at, event, **of)

    def timeline(self, query: TimelineQuery = _QUERY) -> Timeline:
        with closing(sqlite3.connect(f"file:{self.store.path}?mode=ro", uri=True)) as database:
            return read_timeline(database, query)

    def sums(self, stream: str = "a", query: TimelineQuery = _QUERY) -> dict[str, Any]:
        streams = {sums["stream"]: sums for sums in map(orjson.loads, self.timeline(query).streams)}
        sums: dict[str, Any] = streams[stream]
        return sums


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path)
    yield kept
    kept.store.close()


def test_objects_count_in_each_step_in_which_they_were_present(kept: Kept) -> None:
    kept.put_object(1, 2)
    kept.put_object(5, 25)
    kept.put_object(-50, 5, label="car")
    kept.put_object(95, 195)
    kept.put_object(3, 4, "b")
    kept.put_object(200, 201)
    sums = kept.sums()
    assert sums["presence"] == {"car": [[0, 1]], "person": [[0, 2], [1, 1], [2, 1], [9, 1]]}
    assert kept.sums("b")["presence"] == {"person": [[0, 1]]}


def test_objects_that_have_not_ended_count_until_the_newest_event(kept: Kept) -> None:
    def put_unfinished(begin: float, at: float, **changes: Any) -> None:
        frame = replace(FRAME, captured_at=_AT + at)
        kept.put(at, object_event("a", frame=frame, began_at=_AT + begin, seconds=at - begin, **changes))

    put_unfinished(12, 13, object_id="1")
    put_unfinished(-30, 14, object_id="2", label="car")
    put_unfinished(-30, 14, object_id="3", label="car")
    # What is there when an alert is raised is in the step of the alert, whichever step that is.
    kept.put(31, alert_event("a", raised_at=_AT + 31))
    assert kept.sums()["presence"] == {"car": [[0, 2], [1, 2], [2, 2], [3, 2]], "person": [[1, 1], [2, 1], [3, 1]]}
    assert kept.sums()["alerts"] == [[3, 1]]
    # It ends: then it counts once, until it was last seen.
    kept.put_object(-30, 29.5, object_id="2", label="car")
    assert kept.sums()["presence"]["car"] == [[0, 2], [1, 2], [2, 2], [3, 1]]
    kept.put_state(250, State.UP)
    assert kept.sums()["presence"]["person"] == [[step, 1] for step in range(1, 10)]
    assert kept.sums(query=TimelineQuery(_AT - 200, _AT - 100, 10))["presence"] == {}
    assert kept.sums(query=TimelineQuery(_AT + 260, _AT + 360, 10))["presence"] == {}


def test_a_camera_with_a_wrong_clock_moves_nothing(kept: Kept) -> None:
    frame = replace(FRAME, clock="source", captured_at=5.0)
    kept.put(32, object_event("a", phase="end", began_at=3.0, seconds=2.0, frame=frame))
    kept.put(45, alert_event("a", raised_at=5.0, frame=frame))
    sums = kept.sums()
    assert sums["presence"] == {"person": [[3, 1]]}
    assert sums["alerts"] == [[4, 1]]


def test_alerts_count_once_when_they_are_raised(kept: Kept) -> None:
    for at in (12, 13):
        kept.put(at, alert_event("a", alert_id=f"a{at}", raised_at=_AT + at))
    frame = replace(FRAME, captured_at=_AT + 35)
    kept.put(35, alert_event("a", alert_id="a12", phase="cleared", raised_at=_AT + 12, frame=frame))
    assert kept.sums()["alerts"] == [[1, 2]]
    # Raised in the last step before the span, and cleared in it.
    assert kept.sums(query=TimelineQuery(_AT + 15, _AT + 115, 10))["alerts"] == []


def test_outages_are_from_the_first_failure_until_frames_come_again(kept: Kept) -> None:
    kept.put_state(1, State.UP)
    for at, state in ((5, State.DOWN), (8, State.CONNECTING), (11, State.DOWN)):
        kept.put_state(at, state, Reason.TIMEOUT)
    kept.put_state(22, State.UP)
    kept.put_state(50, State.DOWN, Reason.PAUSED)
    kept.put_state(60, State.CONNECTING)
    kept.put_state(62, State.UP)
    kept.put_state(95, State.STALLED)
    sums = kept.sums()
    assert sums["down"] == [[0, 5.0], [1, 10.0], [2, 2.0], [6, 2.0], [9, 5.0]]
    assert sums["resting"] == [[5, 10.0]]


def test_a_stream_that_was_removed_is_no_longer_down(kept: Kept) -> None:
    kept.put_state(5, State.DOWN, Reason.TIMEOUT)
    kept.put_state(15, State.DOWN, Reason.REMOVED)
    assert kept.sums()["down"] == [[0, 5.0], [1, 5.0]]
    kept.put_state(25, State.DOWN, Reason.TIMEOUT)
    assert kept.sums()["down"] == [[0, 5.0], [1, 5.0], *([step, 5.0 if step == 2 else 10.0] for step in range(2, 10))]


def test_what_an_earlier_run_left_down_is_so_until_its_last_event(kept: Kept) -> None:
    kept.put_state(5, State.DOWN, Reason.TIMEOUT)
    kept.put_state(15, State.UP, stream="b")
    kept.store.close()
    kept.store = EventStore(kept.store.directory, 2**30, "e2", {})
    kept.put_state(30, State.UP, stream="b", epoch="e2")
    assert kept.sums()["down"] == [[0, 5.0], [1, 5.0]]


def test_gaps_are_the_times_between_epochs(kept: Kept) -> None:
    for at, epoch in ((0, "e1"), (10, "e1"), (40, "e2"), (40.5, "e3"), (60, "e3"), (90, "e4")):
        kept.put_state(at, State.UP, epoch=epoch)
    assert kept.timeline().gaps == [(_AT + 60, _AT + 90), (_AT + 10, _AT + 40)]
    assert kept.timeline(TimelineQuery(_AT + 70, _AT + 80, 1)).gaps == [(_AT + 60, _AT + 90)]
    assert kept.timeline(TimelineQuery(_AT + 91, _AT + 99, 1)).gaps == []
    assert kept.timeline().kept_since == _AT


def test_streams_come_in_pages(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        kept.put_object(1, 2, f"s{number}")
    monkeypatch.setattr(module, "MAX_ANSWER_EVENTS", 3)
    names: list[str] = []
    after: str | None = ""
    while after is not None:
        page = kept.timeline(replace(_QUERY, after=after))
        names += [orjson.loads(sums)["stream"] for sums in page.streams]
        after = page.more_after
    assert names == [f"s{number}" for number in range(7)]


def test_a_spool_without_events_has_no_sums(kept: Kept) -> None:
    kept.store.append([])
    assert kept.timeline() == Timeline(None, [], [], None)
