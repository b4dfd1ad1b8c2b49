"""The kinds of events, their topics, and the bounds of what an event may hold."""

from __future__ import annotations

import re
from typing import Literal

from streamdet.types import DetectionEvent, PreviewEvent, StateEvent

Event = DetectionEvent | StateEvent | PreviewEvent
Kind = Literal["detections", "state", "preview"]

SCHEMA = 1
KINDS: tuple[Kind, ...] = ("detections", "state", "preview")
MAX_MESSAGE_BYTES = 1 << 20
"""The size of one part of a message; the picture of a preview is a part of its own."""
MAX_DETECTIONS = 1000
MAX_CROSSINGS = 1000
MAX_SHAPES = 16
"""Zones of one stream; the same number of lines, and of masks."""
MAX_POINTS = 64
MAX_DEPTH = 16
MAX_NAME_CHARACTERS = 128
MAX_DETAIL_CHARACTERS = 500
# Larger JSON numbers lose digits in languages that have only doubles.
MAX_INTEGER = 2**53 - 1
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def topic(kind: Kind, stream: str) -> str:
    """The topic of a stream's events; because of the slash at its end, `cam1` is not a prefix of `cam10`."""
    return f"{kind}/{stream}/"


def kind_of(event: Event) -> Kind:
    """The kind of an event, which is the first word of its topic."""
    if isinstance(event, DetectionEvent):
        return "detections"
    return "state" if isinstance(event, StateEvent) else "preview"


def topic_of(event: Event) -> str:
    """The topic on which an event is sent."""
    return topic(kind_of(event), event.stream)
