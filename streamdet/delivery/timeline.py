"""Sums up what happened on each stream over a span of time: objects, alerts, and when it was not up, in equal steps.

Everything comes from the small tables of the spool's database (`event_store.py`), which have one row for each object,
alert and outage, and from the newest event of each object that is still there. So a week of many streams takes about a
second, and the answer does not grow with what happened.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from streamdet.delivery.event_store import MAX_NEWEST, OCCURRENCES, RESTING
from streamdet.wire.occurrence import occurrence_of
from streamdet.wire.replay import MAX_ANSWER_BYTES, MAX_ANSWER_EVENTS

# A daemon that crashes again and again has very many epochs; only the newest gaps are looked for.
_MAX_EPOCHS = 200
# Between the last event of an epoch and the first of the next; a restart that is shorter is no gap to see.
_SHORTEST_GAP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class TimelineQuery:
    """Which span of time is summed up.

    Attributes:
        since: Unix time in seconds.
        until: likewise, later.
        steps: into how many equal parts the span is divided, at least 1.
        after: only streams after this one; empty for all.
    """

    since: float
    until: float
    steps: int
    after: str = ""


class Timeline(NamedTuple):
    """A part of the streams.

    Attributes:
        kept_since: Unix time in seconds of the oldest event on disk; None without one.
        gaps: when nothing was kept, as the daemon did not run: Unix times from and to.
        streams: by name, each as JSON: `stream`; `presence`, by label the numbers of the steps in which objects were
            present, each with how many; `alerts`, likewise; `down` and `resting`, for how many seconds of each step.
        more_after: there are more streams; ask again with this as `after`. None at the end.
    """

    kept_since: float | None
    gaps: list[tuple[float, float]]
    streams: list[bytes]
    more_after: str | None


class _Sums:
    """The sums of one stream, by number of the step."""

    def __init__(self) -> None:
        self.presence: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self.alerts: dict[int, int] = defaultdict(int)
        self.down: dict[int, float] = defaultdict(float)
        self.resting: dict[int, float] = defaultdict(float)

    def add_present(self, label: str, steps: range, count: int) -> None:
        """Adds so many objects of a label to each of these steps."""
        counts = self.presence[label]
        for step in steps:
            counts[step] += count

    def encode(self, stream: str) -> bytes:
        """As JSON."""
        return orjson.dumps(
            {
                "stream": stream,
                "presence": {label: sorted(steps.items()) for label, steps in sorted(self.presence.items())},
                "alerts": sorted(self.alerts.items()),
                "down": _seconds(self.down),
                "resting": _seconds(self.resting),
            }
        )


def read_timeline(database: sqlite3.Connection, query: TimelineQuery) -> Timeline:
    """Reads the sums.

    Args:
        database: of the spool.
        query: which ones.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    ids = _topics_by_stream(database, query.after)
    streams = {topic_id: stream for stream, topic_ids in ids.items() for topic_id in topic_ids}
    sums: dict[str, _Sums] = defaultdict(_Sums)
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'occurrences'").fetchone():
        _add_occurrences(database, query, streams, sums)
        _add_outages(database, query, streams, sums)
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'newest'").fetchone():
        _add_unfinished(database, query, streams, sums)
    parts: list[bytes] = []
    left_bytes, last, more_after = MAX_ANSWER_BYTES, "", None
    for stream in sorted(ids):
        part = sums[stream].encode(stream)
        if len(parts) == MAX_ANSWER_EVENTS or (parts and len(part) > left_bytes):
            more_after = last
            break
        parts.append(part)
        left_bytes -= len(part)
        last = stream
    oldest = database.execute("SELECT kept_at FROM records ORDER BY id LIMIT 1").fetchone()
    return Timeline(oldest[0] if oldest else None, list(_gaps(database, query)), parts, more_after)


def _seconds(steps: dict[int, float]) -> list[tuple[int, float]]:
    rounded = [(step, round(seconds, 1)) for step, seconds in sorted(steps.items())]
    return [(step, seconds) for step, seconds in rounded if seconds]


def _topics_by_stream(database: sqlite3.Connection, after: str) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = defaultdict(list)
    for number, topic in database.execute("SELECT id, topic FROM topics").fetchall():
        kind, _, stream = topic.rstrip("/").partition("/")
        if f"{kind}/" in (*OCCURRENCES, "state/") and stream > after:
            ids[stream].append(number)
    return ids


def _add_occurrences(
    database: sqlite3.Connection, query: TimelineQuery, streams: dict[int, str], sums: dict[str, _Sums]
) -> None:
    width = (query.until - query.since) / query.steps
    grouped = (
        "SELECT topic_id, label, rule IS NOT NULL AS is_alert, CASE WHEN began_at < :since THEN -1 "
        "ELSE CAST((began_at - :since) / :width AS INTEGER) END AS first, "
        "CAST((coalesce(ended_at, began_at) - :since) / :width AS INTEGER) AS last, count(*) FROM occurrences "
        "WHERE began_at < :until AND coalesce(ended_at, began_at) >= :since GROUP BY 1, 2, 3, 4, 5"
    )
    given = {"since": query.since, "until": query.until, "width": width}
    for topic_id, label, is_alert, first, last, count in database.execute(grouped, given).fetchall():
        stream = streams.get(topic_id)
        if stream is None:
            continue
        if is_alert:
            if 0 <= first < query.steps:
                sums[stream].alerts[first] += count
            continue
        sums[stream].add_present(label or "", range(max(first, 0), min(last, query.steps - 1) + 1), count)


def _add_unfinished(
    database: sqlite3.Connection, query: TimelineQuery, streams: dict[int, str], sums: dict[str, _Sums]
) -> None:
    """Adds the objects that have not ended: each was present until the newest event of all."""
    newest = database.execute("SELECT kept_at FROM records ORDER BY id DESC LIMIT 1").fetchone()
    until = min(query.until, newest[0]) if newest else query.since
    width = (query.until - query.since) / query.steps
    unfinished = (
        "SELECT topic_id, payload FROM newest JOIN records ON records.id = record_id "
        "JOIN topics ON topics.id = topic_id WHERE topic GLOB 'objects/*' LIMIT ?"
    )
    for topic_id, payload in database.execute(unfinished, (MAX_NEWEST,)).fetchall():
        stream = streams.get(topic_id)
        if stream is None:
            continue
        try:
            of = occurrence_of(orjson.loads(payload))
        except (orjson.JSONDecodeError, KeyError, TypeError):
            continue  # not written by a daemon; a list of what has happened leaves it out as well
        if query.since <= until and of.began_at < query.until:
            first = max(int((of.began_at - query.since) / width), 0)
            last = min(int((until - query.since) / width), query.steps - 1)
            sums[stream].add_present(of.label or "", range(first, max(first, last) + 1), 1)


def _add_outages(
    database: sqlite3.Connection, query: TimelineQuery, streams: dict[int, str], sums: dict[str, _Sums]
) -> None:
    width = (query.until - query.since) / query.steps
    overlapping = (
        "SELECT topic_id, max(began_at, :since), min(coalesce(ended_at, :until), :until), reason FROM outages "
        "WHERE began_at < :until AND coalesce(ended_at, :until) > :since"
    )
    for topic_id, begin, end, reason in database.execute(
        overlapping, {"since": query.since, "until": query.until}
    ).fetchall():
        stream = streams.get(topic_id)
        if stream is None:
            continue
        of_stream = sums[stream].resting if reason in RESTING else sums[stream].down
        first = min(int((begin - query.since) / width), query.steps - 1)
        last = min(int((end - query.since) / width), query.steps - 1)
        for step in range(first, last + 1):
            step_begin = query.since + step * width
            of_stream[step] += max(min(end, step_begin + width) - max(begin, step_begin), 0.0)


def _gaps(database: sqlite3.Connection, query: TimelineQuery) -> Iterator[tuple[float, float]]:
    """The times between two epochs, the newest first."""
    at_or_after = "SELECT id, epoch_id, kept_at FROM records WHERE id >= ? ORDER BY id LIMIT 1"
    before = "SELECT id, epoch_id, kept_at FROM records WHERE id < ? ORDER BY id DESC LIMIT 1"
    newest = database.execute(before, (2**63 - 1,)).fetchone()
    oldest = database.execute(at_or_after, (-(2**63),)).fetchone()
    for _ in range(_MAX_EPOCHS):
        if newest is None or newest[2] < query.since or oldest[1] == newest[1]:
            return
        # By halves: ids have the order of time, and so have epochs.
        low, high = oldest[0], newest[0]
        while high - low > 1:
            found = database.execute(at_or_after, ((low + high) // 2,)).fetchone()
            if found[1] == newest[1]:
                high = (low + high) // 2
            else:
                low = found[0]
        first = database.execute(at_or_after, (high,)).fetchone()
        newest = database.execute(before, (first[0],)).fetchone()
        begin, end = newest[2], first[2]
        if end - begin > _SHORTEST_GAP_SECONDS and end > query.since and begin < query.until:
            yield begin, end
