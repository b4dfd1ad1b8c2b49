from __future__ import annotations

import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import zmq
from rich.console import Console, RenderableType

from streamdet import wire
from streamdet.cli.watch import Seen
from streamdet.config import ReplayConfig, StreamConfig
from streamdet.delivery.publisher import Publisher
from streamdet.types import (
    Crossing,
    Detection,
    DetectionEvent,
    EndReason,
    FrameInfo,
    Reason,
    State,
    StateEvent,
    ZoneChange,
)
from support.occurring import alert_event, object_event
from support.publishing import CAR, PERSON, frame_of, publisher_at, status_of
from support.waiting import join, wait_until

WATCH = [sys.executable, "-m", "streamdet", "watch"]
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def busy() -> Iterator[Publisher]:
    """A publisher with three streams: one has detections, one is down, and one loses an event now and then."""
    done = threading.Event()
    with publisher_at(state_interval_seconds=0.2) as publisher:

        def publish() -> None:
            publisher.put_status(status_of("front-door"))
            publisher.put_status(status_of("yard", State.DOWN, Reason.UNAUTHORIZED, "the login is wrong"))
            publisher.put_status(status_of("gate"))
            seq = 0
            while not done.wait(0.02):
                seq += 1
                publisher.put_detections(frame_of("front-door", seq), [PERSON, PERSON] if seq % 2 else [CAR])
                publisher.put_detections(frame_of("gate", seq), [])
                if seq % 5 == 0:
                    publisher._writer.seqs["detections/gate/"] += 2

        publishing = threading.Thread(target=publish, daemon=True)
        publishing.start()
        # It starts a thread of its own, which must not be taken for one that a test has left behind.
        wait_until(lambda: "previews" in {thread.name for thread in threading.enumerate()})
        yield publisher
        done.set()
        join(publishing)


def watch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*WATCH, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def test_a_line_shows_each_event(busy: Publisher) -> None:
    done = watch(busy.endpoint, "--count", "40")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\d\d:\d\d:\d\d\.\d{3}  front-door +#\d+ +\d+ ms  2 people 0\.90\n", done.stdout)
    assert re.search(r"yard +down  unauthorized: the login is wrong\n", done.stdout)
    assert re.search(r"gate +lost 2 detections events\n", done.stdout)
    assert re.search(r"front-door +up +\d+ +\d+\.\d +0 +.*\d+ (?:person|people)", done.stdout)
    assert "\x1b" not in done.stdout


def test_a_line_shows_tracks_zones_and_crossings() -> None:
    whole = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    keys = {"zones": [{"name": "door", "polygon": whole}], "lines": [{"name": "gate", "points": [[0, 0.5], [1, 0.5]]}]}
    done = threading.Event()
    with publisher_at() as publisher:
        publisher.set_stream(StreamConfig.model_validate({"name": "yard", "url": "rtsp://192.0.2.5/x", **keys}))

        def publish() -> None:
            seq = 0
            while not done.wait(0.02):
                seq += 1
                bottom = 180 + 80 * math.sin(seq / 12)
                publisher.put_detections(
                    frame_of("yard", seq), [Detection("person", 0.9, (9, bottom - 90, 60, bottom))]
                )

        publishing = threading.Thread(target=publish, daemon=True)
        publishing.start()
        try:
            lines = watch(publisher.endpoint, "--count", "80").stdout
        finally:
            done.set()
            join(publishing)
    assert re.search(r"yard +#\d+ +\d+ ms  1 person 0\.90 #1@door\n", lines)
    assert re.search(r" ms  1 person 0\.90 #1@door  #1 went in over gate\n", lines)
    assert re.search(r" ms  1 person 0\.90 #1@door  #1 went out over gate\n", lines)


def said_of(*items: wire.Event) -> list[str | None]:
    """The lines of these events, without their time and stream."""
    seen = Seen("tcp://127.0.0.1:1")
    lines = [seen.add(item) for item in items]
    return [None if line is None else line.plain.split("  ", 2)[-1].strip() for line in lines]


def test_a_line_shows_what_has_happened_to_an_object() -> None:
    changes = ZoneChange("leave", "path", 4.24), ZoneChange("enter", "door", 0.0)
    assert said_of(
        object_event(phase="begin"),
        object_event(seq=2),
        object_event(seq=3, crossings=(Crossing("gate", "in", 1, "person"),), changes=changes),
        object_event(seq=4, changes=(ZoneChange("dwell", "door", 10.0), ZoneChange("loiter", "door", 10.0))),
        object_event(seq=5, phase="end", changes=(ZoneChange("leave", "door", 12.0),), reason=EndReason.LOST),
        object_event(seq=6, phase="end", reason=None, label="car", track_id=2, seconds=3.0),
    ) == [
        "person #1 began",
        None,
        "person #1 went in over gate, left path after 4.2 s, entered door",
        "person #1 has been in door for 10.0 s, loiters in door for 10.0 s",
        "person #1 left door after 12.0 s, ended after 2.0 s (lost)",
        "car #2 ended after 3.0 s (unknown)",
    ]


def test_a_line_shows_an_alert() -> None:
    several: dict[str, Any] = {"label": None, "box": None}
    assert said_of(
        alert_event(),
        alert_event(seq=2, phase="cleared", seconds=12.34),
        alert_event(seq=3, rule="gate", zone=None, line="gate", direction="out", seconds=0.0),
        alert_event(seq=4, rule="crowd", count=3, seconds=0.0, **several),
        alert_event(seq=5, rule="quiet", zone=None, count=0, seconds=600.0, object_ids=(), **several),
    ) == [
        "alert at the door raised: person in door for 10.0 s",
        "alert at the door cleared: person in door for 12.3 s",
        "alert gate raised: person went out over gate",
        "alert crowd raised: 3 at once in door",
        "alert quiet raised: none for 600.0 s",
    ]


def test_objects_and_alerts_are_counted_once() -> None:
    seen = Seen("tcp://127.0.0.1:1")
    found = Detection("person", 0.9, (1.0, 1.0, 2.0, 2.0), 1)
    frame = FrameInfo(1, None, 1.0, "daemon", 640, 360)
    before = object_event(seq=9, phase="end", track_id=77, reason=EndReason.RESTART)
    for item in (
        DetectionEvent("front-door", "e1", 1, 1.0, frame, (found,)), object_event(), object_event(seq=2),
        object_event(seq=3, track_id=2, label="car"), before, alert_event(), alert_event(seq=2, phase="cleared"),
    ):  # fmt: skip
        seen.add(item)
    console = Console(file=StringIO(), record=True, width=300)
    console.print(seen.summary())
    assert re.search(r"front-door +- +1 +.* 1 person, 1 car +1 person +1\n", console.export_text())


def test_only_the_chosen_kinds_are_shown() -> None:
    done = threading.Event()
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.linger = 0
        socket.bind("tcp://127.0.0.1:0")
        endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)

        def publish() -> None:
            seq = 0
            while not done.wait(0.02):
                seq += 1
                frame = FrameInfo(seq, None, 1.0, "daemon", 640, 360)
                for event in (
                    DetectionEvent("front-door", "e1", seq, 1.0, frame, ()),
                    object_event(seq=seq, phase="begin", label="person\u202e"),
                    alert_event(seq=seq, rule="at\u202ethe door"),
                ):
                    socket.send_multipart(wire.to_message(event))

        publishing = threading.Thread(target=publish, daemon=True)
        publishing.start()
        try:
            lines = watch(endpoint, "--kind", "objects", "--kind", "alerts", "--count", "4").stdout
            objects = watch(endpoint, "--kind", "objects", "--label", "person\u202e", "--json", "--count", "2").stdout
        finally:
            done.set()
            join(publishing)
    assert len(re.findall(r"front-door +person\\u202e #1 began\n", lines)) == 2
    assert len(re.findall(r"front-door +alert at\\u202ethe door raised: person in door for 10\.0 s\n", lines)) == 2
    assert " ms " not in lines
    assert "\u202e" not in lines + objects
    items = [json.loads(line) for line in objects.splitlines()]
    assert [(item["type"], item["phase"], item["object"]["label"]) for item in items] == [
        ("objects", "begin", "person\u202e")
    ] * 2


def test_a_repeated_state_is_reported_once(busy: Publisher) -> None:
    done = watch(busy.endpoint, "--stream", "yard", "--seconds", "1")
    assert done.returncode == 0
    assert done.stdout.count("unauthorized") == 1


def test_programs_get_a_json_object_per_line(busy: Publisher) -> None:
    done = watch(busy.endpoint, "--json", "--count", "40")
    assert done.returncode == 0
    items = [json.loads(line) for line in done.stdout.splitlines()]
    assert {item["type"] for item in items} == {"detections", "state", "gap"}
    assert len([item for item in items if item["type"] != "gap"]) == 40
    gap = next(item for item in items if item["type"] == "gap")
    assert (gap["stream"], gap["topic"], gap["count"]) == ("gate", "detections/gate/", 2)
    assert "front-door" in done.stderr  # the summary must not stand among the objects


def test_streams_and_labels_are_chosen(busy: Publisher) -> None:
    done = watch(busy.endpoint, "--json", "--stream", "front-door", "--label", "car", "--count", "3")
    items = [json.loads(line) for line in done.stdout.splitlines()]
    assert [item["stream"] for item in items] == ["front-door"] * 3
    assert [[found["label"] for found in item["detections"]] for item in items] == [["car"]] * 3


def test_a_terminal_shows_a_table(busy: Publisher) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "120", "LINES": "30", "TERM": "xterm"}
    # A shell starts what it puts into the background deaf to SIGINT, and children inherit that.
    command = ["env", "--default-signal=INT", *WATCH, busy.endpoint]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as program:
        os.close(theirs)
        screen = ""
        interrupted = False
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux reports the end of a terminal so
                break
            screen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", piece.decode(errors="replace"))
            if not interrupted and re.search(r"gate +up .*lost", screen, re.DOTALL):
                interrupted = True
                program.send_signal(signal.SIGINT)
    os.close(ours)
    assert program.returncode == 0
    assert re.search(r"stream +state +fps +latency +lost +in the newest frame", screen)
    assert re.search(r"front-door +up +\d+\.\d +\d+ ms +0 +(2 people 0\.90|1 car 0\.80)", screen)
    assert re.search(r"yard +down  unauthorized +0\.0 +- +0 +-", screen)
    assert re.search(r"stream +state +frames +fps +lost +objects", screen), "no summary at the end"


def test_nothing_within_the_time_is_code_1_and_one_line() -> None:
    done = watch("tcp://127.0.0.1:1", "--seconds", "0.3")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"streamdet: no event came from tcp://127\.0\.0\.1:1 within 0\.\d s; .*\n", done.stderr)


@pytest.mark.parametrize("wrong", ["localhost:5555", "tcp://127.0.0.1:x", "", "http://127.0.0.1:9095/metrics"])
def test_a_wrong_endpoint_is_one_clear_line(wrong: str) -> None:
    done = watch(wrong, "--seconds", "5")
    assert done.returncode not in (0, 1)
    assert re.fullmatch(r"streamdet: .*expected something like tcp://127\.0\.0\.1:5555.*\n", done.stderr)


def test_the_end_of_a_pipe_is_no_fault(busy: Publisher) -> None:
    command = " ".join([*WATCH, busy.endpoint, "| head -n 3"])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3


def test_help_has_examples_and_starts_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "streamdet", "watch", "--help"],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True,
    )  # fmt: skip
    assert "streamdet watch --label person --json" in done.stdout
    imported = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "zmq" in imported
    assert not imported & {"torch", "av", "cv2", "numpy", "pydantic"}


def rendered(shown: RenderableType) -> str:
    console = Console(file=StringIO(), record=True, width=300)
    console.print(shown)
    return console.export_text()


def test_a_stream_that_was_removed_leaves_the_table_and_stays_in_the_summary() -> None:
    seen = Seen("tcp://127.0.0.1:1")
    for name in ("gate", "yard"):
        seen.add(StateEvent(name, "e", 1, 1.0, State.UP, None, "", 1.0))
    line = seen.add(StateEvent("gate", "e", 2, 2.0, State.DOWN, Reason.REMOVED, "the stream was removed", 2.0))
    assert line is not None
    assert line.plain.endswith("  removed")
    assert not re.search("^gate ", rendered(seen.live()), re.MULTILINE)
    assert re.search("gate +removed", rendered(seen.summary()))
    seen.add(StateEvent("gate", "e", 3, 3.0, State.CONNECTING, None, "", 3.0))
    assert re.search("^gate +connecting +0.0", rendered(seen.live()), re.MULTILINE)


def test_marks_that_turn_the_direction_of_a_line_are_written_out() -> None:
    mark = "\u202e"
    seen = Seen("tcp://127.0.0.1:1")
    state = StateEvent(f"door{mark}", "e", 1, 1.0, State.DOWN, Reason.REFUSED, f"gpj{mark}", 1.0)
    found = Detection(f"person{mark}", 0.9, (1.0, 1.0, 2.0, 2.0), 1, (f"zone{mark}",))
    crossing = Crossing(f"line{mark}", "in", 1, f"person{mark}")
    frame = FrameInfo(1, None, 1.0, "daemon", 640, 360)
    event = DetectionEvent(f"door{mark}", "e", 1, 1.0, frame, (found,), (crossing,))
    lines = [line.plain for line in map(seen.add, (state, event)) if line is not None]
    assert len(lines) == 2
    lines += [rendered(seen.live()), rendered(seen.summary())]
    for line in lines:
        assert mark not in line
        assert "\\u202e" in line


@pytest.mark.parametrize("option", [["--replay"], ["--replay", "ipc://{}/events-replay"], ["--heal"]])
def test_it_begins_with_the_newest_event_where_replay_is_asked_for(option: list[str], tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    with publisher_at(endpoint, replay=ReplayConfig(endpoint="auto")) as publisher:
        publisher.put_detections(frame_of("yard", 1), [CAR])
        wait_until(lambda: publisher._writer.seqs["detections/yard/"] == 1, "it was published")
        arguments = [argument.format(tmp_path) for argument in option]
        done = watch(endpoint, "--label", "car", "--count", "1", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stream"] == "yard"
    assert ("DeprecationWarning: The option 'heal' is deprecated. use --replay" in done.stderr) == ("--heal" in option)
