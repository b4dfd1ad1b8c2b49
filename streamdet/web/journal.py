"""The list of events on the page: detections, states, losses, restarts; bounded, filtered for each browser."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from typing import Any, NamedTuple

from streamdet.types import Detection, DetectionEvent

MAX_NOTES = 500
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
        sightings: whether what was seen is wanted.
        notes: whether states, losses and restarts are wanted.
    """

    stream: str = ""
    only: str = ""
    label: str = ""
    min_score: float = 0.0
    sightings: bool = True
    notes: bool = True


class Entry(NamedTuple):
    """One line of the list.

    Attributes:
        id: grows by one from entry to entry.
        at: Unix time in seconds.
        stream: whom it is about; empty for the daemon.
        kind: "seen", "state", "gap" or "restart".
        fields: what else there is to say, ready for JSON.
        objects: of a "seen": those of the fullest frame of its second.
    """

    id: int
    at: float
    stream: str
    kind: str
    fields: dict[str, Any]
    objects: tuple[Detection, ...] = ()


class Journal:
    """Keeps the newest entries; many sightings do not displace the few notes."""

    def __init__(self) -> None:
        self.last_id = 0
        self._notes: deque[Entry] = deque(maxlen=MAX_NOTES)
        self._sightings: deque[Entry] = deque(maxlen=MAX_SIGHTINGS)
        self._listed: dict[str, tuple[float, list[str]]] = {}

    def note(self, kind: str, stream: str, at: float, **fields: object) -> None:
        """Adds a note."""
        self.last_id += 1
        self._notes.append(Entry(self.last_id, at, stream, kind, fields))

    def saw(self, event: DetectionEvent) -> None:
        """Adds the frame of the last second with the most objects, unless the same objects were just listed."""
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
        rings = [self._notes] * wanted.notes + [self._sightings] * wanted.sightings
        return merge(*map(reversed, rings), key=lambda entry: -entry.id)


def _shown(entry: Entry, wanted: Filter) -> dict[str, Any] | None:
    """An entry as JSON, with the objects that are wanted; None when it has lost all of them."""
    common = {"id": entry.id, "at": round(entry.at, 3), "stream": entry.stream, "kind": entry.kind}
    if entry.kind != "seen":
        return {**common, **entry.fields}
    objects = [
        {"label": found.label, "score": found.score, "track_id": found.track_id}
        for found in entry.objects
        if found.score >= wanted.min_score and wanted.label in ("", found.label)
    ]
    return {**common, **entry.fields, "objects": objects} if objects else None
