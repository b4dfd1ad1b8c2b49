"""`streamdet rules test` on events in a file and in a spool."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from streamdet import wire
from streamdet.cli import cli
from streamdet.errors import ConfigError, DataError, SpoolError
from streamdet.types import Detection, DetectionEvent, FrameInfo
from support.spools import Counted
from support.waiting import wait_until

NOON = 1772625600.0
RULES = """[[rules]]
name = "person in the bay"
zone = "bay"
labels = ["person"]
for_seconds = 2
[[rules]]
name = "many"
at_least = 3
"""
CONFIG = f"""[[streams]]
name = "yard"
url = "a.mp4"
pace = "fastest"
time_zone = "Asia/Tokyo"
zones = [{{ name = "bay", polygon = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]] }}]
{RULES}"""


def event(number: int, stream: str = "yard", epoch: str = "e1") -> DetectionEvent:
    """The tenth of a second `number` of a person that stands in the bay, and of another one beside it."""
    at = NOON + number / 10
    frame = FrameInfo(number, number / 10, at, "daemon", 1000, 500)
    found = [
        Detection("person", 0.9, (100.0, 100.0, 140.0, 200.0), 7, ("bay",)),
        Detection("person", 0.8, (800.0, 100.0, 840.0, 200.0), 8),
    ]
    return DetectionEvent(stream, epoch, number, at, frame, tuple(found))


def lines(*events: DetectionEvent) -> str:
    return "".join(json.dumps(wire.to_dict(each)) + "\n" for each in events)


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    return file


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    file = tmp_path / "events.jsonl"
    file.write_text(lines(*map(event, range(1, 51))))
    return file


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["rules", "test", *map(str, words)])


def as_json(*words: str | Path) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_table_of_alerts_and_a_hint_for_a_rule_that_raises_none(rules: Path, recorded: Path) -> None:
    result = run(rules, "--events", recorded)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "person in the bay yard person #7 2.0 s -" in text
    assert "person in the bay 1 0 many 0 0 50 frames of 1 stream" in text
    assert "many: raises no alert; alerts with one condition fewer: 1 with at_least = 2" in text


def test_json_for_programs(rules: Path, recorded: Path) -> None:
    found = as_json(rules, "--events", recorded)
    (alert,) = found["alerts"]
    assert (alert["stream"], alert["rule"], alert["epoch"], alert["frame_seq"]) == (
        "yard",
        "person in the bay",
        "e1",
        21,
    )
    assert alert["raised_at"] == pytest.approx(NOON + 2.1)
    assert (alert["seconds"], alert["label"], alert["zone"], alert["track_ids"]) == (2.0, "person", "bay", [7])
    assert (alert["cleared_at"], alert["cleared_seconds"]) == (None, None)
    assert (found["events"], found["streams"]) == (50, ["yard"])
    assert [(rule["rule"], rule["alerts"]) for rule in found["rules"]] == [("person in the bay", 1), ("many", 0)]


def test_a_configuration_has_zones_and_time_zones_of_its_own(tmp_path: Path, recorded: Path) -> None:
    file = tmp_path / "streamdet.toml"
    file.write_text(CONFIG)
    result = run(file, "--events", recorded)
    assert "2026-03-04 21:00:02.100" in result.stdout
    file.write_text(CONFIG.replace("0.5", "0.05"))
    assert as_json(file, "--events", recorded)["alerts"] == []


def test_events_of_some_streams_and_of_some_time(rules: Path, recorded: Path) -> None:
    recorded.write_text(lines(*(event(n, stream) for n in range(1, 51) for stream in ("yard", "dock"))))
    assert {alert["stream"] for alert in as_json(rules, "--events", recorded)["alerts"]} == {"yard", "dock"}
    assert {a["stream"] for a in as_json(rules, "--events", recorded, "--stream", "dock")["alerts"]} == {"dock"}
    until = as_json(rules, "--events", recorded, "--until", "2026-03-04T12:00:01+00:00")
    assert (until["events"], until["alerts"]) == (20, [])
    since = as_json(rules, "--events", recorded, "--since", "2026-03-04T12:00:04+00:00")
    assert (since["events"], since["alerts"]) == (22, [])
    assert as_json(rules, "--events", recorded, "--since", "1 h ago")["events"] == 0


def test_what_watch_prints_besides_events_of_detections_is_no_mistake(rules: Path, recorded: Path) -> None:
    others = [
        {"type": "gap", "stream": "yard", "topic": "detections/yard/", "epoch": "e1", "count": 3},
        {"type": "restart", "stream": "yard", "epoch": "e2"},
        {"schema": 1, "type": "preview", "stream": "yard", "epoch": "e1", "seq": 1, "published_at": 1.0},
    ]
    more = "".join(json.dumps(other) + "\n" for other in others)
    recorded.write_text(more + "\n" + recorded.read_text() + lines(event(51)).rstrip()[:40])
    assert as_json(rules, "--events", recorded)["events"] == 50


def test_events_come_from_standard_input(rules: Path) -> None:
    given = lines(*map(event, range(1, 51)))
    result = CliRunner().invoke(cli, ["rules", "test", str(rules), "--events", "-", "--json"], input=given)
    assert len(json.loads(result.stdout)["alerts"]) == 1


def test_a_spool_is_read_while_it_is_written(rules: Path, tmp_path: Path) -> None:
    with Counted(tmp_path / "spool") as spool:
        for number in range(1, 31):
            spool.spool.keep("detections/yard/", number, wire.encode(event(number)))
        spool.spool.keep("previews/yard/", 1, b"{}")
        wait_until(lambda: spool.count("events_kept_total") == 31)
        found = as_json(rules, "--spool", tmp_path / "spool")
        assert (found["events"], len(found["alerts"])) == (30, 1)
        for number in range(31, 51):
            spool.spool.keep("detections/yard/", number, wire.encode(event(number)))
        wait_until(lambda: spool.count("events_kept_total") == 51)
        assert as_json(rules, "--spool", tmp_path / "spool")["events"] == 50
        assert as_json(rules, "--spool", tmp_path / "spool", "--stream", "dock")["events"] == 0
    assert as_json(rules, "--spool", tmp_path / "spool")["events"] == 50


def test_an_empty_spool_has_no_events(rules: Path, tmp_path: Path) -> None:
    with Counted(tmp_path / "spool") as spool:
        spool.put(range(1, 2), topic="previews/yard/")
        wait_until(lambda: spool.count("events_kept_total") == 1)
        found = as_json(rules, "--spool", tmp_path / "spool")
    assert found["rules"][0]["hint"] == (
        "there are no events of its streams; check --spool, --events, --stream and --since"
    )


def test_what_cannot_be_read_ends_in_one_line(rules: Path, recorded: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], *words: str | Path) -> str:
        result = run(*words)
        assert isinstance(result.exception, error), result.output
        return str(result.exception)

    assert "there is no events.sqlite in" in refused(SpoolError, rules, "--spool", tmp_path)
    (tmp_path / "events.sqlite").write_bytes(b"SQLite format 3\0" + bytes(100))
    assert "cannot be read: " in refused(SpoolError, rules, "--spool", tmp_path)
    (tmp_path / "events.sqlite").unlink()
    with sqlite3.connect(tmp_path / "events.sqlite") as database:
        database.execute("CREATE TABLE other (a)")
    database.close()
    assert "cannot be read: no such table: records" in refused(SpoolError, rules, "--spool", tmp_path)
    recorded.write_text(lines(event(1)) + '{"schema": 1, "type": "detections"}\n')
    assert refused(DataError, rules, "--events", recorded).startswith(f"{recorded}:2: ")
    assert "there is no such file" in refused(ConfigError, tmp_path / "no.toml", "--events", recorded)
    rules.write_text("[[rules]]\nzone = 7\n")
    assert len(refused(ConfigError, rules, "--events", recorded).splitlines()) == 2
    rules.write_text("")
    assert "has no [[rules]]; docs/objects.md shows" in refused(ConfigError, rules, "--events", recorded)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "give either --spool or --events"),
        (["--spool", ".", "--events", "-"], "give either --spool or --events"),
        (["--events", "-", "--since", "2 moons ago"], "is neither a time, 2026-11-29T06:00, nor a duration"),
        (["--events", "-", "--since", "10"], "is neither a time"),
        (["--events", "/nowhere"], "No such file"),
    ],
)
def test_wrong_options(rules: Path, words: list[str], problem: str) -> None:
    result = run(rules, *words)
    assert result.exit_code == 2
    assert problem in result.output
