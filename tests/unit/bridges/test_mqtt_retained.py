"""What the broker retains of events, and the configurations that Home Assistant finds there."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from streamdet import wire
from streamdet.bridges.mqtt.messages import Message, Topics, alert_message, level_of, object_message
from streamdet.bridges.mqtt.retained import RetainedTopics
from streamdet.types import Geometry, Owner, Reason, Shape, State, StateEvent, ZoneVisit
from support.occurring import alert_event, object_event

SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))

# The keys that Home Assistant documents: https://www.home-assistant.io/integrations/mqtt/ (device, origin,
# availability), .../binary_sensor.mqtt/, .../sensor.mqtt/ and .../image.mqtt/; True for those that are required.
COMMON = dict.fromkeys(
    ("availability", "availability_mode", "availability_template", "availability_topic", "payload_available",
     "payload_not_available", "device", "default_entity_id", "enabled_by_default", "encoding", "entity_category",
     "entity_picture", "icon", "json_attributes_template", "json_attributes_topic", "name", "object_id", "origin",
     "platform", "qos", "unique_id", "value_template"), False,
)  # fmt: skip
SENSOR_KEYS = dict.fromkeys(("device_class", "expire_after", "force_update"), False) | {"state_topic": True}
KEYS = {
    "binary_sensor": COMMON | SENSOR_KEYS | dict.fromkeys(("off_delay", "payload_off", "payload_on"), False),
    "sensor": COMMON | SENSOR_KEYS | dict.fromkeys(
        ("last_reset_value_template", "options", "state_class", "suggested_display_precision", "unit_of_measurement"),
        False,
    ),
    # One of image_topic and url_topic is required, and content_type goes with the first alone.
    "image": {key: value for key, value in COMMON.items() if key not in ("qos", "value_template")}
    | dict.fromkeys(("content_type", "image_encoding", "url_template", "url_topic"), False) | {"image_topic": True},
}  # fmt: skip
DEVICE_KEYS = {
    "configuration_url", "connections", "hw_version", "identifiers", "manufacturer", "model", "model_id", "name",
    "serial_number", "suggested_area", "sw_version", "via_device",
}  # fmt: skip
ORIGIN_KEYS = {"name", "sw_version", "support_url"}
AVAILABILITY_KEYS = {"topic", "payload_available", "payload_not_available", "value_template"}
ID_LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def check_config(topic: str, config: dict[str, Any], topics: set[str]) -> str:
    """Checks a discovery message against the documented schema; returns its component."""
    prefix, component, object_id, end = topic.split("/")
    assert (prefix, end) == ("homeassistant", "config")
    assert set(object_id) <= ID_LETTERS
    keys = KEYS[component]
    assert config.keys() <= keys.keys()
    assert {key for key, is_required in keys.items() if is_required} <= config.keys()
    assert config["unique_id"] == object_id
    assert config["device"].keys() <= DEVICE_KEYS
    assert config["device"]["identifiers"]
    assert config["origin"].keys() <= ORIGIN_KEYS
    assert config["origin"]["name"]
    assert config["availability_mode"] in ("all", "any", "latest")
    for one in config["availability"]:
        assert one.keys() <= AVAILABILITY_KEYS
        assert one["topic"] in topics
    assert config.get("qos", 0) in (0, 1, 2)
    assert config.get("state_class", "measurement") in ("measurement", "total", "total_increasing")
    assert all(isinstance(config.get(key, ""), str) for key in ("name", "icon", "value_template", "device_class"))
    if component != "image":
        assert config["state_topic"] in topics
    return component


def state(
    stream: str = "yard", published_at: float = 100.0, zones: tuple[str, ...] = ("bay",), **changes: Any
) -> StateEvent:
    geometry = Geometry(tuple(Shape(zone, SQUARE) for zone in zones))
    values = {"state": State.UP, "reason": None, "detail": "", "since": 90.0, "epoch": "e1", "seq": 1, **changes}
    return StateEvent(stream, published_at=published_at, geometry=geometry, **values)


def retained(messages: list[Message], before: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a broker retains after these messages."""
    found = dict(before or {})
    for message in messages:
        assert message.retain
        found.pop(message.topic, None)
        if message.payload:
            word = message.payload in (b"online", b"offline")
            found[message.topic] = message.payload.decode() if word else json.loads(message.payload)
    return found


def topics_of(prefix: str = "streamdet", *, discovery: bool = True, **more: Any) -> RetainedTopics:
    return RetainedTopics(Topics(prefix), "homeassistant" if discovery else None, "1.2", **more)


def test_an_event_keeps_its_fields_and_has_its_topic_and_age() -> None:
    event = alert_event("yard", 7, rule="late / at the +door#")
    message = alert_message(Topics("home/cams"), event, late=True)
    assert message.topic == "home/cams/yard/alerts/late %2F at the %2Bdoor%23"
    assert not message.retain
    assert json.loads(message.payload) == {**json.loads(wire.encode(event)), "topic": "alerts/yard/", "late": True}
    found = json.loads(object_message(Topics("s"), object_event("yard", 3), late=False).payload)
    assert (found["epoch"], found["topic"], found["seq"], found["late"]) == ("e1", "objects/yard/", 3, False)


def test_names_stay_apart_in_topics() -> None:
    names = ["a/b", "a%2Fb", "a b", "ä", "\x00", "+", "#"]
    assert len({level_of(name) for name in names}) == len(names)
    assert level_of("traffic light") == "traffic light"


def test_presence_and_counts_follow_the_objects() -> None:
    topics = topics_of(discovery=False)
    topics.state_event(state(), 0.0)
    inside = (ZoneVisit("bay", 1.0, inside=True),)
    topics.object_event(object_event("yard", 1, phase="begin", object_id="o1", zones=inside))
    topics.object_event(object_event("yard", 2, phase="begin", object_id="o2", label="car"))
    found = retained(topics.messages())
    source = {"epoch": "e1", "topic": "objects/yard/", "seq": 2}
    assert found == {
        "streamdet/yard/state": {
            "stream": "yard", "state": "up", "reason": None, "detail": "", "since": 90.0,
            "epoch": "e1", "topic": "state/yard/", "seq": 1,
        },
        "streamdet/yard/availability": "online",
        "streamdet/yard/labels/person": {"stream": "yard", "label": "person", "state": "ON", "count": 1, **source},
        "streamdet/yard/labels/car": {"stream": "yard", "label": "car", "state": "ON", "count": 1, **source},
        "streamdet/yard/zones/bay": {
            "stream": "yard", "zone": "bay", "count": 1, "labels": {"person": 1, "car": 0}, **source
        },
    }  # fmt: skip
    # What has not changed is not published again.
    topics.object_event(object_event("yard", 3, object_id="o1", zones=inside))
    topics.state_event(state(published_at=110.0), 10.0)
    assert topics.messages() == []
    topics.object_event(object_event("yard", 4, phase="end", object_id="o1", zones=inside))
    topics.object_event(object_event("yard", 4, phase="end", object_id="o1", zones=inside))
    found = retained(topics.messages(), found)
    assert (found["streamdet/yard/labels/person"]["state"], found["streamdet/yard/labels/person"]["seq"]) == ("OFF", 4)
    assert found["streamdet/yard/zones/bay"]["count"] == 0
    assert found["streamdet/yard/labels/car"]["state"] == "ON"
    topics.events_lost("yard")
    assert retained(topics.messages(), found)["streamdet/yard/labels/car"]["state"] == "OFF"


def test_an_old_repetition_of_a_state_changes_nothing() -> None:
    topics = topics_of()
    topics.state_event(state(published_at=100.0, state=State.DOWN, seq=2), 0.0)
    topics.state_event(state(published_at=99.0, seq=1), 1.0)
    assert retained(topics.messages())["streamdet/yard/availability"] == "offline"


def test_a_clock_that_was_set_back_holds_up_no_state() -> None:
    topics = topics_of()
    topics.state_event(state(published_at=5000.0, seq=1), 0.0)
    found = retained(topics.messages())
    assert found["streamdet/yard/availability"] == "online"
    topics.state_event(state(published_at=1400.0, state=State.DOWN, seq=2), 1.0)
    found = retained(topics.messages(), found)
    assert found["streamdet/yard/availability"] == "offline"
    # As a daemon that was started meanwhile repeats it.
    again = state(published_at=1300.0, epoch="e2", seq=1)
    topics.state_event(again, 2.0)
    assert topics.messages() == []
    topics.state_event(again, 3.0, is_live=True)
    assert retained(topics.messages(), found)["streamdet/yard/availability"] == "online"


def test_home_assistant_finds_every_entity() -> None:
    topics = topics_of(labels=("person",))
    topics.state_event(state(zones=("bay", "gate")), 0.0)
    topics.object_event(object_event("yard", 1, label="traffic light"))
    found = retained(topics.messages())
    configs = {topic: config for topic, config in found.items() if topic.startswith("homeassistant/")}
    published = {*found, "streamdet/availability"}
    assert sorted(check_config(topic, config, published) for topic, config in configs.items()) == [
        "binary_sensor", "binary_sensor", "image", "sensor", "sensor",
    ]  # fmt: skip
    assert {config["name"] for config in configs.values()} == {
        "person", "traffic light", "bay count", "gate count", "last alert",
    }  # fmt: skip
    assert len({json.dumps(config["device"]) for config in configs.values()}) == 1
    # The same names have the same ids in another process; another prefix has others.
    assert configs.keys() == {t for t in retained(_same("streamdet")) if t.startswith("homeassistant/")}
    assert not configs.keys() & retained(_same("other")).keys()


def _same(prefix: str) -> list[Message]:
    topics = topics_of(prefix)
    topics.object_event(object_event("yard", 1, label="traffic light"))
    topics.object_event(object_event("yard", 1))
    topics.state_event(state(zones=("gate", "bay")), 0.0)
    return topics.messages()


def test_names_that_differ_in_other_letters_only_have_different_ids() -> None:
    topics = topics_of()
    for label in ("Bus stop", "bus/stop", "bus stop", "バス"):
        topics.object_event(object_event("yard", 1, label=label))
    topics.state_event(state(zones=()), 0.0)
    found = [topic for topic in retained(topics.messages()) if topic.startswith("homeassistant/binary_sensor/")]
    assert len(found) == 4


def test_a_zone_that_goes_is_removed_and_so_is_a_stream_that_is_no_longer_repeated() -> None:
    topics = topics_of()
    topics.state_event(state("yard"), 0.0)
    topics.state_event(state("dock"), 0.0)
    topics.keep("yard", Message("streamdet/yard/picture", b"jpeg", retain=True))
    found = retained(topics.messages())
    assert "streamdet/yard/zones/bay" in found
    topics.state_event(state("yard", 101.0, zones=()), 10.0)
    messages = topics.messages()
    assert {message.payload for message in messages} == {b""}
    found = retained(messages, found)
    assert not any("bay" in topic for topic in found if "yard" in topic)
    assert topics.forget_silent(5.0) == ["dock"]
    found = retained(topics.messages(), found)
    assert not any("dock" in topic for topic in found)
    assert topics.forget_silent(20.0) == ["yard"]
    messages = topics.messages()
    assert Message("streamdet/yard/picture", b"", retain=True) in messages
    # The entities go before what they show, which they would take for states.
    configs = [message.topic.startswith("homeassistant/") for message in messages]
    assert configs == sorted(configs, reverse=True)
    assert retained([m for m in messages if m.topic != "streamdet/yard/picture"], found) == {}


def test_a_stream_that_is_reported_as_removed_loses_its_topics_at_once() -> None:
    topics = topics_of()
    topics.state_event(state("yard"), 0.0)
    topics.object_event(object_event("yard", 1, object_id="o1"))
    found = retained(topics.messages())
    assert found
    removed = replace(state("yard", 110.0), state=State.DOWN, reason=Reason.REMOVED)
    topics.state_event(replace(removed, published_at=99.0), 1.0)  # it was added again since
    assert topics.messages() == []
    topics.state_event(replace(removed, owner=Owner("n1", 3)), 1.0)  # the next owner may have taken its topics over
    assert topics.messages() == []
    topics.state_event(removed, 1.0)
    assert retained(topics.messages(), found) == {}
    topics.object_event(object_event("yard", 2, phase="end", object_id="o1"))
    topics.state_event(removed, 2.0)
    assert topics.messages() == []


def test_the_next_process_knows_what_is_there_and_removes_what_has_gone() -> None:
    first = topics_of()
    first.state_event(state("yard"), 0.0)
    first.state_event(state("dock"), 0.0)
    first.object_event(object_event("yard", 5, phase="begin", object_id="o1"))
    first.keep("yard", Message("streamdet/yard/last_alert", b"{}", retain=True))
    found = retained(first.messages())
    second = topics_of()
    second.from_dict(json.loads(json.dumps(first.to_dict())))
    second.daemon_connected(100.0)
    second.state_event(state("yard", 200.0), 110.0)
    found = retained(second.messages(), found)
    assert found["streamdet/yard/labels/person"]["count"] == 1
    second.object_event(object_event("yard", 6, phase="end", object_id="o1"))
    assert second.forget_silent(105.0) == ["dock"]
    found = retained(second.messages(), found)
    assert found["streamdet/yard/labels/person"]["count"] == 0
    assert not any("dock" in topic for topic in found)
    # What it has not seen itself stays what it is.
    assert not any(message.topic == "streamdet/yard/last_alert" for message in second.messages())


STREAM = {"labels": ["person"], "zones": [], "objects": {}, "source": None, "topics": [], "kept": []}


@pytest.mark.parametrize(
    "saved",
    [
        [], "x", 7, {"yard": None}, {"yard": {}}, {"yard": STREAM | {"labels": [1]}},
        {"yard": STREAM | {"labels": "ab"}},
        {"yard": STREAM | {"objects": {"o1": ["person"]}}}, {"yard": STREAM | {"objects": {"o1": ["person", [1]]}}},
        {"yard": STREAM | {"source": {"epoch": "e1"}}}, {"yard": STREAM | {"zones": ["\ud800"]}}, {"\ud800": STREAM},
        {"yard": STREAM | {"topics": ["s/#"]}}, {"yard": STREAM | {"topics": [""]}},
        {"yard": STREAM | {"kept": ["$SYS/broker/version"]}}, {"yard": STREAM | {"topics": ["a" * 65_536]}},
    ],
)  # fmt: skip
def test_what_the_process_before_has_saved_is_refused_if_it_is_damaged(saved: Any) -> None:
    topics = topics_of()
    with pytest.raises(ValueError):  # noqa: PT011 - any of them
        topics.from_dict(saved)
    topics.state_event(state(), 0.0)
    assert "streamdet/yard/state" in retained(topics.messages())


def test_all_is_published_again_for_a_broker_that_may_have_lost_it() -> None:
    topics = topics_of()
    topics.state_event(state(), 0.0)
    topics.keep("yard", Message("streamdet/yard/last_alert", b'{"a":1}', retain=True))
    first = retained(topics.messages())
    topics.republish()
    assert retained(topics.messages()) == {**first, "streamdet/yard/last_alert": {"a": 1}}
