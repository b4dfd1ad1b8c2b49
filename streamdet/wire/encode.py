"""Makes the parts of a message from an event."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import orjson

from streamdet.types import Crossing, Detection, DetectionEvent, FrameInfo, Geometry, PreviewEvent, Shape, StateEvent
from streamdet.wire.limits import (
    CONTROL,
    MAX_DETAIL_CHARACTERS,
    MAX_DETECTIONS,
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARACTERS,
    SCHEMA,
    Event,
    kind_of,
    topic_of,
)


def presentable(detections: Iterable[Detection], width: int, height: int) -> tuple[Detection, ...]:
    """Detections as they stand in an event.

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
    """An event as the JSON object that is sent; the detections must be `presentable`."""
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "type": kind_of(event),
        "stream": event.stream,
        "epoch": event.epoch,
        "seq": event.seq,
        "published_at": round(event.published_at, 6),
    }
    if isinstance(event, StateEvent):
        fields["state"] = event.state.value
        fields["reason"] = None if event.reason is None else event.reason.value
        fields["detail"] = CONTROL.sub(" ", event.detail)[:MAX_DETAIL_CHARACTERS]
        fields["since"] = round(event.since, 3)
        if event.geometry is not None:
            fields["geometry"] = _geometry(event.geometry)
        return fields
    fields["frame"] = _frame(event.frame)
    fields["detections"] = [_detection(found) for found in event.detections]
    if isinstance(event, DetectionEvent) and event.crossings:
        fields["crossings"] = [_crossing(crossing) for crossing in event.crossings]
    if isinstance(event, DetectionEvent) and event.trace_id is not None:
        fields["trace_id"] = event.trace_id
    return fields


def encode(event: Event) -> bytes:
    """The second part of the message that carries an event.

    Where it would exceed `MAX_MESSAGE_BYTES`, as with a thousand detections of long labels in many zones, the half with
    the lower scores is left out.
    """
    payload = orjson.dumps(to_dict(event))
    if len(payload) > MAX_MESSAGE_BYTES and not isinstance(event, StateEvent) and event.detections:
        return encode(replace(event, detections=event.detections[: len(event.detections) // 2]))
    # A copy: what orjson returns takes 4 KiB however short it is, and ten thousand events are kept for replay.
    return bytes(memoryview(payload))


def to_message(event: Event) -> list[bytes]:
    """All parts of the message that carries an event: the topic, the JSON, for a preview its picture."""
    parts = [topic_of(event).encode(), encode(event)]
    return [*parts, event.jpeg] if isinstance(event, PreviewEvent) else parts


def _rounded(value: float, highest: int, steps: int) -> float:
    """The value within 0 and `highest`, rounded to 1 / `steps`; `round` takes ten times as long."""
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
