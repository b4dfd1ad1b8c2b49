"""The programs in examples/, each as a user would start it, with a daemon in whose pictures a person walks."""

from __future__ import annotations

import csv
import http.server
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from streamdet import wire
from support.paths import ROOT
from support.processes import WALKER_DAEMON, DaemonProcess, stream
from support.waiting import join, wait_until

PATIENCE_SECONDS = 60.0
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DOOR = '[[streams.zones]]\nname = "door"\npolygon = [[0.5, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]]\n'
RULE = '[[rules]]\nname = "at the door"\nzone = "door"\nfor_seconds = 0.2\n'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    yard = stream("yard", max_fps=20, track_max_lost_seconds=0.3)
    folder = tmp_path_factory.mktemp("walker")
    with DaemonProcess(folder, yard + DOOR, RULE, stand_in=WALKER_DAEMON).ready() as running:
        yield running


@contextmanager
def example(name: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A running example, which ends in time, and by Ctrl-C without a word."""
    # A shell starts what it puts into the background deaf to SIGINT, and children inherit that.
    command = ["env", "--default-signal=INT", sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        killer = threading.Timer(PATIENCE_SECONDS, program.kill)
        killer.start()
        try:
            yield program
            program.send_signal(signal.SIGINT)
            assert "Traceback" not in program.communicate(timeout=PATIENCE_SECONDS)[1]
            assert program.returncode == 130
        finally:
            killer.cancel()
            program.kill()
            join(killer)


def test_people_are_counted_per_zone_also_over_a_crash(daemon: DaemonProcess) -> None:
    with example("people_per_zone.py", daemon.endpoint) as program:
        assert program.stdout is not None
        lines = [program.stdout.readline() for _ in range(3)]
        daemon.end(signal.SIGKILL)
        daemon.ready()
        lines += [program.stdout.readline() for _ in range(5)]
    assert sorted(set(lines)) == ["yard  door  0\n", "yard  door  1\n"]
    assert lines == [*lines[:2] * 4]


def test_the_objects_of_a_day_are_the_rows_of_a_file(daemon: DaemonProcess, tmp_path: Path) -> None:
    before = datetime.now().astimezone()

    def rows() -> list[dict[str, str]]:
        found = []
        for path in sorted(tmp_path.glob("objects-????-??-??.csv")):
            with path.open(newline="", encoding="utf-8") as file:
                found += list(csv.DictReader(file))
        return found

    for wanted in (2, 3):  # the second time it begins with a row that it has written before
        with example("nightly_csv.py", tmp_path, daemon.endpoint):
            wait_until(lambda wanted=wanted: len(rows()) >= wanted, "the objects are in the file", PATIENCE_SECONDS)
    written = rows()
    assert len({row["object_id"] for row in written}) == len(written)
    row = written[-1]
    assert (row["stream"], row["label"], row["score"], row["reason"]) == ("yard", "person", "0.9", "lost")
    assert row["zones"].startswith("door ")
    assert 0.3 < float(row["seconds"]) < PATIENCE_SECONDS
    assert datetime.fromisoformat(row["last_seen"]) > before


class Receiver(http.server.BaseHTTPRequestHandler):
    """Refuses the first request, and keeps the others."""

    received: list[tuple[str, dict[str, Any]]]
    refused: list[str]

    def do_POST(self) -> None:
        key, body = self.headers["Idempotency-Key"], self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        if self.refused:
            self.received.append((key, json.loads(body)))
        else:
            self.refused.append(key)
        self.send_response(200 if self.received else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class gives it
        pass


def test_alerts_are_posted_and_again_where_that_fails(daemon: DaemonProcess) -> None:
    handler = type("OneReceiver", (Receiver,), {"received": [], "refused": []})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,), name="receiver", daemon=True)
        serving.start()
        try:
            with example("alert_webhook.py", f"http://127.0.0.1:{server.server_port}/", daemon.endpoint):
                wait_until(lambda: len(handler.received) >= 3, "three events are posted", PATIENCE_SECONDS)
        finally:
            server.shutdown()
            join(serving)
    keys, events = zip(*handler.received, strict=True)
    assert handler.refused == [keys[0]]
    assert len(set(keys)) == len(keys)
    phases = [event["phase"] for event in events[:3]]
    assert phases in (["raised", "cleared", "raised"], ["cleared", "raised", "cleared"])
    for key, event in zip(keys, events, strict=True):
        jsonschema.validate(event, wire.events_schema(), jsonschema.Draft202012Validator)
        assert (event["stream"], event["alert"]["rule"]) == ("yard", "at the door")
        assert key == f"{event['alert']['alert_id']}-{event['phase']}"


def run(path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(path), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_is_short_and_explains_itself(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
    done = run(path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {path.name} ")
    assert "5555" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_is_wrong_is_one_line(path: Path, tmp_path: Path) -> None:
    first: list[object] = {"nightly_csv": [tmp_path], "alert_webhook": ["http://127.0.0.1:1/"]}.get(path.stem, [])
    done = run(path, *first, "localhost:5555")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{path.stem}: ")
    assert "expected something like tcp://127.0.0.1:5555" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_address_of_a_receiver_is_checked() -> None:
    done = run(ROOT / "examples" / "alert_webhook.py", "localhost:8000")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "alert_webhook.py: error: localhost:8000 is neither http:// nor https://"
