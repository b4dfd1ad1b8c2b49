"""The rules that docs/objects.md shows raise what it says."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from streamdet.analytics.stream_analytics import StreamAnalytics
from streamdet.config import RuleConfig, StreamConfig, load_config
from streamdet.config.rules import rules_of
from streamdet.types import Detection, FrameInfo
from support.paths import ROOT

PAGE = (ROOT / "docs" / "objects.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"### (.+)\n\n(?:(?!###).+\n)+\n```toml\n(\[\[rules\]\](?:.|\n)+?)```", PAGE))
WIDTH, HEIGHT = 1000, 500
STEP = 0.2
# 300 pixels on the left, the middle and on the right.
STREAM = """[[streams]]
name = "yard"
url = "0"
time_zone = "Europe/Berlin"
zones = [
    { name = "bay", polygon = [[0, 0], [0.3, 0], [0.3, 1], [0, 1]] },
    { name = "desk", polygon = [[0.35, 0], [0.65, 0], [0.65, 1], [0.35, 1]] },
    { name = "fire-lane", polygon = [[0.7, 0], [1, 0], [1, 1], [0.7, 1]] },
]
lines = [{ name = "gate", points = [[0.5, 1], [0.5, 0]] }]
"""
# A Wednesday; Berlin is an hour ahead.
MIDDAY = datetime(2026, 3, 4, 11, 0, tzinfo=UTC).timestamp()
NIGHT = datetime(2026, 3, 4, 21, 30, tzinfo=UTC).timestamp()
MORNING = datetime(2026, 3, 5, 7, 55, tzinfo=UTC).timestamp()

Found = tuple[str, float, float]
"""Label, and where its feet are, in pixels."""


class Yard:
    """One stream with the rule of an example; `alerts` are when they were raised and cleared, in seconds."""

    def __init__(self, config: StreamConfig, rules: tuple[RuleConfig, ...], began: float) -> None:
        objects, alerts = itertools.count(1), itertools.count(1)
        self._analytics = StreamAnalytics(
            config, itertools.count(1), lambda: f"e-{next(objects)}", lambda: f"e-a{next(alerts)}"
        )
        self._analytics.set_rules(rules_of(config.name, rules))
        self._began, self._seq = began, 0
        self.alerts: list[tuple[str, float]] = []
        self.suppressed = 0

    def show(self, seconds: float, *places: Found, to: tuple[float, ...] = ()) -> None:
        """Shows objects that stand, or go straight to other places, for some time."""
        steps = round(seconds / STEP)
        ends = to or tuple(x for _, x, _ in places)
        for step in range(steps):
            self._seq += 1
            at = [x + (end - x) * step / steps for (_, x, _), end in zip(places, ends, strict=True)]
            found = [
                Detection(label, 0.9, (x - 20, foot - 80, x + 20, foot))
                for (label, _, foot), x in zip(places, at, strict=True)
            ]
            now = self._seq * STEP
            seen = self._analytics.see(
                found, FrameInfo(self._seq, now, self._began + now, "daemon", WIDTH, HEIGHT), now
            )
            self.alerts += [(change.phase, round(change.frame.captured_at - self._began, 1)) for change in seen.alerts]
            self.suppressed += len(seen.suppressed)


Start = Callable[..., Yard]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def start_with(title: str, began: float = MIDDAY) -> Yard:
        file = tmp_path / "streamdet.toml"
        file.write_text(STREAM + EXAMPLES[title])
        config = load_config(file, {})
        return Yard(config.streams[0], config.rules, began)

    return start_with


def near(phase: str, seconds: float) -> tuple[str, object]:
    return phase, pytest.approx(seconds, abs=0.5)


def test_person_in_a_zone_for_10_s(start: Start) -> None:
    yard = start("Person in a zone for 10 s")
    yard.show(6, ("person", 400, 300), to=(0,))
    assert yard.alerts == []
    yard.show(10, ("person", 500, 300), to=(200,))
    yard.show(20, ("person", 200, 300), ("dog", 100, 450))
    yard.show(5, ("person", 200, 300), to=(500,))
    # Into the bay 6.7 s after it came.
    assert yard.alerts == [near("raised", 6 + 6.7 + 10), near("cleared", 36 + 1.7)]


def test_crossed_the_line_inwards_at_night(start: Start) -> None:
    day, night = (start("Crossed the line inwards at night", began) for began in (MIDDAY, NIGHT))
    for yard in (day, night):
        yard.show(4, ("person", 300, 300), to=(700,))
        yard.show(4, ("person", 700, 300), to=(300,))
        yard.show(4, ("person", 300, 300), to=(700,))
        yard.show(4)
        yard.show(4, ("dog", 300, 300), to=(700,))
    assert day.alerts == []
    assert night.alerts == [near("raised", 2.2), near("cleared", 12)]


def test_more_than_three_at_once(start: Start) -> None:
    yard = start("More than three at once")
    three = [("person", 50.0 + 70 * number, 300.0) for number in range(3)]
    yard.show(10, *three, ("person", 900, 300), ("dog", 120, 450))
    assert yard.alerts == []
    yard.show(10, *three, ("person", 260, 450))
    yard.show(10, *three, ("person", 260, 450), ("person", 120, 450))
    yard.show(10, *three)
    assert yard.alerts == [near("raised", 10.4), near("cleared", 32.2)]


def test_none_for_10_minutes(start: Start) -> None:
    yard = start("None for 10 minutes", MORNING)
    # From 8:55 to 8:56.
    yard.show(60, ("person", 500, 300))
    yard.show(900, ("dog", 800, 300))
    assert yard.alerts == [near("raised", 60 + 600)]
    yard.show(60, ("person", 500, 300))
    assert yard.alerts[1:] == [near("cleared", 960.4)]
    early = start("None for 10 minutes", MORNING - 600)
    early.show(1200)
    assert early.alerts == [near("raised", 900)]


def test_loitering(start: Start) -> None:
    yard = start("Loitering")
    yard.show(100, ("person", 200, 300), ("dog", 600, 300))
    yard.show(4)
    assert yard.alerts == []
    yard.show(130, ("person", 200, 300), to=(800,))
    yard.show(130, ("person", 800, 300), ("person", 200, 300))
    assert yard.alerts == [near("raised", 104 + 120)]
    assert yard.suppressed == 1


def test_car_parked(start: Start) -> None:
    yard = start("Car parked")
    yard.show(8, ("car", 500, 300), to=(990,))
    yard.show(4)
    yard.show(4, ("car", 500, 300), to=(850,))
    yard.show(70, ("car", 850, 300), ("person", 750, 450))
    yard.show(4, ("car", 850, 300), to=(500,))
    assert yard.alerts == [near("raised", 12 + 2.3 + 60), near("cleared", 86 + 1.7)]


def test_each_example_is_tested_and_every_block_is_a_rule() -> None:
    titles = {re.sub(r"\W+", "_", title.lower()) for title in EXAMPLES}
    assert {f"test_{title}" for title in titles} <= globals().keys()
    assert len(EXAMPLES) == 6
    for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL):
        for rule in tomllib.loads(block).get("rules", []):
            RuleConfig.model_validate(rule)
