"""Rules that are tried on published events raise the same alerts as live."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdet import wire
from streamdet.analytics.past import Past, relaxed
from streamdet.analytics.stream_analytics import Seen, StreamAnalytics
from streamdet.config import RuleConfig, StreamConfig
from streamdet.types import (
    Detection,
    DetectionEvent,
    EndReason,
    FrameInfo,
    ObjectEvent,
    Reason,
    State,
    StateEvent,
)

SIZE = 1000, 500
BAY = {"name": "bay", "polygon": [[0.4, 0.0], [0.6, 0.0], [0.6, 1.0], [0.4, 1.0]]}
GATE = {"name": "gate", "points": [[0.5, 1.0], [0.5, 0.0]]}
NOON = 1772625600.0
RULES = [
    RuleConfig.model_validate({"name": name, **keys})
    for name, keys in {
        "each": {},
        "bay": {"zone": "bay", "for_seconds": 2, "labels": ["person"]},
        "gate": {"line": "gate", "direction": "in"},
        "two": {"at_least": 2, "for_seconds": 1},
        "empty": {"none_for_seconds": 2, "zone": "bay"},
        "seldom": {"zone": "bay", "cooldown_seconds": 5},
        "night": {"between": ["12:00", "12:01"], "zone": "bay"},
    }.items()
]


def config_of(**keys: Any) -> StreamConfig:
    shapes = {"zones": [BAY], "lines": [GATE], "time_zone": "UTC"}
    return StreamConfig.model_validate({"name": "yard", "url": "a.mp4", "pace": "fastest", **shapes, **keys})


class Live:
    """A stream as it is published live; `events` are what subscribers and the spool have got."""

    def __init__(self, config: StreamConfig, rules: list[RuleConfig], epoch: str = "e1", began: float = NOON) -> None:
        objects, alerts = itertools.count(1), itertools.count(1)
        self.analytics = StreamAnalytics(
            config, itertools.count(1), lambda: f"{epoch}-{next(objects)}", lambda: f"{epoch}-a{next(alerts)}"
        )
        self.analytics.set_rules(rules)
        self.epoch, self.began = epoch, began
        self.seq, self.seconds, self.late_seconds = 0, 0.0, 0.0
        self.events: list[wire.Event] = []
        self.raised: list[tuple[str, int, tuple[str, ...], float]] = []
        self.cleared: list[tuple[str, float]] = []

    def show(self, detections: list[Detection], after: float) -> None:
        self.seq += 1
        self.seconds += after
        came = self.seconds + self.late_seconds
        frame = FrameInfo(self.seq, 7.0 + self.seconds, self.began + came, "daemon", *SIZE)
        found = wire.presentable(detections, *SIZE)
        seen = self.analytics.see(found, frame, 3600.123 + came)
        self.events.append(
            DetectionEvent("yard", self.epoch, self.seq, NOON, frame, tuple(seen.detections), seen.crossings)
        )
        self.keep(seen)

    def keep(self, seen: Seen) -> None:
        for number, change in enumerate(seen.objects, len(self.events)):
            event = ObjectEvent("yard", self.epoch, number, NOON, change.phase, change.frame, change.object)
            self.events.append(event)
        for alert in seen.alerts:
            if alert.phase == "raised":
                self.raised.append(
                    (alert.alert.rule, alert.frame.seq, alert.alert.object_ids, round(alert.alert.seconds, 2))
                )
            else:
                self.cleared.append((alert.alert.rule, round(alert.alert.seconds, 2)))


def tried(events: list[wire.Event], rules: list[RuleConfig], configs: list[StreamConfig] | None) -> Past:
    past = Past(rules, configs)
    for event in events:
        read = wire.decode(wire.encode(event))
        assert isinstance(read, DetectionEvent | ObjectEvent | StateEvent)
        past.see(read)
    return past


def raised_by(past: Past) -> list[tuple[str, int, tuple[str, ...], float]]:
    return [
        (found.alert.rule, found.frame_seq, found.alert.object_ids, round(found.alert.seconds, 2))
        for found in past.alerts()
    ]


def crowd(live: Live, seed: int, frames: int = 300) -> None:
    """People and dogs that walk and stop, are missed, are hidden, and jitter; frames are dropped."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    places = [(chance.uniform(100, 900), 150.0 + 100 * row, chance.choice(["person", "dog"])) for row in range(4)]
    speeds = [0.0] * 4
    for _ in range(frames):
        found = []
        for row, (x, y, label) in enumerate(places):
            if chance.random() < 0.03:
                speeds[row] = chance.choice([-120.0, 0.0, 120.0])
            after = min(max(x + speeds[row] * 0.1, 60), 940)
            places[row] = after, y, label
            left = after + chance.gauss(0, 1) - 20
            if chance.random() > 0.15:
                found.append(Detection(label, chance.uniform(0.5, 0.99), (left, y - 90, left + 40, y)))
        live.show(found if chance.random() > 0.1 else [], chance.choice([0.1, 0.1, 0.2]))


@pytest.mark.parametrize("seed", range(6))
def test_the_same_configuration_raises_the_same_alerts_in_the_same_frames(seed: int) -> None:
    live = Live(config_of(), RULES)
    crowd(live, seed)
    past = tried(live.events, RULES, [config_of()])
    assert len(live.raised) > 5
    assert raised_by(past) == live.raised
    ends = [(found.alert.rule, found.cleared_seconds) for found in past.alerts() if found.cleared_seconds is not None]
    assert sorted((rule, round(seconds, 2)) for rule, seconds in ends) == sorted(live.cleared)
    assert past.events == 300
    assert past.suppressed["each"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_zones_and_crossings_as_published_raise_the_same_alerts_within_a_few_frames(seed: int) -> None:
    live = Live(config_of(time_zone=None), RULES[:4])
    crowd(live, seed)
    past = tried(live.events, RULES[:4], None)
    got = raised_by(past)
    assert [(rule, ids) for rule, _, ids, _ in sorted(got)] == [(rule, ids) for rule, _, ids, _ in sorted(live.raised)]
    for (_, one, _, _), (_, other, _, _) in zip(sorted(got), sorted(live.raised), strict=True):
        assert abs(one - other) <= 10


def test_zones_that_were_not_drawn_then_can_be_tried() -> None:
    live = Live(config_of(zones=[], lines=[]), [])
    crowd(live, 1)
    other = Live(config_of(), RULES)
    crowd(other, 1)
    assert raised_by(tried(live.events, RULES, [config_of()])) == other.raised


@pytest.mark.parametrize("reason", [Reason.PAUSED, Reason.REMOVED])
def test_a_new_epoch_and_a_pause_end_what_was_there_and_the_pause_between_alerts_goes_on(reason: Reason) -> None:
    rules = [RuleConfig(name="each"), RuleConfig(name="seldom", cooldown_seconds=60)]
    person = [Detection("person", 0.9, (100.0, 100.0, 140.0, 200.0))]
    events: list[wire.Event] = []
    for number in range(3):
        live = Live(config_of(), rules, f"e{number}", NOON + 10 * number)
        for _ in range(20):
            live.show(person, 0.1)
        events += live.events
        if number == 1:
            paused = StateEvent("yard", "e1", 1, NOON, State.DOWN, reason, "", NOON)
            events.append(paused)
    past = tried(events, rules, [config_of()])
    assert [(found.epoch, found.alert.rule) for found in past.alerts()] == [
        ("e0", "each"), ("e0", "seldom"), ("e1", "each"), ("e2", "each"),
    ]  # fmt: skip
    assert past.suppressed == {"seldom": 2}
    ends = [found.cleared_at for found in past.alerts()]
    assert ends[-1] is None
    assert None not in ends[:-1]


def test_events_of_streams_without_configuration_have_no_effect() -> None:
    live = Live(config_of(), [])
    crowd(live, 1, 50)
    past = tried(live.events, RULES, [config_of(name="dock")])
    assert (past.alerts(), past.streams, past.events) == ([], [], 0)


def test_a_rule_is_tried_with_each_of_its_conditions_left_out() -> None:
    rule = RuleConfig.model_validate(
        {
            "name": "a",
            "labels": ["car"],
            "zone": "bay",
            "for_seconds": 9,
            "between": ["01:00", "02:00"],
            "days": ["mon"],
        }
    )
    words = ["without between and days", "without for_seconds", "without labels", "without zone"]
    assert list(relaxed(rule)) == words
    easier = relaxed(rule)["without between and days"]
    assert (easier.between, easier.days, easier.zone, easier.for_seconds) == ((), (), "bay", 9)
    assert list(relaxed(RuleConfig(name="a", at_least=3))) == ["with at_least = 2"]
    assert list(relaxed(RuleConfig(name="a", none_for_seconds=9))) == ["with none_for_seconds = 4.5"]
    assert list(relaxed(RuleConfig(name="a", line="gate", direction="in"))) == ["without line", "without direction"]
    assert not relaxed(RuleConfig(name="a"))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_whatever_is_seen_the_past_is_as_live(seed: int) -> None:
    live = Live(config_of(), RULES)
    crowd(live, seed, 80)
    live.keep(live.analytics.end(EndReason.STOPPING))
    assert raised_by(tried(live.events, RULES, [config_of()])) == live.raised


def test_frames_that_come_late_find_that_their_objects_have_ended_as_live() -> None:
    rules = [RuleConfig(name="each"), RuleConfig(name="one", at_least=1)]
    live = Live(config_of(pace="realtime"), rules)
    person = [Detection("person", 0.9, (100.0, 100.0, 140.0, 200.0))]
    for late_seconds in (0.0, 3.0, 1.5):
        if late_seconds == 3.0:
            # The network breaks down for longer than objects may be lost, then delivers all that was sent meanwhile.
            live.keep(live.analytics.silent(2.02, is_up=True))
        live.late_seconds = late_seconds
        for _ in range(15):
            live.show(person, 0.1)
    assert [(rule, ids) for rule, _, ids, _ in live.raised] == [
        ("each", ("e1-1",)), ("one", ("e1-1",)), ("each", ("e1-2",)), ("one", ("e1-2",)),
    ]  # fmt: skip
    track_ids = {event.object.track_id for event in live.events if isinstance(event, ObjectEvent)}
    assert len(track_ids) == 2  # that of an object is used no more
    assert raised_by(tried(live.events, rules, [config_of(pace="realtime")])) == live.raised
