"""Reads the events of objects and alerts back from the spool, newest first and page by page, in a thread of its own.

It opens the database of the spool only to read, and never for long: the spool can write between any two statements.
A page ends with its last event, or after a second of reading, so that a rare label in a million events is found in
several pages and not in one answer that takes minutes. What happened, each object and alert once, is found by a table
of the spool that has a row for each; events that an earlier version kept are not in it, and are looked through.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from streamdet import wire
from streamdet.delivery.event_store import OCCURRENCES
from streamdet.delivery.timeline import Timeline, TimelineQuery, read_timeline
from streamdet.monitoring.log import FailureLog
from streamdet.monitoring.unexpected import UnexpectedErrors
from streamdet.security.limits import Share
from streamdet.wire.occurrence import occurrence_of
from streamdet.wire.replay import HistoryKind
from streamdet.worker import Worker

MAX_EVENTS = 1000
"""Of one page."""

CONTROL = b"control"
"""The client that stands for all clients of the control API."""

_MAX_PAGE_BYTES = 4 << 20
# Some places are left for the control API, however many other clients there are.
_MAX_WAITING = 64
_MAX_WAITING_OF_A_CLIENT = 16
# A page ends when it has been read for this long; a single statement that takes longer than the other is given up.
_PAGE_SECONDS = 1.0
_MAX_SECONDS = 5.0
# Reading takes a tenth of a core at most, after a burst.
_SHARE_OF_READING = 0.1
_BURST_SECONDS = 1.0
_MAX_CANDIDATES = 20_000
_EVENTS_AT_ONCE = 100
_STEPS_BETWEEN_LOOKS = 10_000
# An event is kept right after it is published.
_KEPT_LATER_SECONDS = 5.0
_FIRST, _LAST = -(2**63), 2**63 - 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Query:
    """Which events are wanted.

    Attributes:
        kind: of the events; "occurrences" for each object once, when it has ended, and each alert once, from when it
            was raised, with the newest event about it.
        since: Unix time in seconds; those published at that time or later. None for all.
        until: Unix time in seconds; those published before. None for all.
        stream: of this stream; None for all.
        phase: such as "raised" or "end"; of occurrences "end" for objects alone, "raised" for alerts. None for all.
        label: of this label; None for all. Alerts about several objects or none have no label.
        rule: of this rule; None for all. Objects have none.
        zone: of objects that have been in this zone, and of alerts of rules for it; None for all.
        limit: how many at most, 1 to `MAX_EVENTS`.
        max_bytes: of all of them; one may be larger.
        after: `next` of the page before; None for the first page.
    """

    kind: HistoryKind
    since: float | None = None
    until: float | None = None
    stream: str | None = None
    phase: str | None = None
    label: str | None = None
    rule: str | None = None
    zone: str | None = None
    limit: int = 100
    max_bytes: int | None = None
    after: int | None = None

    def fits(self, payload: bytes, *, is_newest: bool = False) -> bool:
        """Whether an event of the kind and stream is wanted; not one that makes no sense.

        Args:
            payload: the event.
            is_newest: of an occurrence, whether it stands for an earlier event, which put it into the list.
        """
        try:
            event = orjson.loads(payload)
            occurrence = occurrence_of(event)
            published_at: float = event["published_at"]
            is_in_time = (self.since is None or published_at >= self.since) and (
                self.until is None or published_at < self.until
            )
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return False
        if self.kind == "occurrences":
            is_wanted = is_newest or occurrence.is_listed
            is_wanted = is_wanted and (self.phase is None or (self.phase == "end") == (occurrence.rule is None))
        else:
            is_wanted = is_in_time and self.phase in (None, occurrence.phase)
        return (
            is_wanted
            and self.label in (None, occurrence.label)
            and self.rule in (None, occurrence.rule)
            and (self.zone is None or self.zone in occurrence.zones)
        )

    @property
    def topics(self) -> list[str]:
        """Patterns of the topics of the events, as GLOB reads them."""
        # Names of streams from elsewhere may have characters that mean something in a pattern.
        stream = "*" if self.stream is None else "".join(f"[{c}]" if c in "*?[" else c for c in self.stream)
        return [f"{kind}{stream}/" for kind in OCCURRENCES if self.kind in ("occurrences", kind.rstrip("/"))]


class Page(NamedTuple):
    """Some of the events that are wanted.

    Attributes:
        events: as they were published, the newest first. Empty also where there may be more, if none of those that
            were looked at is wanted.
        next: `after` of the query for the next page; None where there are no more.
    """

    events: list[bytes]
    next: int | None


_Read = Callable[[sqlite3.Connection, float], Any]


class _Asked(NamedTuple):
    """A query.

    Attributes:
        read: reads what is wanted, until about a time in monotonic seconds.
        nothing: what is wanted where nothing was kept so far.
        reply: takes it.
    """

    read: _Read
    nothing: Page | Timeline
    reply: Callable[[Any], None]


class History(Worker):
    """Answers queries for events of objects and alerts that the spool has kept, and for sums of them.

    Clients take turns; the queries of each are answered in order.

    Args:
        path: of the database of the spool.
        on_error: called when the thread ends with an error.
        unexpected: counts errors that cost the answer to a single query.
    """

    def __init__(
        self,
        path: Path,
        on_error: Callable[[Worker], None] | None = None,
        unexpected: UnexpectedErrors | None = None,
    ) -> None:
        super().__init__("history", on_error)
        self._path = path
        self._unexpected = unexpected or UnexpectedErrors()
        self._changed = threading.Condition()
        # By client, in the order of their turns; and by what is asked.
        self._waiting: dict[bytes, dict[Hashable, _Asked]] = {}
        self._reading = Share(_SHARE_OF_READING, _BURST_SECONDS)
        self._unreadable = FailureLog(_log, "{} queries were not answered")

    def fetch(
        self,
        query: Query,
        reply: Callable[[Page | None], None],
        client: bytes = CONTROL,
        question: Hashable | None = None,
    ) -> bool:
        """Has a query answered in this thread; False when too many wait.

        Args:
            query: which events are wanted.
            reply: called in this thread, with None where they cannot be read now.
            client: that asks.
            question: the same when it is asked again: while it waits, it keeps its place. None for a new one.
        """
        asked = _Asked(lambda database, until: _page(database, query, until), Page([], None), reply)
        return self._put(asked, client, question)

    def fetch_timeline(
        self, query: TimelineQuery, reply: Callable[[Timeline | None], None], client: bytes, question: Hashable
    ) -> bool:
        """Has the sums of a span read in this thread; the arguments are as in `fetch`."""
        asked = _Asked(lambda database, _: read_timeline(database, query), Timeline(None, [], [], None), reply)
        return self._put(asked, client, question)

    def wake(self) -> None:
        """Ends the wait of `run`."""
        with self._changed:
            self._changed.notify_all()

    def run(self) -> None:
        """Answers until asked to stop; what waits then is not answered."""
        while not self.stopping:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self.stopping)
            if self.stopping or self.sleep(self._reading.wait_seconds()):
                continue
            began = time.thread_time()
            self._answer(self._next())
            self._reading.worked(time.thread_time() - began)
            self.beat()

    def _put(self, asked: _Asked, client: bytes, question: Hashable | None) -> bool:
        question = object() if question is None else question
        most = _MAX_WAITING - (0 if client == CONTROL else _MAX_WAITING_OF_A_CLIENT)
        with self._changed:
            own = self._waiting.get(client, {})
            is_full = len(own) >= _MAX_WAITING_OF_A_CLIENT or sum(map(len, self._waiting.values())) >= most
            if question not in own and is_full:
                return False
            own[question] = asked
            self._waiting[client] = own
            self._changed.notify_all()
        return True

    def _next(self) -> _Asked:
        with self._changed:
            client = next(iter(self._waiting))
            own = self._waiting.pop(client)
            asked = own.pop(next(iter(own)))
            if own:
                self._waiting[client] = own  # behind all others
        return asked

    def _answer(self, asked: _Asked) -> None:
        result = None
        try:
            result = self._read(asked)
        except sqlite3.Error as error:
            self._unreadable.failed(f"cannot read events in {self._path}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is: other queries wait
            self._unexpected.report("control", error, "a query for events is not answered")
        else:
            self._unreadable.works(f"events in {self._path} can be read again")
        asked.reply(result)

    def _read(self, asked: _Asked) -> Any:  # noqa: ANN401 - whatever is read
        """Reads with a connection of its own.

        Raises:
            sqlite3.Error: it cannot be read.
        """
        if not self._path.exists():
            return asked.nothing
        began = time.monotonic()
        database = sqlite3.connect(f"file:{quote(str(self._path))}?mode=ro", uri=True, isolation_level=None)
        with contextlib.closing(database):
            database.set_progress_handler(
                lambda: self.stopping or time.monotonic() > began + _MAX_SECONDS, _STEPS_BETWEEN_LOOKS
            )
            return asked.read(database, began + _PAGE_SECONDS)


def _page(database: sqlite3.Connection, query: Query, until: float) -> Page:
    """Reads one page.

    Args:
        database: of the spool.
        query: which events are wanted.
        until: monotonic seconds at which it ends.
    """
    candidates, are_more = _candidates(database, query)
    last, events, left_bytes = query.after, list[bytes](), query.max_bytes or _MAX_PAGE_BYTES
    for candidate, payload in _payloads(database, candidates):
        if time.monotonic() > until and last != query.after:
            return Page(events, last)
        if query.fits(payload, is_newest=candidate.number != candidate.place):
            if len(events) == query.limit or (events and len(payload) > left_bytes):
                return Page(events, last)
            events.append(payload)
            left_bytes -= len(payload)
        last = candidate.place
    return Page(events, candidates[-1].place if are_more else None)


class _Candidate(NamedTuple):
    """An event that may be wanted.

    Attributes:
        place: the id by which it is ordered.
        number: the id of its record; for an alert that has been cleared, of the event that says so.
    """

    place: int
    number: int


def _candidates(database: sqlite3.Connection, query: Query) -> tuple[list[_Candidate], bool]:
    """Events about from `since` to `until`, and after the page before, the newest first; and whether there may be more.

    They are as many as one page looks at; one more than it holds, where nearly all of them are wanted.
    """
    later = 0.0 if query.kind == "occurrences" else _KEPT_LATER_SECONDS
    first = _FIRST if query.since is None else _first_kept(database, query.since)
    end = _LAST if query.until is None else _first_kept(database, query.until + later)
    end = end if query.after is None else min(end, query.after)
    enough = min(query.limit + 1, _MAX_CANDIDATES)
    if query.kind != "occurrences":
        is_picky = (query.phase, query.label, query.rule, query.zone) != (None,) * 4
        most = _MAX_CANDIDATES if is_picky else enough
        ids = _ids(database, query, first, end, most)
        return [_Candidate(number, number) for number in ids], len(ids) == most
    listed: list[_Candidate] = []
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'occurrences'").fetchone():
        listed = _listed(database, query, first, end, enough)
        if len(listed) == enough:
            return listed, True
        oldest = database.execute("SELECT min(id) FROM occurrences").fetchone()[0]
        end = end if oldest is None else min(end, oldest)
    # Those before the oldest in the table were kept by an earlier version.
    ids = _ids(database, query, first, end, _MAX_CANDIDATES)
    return [*listed, *(_Candidate(number, number) for number in ids)], len(ids) == _MAX_CANDIDATES


def _ids(database: sqlite3.Connection, query: Query, first: int, end: int, most: int) -> list[int]:
    """The newest ids of events of the kind and stream, the newest first."""
    # In the index are the topics and ids; the table also has all the detections that lie between. All ids in one row: a
    # thread that takes the lock of the interpreter for each of them delays the others.
    topics = query.topics
    newest = (
        "SELECT json_group_array(id) FROM (SELECT id FROM records INDEXED BY records_by_seq "
        "WHERE topic_id IN (SELECT id FROM topics WHERE topic GLOB ? OR topic GLOB ?) AND id >= ? AND id < ? "
        "ORDER BY id DESC LIMIT ?)"
    )
    ids = database.execute(newest, (topics[0], topics[-1], first, end, most)).fetchone()[0]
    return sorted(orjson.loads(ids), reverse=True)


def _listed(database: sqlite3.Connection, query: Query, first: int, end: int, most: int) -> list[_Candidate]:
    """Objects and alerts that are wanted, the newest first."""
    topics = [wire.topic(kind, query.stream or "") for kind in ("objects", "alerts")]
    newest = (
        "SELECT json_group_array(json_array(id, newest_id)) FROM (SELECT id, newest_id FROM occurrences "
        "WHERE id >= :first AND id < :end AND (:label IS NULL OR label = :label) AND (:rule IS NULL OR rule = :rule) "
        "AND (:zone IS NULL OR instr(zones, :zone)) AND (:phase IS NULL OR (:phase = 'end') = (rule IS NULL)) "
        "AND (:stream IS NULL OR topic_id IN (SELECT id FROM topics WHERE topic IN (:objects, :alerts))) "
        "ORDER BY id DESC LIMIT :most)"
    )
    wanted = {
        "first": first, "end": end, "most": most, "label": query.label, "rule": query.rule, "stream": query.stream,
        "phase": query.phase,
        # The zones are a list in JSON, where a text between two plain quotes is a whole name.
        "zone": None if query.zone is None else orjson.dumps(query.zone).decode(),
        "objects": topics[0], "alerts": topics[1],
    }  # fmt: skip
    pairs = database.execute(newest, wanted).fetchone()[0]
    return sorted((_Candidate(*pair) for pair in orjson.loads(pairs)), reverse=True)


def _payloads(database: sqlite3.Connection, candidates: list[_Candidate]) -> Iterator[tuple[_Candidate, bytes]]:
    """The events, without those that have been deleted meanwhile."""
    for start in range(0, len(candidates), _EVENTS_AT_ONCE):
        some = candidates[start : start + _EVENTS_AT_ONCE]
        query = "SELECT id, payload FROM records WHERE id IN (?" + ", ?" * (len(some) - 1) + ")"
        # All read before any is used: the spool must be able to begin its log again.
        found = dict(database.execute(query, [candidate.number for candidate in some]).fetchall())
        yield from ((candidate, found[candidate.number]) for candidate in some if candidate.number in found)


def _first_kept(database: sqlite3.Connection, at: float) -> int:
    """The id of the first event that was kept at a time or later, by halves: ids have the order of time."""
    lowest, highest = database.execute("SELECT (SELECT min(id) FROM records), (SELECT max(id) FROM records)").fetchone()
    if lowest is None:
        return _FIRST
    low, high = int(lowest), int(highest) + 1
    while low < high:
        middle = (low + high) // 2
        found = database.execute(
            "SELECT id, kept_at FROM records WHERE id >= ? ORDER BY id LIMIT 1", (middle,)
        ).fetchone()
        if found is None or found[1] >= at:
            high = middle
        else:
            low = int(found[0]) + 1
    return low
