"""Rules of a real daemon, and the same rules tried afterwards on what it has kept: the alerts are the same."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from streamdet.cli import cli
from streamdet.config import load_config
from streamdet.detector.pool import DetectorPool
from streamdet.service.daemon import Daemon
from streamdet.types import Detection, Picture
from support.ports import free_port
from support.videos import make_video

WIDTH, HEIGHT, FRAMES = 160, 120, 400
CONFIG = """
[publisher]
endpoint = "tcp://127.0.0.1:{publisher}"
[metrics]
endpoint = "127.0.0.1:{metrics}"
[replay]
endpoint = "off"
[spool]
directory = "spool"
[[streams]]
name = "yard"
url = "walk.mp4"
pace = "{pace}"
track_max_lost_seconds = 1
zones = [{{ name = "bay", polygon = [[0.3, 0], [0.7, 0], [0.7, 1], [0.3, 1]] }}]
lines = [{{ name = "gate", points = [[0.5, 1], [0.5, 0]] }}]
masks = [{{ name = "sky", polygon = [[0, 0], [1, 0], [1, 0.1], [0, 0.1]] }}]
"""
RULES = """
[[rules]]
name = "stays"
labels = ["person"]
zone = "bay"
for_seconds = 2
[[rules]]
name = "crosses"
line = "gate"
direction = "in"
cooldown_seconds = 3
[[rules]]
name = "crowd"
at_least = 3
[[rules]]
name = "empty"
zone = "bay"
none_for_seconds = 1
[[rules]]
name = "never"
at_least = 9
"""


class Walkers:
    """Finds what a script says, frame by frame: people who walk and stop, are missed, and jitter."""

    labels = ("person", "dog")

    def __init__(self) -> None:
        self._chance = random.Random(5)  # noqa: S311 - no secret
        self._places = [20.0, 60.0, 100.0]
        self._speeds = [0.0, 1.0, -1.0]

    def warm_up(self) -> None:
        pass

    def detect(self, pictures: Sequence[Picture], *settings: object) -> list[list[Detection]]:
        return [self._next() for _ in pictures]

    def _next(self) -> list[Detection]:
        chance, found = self._chance, []
        for row, label in enumerate(("person", "person", "dog")):
            if chance.random() < 0.02:
                self._speeds[row] = chance.choice([-1.5, -0.7, 0.0, 0.7, 1.5])
            x = self._places[row] = min(max(self._places[row] + self._speeds[row], 12), 148)
            x, foot = x + chance.gauss(0, 0.3), 50.0 + 25 * row
            if chance.random() > 0.2:
                found.append(Detection(label, chance.uniform(0.6, 0.99), (x - 8, foot - 36, x + 8, foot)))
        return [] if chance.random() < 0.05 else found


def run_to_the_end(path: Path) -> None:
    daemon = Daemon(load_config(path), path, load=lambda *_: DetectorPool([Walkers()]), stop_when_ended=True)
    thread = threading.Thread(target=daemon.run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def kept(folder: Path, topic: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(folder / "spool" / "events.sqlite")) as database:
        rows = database.execute("SELECT event FROM events WHERE topic = ? ORDER BY epoch, seq", (topic,)).fetchall()
    return [json.loads(event) for (event,) in rows]


def tried(*words: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["rules", "test", *map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def summary(alert: dict[str, Any], frame_seq: int) -> tuple[Any, ...]:
    keys = ("label", "zone", "line", "direction", "count")
    seconds = pytest.approx(alert["seconds"], abs=0.002)
    return (alert["rule"], frame_seq, alert["object_ids"], *map(alert.get, keys), alert["raised_at"], seconds)


@pytest.mark.parametrize("pace", ["fastest", "realtime"])
def test_a_rule_tried_on_the_past_raises_what_it_has_raised_live(tmp_path: Path, pace: str) -> None:
    # 400 frames are 16 s; in real time 4 s are enough.
    frames = FRAMES if pace == "fastest" else FRAMES // 4
    make_video(tmp_path / "walk.mp4", frames=frames, width=WIDTH, height=HEIGHT, fps=25)
    path = tmp_path / "streamdet.toml"
    path.write_text(CONFIG.format(publisher=free_port(), metrics=free_port(), pace=pace) + RULES)
    run_to_the_end(path)
    live = [event for event in kept(tmp_path, "alerts/yard/") if event["phase"] == "raised"]
    found = tried(path, "--spool", tmp_path / "spool")
    assert [summary(alert, alert["frame_seq"]) for alert in found["alerts"]] == [
        summary(event["alert"], event["frame"]["seq"]) for event in live
    ]
    assert {event["alert"]["rule"] for event in live} >= ({"stays", "crosses"} if pace == "fastest" else {"crowd"})
    assert found["events"] == len(kept(tmp_path, "detections/yard/"))
    never = found["rules"][-1]
    assert (never["alerts"], never["hint"]) == (0, "raises no alert, not even with any one condition fewer")
    # The same events as `watch` prints them, and the rules alone: zones and crossings are those that were published.
    events = kept(tmp_path, "detections/yard/")
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (tmp_path / "rules.toml").write_text(RULES)
    alone = tried(tmp_path / "rules.toml", "--events", tmp_path / "events.jsonl")
    assert sorted(
        (alert["rule"], alert["track_ids"]) for alert in alone["alerts"] if alert["rule"] != "crowd"
    ) == sorted((alert["rule"], alert["track_ids"]) for alert in found["alerts"] if alert["rule"] != "crowd")
