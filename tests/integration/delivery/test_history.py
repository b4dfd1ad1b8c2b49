from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import orjson
import pytest

from streamdet import wire
from streamdet.delivery import history as module
from streamdet.delivery.event_store import EventStore, Record
from streamdet.delivery.history import History, Page, Query
from streamdet.types import ZoneVisit
from support.occurring import alert_event, object_event
from support.waiting import wait_until

_AT = 1760000000.0


class Kept:
    """The events of one spool, one every second from `_AT` on."""

    def __init__(self, directory: Path) -> None:
        self.seqs: dict[str, int] = {}
        self.store = EventStore(directory, 2**30, "e1", self.seqs)
        self.at = _AT

    def put(self, *events: Any, epoch: str = "e1") -> None:
        records = []
        for event in events:
            topic = wire.topic("objects" if hasattr(event, "object") else "alerts", event.stream)
            self.seqs[topic] = self.seqs.get(topic, 0) + 1
            payload = wire.to_message(replace(event, seq=self.seqs[topic], epoch=epoch, published_at=self.at))[1]
            records.append(Record(epoch, topic, self.seqs[topic], self.at + 0.001, payload))
            self.at += 1
        self.store.append(records)

    def put_other(self, count: int) -> None:
        self.store.append(
            [
                Record("e1", "detections/a/", number, self.at, b'{"type": "detections"}')
                for number in range(1, count + 1)
            ]
        )


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path)
    yield kept
    kept.store.close()


@pytest.fixture
def history(kept: Kept) -> Iterator[History]:
    with History(kept.store.path) as history:
        yield history
    assert history.error is None


def page_of(history: History, query: Query) -> Page | None:
    answers: SimpleQueue[Page | None] = SimpleQueue()
    assert history.fetch(query, answers.put)
    return answers.get(timeout=30)


def ask(history: History, kind: Any, **query: Any) -> list[tuple[str, float]]:
    """Phase and time of the events on all pages."""
    found: list[tuple[str, float]] = []
    after = None
    while True:
        page = page_of(history, Query(kind, after=after, **query))
        assert page is not None
        found += [(event["phase"], event["published_at"] - _AT) for event in map(orjson.loads, page.events)]
        if page.next is None:
            return found
        after = page.next


def test_events_come_newest_first_in_pages_as_they_were_published(kept: Kept, history: History) -> None:
    kept.put(*(object_event(phase="begin") for _ in range(3)))
    kept.put_other(20)
    kept.put(alert_event(), *(object_event("back-door", phase="end") for _ in range(4)), epoch="e2")
    expected = [("end", at) for at in (7.0, 6.0, 5.0, 4.0)] + [("begin", at) for at in (2.0, 1.0, 0.0)]
    for limit in (1, 2, 3, 7, 100):
        assert ask(history, "objects", limit=limit) == expected
    assert ask(history, "alerts") == [("raised", 3.0)]
    page = page_of(history, Query("alerts"))
    assert page is not None
    assert page.events == [wire.to_message(alert_event(epoch="e2", published_at=_AT + 3.0))[1]]


def test_they_are_chosen_by_time_stream_phase_label_and_rule(kept: Kept, history: History) -> None:
    kept.put(object_event("a"), object_event("b", label="car"), object_event("a", phase="end", label="car"))
    kept.put(alert_event("a"), alert_event("a", phase="cleared"), alert_event("b", rule="at night"))
    for query, times in (
        ({"since": _AT + 1}, [2.0, 1.0]),
        ({"until": _AT + 1}, [0.0]),
        ({"since": _AT + 1, "until": _AT + 2}, [1.0]),
        ({"since": _AT + 900}, []),
        ({"until": _AT - 900}, []),
        ({"stream": "a"}, [2.0, 0.0]),
        ({"stream": "other"}, []),
        ({"label": "car"}, [2.0, 1.0]),
        ({"label": "car", "phase": "end"}, [2.0]),
        ({"label": "car", "stream": "b", "since": _AT}, [1.0]),
    ):
        assert [at for _, at in ask(history, "objects", **query)] == times, query
    assert [at for _, at in ask(history, "alerts", rule="at night")] == [5.0]
    assert [at for _, at in ask(history, "alerts", phase="cleared", stream="a")] == [4.0]


def test_what_is_added_or_deleted_meanwhile_changes_no_page_that_follows(kept: Kept, history: History) -> None:
    kept.put(*(object_event() for _ in range(6)))
    first = page_of(history, Query("objects", limit=2))
    assert first is not None
    kept.put(object_event())
    assert kept.store.delete_older(_AT + 2, _AT + 100)
    assert [at for _, at in ask(history, "objects")] == [6.0, 5.0, 4.0, 3.0, 2.0]
    second = page_of(history, Query("objects", limit=10, after=first.next))
    assert second is not None
    assert [orjson.loads(event)["published_at"] - _AT for event in second.events] == [3.0, 2.0]


def test_a_page_ends_in_time_and_size_and_the_next_one_goes_on(
    kept: Kept, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.put(*(object_event() for _ in range(30)), object_event(label="car"), *(object_event() for _ in range(30)))
    monkeypatch.setattr(module, "_MAX_CANDIDATES", 7)
    assert [at for _, at in ask(history, "objects", label="car")] == [30.0]
    page = page_of(history, Query("objects", label="car"))
    assert page is not None
    assert (page.events, page.next is not None) == ([], True)
    assert len(ask(history, "objects")) == 61
    monkeypatch.setattr(module, "_PAGE_SECONDS", 0.0)
    assert [at for _, at in ask(history, "objects", label="car")] == [30.0]
    monkeypatch.undo()
    monkeypatch.setattr(module, "_MAX_PAGE_BYTES", 1000)
    page = page_of(history, Query("objects"))
    assert page is not None
    assert 1 <= len(page.events) < 4
    assert len(ask(history, "objects")) == 61


def test_a_spool_that_kept_nothing_has_none_and_one_that_is_damaged_is_no_end(kept: Kept, history: History) -> None:
    assert ask(history, "objects") == []
    kept.put(object_event())
    path = kept.store.path
    kept.store.close()
    whole = path.read_bytes()
    path.write_bytes(b"not a database" * 1000)
    assert page_of(history, Query("objects")) is None
    path.write_bytes(whole)
    assert page_of(history, Query("objects")) is not None


def test_events_that_make_no_sense_are_left_out(kept: Kept, history: History) -> None:
    for number, payload in enumerate((b"", b"[]", b"{}", b'{"published_at": "x", "phase": "end"}', b"\xff"), 100):
        kept.store.append([Record("e1", "objects/a/", number, _AT, payload)])
    kept.put(object_event("a"))
    assert len(ask(history, "objects", since=_AT, label="person")) == 1


def test_it_cannot_write_and_holds_up_no_writer(kept: Kept, history: History) -> None:
    kept.put(*(object_event() for _ in range(300)))
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            page_of(history, Query("objects", limit=1000))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        took = []
        for _ in range(50):
            began = time.monotonic()
            kept.put(object_event())
            took.append(time.monotonic() - began)
    finally:
        stop.set()
        reader.join()
    # A writer that had to wait for a reader would wait for whole queries.
    assert sorted(took)[25] < 0.1
    database = sqlite3.connect(f"file:{kept.store.path}?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.execute("DELETE FROM records")
    database.close()


def test_queries_wait_in_a_queue_of_limited_length_that_holds_up_no_end(kept: Kept) -> None:
    history = History(kept.store.path)  # not started
    answers: SimpleQueue[Page | None] = SimpleQueue()
    taken = [history.fetch(Query("objects"), answers.put) for _ in range(50)]
    assert (taken[0], taken[-1]) == (True, False)
    began = time.monotonic()
    with history:
        pass
    assert time.monotonic() - began < 5


def happened(history: History, **query: Any) -> list[tuple[str, str]]:
    """Id and phase of what happened, on all pages."""
    found: list[tuple[str, str]] = []
    after = None
    while True:
        page = page_of(history, Query("occurrences", after=after, **query))
        assert page is not None
        for event in map(orjson.loads, page.events):
            of = event.get("object") or event["alert"]
            found.append((of.get("object_id") or of["alert_id"], event["phase"]))
        if page.next is None:
            return found
        after = page.next


def visits(*zones: str) -> tuple[ZoneVisit, ...]:
    return tuple(ZoneVisit(zone, 1.0, inside=False) for zone in zones)


def test_what_happened_has_each_object_and_alert_once_with_its_newest_event(kept: Kept, history: History) -> None:
    kept.put(*(object_event(object_id="o1", phase=phase) for phase in ("begin", "update", "update")))
    kept.put(alert_event(alert_id="a1"), object_event(object_id="o2", phase="begin"), alert_event(alert_id="a2"))
    kept.put(object_event(object_id="o1", phase="end"), alert_event(alert_id="a1", phase="cleared"))
    kept.put_other(20)
    kept.put(object_event(object_id="o3", phase="end"), epoch="e2")
    expected = [("o3", "end"), ("o1", "end"), ("a2", "raised"), ("a1", "cleared")]
    for limit in (1, 2, 3, 100):
        assert happened(history, limit=limit) == expected
    assert happened(history, since=_AT + 4) == expected[:3]
    assert happened(history, until=_AT + 6) == expected[2:]


def test_an_alert_that_is_cleared_at_once_is_still_one(kept: Kept, history: History) -> None:
    kept.put(alert_event(alert_id="a1"), alert_event(alert_id="a1", phase="cleared"), object_event(phase="end"))
    assert happened(history) == [("e1-1", "end"), ("a1", "cleared")]
    assert [json.loads(event)["phase"] for event in kept.store.left_behind().unfinished] == []


def test_what_happened_is_chosen_by_stream_label_rule_and_zone(kept: Kept, history: History) -> None:
    kept.put(
        object_event("a", object_id="o1", phase="end", zones=visits("bay", "door")),
        object_event("b", object_id="o2", phase="end", label="car", zones=visits('the "bay"')),
        alert_event("a", alert_id="a1", zone="bay"),
        alert_event("b", alert_id="a2", rule="at night", zone=None, label=None),
    )
    for query, ids in (
        ({"stream": "a"}, ["a1", "o1"]),
        ({"stream": "a*"}, []),
        ({"label": "person"}, ["a1", "o1"]),
        ({"label": "car", "stream": "b"}, ["o2"]),
        ({"rule": "at night"}, ["a2"]),
        ({"zone": "bay"}, ["a1", "o1"]),
        ({"zone": "door"}, ["o1"]),
        ({"zone": 'the "bay"'}, ["o2"]),
        ({"zone": "y"}, []),
        ({"zone": "bay", "rule": "at the door"}, ["a1"]),
        ({"phase": "end"}, ["o2", "o1"]),
        ({"phase": "raised", "stream": "b"}, ["a2"]),
    ):
        assert [of for of, _ in happened(history, **query)] == ids, query
    assert [at for _, at in ask(history, "objects", zone="door")] == [0.0]
    assert [at for _, at in ask(history, "alerts", label="person")] == [2.0]


def test_what_an_earlier_version_kept_happened_too(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put(object_event(object_id="o1", phase="begin"), object_event(object_id="o1", phase="end"))
    kept.put(alert_event(alert_id="a1"), alert_event(alert_id="a1", phase="cleared"))
    with closing(sqlite3.connect(kept.store.path)) as database:
        database.executescript("DROP TABLE occurrences; DROP TABLE outages")
    with History(kept.store.path) as history:
        assert happened(history) == [("a1", "raised"), ("o1", "end")]
        kept.store.close()
        kept = Kept(tmp_path)
        kept.put(object_event(object_id="o2", phase="end"), epoch="e2")
        for limit in (1, 100):
            assert happened(history, limit=limit) == [("o2", "end"), ("a1", "raised"), ("o1", "end")]
    kept.store.close()


def test_what_is_deleted_did_not_happen(kept: Kept, history: History) -> None:
    kept.put(*(object_event(object_id=f"o{number}", phase="end") for number in range(6)))
    assert kept.store.delete_older(_AT + 3, _AT + 100)
    assert [of for of, _ in happened(history)] == ["o5", "o4", "o3"]
    with closing(sqlite3.connect(kept.store.path)) as database:
        assert database.execute("SELECT count(*) FROM occurrences").fetchone()[0] == 3


def test_clients_take_turns_and_some_places_are_for_the_control_api(kept: Kept) -> None:
    history = History(kept.store.path)  # not started
    order: list[str] = []
    for number in range(3):
        assert history.fetch(Query("objects"), lambda _, n=number: order.append(f"many {n}"), b"many", number)
    assert history.fetch(Query("objects"), lambda _: order.append("one"), b"one", 1)
    # The same again keeps its place, and is answered once.
    assert history.fetch(Query("objects"), lambda _: order.append("many 0 again"), b"many", 0)
    taken = [history.fetch(Query("objects"), lambda _: None, str(client).encode()) for client in range(100)]
    assert not taken[-1]
    assert history.fetch(Query("objects"), lambda _: order.append("control"))
    with history:
        wait_until(lambda: "control" in order)
    assert order.index("one") < order.index("many 1")
    assert "many 0" not in order
    assert "many 0 again" in order
