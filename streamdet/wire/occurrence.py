"""What an object or an alert is in a list of the past: one entry, however many events there were about it.

It reads events as JSON objects, not as the types of `decode`: the spool and the page look at many of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Occurrence(NamedTuple):
    """An object or an alert, as one event describes it.

    Attributes:
        id: of the object or the alert; unique, also over restarts.
        phase: of the event.
        began_at: Unix time in seconds at which the object was first seen, or the alert was raised.
        ended_at: at which the object was last seen, or the alert was cleared; None for an alert that is still raised.
        label: of the object; None for an alert about several objects or none.
        rule: of the alert; None for an object.
        zones: those that the object has been in, or the zone of the alert.
    """

    id: str
    phase: str
    began_at: float
    ended_at: float | None
    label: str | None
    rule: str | None
    zones: tuple[str, ...]

    @property
    def is_listed(self) -> bool:
        """Whether the event puts it into the list: an object when it ends, an alert when it is raised."""
        return self.phase in ("end", "raised")

    @property
    def is_over(self) -> bool:
        """Whether the event is the last one about it."""
        return self.phase in ("end", "cleared")


def occurrence_of(event: Mapping[str, Any]) -> Occurrence:
    """Reads an event of `objects/` or `alerts/`.

    Raises:
        KeyError, TypeError: it makes no sense.
    """
    phase: str = event["phase"]
    if "object" in event:
        seen = event["object"]
        began_at, ended_at = _span(event, seen["seconds"])
        zones = tuple(visit["zone"] for visit in seen["zones"])
        return Occurrence(seen["object_id"], phase, began_at, ended_at, seen["label"], None, zones)
    alert = event["alert"]
    is_cleared = phase == "cleared"
    raised_at: float = alert["raised_at"]
    _, now = _span(event, 0.0)
    if event["frame"]["clock"] != "daemon":
        raised_at = event["published_at"] - (alert["seconds"] if is_cleared else 0.0)
    zones = (alert["zone"],) if alert.get("zone") is not None else ()
    return Occurrence(
        alert["alert_id"], phase, raised_at, max(now, raised_at) if is_cleared else None,
        alert.get("label"), alert["rule"], zones,
    )  # fmt: skip


def _span(event: Mapping[str, Any], seconds: float) -> tuple[float, float]:
    """When what an event is about began and was seen last; by the daemon's clock, as that of a camera may be wrong."""
    frame = event["frame"]
    until: float = frame["captured_at"] if frame["clock"] == "daemon" else event["published_at"]
    return until - seconds, until
