"""How many alerts no one has marked as reviewed yet, for the navigation of the page.

The daemon is asked for them at most once a minute, and only while a browser wants to know; between, what comes in and
what is marked is added up here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from streamdet.errors import EndpointError, NotKeptError, WireError
from streamdet.web.marks import Marks
from streamdet.web.occurrences import Entry, Occurrences, Wanted

MOST = 99
"""More are not counted."""

_REFRESH_SECONDS = 60.0
# After a daemon that did not answer, and where marks have made room for those that were not counted.
_SOON_SECONDS = 5.0
# Each is about a page of alerts that are not marked.
_MAX_QUESTIONS = 4

Ask = Callable[[Wanted, str | None], Awaitable[tuple[list[Entry], str | None]]]


class ToReview:
    """Counts; belongs to the event loop.

    Args:
        ask: returns about a page of what the daemon keeps, and where the next one begins.
        occurrences: what has happened of late.
        marks: what was reviewed.
    """

    def __init__(self, ask: Ask, occurrences: Occurrences, marks: Marks) -> None:
        self._ask = ask
        self._occurrences = occurrences
        self._marks = marks
        self._alerts: set[str] | None = None  # that were not marked when they were read or raised; None for unknown
        self._is_cut = False  # whether there are more than were read
        self._occurred = self._marked = 0  # numbers of the newest changes that are counted
        self._count: int | None = None
        self._asked_at = self._due = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def count(self, now: float) -> int | None:
        """How many, `MOST` + 1 for more; None while it is not known, and where the daemon keeps no events.

        Args:
            now: monotonic seconds.
        """
        if now >= self._due and (self._asking is None or self._asking.done()):
            self._asked_at, self._due = now, now + _REFRESH_SECONDS
            self._asking = asyncio.get_running_loop().create_task(self._read())
        self._take_news()
        return self._count

    def _take_news(self) -> None:
        occurred, marked = self._occurrences.last_number, self._marks.last_number
        if self._alerts is None or (occurred, marked) == (self._occurred, self._marked):
            return
        news = self._occurrences.newest_first(self._occurred)
        self._alerts |= {entry.occurrence.id for entry in news if entry.occurrence.rule is not None}
        changes = self._marks.changed(self._marked)
        is_unknown = changes is None or any(not reviewed and of not in self._alerts for of, reviewed in changes.items())
        self._occurred, self._marked = occurred, marked
        self._add_up()
        if is_unknown or (self._is_cut and (self._count or 0) <= MOST):
            self._due = min(self._due, self._asked_at + _SOON_SECONDS)

    def _add_up(self) -> None:
        count = sum(of not in self._marks for of in self._alerts or ())
        self._count = min(count + self._is_cut, MOST + 1)

    async def _read(self) -> None:
        """Reads from the daemon which alerts are not marked, the newest first."""
        occurred, marked = self._occurrences.last_number, self._marks.last_number
        found: set[str] = set()
        after: str | None = None
        try:
            for _ in range(_MAX_QUESTIONS):
                entries, after = await self._ask(Wanted(kind="alerts", reviewed="no"), after)
                found |= {entry.occurrence.id for entry in entries}
                if after is None or len(found) > MOST:
                    break
        except NotKeptError:
            self._alerts = self._count = None
            return
        except (EndpointError, TimeoutError, WireError):
            self._due = min(self._due, self._asked_at + _SOON_SECONDS)
            return
        self._alerts, self._is_cut = found, after is not None and len(found) > MOST
        self._occurred, self._marked = occurred, marked
        self._add_up()
