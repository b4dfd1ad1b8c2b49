"""Reads an event from the parts of a message."""

from __future__ import annotations

import math
from collections.abc import Sequence

from streamdet.types import (
    Clock,
    Crossing,
    Detection,
    DetectionEvent,
    FrameInfo,
    Geometry,
    Point,
    PreviewEvent,
    Reason,
    Shape,
    State,
    StateEvent,
)
from streamdet.wire.fields import Fields, parse, refuse
from streamdet.wire.limits import (
    KINDS,
    MAX_CROSSINGS,
    MAX_DETAIL_CHARACTERS,
    MAX_DETECTIONS,
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARACTERS,
    MAX_POINTS,
    MAX_SHAPES,
    SCHEMA,
    Event,
    topic_of,
)

_JPEG_BEGINS = b"\xff\xd8\xff"
_JPEG_ENDS = b"\xff\xd9"


def from_message(parts: Sequence[bytes]) -> Event:
    """Reads all parts of a message.

    Raises:
        WireError: the message is not an event of schema 1 on its topic, or exceeds a bound.
    """
    if not 2 <= len(parts) <= 3:
        refuse(f"message has {len(parts)} parts; an event has 2, a preview 3")
    return decode(parts[1], parts[0], parts[2] if len(parts) == 3 else None)


def decode(payload: bytes, topic: bytes | None = None, jpeg: bytes | None = None) -> Event:
    """Reads the second part of a message.

    Args:
        payload: UTF-8 JSON, at most `MAX_MESSAGE_BYTES`.
        topic: the first part; when given, the event must belong to it.
        jpeg: the third part, which only a preview has; at most `MAX_MESSAGE_BYTES`.

    Raises:
        WireError: the message is not an event of schema 1, or exceeds a bound.
    """
    fields = Fields(parse(payload))
    schema = fields.take("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        refuse(f"event has schema {str(schema)[:20]!r}; this version of streamdet reads schema {SCHEMA}")
    kind = fields.choice("type", KINDS)
    if (jpeg is not None) != (kind == "preview"):
        refuse(f"event of type {kind} came {'without' if jpeg is None else 'with'} a picture")
    event: Event
    if jpeg is not None:
        event = _preview_event(fields, jpeg)
    else:
        event = _detection_event(fields) if kind == "detections" else _state_event(fields)
    if topic is not None and topic_of(event).encode() != topic:
        refuse(f"event of stream {event.stream!r} came on the wrong topic {topic[:200]!r}")
    return event


def _common(fields: Fields) -> tuple[str, str, int, float]:
    return fields.name("stream"), fields.name("epoch"), fields.integer("seq", 1), fields.number("published_at", 0)


def _detection_event(fields: Fields) -> DetectionEvent:
    frame, detections = _found(fields)
    crossings = fields.objects("crossings", MAX_CROSSINGS) if "crossings" in fields else []
    return DetectionEvent(
        *_common(fields),
        frame=frame,
        detections=detections,
        crossings=tuple(_crossing(of) for of in crossings),
        trace_id=fields.text("trace_id", 1, MAX_NAME_CHARACTERS) if "trace_id" in fields else None,
    )


def _preview_event(fields: Fields, jpeg: bytes) -> PreviewEvent:
    if len(jpeg) > MAX_MESSAGE_BYTES:
        refuse(f"picture has {len(jpeg)} bytes; the limit is {MAX_MESSAGE_BYTES}")
    if not jpeg.startswith(_JPEG_BEGINS) or not jpeg.endswith(_JPEG_ENDS):
        refuse("picture is not a JPEG")
    frame, detections = _found(fields)
    return PreviewEvent(*_common(fields), frame=frame, detections=detections, jpeg=jpeg)


def _found(fields: Fields) -> tuple[FrameInfo, tuple[Detection, ...]]:
    of = Fields(fields.take("frame"), "frame.")
    clock: Clock = "source" if of.choice("clock", ("source", "daemon")) == "source" else "daemon"
    frame = FrameInfo(
        seq=of.integer("seq", 1),
        pts_seconds=of.optional_number("pts_seconds", -math.inf),
        captured_at=of.number("captured_at", 0),
        clock=clock,
        width=of.integer("width", 1),
        height=of.integer("height", 1),
    )
    found = fields.objects("detections", MAX_DETECTIONS)
    return frame, tuple(_detection(one, frame.width, frame.height) for one in found)


def _detection(fields: Fields, width: int, height: int) -> Detection:
    box = fields.take("box")
    if not isinstance(box, list) or len(box) != 4 or any(type(side) not in (int, float) for side in box):
        fields.refuse("box", "four numbers")
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        fields.refuse("box", f"0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height}")
    return Detection(
        label=fields.text("label", 0, MAX_NAME_CHARACTERS),
        score=fields.number("score", 0, 1),
        box=(float(x1), float(y1), float(x2), float(y2)),
        track_id=fields.optional_integer("track_id", 0),
        zones=fields.names("zones", MAX_SHAPES) if "zones" in fields else (),
    )


def _crossing(fields: Fields) -> Crossing:
    return Crossing(
        line=fields.text("line", 1, MAX_NAME_CHARACTERS),
        direction="in" if fields.choice("direction", ("in", "out")) == "in" else "out",
        track_id=fields.integer("track_id", 0),
        label=fields.text("label", 0, MAX_NAME_CHARACTERS),
    )


def _state_event(fields: Fields) -> StateEvent:
    state = State(fields.choice("state", [state.value for state in State]))
    word = None if fields.take("reason") is None else fields.text("reason", 1, MAX_NAME_CHARACTERS)
    detail = fields.text("detail", 0, MAX_DETAIL_CHARACTERS)
    reason = Reason(word) if word in set(Reason) else None
    if word is not None and reason is None:
        # A newer daemon may know more reasons; people are to read them as well.
        detail = f"{word}: {detail}"
    since = fields.number("since", 0)
    geometry = _geometry(Fields(fields.take("geometry"), "geometry.")) if "geometry" in fields else None
    return StateEvent(*_common(fields), state=state, reason=reason, detail=detail, since=since, geometry=geometry)


def _geometry(fields: Fields) -> Geometry:
    zones, lines, masks = (
        tuple(_shape(one, fewest) for one in fields.objects(key, MAX_SHAPES))
        for key, fewest in (("zones", 3), ("lines", 2), ("masks", 3))
    )
    return Geometry(zones, lines, masks)


def _shape(fields: Fields, fewest: int) -> Shape:
    points = fields.values("points", MAX_POINTS)
    if len(points) < fewest:
        fields.refuse("points", f"at least {fewest} points")
    return Shape(fields.text("name", 1, MAX_NAME_CHARACTERS), tuple(_point(fields, point) for point in points))


def _point(fields: Fields, point: object) -> Point:
    if not isinstance(point, list) or len(point) != 2 or any(type(side) not in (int, float) for side in point):
        fields.refuse("points", "pairs of numbers")
    x, y = point
    if not (0 <= x <= 1 and 0 <= y <= 1):
        fields.refuse("points", "numbers from 0 to 1")
    return float(x), float(y)
