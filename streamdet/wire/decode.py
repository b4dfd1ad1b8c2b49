"""Reads an event from the parts of a message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from streamdet.types import (
    Alert,
    AlertEvent,
    Box,
    Clock,
    Crossing,
    Detection,
    DetectionEvent,
    Direction,
    EndReason,
    FrameInfo,
    Geometry,
    ObjectEvent,
    Owner,
    PictureInfo,
    Point,
    PreviewEvent,
    Reason,
    Shape,
    Shot,
    State,
    StateEvent,
    TrackedObject,
    ZoneChange,
    ZoneVisit,
)
from streamdet.wire.fields import Fields, parse, refuse
from streamdet.wire.limits import (
    KINDS,
    MAX_CHANGES,
    MAX_CROSSINGS,
    MAX_DETAIL_CHARACTERS,
    MAX_DETECTIONS,
    MAX_INTEGER,
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARACTERS,
    MAX_OBJECT_IDS,
    MAX_PATH_POINTS,
    MAX_POINTS,
    MAX_RULE_CHARACTERS,
    MAX_SHAPES,
    SCHEMA,
    Event,
    Kind,
    is_jpeg,
    topic_of,
)

_MAY_HAVE_PICTURES: tuple[Kind, ...] = ("objects", "alerts")
_CLOCKS: tuple[Clock, ...] = ("source", "daemon")
_DIRECTIONS: tuple[Direction, ...] = ("in", "out")
_OBJECT_PHASES: tuple[Literal["begin", "update", "end"], ...] = ("begin", "update", "end")
_ALERT_PHASES: tuple[Literal["raised", "cleared"], ...] = ("raised", "cleared")
_CHANGES: tuple[Literal["enter", "leave", "dwell", "loiter"], ...] = ("enter", "leave", "dwell", "loiter")


def from_message(parts: Sequence[bytes]) -> Event:
    """Reads all parts of a message.

    Raises:
        WireError: the message is not an event of schema 1 on its topic, or exceeds a bound.
    """
    if not 2 <= len(parts) <= 3:
        refuse(f"message has {len(parts)} parts; an event has 2, and 3 with a picture")
    return decode(parts[1], parts[0], parts[2] if len(parts) == 3 else None)


def decode(payload: bytes, topic: bytes | None = None, jpeg: bytes | None = None) -> Event:
    """Reads the second part of a message.

    Args:
        payload: UTF-8 JSON, at most `MAX_MESSAGE_BYTES`.
        topic: the first part; when given, the event must belong to it.
        jpeg: the third part, at most `MAX_MESSAGE_BYTES`: a preview always has it, an object or an alert with a
            picture may have it.

    Raises:
        WireError: the message is not an event of schema 1, or exceeds a bound.
    """
    fields = Fields(parse(payload))
    schema = fields.take("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        refuse(f"event has schema {str(schema)[:20]!r}; this version of streamdet reads schema {SCHEMA}")
    kind = fields.choice("type", KINDS)
    _check_picture(jpeg, kind, fields)
    event: Event
    match kind:
        case "detections":
            event = _detection_event(fields)
        case "objects":
            event = _object_event(fields, jpeg)
        case "alerts":
            event = _alert_event(fields, jpeg)
        case "state":
            event = _state_event(fields)
        case "preview":
            event = _preview_event(fields, jpeg or b"")
    if topic is not None and topic_of(event).encode() != topic:
        refuse(f"event of stream {event.stream!r} came on the wrong topic {topic[:200]!r}")
    return event


def _common(fields: Fields) -> tuple[str, str, int, float]:
    return fields.name("stream"), fields.name("epoch"), fields.integer("seq", 1), fields.number("published_at", 0)


def _owner(fields: Fields) -> Owner | None:
    return Owner(fields.name("node"), fields.integer("generation", 1)) if "node" in fields else None


def _check_picture(jpeg: bytes | None, kind: Kind, fields: Fields) -> None:
    if jpeg is None:
        if kind == "preview":
            refuse("event of type preview came without a picture")
        return
    if kind != "preview" and (kind not in _MAY_HAVE_PICTURES or "picture" not in fields):
        refuse(f"event of type {kind} came with a picture")
    if len(jpeg) > MAX_MESSAGE_BYTES:
        refuse(f"picture has {len(jpeg)} bytes; the limit is {MAX_MESSAGE_BYTES}")
    if not is_jpeg(jpeg):
        refuse("picture is not a JPEG")


def _detection_event(fields: Fields) -> DetectionEvent:
    frame, detections = _found(fields)
    crossings = fields.objects("crossings", MAX_CROSSINGS) if "crossings" in fields else []
    return DetectionEvent(
        *_common(fields),
        frame=frame,
        detections=detections,
        crossings=tuple(_crossing(of) for of in crossings),
        trace_id=fields.text("trace_id", 1, MAX_NAME_CHARACTERS) if "trace_id" in fields else None,
        owner=_owner(fields),
        gated=fields.integer("gated", 1) if "gated" in fields else 0,
    )


def _preview_event(fields: Fields, jpeg: bytes) -> PreviewEvent:
    frame, detections = _found(fields)
    return PreviewEvent(*_common(fields), frame=frame, detections=detections, jpeg=jpeg, owner=_owner(fields))


def _found(fields: Fields) -> tuple[FrameInfo, tuple[Detection, ...]]:
    frame = _frame(fields)
    width, height = frame.width, frame.height
    found = fields.values("detections", MAX_DETECTIONS)
    return frame, tuple(
        [
            _plain_detection(value, width, height) or _detection(Fields(value, f"detections[{index}]."), width, height)
            for index, value in enumerate(found)
        ]
    )


def _plain_detection(value: object, width: int, height: int) -> Detection | None:
    """A detection as daemons send it, in a sixth of the time that `_detection` takes.

    Returns:
        None where a field is not as expected, or need not be: `_detection` decides then, and says what is wrong.
    """
    if type(value) is not dict:
        return None
    label, score, box, track_id = value.get("label"), value.get("score"), value.get("box"), value.get("track_id", "")
    zones = value.get("zones", [])
    if (
        type(label) is not str or len(label) > MAX_NAME_CHARACTERS or not label.isprintable()
        or type(score) is not float or not 0 <= score <= 1
        or type(box) is not list or len(box) != 4
        or (track_id is not None and (type(track_id) is not int or not 0 <= track_id <= MAX_INTEGER))
        or type(zones) is not list or len(zones) > MAX_SHAPES
    ):  # fmt: skip
        return None
    x1, y1, x2, y2 = box
    if (
        not type(x1) is type(y1) is type(x2) is type(y2) is float
        or not 0 <= x1 < x2 <= width
        or not 0 <= y1 < y2 <= height
    ):
        return None
    for zone in zones:
        if type(zone) is not str or not 1 <= len(zone) <= MAX_NAME_CHARACTERS or not zone.isprintable():
            return None
    return Detection(label, score, (x1, y1, x2, y2), track_id, tuple(zones))


def _frame(fields: Fields) -> FrameInfo:
    of = Fields(fields.take("frame"), "frame.")
    return FrameInfo(
        seq=of.integer("seq", 1),
        pts_seconds=of.optional_number("pts_seconds", -math.inf),
        captured_at=of.number("captured_at", 0),
        clock=of.choice("clock", _CLOCKS),
        width=of.integer("width", 1),
        height=of.integer("height", 1),
    )


def _detection(fields: Fields, width: int, height: int) -> Detection:
    return Detection(
        label=fields.text("label", 0, MAX_NAME_CHARACTERS),
        score=fields.number("score", 0, 1),
        box=_box(fields, width, height),
        track_id=fields.optional_integer("track_id", 0),
        zones=fields.names("zones", MAX_SHAPES) if "zones" in fields else (),
    )


def _box(fields: Fields, width: int = MAX_INTEGER, height: int = MAX_INTEGER) -> Box:
    box = fields.take("box")
    if not isinstance(box, list) or len(box) != 4 or any(type(side) not in (int, float) for side in box):
        fields.refuse("box", "four numbers")
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        fields.refuse("box", f"0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height}")
    return float(x1), float(y1), float(x2), float(y2)


def _object_event(fields: Fields, jpeg: bytes | None) -> ObjectEvent:
    changes = fields.objects("changes", MAX_CHANGES) if "changes" in fields else []
    crossings = fields.objects("crossings", MAX_CHANGES) if "crossings" in fields else []
    word = fields.text("reason", 1, MAX_NAME_CHARACTERS) if "reason" in fields else None
    return ObjectEvent(
        *_common(fields),
        phase=fields.choice("phase", _OBJECT_PHASES),
        frame=_frame(fields),
        object=_tracked(Fields(fields.take("object"), "object.")),
        changes=tuple(_change(of) for of in changes),
        crossings=tuple(_crossing(of) for of in crossings),
        reason=EndReason(word) if word in set(EndReason) else None,
        picture=_picture(fields, jpeg),
        owner=_owner(fields),
    )


def _tracked(fields: Fields) -> TrackedObject:
    best = Fields(fields.take("best"), "object.best.")
    return TrackedObject(
        object_id=fields.name("object_id"),
        track_id=fields.integer("track_id", 0),
        label=fields.text("label", 0, MAX_NAME_CHARACTERS),
        score=fields.number("score", 0, 1),
        box=_box(fields),
        began_at=fields.number("began_at", 0),
        seconds=fields.number("seconds", 0),
        is_stationary=fields.switch("stationary"),
        path=tuple(_place(fields, place) for place in fields.values("path", MAX_PATH_POINTS)),
        zones=tuple(
            ZoneVisit(
                zone=of.text("zone", 1, MAX_NAME_CHARACTERS),
                seconds=of.number("seconds", 0),
                inside=of.switch("inside"),
            )
            for of in fields.objects("zones", MAX_SHAPES)
        ),
        best=Shot(
            frame_seq=best.integer("frame_seq", 1),
            captured_at=best.number("captured_at", 0),
            score=best.number("score", 0, 1),
            box=_box(best),
        ),
    )


def _place(fields: Fields, place: object) -> tuple[float, float, float]:
    if not isinstance(place, list) or len(place) != 3 or any(type(number) not in (int, float) for number in place):
        fields.refuse("path", "lists of three numbers")
    x, y, seconds = place
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 <= seconds <= MAX_INTEGER):
        fields.refuse("path", "x and y from 0 to 1, and seconds")
    return float(x), float(y), float(seconds)


def _change(fields: Fields) -> ZoneChange:
    return ZoneChange(
        change=fields.choice("change", _CHANGES),
        zone=fields.text("zone", 1, MAX_NAME_CHARACTERS),
        seconds=fields.number("seconds", 0),
    )


def _alert_event(fields: Fields, jpeg: bytes | None) -> AlertEvent:
    return AlertEvent(
        *_common(fields),
        phase=fields.choice("phase", _ALERT_PHASES),
        frame=_frame(fields),
        alert=_alert(Fields(fields.take("alert"), "alert.")),
        picture=_picture(fields, jpeg),
        clip_id=fields.name("clip_id") if "clip_id" in fields else None,
        owner=_owner(fields),
        clip_seconds=_clip_seconds(fields) if "clip_seconds" in fields else None,
        clip_missing=fields.name("clip_missing") if "clip_missing" in fields else None,
    )


def _clip_seconds(fields: Fields) -> tuple[float, float]:
    span = fields.take("clip_seconds")
    if not isinstance(span, list) or len(span) != 2 or any(type(part) not in (int, float) for part in span):
        fields.refuse("clip_seconds", "a list of two numbers")
    before, after = span
    if not (0 <= before <= MAX_INTEGER and 0 <= after <= MAX_INTEGER):
        fields.refuse("clip_seconds", "two numbers from 0 on")
    return float(before), float(after)


def _alert(fields: Fields) -> Alert:
    return Alert(
        alert_id=fields.name("alert_id"),
        rule=fields.text("rule", 1, MAX_RULE_CHARACTERS),
        raised_at=fields.number("raised_at", 0),
        seconds=fields.number("seconds", 0),
        object_ids=fields.names("object_ids", MAX_OBJECT_IDS),
        label=fields.text("label", 0, MAX_NAME_CHARACTERS) if "label" in fields else None,
        box=_box(fields) if "box" in fields else None,
        zone=fields.text("zone", 1, MAX_NAME_CHARACTERS) if "zone" in fields else None,
        line=fields.text("line", 1, MAX_NAME_CHARACTERS) if "line" in fields else None,
        direction=fields.choice("direction", _DIRECTIONS) if "direction" in fields else None,
        count=fields.integer("count", 0) if "count" in fields else None,
    )


def _picture(fields: Fields, jpeg: bytes | None) -> PictureInfo | None:
    if "picture" not in fields:
        return None
    of = Fields(fields.take("picture"), "picture.")
    return PictureInfo(
        picture_id=of.name("picture_id"),
        frame_seq=of.integer("frame_seq", 1),
        width=of.integer("width", 1),
        height=of.integer("height", 1),
        box=_box(of) if "box" in of else None,
        jpeg=jpeg,
    )


def _crossing(fields: Fields) -> Crossing:
    return Crossing(
        line=fields.text("line", 1, MAX_NAME_CHARACTERS),
        direction=fields.choice("direction", _DIRECTIONS),
        track_id=fields.integer("track_id", 0),
        label=fields.text("label", 0, MAX_NAME_CHARACTERS),
    )


def _state_event(fields: Fields) -> StateEvent:
    state = State(fields.choice("state", [state.value for state in State]))
    word = None if fields.take("reason") is None else fields.text("reason", 1, MAX_NAME_CHARACTERS)
    detail = fields.text("detail", 0, MAX_DETAIL_CHARACTERS)
    reason = Reason(word) if word in set(Reason) else None
    if word is not None and reason is None:
        # A newer daemon may have more reasons: show the word in the detail.
        detail = f"{word}: {detail}"
    since = fields.number("since", 0)
    geometry = _geometry(Fields(fields.take("geometry"), "geometry.")) if "geometry" in fields else None
    return StateEvent(
        *_common(fields),
        state=state,
        reason=reason,
        detail=detail,
        since=since,
        geometry=geometry,
        owner=_owner(fields),
    )


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
