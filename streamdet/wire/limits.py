"""What an event may hold at the most, and how it is named."""

from __future__ import annotations

import re
from typing import Literal

from streamdet.types import DetectionEvent, PreviewEvent, StateEvent

Event = DetectionEvent | StateEvent | PreviewEvent
Kind = Literal["detections", "state", "preview"]

SCHEMA = 1
KINDS: tuple[Kind, ...] = ("detections", "state", "preview")
MAX_MESSAGE_BYTES = 1 << 20
"""Of one part of a message; the picture of a preview is a part of its own."""
MAX_DETECTIONS = 1000
MAX_CROSSINGS = 1000
MAX_SHAPES = 16
"""Zones of one stream at most; and so many lines, and so many masks."""
MAX_POINTS = 64
MAX_DEPTH = 16
MAX_NAME_CHARACTERS = 128
MAX_DETAIL_CHARACTERS = 500
# Beyond it JSON numbers lose digits in languages that have only doubles.
MAX_INTEGER = 2**53 - 1
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def topic(kind: Kind, stream: str) -> str:
    """Topic of a stream's events; the slash at its end keeps `cam1` apart from `cam10`."""
    return f"{kind}/{stream}/"


def kind_of(event: Event) -> Kind:
    """The first word of an event's topic."""
    if isinstance(event, DetectionEvent):
        return "detections"
    return "state" if isinstance(event, StateEvent) else "preview"


def topic_of(event: Event) -> str:
    """Topic that an event is sent on."""
    return topic(kind_of(event), event.stream)
