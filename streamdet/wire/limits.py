"""The kinds of events, their topics, and the bounds of what an event may hold."""

from __future__ import annotations

import re
from typing import Literal

from streamdet.types import AlertEvent, DetectionEvent, ObjectEvent, PreviewEvent, StateEvent

Event = DetectionEvent | ObjectEvent | AlertEvent | StateEvent | PreviewEvent
Kind = Literal["detections", "objects", "alerts", "state", "preview"]

SCHEMA = 1
KINDS: tuple[Kind, ...] = ("detections", "objects", "alerts", "state", "preview")
MAX_MESSAGE_BYTES = 1 << 20
"""Limit for each part of a message; a picture is a separate part."""
MAX_DETECTIONS = 1000
MAX_CROSSINGS = 1000
MAX_SHAPES = 16
"""Zones of one stream; the same number of lines, and of masks."""
MAX_POINTS = 64
MAX_PATH_POINTS = 64
MAX_CHANGES = 100
"""Zone changes in one event of an object, and likewise crossings. Each makes an event, so there are few."""
MAX_OBJECT_IDS = 100
MAX_RULE_CHARACTERS = 64
MAX_DEPTH = 16
MAX_NAME_CHARACTERS = 128
MAX_DETAIL_CHARACTERS = 500
# Larger JSON numbers lose digits in languages that have only doubles.
MAX_INTEGER = 2**53 - 1
_KINDS_OF_TYPES: dict[type[Event], Kind] = {
    DetectionEvent: "detections",
    ObjectEvent: "objects",
    AlertEvent: "alerts",
    StateEvent: "state",
    PreviewEvent: "preview",
}
_JPEG_BEGINS = b"\xff\xd8\xff"
_JPEG_ENDS = b"\xff\xd9"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def topic(kind: Kind, stream: str) -> str:
    """The topic of a stream's events; because of the slash at its end, `cam1` is not a prefix of `cam10`."""
    return f"{kind}/{stream}/"


def kind_of(event: Event) -> Kind:
    """The kind of an event, which is the first word of its topic."""
    return _KINDS_OF_TYPES[type(event)]


def topic_of(event: Event) -> str:
    """The topic on which an event is sent."""
    return topic(kind_of(event), event.stream)


def is_jpeg(picture: bytes) -> bool:
    """Whether a picture looks like a whole JPEG, of at most `MAX_MESSAGE_BYTES`."""
    return len(picture) <= MAX_MESSAGE_BYTES and picture.startswith(_JPEG_BEGINS) and picture.endswith(_JPEG_ENDS)
