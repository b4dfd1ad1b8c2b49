"""Makes the parts of a message from an event."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import orjson

from streamdet.types import (
    Alert,
    AlertEvent,
    Box,
    Crossing,
    Detection,
    DetectionEvent,
    FrameInfo,
    Geometry,
    ObjectEvent,
    PictureInfo,
    PreviewEvent,
    Shape,
    StateEvent,
    TrackedObject,
)
from streamdet.wire.limits import (
    CONTROL,
    MAX_CHANGES,
    MAX_DETAIL_CHARACTERS,
    MAX_DETECTIONS,
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARACTERS,
    MAX_OBJECT_IDS,
    MAX_PATH_POINTS,
    MAX_SHAPES,
    SCHEMA,
    Event,
    kind_of,
    topic_of,
)

# Above any number of pixels or seconds.
_LARGEST = 10**12


def presentable(detections: Iterable[Detection], width: int, height: int) -> tuple[Detection, ...]:
    """Detections as an event holds them.

    Boxes are clipped to the frame and rounded to 0.01 pixel, scores to four digits. Detections that have no area then,
    or a number that is not finite, are left out, and so are those beyond `MAX_DETECTIONS`.

    Args:
        detections: in any order; they come back by falling score.
        width: of the frame, in pixels.
        height: of the frame, in pixels.
    """
    kept: list[Detection] = []
    for found in detections:
        x1, y1, x2, y2 = found.box
        if not math.isfinite(x1 + y1 + x2 + y2 + found.score):
            continue
        x1, x2 = _rounded(x1, width, 100), _rounded(x2, width, 100)
        y1, y2 = _rounded(y1, height, 100), _rounded(y2, height, 100)
        if x1 < x2 and y1 < y2:
            score = _rounded(found.score, 1, 10000)
            kept.append(Detection(found.label, score, (x1, y1, x2, y2), found.track_id, found.zones))
    kept.sort(key=lambda found: found.score, reverse=True)
    return tuple(kept[:MAX_DETECTIONS])


def to_dict(event: Event) -> dict[str, Any]:
    """An event as the JSON object that is sent; the detections must be `presentable`.

    What exceeds a bound is cut: the path of an object is thinned out evenly, its latest zones, changes and crossings
    stay; of an alert the first ids stay.

    Raises:
        ValueError: a number of an object or an alert is NaN.
    """
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "type": kind_of(event),
        "stream": event.stream,
        "epoch": event.epoch,
        "seq": event.seq,
        "published_at": round(event.published_at, 6),
    }
    if event.owner is not None:
        fields["node"] = _name(event.owner.node)
        fields["generation"] = event.owner.generation
    if isinstance(event, StateEvent):
        fields["state"] = event.state.value
        fields["reason"] = None if event.reason is None else event.reason.value
        fields["detail"] = CONTROL.sub(" ", event.detail)[:MAX_DETAIL_CHARACTERS]
        fields["since"] = round(event.since, 3)
        if event.geometry is not None:
            fields["geometry"] = _geometry(event.geometry)
        return fields
    fields["frame"] = _frame(event.frame)
    if isinstance(event, ObjectEvent):
        return fields | _object_fields(event)
    if isinstance(event, AlertEvent):
        return fields | _alert_fields(event)
    fields["detections"] = [_detection(found) for found in event.detections]
    if isinstance(event, DetectionEvent) and event.crossings:
        fields["crossings"] = [_crossing(crossing) for crossing in event.crossings]
    if isinstance(event, DetectionEvent) and event.trace_id is not None:
        fields["trace_id"] = event.trace_id
    if isinstance(event, DetectionEvent) and event.gated:
        fields["gated"] = event.gated
    return fields


def encode(event: Event) -> bytes:
    """The second part of the message that carries an event.

    Where it would exceed `MAX_MESSAGE_BYTES`, as with a thousand detections of long labels in many zones, the half with
    the lower scores is left out. Events of the other kinds are smaller, whatever they hold.

    Raises:
        ValueError: as `to_dict`.
    """
    payload = orjson.dumps(to_dict(event))
    if len(payload) > MAX_MESSAGE_BYTES and isinstance(event, DetectionEvent | PreviewEvent) and event.detections:
        return encode(replace(event, detections=event.detections[: len(event.detections) // 2]))
    # Copied, because what orjson returns takes 4 KiB however short it is, and replay keeps ten thousand events.
    return bytes(memoryview(payload))


def to_message(event: Event) -> list[bytes]:
    """All parts of the message that carries an event: the topic, the JSON, and its picture where it has one.

    A picture of an object or an alert that exceeds `MAX_MESSAGE_BYTES` is left out: it can be fetched.

    Raises:
        ValueError: as `to_dict`.
    """
    parts = [topic_of(event).encode(), encode(event)]
    if isinstance(event, PreviewEvent):
        parts.append(event.jpeg)
    elif isinstance(event, ObjectEvent | AlertEvent) and event.picture is not None:
        jpeg = event.picture.jpeg
        if jpeg is not None and len(jpeg) <= MAX_MESSAGE_BYTES:
            parts.append(jpeg)
    return parts


def _rounded(value: float, highest: int, steps: int) -> float:
    """Clips the value to 0 and `highest` and rounds it to 1 / `steps`; `round` takes ten times as long."""
    if value <= 0:
        return 0.0
    return float(highest) if value >= highest else int(value * steps + 0.5) / steps


def _frame(frame: FrameInfo) -> dict[str, Any]:
    pts = frame.pts_seconds
    return {
        "seq": frame.seq,
        "pts_seconds": round(pts, 6) if pts is not None and math.isfinite(pts) else None,
        "captured_at": round(frame.captured_at, 6),
        "clock": frame.clock,
        "width": frame.width,
        "height": frame.height,
    }


def _detection(found: Detection) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "label": _name(found.label),
        "score": found.score,
        "box": found.box,
        "track_id": found.track_id,
    }
    if found.zones:
        fields["zones"] = found.zones
    return fields


def _object_fields(event: ObjectEvent) -> dict[str, Any]:
    fields: dict[str, Any] = {"phase": event.phase, "object": _tracked(event.object)}
    if event.changes:
        fields["changes"] = [
            {"change": change.change, "zone": change.zone, "seconds": _seconds(change.seconds)}
            for change in event.changes[-MAX_CHANGES:]
        ]
    if event.crossings:
        fields["crossings"] = [_crossing(crossing) for crossing in event.crossings[-MAX_CHANGES:]]
    if event.reason is not None:
        fields["reason"] = event.reason.value
    if event.picture is not None:
        fields["picture"] = _picture(event.picture)
    return fields


def _tracked(tracked: TrackedObject) -> dict[str, Any]:
    best = tracked.best
    return {
        "object_id": tracked.object_id,
        "track_id": tracked.track_id,
        "label": _name(tracked.label),
        "score": _rounded(tracked.score, 1, 10000),
        "box": _box(tracked.box),
        "began_at": round(tracked.began_at, 6),
        "seconds": _seconds(tracked.seconds),
        "stationary": tracked.is_stationary,
        "path": _path(tracked.path),
        "zones": [
            {"zone": visit.zone, "seconds": _seconds(visit.seconds), "inside": visit.inside}
            for visit in tracked.zones[-MAX_SHAPES:]
        ],
        "best": {
            "frame_seq": best.frame_seq,
            "captured_at": round(best.captured_at, 6),
            "score": _rounded(best.score, 1, 10000),
            "box": _box(best.box),
        },
    }


def _alert_fields(event: AlertEvent) -> dict[str, Any]:
    fields: dict[str, Any] = {"phase": event.phase, "alert": _alert(event.alert)}
    if event.picture is not None:
        fields["picture"] = _picture(event.picture)
    if event.clip_id is not None:
        fields["clip_id"] = event.clip_id
    if event.clip_seconds is not None:
        fields["clip_seconds"] = [_seconds(part) for part in event.clip_seconds]
    if event.clip_missing is not None:
        fields["clip_missing"] = event.clip_missing
    return fields


def _alert(alert: Alert) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "alert_id": alert.alert_id,
        "rule": alert.rule,
        "raised_at": round(alert.raised_at, 6),
        "seconds": _seconds(alert.seconds),
        "object_ids": alert.object_ids[:MAX_OBJECT_IDS],
        "label": None if alert.label is None else _name(alert.label),
        "box": None if alert.box is None else _box(alert.box),
        "zone": alert.zone,
        "line": alert.line,
        "direction": alert.direction,
        "count": alert.count,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _picture(picture: PictureInfo) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "picture_id": picture.picture_id,
        "frame_seq": picture.frame_seq,
        "width": picture.width,
        "height": picture.height,
    }
    if picture.box is not None:
        fields["box"] = _box(picture.box)
    return fields


def _path(path: tuple[tuple[float, float, float], ...]) -> list[tuple[float, float, float]]:
    """At most `MAX_PATH_POINTS` of a path, evenly, with the first and the last."""
    last, most = len(path) - 1, MAX_PATH_POINTS - 1
    if last > most:
        path = tuple(path[index * last // most] for index in range(MAX_PATH_POINTS))
    # `_rounded`, inlined: its calls would be most of the cost of encoding an object.
    return [
        (int(x * 10000 + 0.5) / 10000, int(y * 10000 + 0.5) / 10000, int(seconds * 1000 + 0.5) / 1000)
        if 0 <= x <= 1 and 0 <= y <= 1 and 0 <= seconds < _LARGEST
        else (_rounded(x, 1, 10000), _rounded(y, 1, 10000), _seconds(seconds))
        for x, y, seconds in path
    ]


def _box(box: Box) -> Box:
    """Rounds a box to 0.01 pixel and keeps its area above 0. Not clipped: it may belong to a frame of another size."""
    x1, y1, x2, y2 = (_rounded(side, _LARGEST, 100) for side in box)
    return x1, y1, max(x2, round(x1 + 0.01, 2)), max(y2, round(y1 + 0.01, 2))


def _seconds(seconds: float) -> float:
    """Rounds to a millisecond; below 0 is 0."""
    return _rounded(seconds, _LARGEST, 1000)


def _crossing(crossing: Crossing) -> dict[str, Any]:
    return {
        "line": crossing.line,
        "direction": crossing.direction,
        "track_id": crossing.track_id,
        "label": _name(crossing.label),
    }


def _geometry(geometry: Geometry) -> dict[str, Any]:
    return {
        "zones": [_shape(shape) for shape in geometry.zones],
        "lines": [_shape(shape) for shape in geometry.lines],
        "masks": [_shape(shape) for shape in geometry.masks],
    }


def _shape(shape: Shape) -> dict[str, Any]:
    return {"name": shape.name, "points": [(round(x, 4), round(y, 4)) for x, y in shape.points]}


def _name(label: str) -> str:
    return CONTROL.sub(" ", label)[:MAX_NAME_CHARACTERS]
