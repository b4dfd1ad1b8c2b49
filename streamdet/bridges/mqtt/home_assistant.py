"""Home Assistant's MQTT discovery: the configuration of each entity, published and retained under its own topic.

The keys are those of https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery and of the pages of the MQTT
binary sensor, sensor and image there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from streamdet.bridges.mqtt.messages import Topics

_NOT_IN_AN_ID = re.compile(r"[^a-z0-9_-]+")


def discovery_configs(
    topics: Topics, discovery_prefix: str, stream: str, labels: Iterable[str], zones: Iterable[str], version: str
) -> dict[str, dict[str, Any]]:
    """The entities of one stream, as topic and payload of their configurations.

    Ids depend on the prefix and the names alone, so that an entity keeps its settings and its history.

    Args:
        topics: where their states are published.
        discovery_prefix: the first levels of the topics that Home Assistant reads, "homeassistant" by default there.
        stream: name of the stream, which is a device.
        labels: a binary sensor for each: whether there is such an object.
        zones: a sensor for each: how many objects are in it.
        version: of this program.
    """
    common = {
        "availability": [{"topic": topics.availability}, {"topic": topics.of(stream, "availability")}],
        "availability_mode": "all",
        "device": {
            "identifiers": [_id(topics.prefix, stream)],
            "name": stream,
            "manufacturer": "streamdet",
            "model": "stream",
            "sw_version": version,
        },
        "origin": {"name": "streamdet", "sw_version": version},
    }
    configs = {}

    def add(component: str, kind: str, name: str, config: dict[str, Any]) -> None:
        unique_id = _id(topics.prefix, stream, kind, name)
        configs[f"{discovery_prefix}/{component}/{unique_id}/config"] = {**config, **common, "unique_id": unique_id}

    for label in labels:
        add("binary_sensor", "label", label, {
            "name": label,
            "device_class": "occupancy",
            "state_topic": topics.of(stream, "labels", label),
            "value_template": "{{ value_json.state }}",
            "payload_on": "ON",
            "payload_off": "OFF",
            "qos": 1,
        })  # fmt: skip
    for zone in zones:
        zone_topic = topics.of(stream, "zones", zone)
        add("sensor", "zone", zone, {
            "name": f"{zone} count",
            "icon": "mdi:counter",
            "state_class": "measurement",
            "state_topic": zone_topic,
            "value_template": "{{ value_json.count }}",
            "json_attributes_topic": zone_topic,
            "json_attributes_template": "{{ value_json.labels | tojson }}",
            "qos": 1,
        })  # fmt: skip
    add("image", "picture", "", {
        "name": "last alert",
        "content_type": "image/jpeg",
        "image_topic": topics.of(stream, "picture"),
        "json_attributes_topic": topics.of(stream, "last_alert"),
    })  # fmt: skip
    return configs


def _id(*names: str) -> str:
    """An id of letters that Home Assistant allows; the digest keeps names apart that differ in other ones."""
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
    readable = _NOT_IN_AN_ID.sub("_", "-".join(name for name in names if name).lower())
    return f"streamdet-{readable[:100]}-{digest}"
