"""Every query of docs/analysis.md, on a recording of the sample clip: it runs, and says what is so."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import duckdb
import numpy as np
import pytest

from streamdet.assets import sample_clip
from streamdet.types import AlertEvent, DetectionEvent, ObjectEvent
from support.paths import ROOT
from support.recorded_clip import BEGIN, HEIGHT, HOURS, WIDTH, Recorded, record_day

PAGE = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"## (?:(\d+)\. )?([^\n]+)\n(?:(?!\n## ).)*?```(sql|python)\n(.*?)```", PAGE, re.DOTALL)
FOLDER = "/var/lib/streamdet-files"


def of(hour: float) -> datetime:
    return datetime.fromtimestamp(BEGIN + 3600 * hour, UTC)


class Day:
    """A recorded day, and its events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Recorded] = record_day(folder)
        self.database = duckdb.connect()
        self.ask("Open the recording")

    def text(self, number: str) -> str:
        """The program of a question, by its number or title."""
        (found,) = [block for *names, _, block in BLOCKS if number in names]
        assert FOLDER in found or number in "12345678"
        return found.replace(FOLDER, str(self.folder))

    def ask(self, number: str) -> list[dict[str, Any]]:
        answer = self.database.execute(self.text(number))
        names = [column[0] for column in answer.description or ()]
        return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

    def run(self, number: str, *arguments: str) -> str:
        """What a program in Python prints."""
        command = [sys.executable, "-W", "error", "-c", self.text(number), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout

    def ended(self, stream: str = "campus") -> list[ObjectEvent]:
        return [e for e in self.events if isinstance(e, ObjectEvent) and e.phase == "end" and e.stream == stream]

    def frames(self, stream: str = "campus") -> list[DetectionEvent]:
        return [e for e in self.events if isinstance(e, DetectionEvent) and e.stream == stream]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    day = Day(tmp_path_factory.mktemp("recording"))
    yield day
    day.database.close()


def test_the_page_has_ten_questions_and_each_has_a_test() -> None:
    numbers = [number for number, *_ in BLOCKS if number]
    assert numbers == [str(number) for number in range(1, 11)]
    tests = Path(__file__).read_text(encoding="utf-8")
    assert {number for number in numbers if f'day.ask("{number}")' in tests or f'day.run("{number}"' in tests} == set(
        numbers
    )


def test_the_busiest_hour_is_noon(day: Day) -> None:
    first, *_ = day.ask("1")
    per_play = len(day.ended()) // len(HOURS)
    assert first == {"hour": of(12), "objects": per_play * (HOURS.count(12) + 1)}


def test_detections_are_counted_by_label_and_hour(day: Day) -> None:
    rows = day.ask("2")
    expected = Counter(
        (found.label, int((event.frame.captured_at - BEGIN) // 3600))
        for stream in ("campus", "gate") for event in day.frames(stream) for found in event.detections
    )  # fmt: skip
    assert {(row["label"], (row["hour"] - of(0)).seconds // 3600): row["detections"] for row in rows} == expected


def test_the_time_in_zones_is_that_of_the_objects(day: Day) -> None:
    (row,) = [row for row in day.ask("3") if row["stream"] == "campus"]
    seconds = [visit.seconds for event in day.ended() for visit in event.object.zones]
    assert (row["zone"], row["label"], row["objects"]) == ("path", "person", len(seconds))
    assert row["median_seconds"] == pytest.approx(statistics.median(seconds), abs=0.06)
    assert row["longest"] == max(seconds)


def test_crossings_are_counted_by_hour_and_direction(day: Day) -> None:
    expected: Counter[tuple[int, str]] = Counter()
    for event in day.frames():
        expected.update((int((event.frame.captured_at - BEGIN) // 3600), each.direction) for each in event.crossings)
    rows = [row for row in day.ask("4") if row["stream"] == "campus"]
    assert sum(expected.values()) > 0
    for row in rows:
        hour = (row["hour"] - of(0)).seconds // 3600
        assert (row["line"], row["went_in"], row["went_out"]) == (
            "crossing",
            expected[hour, "in"],
            expected[hour, "out"],
        )


def test_alerts_are_counted_by_rule(day: Day) -> None:
    raised = [e for e in day.events if isinstance(e, AlertEvent) and e.stream == "campus"]
    (row,) = [row for row in day.ask("5") if row["stream"] == "campus"]
    assert (row["rule"], row["raised"]) == ("on the path", sum(e.phase == "raised" for e in raised))
    assert row["median_seconds"] > 2


def test_a_stream_that_was_down_for_an_hour_has_that_availability(day: Day) -> None:
    gate, campus = day.ask("6")
    assert (gate["stream"], gate["down_minutes"], gate["times_down"]) == ("gate", 60, 1)
    assert gate["up_percent"] == pytest.approx(90)  # of 8 to 18 o'clock
    assert (campus["stream"], campus["up_percent"], campus["down_minutes"]) == ("campus", 100, 0)


def test_latencies_are_those_between_capture_and_publication(day: Day) -> None:
    latencies = [1000 * (e.published_at - e.frame.captured_at) for e in day.frames()]
    (row,) = [row for row in day.ask("7") if row["stream"] == "campus"]
    assert (row["frames"], row["p50_ms"]) == (len(latencies), pytest.approx(statistics.median(latencies), abs=1))
    assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= round(max(latencies))


def test_minutes_are_occupied_empty_or_not_watched(day: Day) -> None:
    what = {(row["stream"], row["minute"]): row["what"] for row in day.ask("8")}
    assert (what["campus", of(8)], what["campus", of(9)]) == ("occupied", "not watched")
    assert ("gate", of(17)) in what


def test_pandas_has_the_occupancy(day: Day) -> None:
    printed = day.run("9")
    most = max(len(event.detections) for event in day.frames())
    assert re.search(rf"^campus\s+2026-11-29 08:00:00\+00:00\s+[0-9.]+\s+{most}\.0$", printed, re.MULTILINE), printed


@pytest.mark.slow
def test_the_heat_map_is_a_picture_that_is_hot_where_people_stood(day: Day, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    video = cv2.VideoCapture(str(sample_clip()))
    _, background = video.read()
    cv2.imwrite(str(tmp_path / "background.png"), background)
    day.run("10", str(tmp_path / "background.png"), str(tmp_path / "heat.png"))
    picture = cv2.imread(str(tmp_path / "heat.png"))
    assert picture is not None
    assert picture.shape == (HEIGHT, WIDTH, 3)
    changed = np.abs(picture.astype(int) - background).sum(2) > 60
    feet = [((x1 + x2) / 2, y2) for e in day.frames() for x1, _, x2, y2 in (found.box for found in e.detections)]
    hot = [changed[min(int(y), HEIGHT - 1), int(x)] for x, y in feet]
    assert np.mean(hot) > 0.6
    assert np.mean(changed) < 0.35
