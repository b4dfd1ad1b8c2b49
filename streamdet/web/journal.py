"""The list of events on the page: objects, crossings, alerts, states, losses, restarts; bounded.

Each browser has its own filter.

An object or an alert is one entry, which changes as events about it come. Streams without tracking have no objects: of
these, what was seen in a frame is listed.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Reversible
from dataclasses import dataclass
from heapq import merge
from typing import Any, NamedTuple

from streamdet.types import AlertEvent, Crossing, Detection, DetectionEvent, ObjectEvent

MAX_NOTES = 500
MAX_ALERTS = 500
MAX_OBJECTS = 1000
MAX_CROSSINGS = 500
MAX_SIGHTINGS = 3000
_MAX_OBJECTS = 40
# What stays the same is listed again after this time, so that a quiet list is seen to be alive.
_REPEAT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Filter:
    """The filter of a browser.

    Attributes:
        stream: part of the stream's name, small letters; empty for all.
        only: the whole name of the only stream; what is about the daemon stays in. Empty for all.
        label: of the objects; empty for all.
        min_score: 0 to 1; objects below it are left out.
        alerts: whether alerts are wanted.
        objects: whether objects, the lines that they cross, and what was seen are wanted.
        notes: whether states, losses and restarts are wanted.
    """

    stream: str = ""
    only: str = ""
    label: str = ""
    min_score: float = 0.0
    alerts: bool = True
    objects: bool = True
    notes: bool = True


class Entry(NamedTuple):
    """One line of the list.

    Attributes:
        id: grows by one from entry to entry.
        at: Unix time in seconds.
        stream: whom it is about; empty for the daemon.
        kind: "object", "alert", "crossing", "seen", "state", "gap" or "restart".
        fields: what else there is to say, ready for JSON.
        objects: of a "seen": those of the fullest frame of its second.
        key: of an object or alert: an entry with the same key takes the place of the one before.
    """

    id: int
    at: float
    stream: str
    kind: str
    fields: dict[str, Any]
    objects: tuple[Detection, ...] = ()
    key: str = ""


class Journal:
    """Keeps the newest entries; many objects and sightings displace neither the few alerts nor the few notes."""

    def __init__(self) -> None:
        self.last_id = 0
        self._notes: deque[Entry] = deque(maxlen=MAX_NOTES)
        self._sightings: deque[Entry] = deque(maxlen=MAX_SIGHTINGS)
        self._crossings: deque[Entry] = deque(maxlen=MAX_CROSSINGS)
        self._alerts: OrderedDict[str, Entry] = OrderedDict()
        self._objects: OrderedDict[str, Entry] = OrderedDict()
        self._listed: dict[str, tuple[float, list[str]]] = {}
        self._tracked: set[str] = set()

    def note(self, kind: str, stream: str, at: float, **fields: object) -> None:
        """Adds a note."""
        self.last_id += 1
        self._notes.append(Entry(self.last_id, at, stream, kind, fields))

    def crossed(self, crossing: Crossing, stream: str, at: float) -> None:
        """Adds an object that has crossed a line."""
        self.last_id += 1
        fields = {
            "line": crossing.line, "direction": crossing.direction, "label": crossing.label,
            "track_id": crossing.track_id,
        }  # fmt: skip
        self._crossings.append(Entry(self.last_id, at, stream, "crossing", fields))

    def occurred(self, event: ObjectEvent | AlertEvent) -> bool:
        """Adds an object or an alert, or changes its entry; false for an event that is no news."""
        if isinstance(event, AlertEvent):
            alert = event.alert
            is_over = event.phase == "cleared"
            fields: dict[str, Any] = {
                "rule": alert.rule, "label": alert.label, "zone": alert.zone, "is_over": is_over,
                "seconds": _raised_for(event) if is_over else 0.0, "listed_at": _listed_at(event),
            }  # fmt: skip
            self._change(event.stream, alert.alert_id, "alert", alert.raised_at, fields)
            return True
        self._tracked.add(event.stream)
        found = event.object
        is_news = event.phase != "update" or event.changes or found.object_id not in self._objects
        if is_news:
            zones = [visit.zone for visit in found.zones]
            fields = {
                "label": found.label, "score": found.score, "track_id": found.track_id, "zones": zones,
                "seconds": found.seconds, "is_over": event.phase == "end", "listed_at": _listed_at(event),
            }  # fmt: skip
            self._change(event.stream, found.object_id, "object", found.began_at, fields)
        return bool(is_news)

    def _change(self, stream: str, key: str, kind: str, at: float, fields: dict[str, Any]) -> None:
        self.last_id += 1
        kept, most = (self._alerts, MAX_ALERTS) if kind == "alert" else (self._objects, MAX_OBJECTS)
        kept[key] = Entry(self.last_id, at, stream, kind, fields, key=key)
        kept.move_to_end(key)
        if len(kept) > most:
            kept.popitem(last=False)

    def saw(self, event: DetectionEvent) -> None:
        """Adds the frame of the last second with the most objects, unless they are tracked, or were just listed."""
        if any(found.track_id is not None for found in event.detections):
            self._tracked.add(event.stream)
        if event.stream in self._tracked:
            return
        labels = sorted(found.label for found in event.detections)
        listed_at, listed = self._listed.get(event.stream, (0.0, []))
        if labels == listed and 0 <= event.published_at - listed_at < _REPEAT_SECONDS:
            return
        self._listed[event.stream] = (event.published_at, labels)
        if labels:
            self.last_id += 1
            fields = {"frame_seq": event.frame.seq}
            objects = event.detections[:_MAX_OBJECTS]
            self._sightings.append(Entry(self.last_id, event.published_at, event.stream, "seen", fields, objects))

    def forget(self, stream: str) -> None:
        """A stream is gone; its entries stay, as history."""
        self._listed.pop(stream, None)
        self._tracked.discard(stream)

    def select(self, after: int, wanted: Filter, limit: int) -> list[dict[str, Any]]:
        """The newest entries that match, the newest first, ready for JSON.

        Args:
            after: only entries with a larger id.
            wanted: what to leave in.
            limit: how many at most.
        """
        chosen: list[dict[str, Any]] = []
        for entry in self._newest_first(wanted):
            if entry.id <= after or len(chosen) >= limit:
                break
            if wanted.stream not in entry.stream.lower() or (wanted.only and entry.stream not in ("", wanted.only)):
                continue
            shown = _shown(entry, wanted)
            if shown is not None:
                chosen.append(shown)
        return chosen

    def _newest_first(self, wanted: Filter) -> Iterator[Entry]:
        rings: list[Reversible[Entry]] = [self._notes] * wanted.notes
        if wanted.alerts:
            rings = [*rings, self._alerts.values()]
        if wanted.objects:
            rings = [*rings, self._sightings, self._crossings, self._objects.values()]
        return merge(*map(reversed, rings), key=lambda entry: -entry.id)


def _raised_for(event: AlertEvent) -> float:
    """For how many seconds an alert was raised, as the review says; `seconds` also counts what led to it."""
    if event.frame.clock != "daemon":
        return event.alert.seconds
    return max(event.frame.captured_at - event.alert.raised_at, 0.0)


def _listed_at(event: ObjectEvent | AlertEvent) -> float:
    """When the review lists it, as `wire.occurrence` reads it: by the daemon's clock; that of a camera may be wrong."""
    is_of_daemon = event.frame.clock == "daemon"
    if isinstance(event, ObjectEvent):
        return event.frame.captured_at if is_of_daemon else event.published_at
    if is_of_daemon:
        return event.alert.raised_at
    return event.published_at - (event.alert.seconds if event.phase == "cleared" else 0.0)


def _shown(entry: Entry, wanted: Filter) -> dict[str, Any] | None:
    """An entry as JSON, with the objects that are wanted; None when it has lost all of them."""
    common = {"id": entry.id, "at": round(entry.at, 3), "stream": entry.stream, "kind": entry.kind}
    if entry.key or entry.kind == "crossing":
        label, score = entry.fields["label"], entry.fields.get("score", 1.0)
        is_wanted = wanted.label in ("", label) and score >= wanted.min_score
        key = {"key": entry.key} if entry.key else {}
        return {**common, **key, **entry.fields} if is_wanted else None
    if entry.kind != "seen":
        return {**common, **entry.fields}
    objects = [
        {"label": found.label, "score": found.score, "track_id": found.track_id}
        for found in entry.objects
        if found.score >= wanted.min_score and wanted.label in ("", found.label)
    ]
    return {**common, **entry.fields, "objects": objects} if objects else None
