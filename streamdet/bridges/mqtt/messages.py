"""The MQTT messages that events become: topics and payloads. docs/bridges.md is the reference."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from streamdet import wire
from streamdet.client import Gap
from streamdet.types import AlertEvent, ObjectEvent

# Wildcards, and what brokers end a connection for: control characters, and code points that are no characters.
_NO_CHARACTERS = "\ufdd0-\ufdef" + "".join(
    f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000)
)
_NOT_IN_A_TOPIC = re.compile(rf"[+#\x00-\x1f\x7f-\x9f{_NO_CHARACTERS}]")
MAX_TOPIC_BYTES = 65_535
"""The longest topic of MQTT."""
_NOT_IN_A_LEVEL = re.compile(rf"[%/+#\x00-\x1f\x7f-\x9f{_NO_CHARACTERS}]")


@dataclass(frozen=True, slots=True)
class Message:
    """What is published.

    Attributes:
        topic: without wildcards.
        payload: JSON, a word or a JPEG picture; empty to remove what is retained.
        retain: whether the broker keeps it for those that subscribe later.
    """

    topic: str
    payload: bytes
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """The event that a message is made of: the numbers by which a receiver finds duplicates."""

    epoch: str
    topic: str
    seq: int

    def to_dict(self) -> dict[str, Any]:
        """As they stand in a payload."""
        return {"epoch": self.epoch, "topic": self.topic, "seq": self.seq}


def source_of(event: wire.Event) -> Source:
    """The numbers of an event."""
    return Source(event.epoch, wire.topic_of(event), event.seq)


class Topics:
    """The topics under one prefix.

    Args:
        prefix: their first levels.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.availability = f"{prefix}/availability"

    def of(self, stream: str, *levels: str) -> str:
        """A topic of a stream; characters that MQTT does not allow in a level are percent-encoded."""
        return "/".join([self.prefix, *(level_of(level) for level in (stream, *levels))])


def level_of(name: str) -> str:
    """A name as one level of a topic: what must not stand in one becomes `%` and two digits for each byte of UTF-8."""
    return _NOT_IN_A_LEVEL.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name)


def object_message(topics: Topics, event: ObjectEvent, *, late: bool) -> Message:
    """An object event as it is published."""
    return Message(topics.of(event.stream, "objects"), _event_payload(event, late=late))


def check_topic(topic: str) -> str:
    """Returns a topic that may be published to.

    Raises:
        ValueError: it may not.
    """
    if not 0 < len(topic.encode()) <= MAX_TOPIC_BYTES or _NOT_IN_A_TOPIC.search(topic) or topic.startswith("$"):
        message = "no topic that may be published to"
        raise ValueError(message)
    return topic


def alert_message(topics: Topics, event: AlertEvent, *, late: bool) -> Message:
    """An alert event as it is published."""
    return Message(topics.of(event.stream, "alerts", event.alert.rule), _event_payload(event, late=late))


def gap_message(topics: Topics, gap: Gap) -> Message:
    """The report of events that were lost."""
    lost = {"type": "gap", "stream": gap.stream, "topic": gap.topic, "first": gap.first, "count": gap.count}
    return Message(topics.of(gap.stream, "gaps"), to_json(lost))


def to_json(value: object) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _event_payload(event: ObjectEvent | AlertEvent, *, late: bool) -> bytes:
    return to_json({**json.loads(wire.encode(event)), "topic": wire.topic_of(event), "late": late})
