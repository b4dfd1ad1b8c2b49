"""What happened lately: objects that have ended and alerts, as they come in. The daemon's spool has those before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from streamdet import wire
from streamdet.types import AlertEvent, ObjectEvent
from streamdet.wire.occurrence import Occurrence, occurrence_of

MAX_OCCURRENCES = 500
MAX_EVENT_BYTES = 32 << 10
"""Of one event that is kept; longer ones are left to the spool."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which objects and alerts a browser shows; empty texts stand for all.

    Attributes:
        kind: "objects", "alerts" or empty.
        stream: name of the stream.
        label: of the object.
        zone: that it has been in, or that the rule of the alert is for.
        rule: of the alert.
        since: Unix time in seconds; None for all.
        until: the same.
        reviewed: "yes" or "no", whether someone has marked it; empty for both.
    """

    kind: str = ""
    stream: str = ""
    label: str = ""
    zone: str = ""
    rule: str = ""
    since: float | None = None
    until: float | None = None
    reviewed: str = ""

    def fits(self, stream: str, occurrence: Occurrence, *, is_reviewed: bool) -> bool:
        """Whether it is wanted."""
        at = occurrence.began_at if occurrence.ended_at is None or occurrence.rule else occurrence.ended_at
        return (
            self.kind in ("", "objects" if occurrence.rule is None else "alerts")
            and self.stream in ("", stream)
            and self.label in ("", occurrence.label)
            and self.zone in ("", *occurrence.zones)
            and self.rule in ("", occurrence.rule)
            and (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
            and self.reviewed in ("", "yes" if is_reviewed else "no")
        )


class Entry(NamedTuple):
    """An object or an alert.

    Attributes:
        number: larger than that of every one that changed before; 0 for one of the past.
        stream: name of the stream.
        occurrence: what it is.
        event: the newest event about it, in JSON.
    """

    number: int
    stream: str
    occurrence: Occurrence
    event: bytes

    @classmethod
    def read(cls, event: bytes, number: int = 0) -> Entry:
        """Reads an event.

        Raises:
            KeyError, TypeError, ValueError: it makes no sense.
        """
        value: dict[str, Any] = orjson.loads(event)
        return cls(number, str(value["stream"]), occurrence_of(value), event)

    def item(self, *, is_reviewed: bool) -> bytes:
        """As JSON for the browser."""
        of = self.occurrence
        head = {
            "id": of.id, "stream": self.stream, "began_at": of.began_at, "ended_at": of.ended_at, "label": of.label,
            "rule": of.rule, "zones": of.zones, "reviewed": is_reviewed,
        }  # fmt: skip
        return orjson.dumps(head)[:-1] + b',"event":' + self.event + b"}"


class Occurrences:
    """The newest ones, each once; one thread writes, another reads.

    Attributes:
        last_number: of the newest change.
    """

    def __init__(self) -> None:
        self.last_number = 1
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def note(self, event: ObjectEvent | AlertEvent) -> bool:
        """Takes an event; whether it adds or changes one."""
        if event.phase not in ("end", "raised", "cleared"):
            return False
        text = wire.encode(event)
        if len(text) > MAX_EVENT_BYTES:
            return False
        with self._lock:
            self.last_number += 1
            entry = Entry.read(text, self.last_number)
            self._entries[entry.occurrence.id] = entry
            self._entries.move_to_end(entry.occurrence.id)
            if len(self._entries) > MAX_OCCURRENCES:
                self._entries.popitem(last=False)
        return True

    def newest_first(self, after: int = 0) -> Iterator[Entry]:
        """Those that have changed after this number."""
        with self._lock:
            entries = list(self._entries.values())
        for entry in reversed(entries):
            if entry.number <= after:
                return
            yield entry
