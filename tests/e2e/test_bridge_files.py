"""The bridge to files as a process beside a daemon: what is killed at any moment loses nothing and doubles nothing."""

from __future__ import annotations

import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from support.ports import free_ports
from support.processes import DaemonProcess, stream
from support.waiting import wait_until

PATIENCE_SECONDS = 30.0
KINDS = {"frames": "detections", "objects": "objects", "alerts": "alerts", "states": "state"}
Key = tuple[str, str, int]
"""Topic, epoch and number of an event."""


class Bridge:
    """The bridge of a daemon, into the folder `files` beside its file."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.folder = daemon.folder / "files"
        _, self.port = free_ports()
        streams = [stream(name, max_fps=20, track_max_lost_seconds=0.3) for name in ("one", "two")]
        table = (
            f'[files]\ndirectory = "files"\nrotate_seconds = 1\nformats = ["parquet", "jsonl"]\n'
            f'metrics_endpoint = "127.0.0.1:{self.port}"\n[[rules]]\nname = "seen"\n'
        )
        daemon.write_config(*streams, more=table)
        self._command = [sys.executable, "-m", "streamdet", "bridge", "files", "--config", str(daemon.path)]
        self.process: subprocess.Popen[str]

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)

    def end(self, number: int = signal.SIGKILL) -> str:
        self.process.send_signal(number)
        return self.process.communicate(timeout=PATIENCE_SECONDS)[1]

    def count(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE_SECONDS) as answer:
            page = answer.read().decode()
        found = re.search(rf'^streamdet_bridge_{name}{{bridge="files",target="directory"}} (\S+)$', page, re.MULTILINE)
        assert found is not None, page
        return float(found[1])

    def files(self) -> int:
        """How many finished ones there are."""
        return sum(1 for _ in self.folder.glob("frames/*/*/*.parquet"))

    def keys(self, suffix: str = "parquet") -> list[Key]:
        """Of all events that stand in the files."""
        reads = "read_parquet" if suffix == "parquet" else "read_json"
        keys: list[Key] = []
        with duckdb.connect() as database:
            for table, kind in KINDS.items():
                if any(self.folder.glob(f"{table}/*/*/*.{suffix}")):
                    text = f"SELECT stream, epoch, seq FROM {reads}('{self.folder}/{table}/*/*/*.{suffix}', hive_partitioning = true)"  # noqa: E501, S608
                    found = database.execute(text).fetchall()
                    keys += [(f"{kind}/{name}/", epoch, seq) for name, epoch, seq in found]
        return keys


def published(daemon: DaemonProcess) -> list[Key]:
    """The events in the spool."""
    with closing(sqlite3.connect(f"file:{daemon.folder}/spool/events.sqlite?mode=ro", uri=True)) as database:
        return [tuple(row) for row in database.execute("SELECT topic, epoch, seq FROM events ORDER BY kept_at")]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_kills_on_both_sides_lose_no_event_and_double_none(tmp_path: Path) -> None:
    chance = random.Random(14)  # noqa: S311 - of a test
    with DaemonProcess(tmp_path / "d", comes_and_goes=True) as daemon:
        bridge = Bridge(daemon)
        daemon.ready()
        bridge.start()
        wait_until(bridge.files, "the first file")
        first = set(bridge.keys())
        for kill in range(6):
            had = bridge.files()
            if kill % 2:
                wait_until(lambda had=had: bridge.files() > had, "another file")
            wait_until(lambda: chance.random() < 0.02, "any moment")
            bridge.end()
            if kill == 2:
                daemon.end(signal.SIGKILL)
                daemon.ready()
            bridge.start()
        assert daemon.end() == 0
        daemon.ready()  # the last ones may be asked for only now
        # The first ones may have been published before the bridge was there.
        wanted: set[Key] = set()
        for topic in {topic for topic, _, _ in published(daemon)}:
            of_topic = [key for key in published(daemon) if key[0] == topic]
            begin = next((index for index, key in enumerate(of_topic) if key in first), 0)
            wanted.update(of_topic[begin:])

        def has_all() -> bool:
            had = bridge.files()
            if wanted <= set(bridge.keys()):
                return True
            wait_until(lambda: bridge.files() > had, "another file")
            return False

        wait_until(has_all, "all of them")
        log = bridge.end(signal.SIGTERM)
        assert bridge.process.returncode == 0, log
        assert [key for key, count in Counter(bridge.keys()).items() if count > 1] == []
        assert sorted(bridge.keys("jsonl.gz")) == sorted(bridge.keys())
        assert not list(bridge.folder.glob("*/*/*/.*"))


@pytest.mark.slow
def test_sigterm_finishes_the_files_and_the_page_counts_events(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "d", comes_and_goes=True) as daemon:
        bridge = Bridge(daemon)
        daemon.ready()
        bridge.start()
        wait_until(bridge.files, "the first file")
        wait_until(lambda: bridge.count("events_total") > 0, "the page")
        assert bridge.count("lag_seconds") < PATIENCE_SECONDS
        assert bridge.count("lost_events_total") == bridge.count("dead_letters_total") == 0
        log = bridge.end(signal.SIGTERM)
        assert (bridge.process.returncode, "Traceback" in log) == (0, False), log
        kept = json.loads((bridge.folder / ".streamdet.json").read_text())["position"]
        newest = {topic: seq for topic, _, seq in sorted(bridge.keys(), key=lambda key: key[2])}
        assert {topic: seq for topic, (_, seq) in kept.items()} == newest


@pytest.mark.parametrize(
    ("table", "code", "expected"),
    [
        ("", 2, "has no directory in [files]"),
        ('[files]\ndirectory = "taken"\n', 69, "taken cannot be used: it is no directory"),
        (
            '[files]\ndirectory = "files"\nformats = ["csv"]\n',
            2,
            'files.formats[#1]: is "csv"; must be one of "parquet", "jsonl"',
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, table: str, code: int, expected: str) -> None:
    path = tmp_path / "streamdet.toml"
    (tmp_path / "taken").write_text("")
    path.write_text(f'{table}[[streams]]\nname = "a"\nurl = "rtsp://192.0.2.5/x"\n')
    command = [sys.executable, "-m", "streamdet", "bridge", "files", "--config", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert (result.returncode, expected in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr
