"""Reads the events of objects and alerts back from the spool, newest first and page by page, in a thread of its own.

It opens the database of the spool only to read, and never for long: the spool can write between any two statements.
A page ends with its last event, or after a second of reading, so that a rare label in a million events is found in
several pages and not in one answer that takes minutes.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, NamedTuple
from urllib.parse import quote

import orjson

from streamdet.monitoring.log import FailureLog
from streamdet.monitoring.unexpected import UnexpectedErrors
from streamdet.security.limits import Share
from streamdet.worker import Worker

MAX_EVENTS = 1000
"""Of one page."""

_MAX_PAGE_BYTES = 4 << 20
_MAX_WAITING = 16
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
        kind: of the events.
        since: Unix time in seconds; those published at that time or later. None for all.
        until: Unix time in seconds; those published before. None for all.
        stream: of this stream; None for all.
        phase: such as "raised" or "end"; None for all.
        label: of this label, where `kind` is "objects"; None for all.
        rule: of this rule, where `kind` is "alerts"; None for all.
        limit: how many at most, 1 to `MAX_EVENTS`.
        after: `next` of the page before; None for the first page.
    """

    kind: Literal["objects", "alerts"]
    since: float | None = None
    until: float | None = None
    stream: str | None = None
    phase: str | None = None
    label: str | None = None
    rule: str | None = None
    limit: int = 100
    after: int | None = None

    def fits(self, payload: bytes) -> bool:
        """Whether an event of the kind and stream is wanted; not one that makes no sense."""
        try:
            event = orjson.loads(payload)
            published_at: float = event["published_at"]
            return (
                (self.since is None or published_at >= self.since)
                and (self.until is None or published_at < self.until)
                and self.phase in (None, event["phase"])
                and (self.label is None or event["object"]["label"] == self.label)
                and (self.rule is None or event["alert"]["rule"] == self.rule)
            )
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return False


class Page(NamedTuple):
    """Some of the events that are wanted.

    Attributes:
        events: as they were published, the newest first. Empty also where there may be more, if none of those that
            were looked at is wanted.
        next: `after` of the query for the next page; None where there are no more.
    """

    events: list[bytes]
    next: int | None


Reply = Callable[[Page | None], None]


class History(Worker):
    """Answers queries for events of objects and alerts that the spool has kept.

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
        self._queue: SimpleQueue[tuple[Query, Reply] | None] = SimpleQueue()  # None wakes the thread
        self._reading = Share(_SHARE_OF_READING, _BURST_SECONDS)
        self._unreadable = FailureLog(_log, "{} queries were not answered")

    def fetch(self, query: Query, reply: Reply) -> bool:
        """Has a query answered in this thread; False when too many wait.

        Args:
            query: which events are wanted.
            reply: called in this thread, with None where they cannot be read now.
        """
        if self._queue.qsize() >= _MAX_WAITING:
            return False
        self._queue.put((query, reply))
        return True

    def wake(self) -> None:
        """Ends the wait of `run`."""
        self._queue.put(None)

    def run(self) -> None:
        """Answers until asked to stop; what waits then is not answered."""
        while not self.stopping:
            asked = self._queue.get()
            if asked is None or self.sleep(self._reading.wait_seconds()):
                continue
            began = time.thread_time()
            self._answer(*asked)
            self._reading.worked(time.thread_time() - began)
            self.beat()

    def _answer(self, query: Query, reply: Reply) -> None:
        page: Page | None = None
        try:
            page = self._read(query)
        except sqlite3.Error as error:
            self._unreadable.failed(f"cannot read events in {self._path}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is: other queries wait
            self._unexpected.report("control", error, "a query for events is not answered")
        else:
            self._unreadable.works(f"events in {self._path} can be read again")
        reply(page)

    def _read(self, query: Query) -> Page:
        """One page.

        Raises:
            sqlite3.Error: it cannot be read.
        """
        if not self._path.exists():
            return Page([], None)  # nothing was kept so far
        began = time.monotonic()
        database = sqlite3.connect(f"file:{quote(str(self._path))}?mode=ro", uri=True, isolation_level=None)
        with contextlib.closing(database):
            database.set_progress_handler(
                lambda: self.stopping or time.monotonic() > began + _MAX_SECONDS, _STEPS_BETWEEN_LOOKS
            )
            return _page(database, query, began + _PAGE_SECONDS)


def _page(database: sqlite3.Connection, query: Query, until: float) -> Page:
    """Reads one page.

    Args:
        database: of the spool.
        query: which events are wanted.
        until: monotonic seconds at which it ends.
    """
    candidates = _candidates(database, query)
    last, events, left_bytes = query.after, list[bytes](), _MAX_PAGE_BYTES
    for number, payload in _payloads(database, candidates):
        if time.monotonic() > until and last != query.after:
            return Page(events, last)
        if query.fits(payload):
            if len(events) == query.limit or (events and len(payload) > left_bytes):
                return Page(events, last)
            events.append(payload)
            left_bytes -= len(payload)
        last = number
    return Page(events, candidates[-1] if len(candidates) == _most_candidates(query) else None)


def _candidates(database: sqlite3.Connection, query: Query) -> list[int]:
    """The newest ids of events of the kind and stream, about from `since` to `until`, and after the page before."""
    first = _FIRST if query.since is None else _first_kept(database, query.since)
    end = _LAST if query.until is None else _first_kept(database, query.until + _KEPT_LATER_SECONDS)
    # In the index are the topics and ids; the table also has all the detections that lie between. All ids in one row: a
    # thread that takes the lock of the interpreter for each of them delays the others.
    newest = (
        "SELECT json_group_array(id) FROM (SELECT id FROM records INDEXED BY records_by_seq "
        "WHERE topic_id IN (SELECT id FROM topics WHERE topic GLOB ?) AND id >= ? AND id < ? "
        "ORDER BY id DESC LIMIT ?)"
    )
    after = end if query.after is None else min(end, query.after)
    topics = f"{query.kind}/{query.stream or '*'}/"
    ids = database.execute(newest, (topics, first, after, _most_candidates(query))).fetchone()[0]
    return sorted(orjson.loads(ids), reverse=True)


def _most_candidates(query: Query) -> int:
    """How many events one page looks at; one more than it holds, where nearly all of them are wanted."""
    is_picky = (query.phase, query.label, query.rule) != (None, None, None)
    return _MAX_CANDIDATES if is_picky else min(query.limit + 1, _MAX_CANDIDATES)


def _payloads(database: sqlite3.Connection, ids: list[int]) -> Iterator[tuple[int, bytes]]:
    """The events of these ids, without those that have been deleted meanwhile."""
    for start in range(0, len(ids), _EVENTS_AT_ONCE):
        some = ids[start : start + _EVENTS_AT_ONCE]
        query = "SELECT id, payload FROM records WHERE id IN (?" + ", ?" * (len(some) - 1) + ") ORDER BY id DESC"
        # All read before any is used: the spool must be able to begin its log again.
        yield from database.execute(query, some).fetchall()


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
