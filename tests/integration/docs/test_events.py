"""A reader who follows docs/events.md must get events; so its examples run here against a real publisher."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from streamdet import wire
from streamdet.config import RuleConfig, StreamConfig
from streamdet.delivery.publisher import Publisher
from streamdet.types import EndReason, Reason, State
from support.knocking import Keys
from support.paths import DATA, ROOT
from support.publishing import CAR, PERSON, frame_of, metrics_of, publisher_at, status_of
from support.waiting import join

PAGE = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NODE = re.findall(r"```javascript\n(.*?)```", PAGE, re.DOTALL)
PREVIEW, WHOLE, OBJECTS, ASYNCIO, NODES, PYZMQ = range(6)


def publish_until(publisher: Publisher, done: threading.Event) -> None:
    """Sends the same over and over, with one lost event in each round, for an example that joins at any time."""
    seq = 0
    while not done.wait(0.02):
        seq += 2
        publisher.put_status(status_of("yard", State.DOWN, Reason.REFUSED))
        publisher.put_detections(frame_of("front-door", seq), [PERSON, CAR])
        if seq % 8 == 0:
            publisher._writer.seqs["detections/front-door/"] += 3


def publish_objects_until(publisher: Publisher, done: threading.Event) -> None:
    """A person is at the door for half a second, and gone for half a second, over and over."""
    door = {"name": "door", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}
    config = {"name": "front-door", "url": "rtsp://192.0.2.5/x", "zones": [door], "track_max_lost_seconds": 0.2}
    publisher.set_stream(StreamConfig.model_validate(config))
    publisher.set_rules([RuleConfig.model_validate({"name": "at the door", "zone": "door", "for_seconds": 0.2})])
    publisher.put_status(status_of("front-door"))
    for seq in itertools.count(1):
        if done.wait(0.02):
            return
        publisher.put_detections(frame_of("front-door", seq), [PERSON] if seq % 50 < 25 else [])


def lines_of(
    command: list[str],
    *expected: str,
    folder: Path | None = None,
    keys: Keys | None = None,
    publish: Callable[[Publisher, threading.Event], None] = publish_until,
) -> list[str]:
    """Starts a subscriber, publishes, and returns its lines once all the expected ones have come."""
    done = threading.Event()
    made = publisher_at() if keys is None else Publisher(keys.config(), "epoch-1", metrics_of())
    files = [] if keys is None else [str(keys.server_key), str(keys.make("alice"))]
    with made as publisher:
        sending = threading.Thread(target=publish, args=(publisher, done), daemon=True)
        sending.start()
        with subprocess.Popen(
            [*command, publisher.endpoint, *files],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        ) as program:
            assert program.stdout is not None
            assert program.stderr is not None
            killer = threading.Timer(60, program.kill)
            killer.start()
            lines: list[str] = []
            for line in program.stdout:
                lines.append(line.strip())
                if all(any(re.fullmatch(pattern, seen) for seen in lines) for pattern in expected):
                    break
            killer.cancel()
            program.kill()
            complaints = program.stderr.read()
            done.set()
            join(sending)
    missing = [pattern for pattern in expected if not any(re.fullmatch(pattern, line) for line in lines)]
    assert not missing, f"{missing} not in {lines[-5:]}; {complaints}"
    return lines


LOST = "lost 3 events of detections/front-door/"
FOUND = r"front-door \d+ \['person', 'car'\]"


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (WHOLE, (LOST, FOUND, "yard down refused")),
        (ASYNCIO, (FOUND,)),
        (NODES, ("front-door +2",)),
        (PYZMQ, (LOST, FOUND)),
    ],
    ids=["client", "asyncio", "nodes", "pyzmq"],
)
def test_a_python_example_reads_events(example: int, expected: tuple[str, ...], tmp_path: Path) -> None:
    program = tmp_path / "subscriber.py"
    program.write_text(PYTHON[example], encoding="utf-8")
    lines_of([sys.executable, str(program)], *expected)


def test_the_python_example_reads_objects_and_alerts(tmp_path: Path) -> None:
    program = tmp_path / "subscriber.py"
    program.write_text(PYTHON[OBJECTS], encoding="utf-8")
    lines_of(
        [sys.executable, str(program)],
        "front-door person enter door",
        # How long depends on how busy this machine is.
        r"front-door person \d+\.\d s \['door for \d+\.\d s'\]",
        r"front-door at the door \('epoch-1-\d+',\)",
        publish=publish_objects_until,
    )


def test_the_python_example_saves_a_preview(tmp_path: Path) -> None:
    program = tmp_path / "preview.py"
    program.write_text(PYTHON[PREVIEW], encoding="utf-8")
    lines_of([sys.executable, str(program)], "front-door 2 objects", folder=tmp_path)
    assert (tmp_path / "front-door.jpeg").read_bytes().startswith(b"\xff\xd8\xff")


def test_the_python_example_with_keys_reads_events(tmp_path: Path) -> None:
    program = tmp_path / "subscriber.py"
    program.write_text(PYTHON[-1], encoding="utf-8")
    lines_of([sys.executable, str(program)], FOUND, keys=Keys(tmp_path))


@pytest.mark.package("nodejs")
@pytest.mark.timeout(300)
@pytest.mark.network
def test_the_node_example_reads_events(tmp_path: Path) -> None:
    shutil.copy(DATA / "node" / "package.json", tmp_path)
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
    installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    if installed.returncode != 0 and not os.environ.get("STREAMDET_REQUIRE_PACKAGES"):
        pytest.skip("npm cannot install the package zeromq here")
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "subscriber.mjs").write_text(NODE[0], encoding="utf-8")
    lines_of(
        ["node", "subscriber.mjs"],
        LOST,
        r"front-door \d+ \[person,car\]",
        "yard down refused",
        folder=tmp_path,
    )
    (tmp_path / "with_keys.mjs").write_text(NODE[-1], encoding="utf-8")
    lines_of(["node", "with_keys.mjs"], r"front-door \d+ \[person,car\]", folder=tmp_path, keys=Keys(tmp_path))


def test_the_package_that_the_page_names_is_the_one_under_test() -> None:
    package = json.loads((DATA / "node" / "package.json").read_text())
    assert f"npm package `zeromq` {package['dependencies']['zeromq']}:" in PAGE


def test_the_messages_on_the_page_are_events() -> None:
    messages = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    kinds = set()
    for message in messages:
        kind = json.loads(message)["type"]
        kinds.add(kind)
        wire.decode(message.encode(), jpeg=b"\xff\xd8\xff\xd9" if kind == "preview" else None)
    assert kinds == set(wire.KINDS)


def test_the_page_names_every_field_and_word() -> None:
    definitions = wire.events_schema()["$defs"]
    fields = {name for part in definitions.values() for name in part.get("properties", {})}
    words = {*fields, *(word.value for words in (State, Reason, EndReason) for word in words)}
    assert {word for word in words if not re.search(rf"`[^`]*\b{word}\b[^`]*`", PAGE)} == set()
