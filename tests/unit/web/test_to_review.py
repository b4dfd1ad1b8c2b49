"""The number of alerts to review: what the daemon keeps, what comes in, and what is marked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from streamdet import wire
from streamdet.errors import EndpointError, NotKeptError
from streamdet.web.marks import Marks
from streamdet.web.occurrences import Entry, Occurrences, Wanted
from streamdet.web.to_review import MOST, ToReview
from support.occurring import alert_event, object_event


def entry(alert_id: str) -> Entry:
    return Entry.read(wire.encode(alert_event(alert_id=alert_id)))


class Kept:
    """The alerts that a daemon keeps, in pages of 40."""

    def __init__(self, count: int, marks: Marks) -> None:
        self.alerts = [entry(f"a{number}") for number in range(count)]
        self.marks = marks
        self.asked = 0
        self.error: EndpointError | None = None

    async def __call__(self, wanted: Wanted, after: str | None) -> tuple[list[Entry], str | None]:
        assert (wanted.kind, wanted.reviewed) == ("alerts", "no")
        self.asked += 1
        if self.error is not None:
            raise self.error
        begin = int(after or 0)
        page = self.alerts[begin : begin + 40]
        next_page = str(begin + 40) if begin + 40 < len(self.alerts) else None
        return [one for one in page if one.occurrence.id not in self.marks], next_page


def run(count: int, test: Callable[[ToReview, Kept, Occurrences, Marks], Awaitable[None]]) -> None:
    async def within() -> None:
        marks, occurrences = Marks(None), Occurrences()
        kept = Kept(count, marks)
        await test(ToReview(kept, occurrences, marks), kept, occurrences, marks)

    asyncio.run(within())


async def read(to_review: ToReview, now: float) -> int | None:
    """What is counted once the daemon has been asked."""
    to_review.count(now)
    for _ in range(10):
        await asyncio.sleep(0)
    return to_review.count(now)


def test_the_daemon_is_asked_once_a_minute_and_what_comes_in_and_is_marked_is_added_up() -> None:
    async def test(to_review: ToReview, kept: Kept, occurrences: Occurrences, marks: Marks) -> None:
        assert to_review.count(100.0) is None
        assert await read(to_review, 100.0) == 3
        occurrences.note(alert_event(alert_id="new"))
        occurrences.note(object_event(object_id="o1", phase="end"))
        assert to_review.count(101.0) == 4
        marks.mark(["a0", "new", "o1"], reviewed=True)
        assert to_review.count(102.0) == 2
        occurrences.note(alert_event(alert_id="new", phase="cleared"))
        marks.mark(["a0"], reviewed=False)
        assert await read(to_review, 159.0) == 3
        assert kept.asked == 1
        kept.alerts.pop()
        assert await read(to_review, 161.0) == 2
        assert kept.asked == 2

    run(3, test)


def test_more_than_can_be_shown_are_not_counted_and_marks_make_room_for_them() -> None:
    async def test(to_review: ToReview, kept: Kept, _occurrences: Occurrences, marks: Marks) -> None:
        assert await read(to_review, 100.0) == MOST + 1
        assert kept.asked == 3
        marks.mark([one.occurrence.id for one in kept.alerts[:150]], reviewed=True)
        assert (to_review.count(101.0), kept.asked) == (1, 3)
        assert await read(to_review, 106.0) == 10
        assert kept.asked == 7

    run(160, test)


def test_one_that_is_to_be_reviewed_again_is_asked_for() -> None:
    async def test(to_review: ToReview, kept: Kept, _occurrences: Occurrences, marks: Marks) -> None:
        marks.mark(["a0"], reviewed=True)
        assert await read(to_review, 100.0) == 1
        marks.mark(["a0"], reviewed=False)
        to_review.count(101.0)
        assert await read(to_review, 106.0) == 2

    run(2, test)


def test_without_a_spool_nothing_is_counted_and_a_daemon_that_is_away_changes_nothing() -> None:
    async def test(to_review: ToReview, kept: Kept, _occurrences: Occurrences, _marks: Marks) -> None:
        assert await read(to_review, 100.0) == 2
        kept.error = EndpointError("no answer")
        assert await read(to_review, 161.0) == 2
        kept.error = NotKeptError("off")
        assert await read(to_review, 167.0) is None
        assert kept.asked == 3

    run(2, test)
