"""The messages that the daemon sends over ZeroMQ: a topic, one event as UTF-8 JSON, and with some events a picture.

`docs/events.md` is the reference. `limits.py` names topics and bounds, `encode.py` makes messages, `decode.py` reads
them, `replay.py` does both for requests to the replay socket and their answers. `decode` reads everything that `encode`
makes. Its input may come from anyone: it is strict about the fields that it needs, bounds size, depth and counts,
ignores fields that it does not know, and raises `WireError` and nothing else.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from streamdet.wire.decode import decode, from_message
from streamdet.wire.encode import encode, presentable, to_dict, to_message
from streamdet.wire.limits import (
    KINDS,
    MAX_CHANGES,
    MAX_CROSSINGS,
    MAX_DEPTH,
    MAX_DETAIL_CHARACTERS,
    MAX_DETECTIONS,
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
    kind_of,
    topic,
    topic_of,
)

__all__ = [
    "KINDS",
    "MAX_CHANGES",
    "MAX_CROSSINGS",
    "MAX_DEPTH",
    "MAX_DETAIL_CHARACTERS",
    "MAX_DETECTIONS",
    "MAX_MESSAGE_BYTES",
    "MAX_NAME_CHARACTERS",
    "MAX_OBJECT_IDS",
    "MAX_PATH_POINTS",
    "MAX_POINTS",
    "MAX_RULE_CHARACTERS",
    "MAX_SHAPES",
    "SCHEMA",
    "Event",
    "Kind",
    "decode",
    "encode",
    "events_schema",
    "from_message",
    "kind_of",
    "presentable",
    "replay_schema",
    "to_dict",
    "to_message",
    "topic",
    "topic_of",
]


def events_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of every event."""
    return _schema("events-v1.json")


def replay_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of requests to the replay socket, and of the first part of its answers."""
    return _schema("replay-v1.json")


def _schema(file: str) -> dict[str, Any]:
    text = resources.files("streamdet").joinpath("schemas", file).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
