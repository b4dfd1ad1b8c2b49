"""Events of objects and alerts, as a daemon would send them; for tests that need no daemon."""

from __future__ import annotations

from typing import Any

from streamdet.types import Alert, AlertEvent, FrameInfo, ObjectEvent, Shot, TrackedObject

FRAME = FrameInfo(seq=9, pts_seconds=0.36, captured_at=1760000000.0, clock="daemon", width=640, height=360)
BOX = (1.0, 1.0, 5.0, 5.0)


def object_event(stream: str = "front-door", seq: int = 1, epoch: str = "e1", **changes: Any) -> ObjectEvent:
    """An update of a person; `changes` are fields of the event or of its object."""
    tracked: dict[str, Any] = {
        "object_id": "e1-1", "track_id": 1, "label": "person", "score": 0.5, "box": BOX, "began_at": 1.5,
        "seconds": 2.0, "is_stationary": False, "path": (), "zones": (), "best": Shot(1, 1.5, 0.5, BOX),
    }  # fmt: skip
    event: dict[str, Any] = {"published_at": 1760000000.1, "phase": "update", "frame": FRAME}
    for key, value in changes.items():
        (tracked if key in tracked else event)[key] = value
    return ObjectEvent(stream, epoch, seq, object=TrackedObject(**tracked), **event)


def alert_event(stream: str = "front-door", seq: int = 1, epoch: str = "e1", **changes: Any) -> AlertEvent:
    """A person has been in the zone "door" for too long; `changes` are fields of the event or of its alert."""
    alert: dict[str, Any] = {
        "alert_id": "e1-a1", "rule": "at the door", "raised_at": 1.5, "seconds": 10.0, "object_ids": ("e1-1",),
        "label": "person", "box": BOX, "zone": "door", "line": None, "direction": None, "count": None,
    }  # fmt: skip
    event: dict[str, Any] = {"published_at": 1760000000.1, "phase": "raised", "frame": FRAME}
    for key, value in changes.items():
        (alert if key in alert else event)[key] = value
    return AlertEvent(stream, epoch, seq, alert=Alert(**alert), **event)
