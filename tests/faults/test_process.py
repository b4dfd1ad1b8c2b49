"""Faults of the process itself: signals, descriptors, clocks, memory, sudden death; all of them real."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from streamdet import DetectionEvent, Gap, Restart, subscribe
from streamdet.bench.machine import resident_bytes
from streamdet.client.control import ask
from streamdet.errors import ControlError
from streamdet.types import StateEvent
from support.paths import SUPPORT
from support.processes import DaemonProcess, stream
from support.waiting import wait_until

pytestmark = pytest.mark.slow

_STOPS = (signal.SIGTERM, signal.SIGINT)
_ENDS_WITHIN_SECONDS = 5.0


@pytest.fixture
def ended(tmp_path: Path) -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def silent_camera(stack: contextlib.ExitStack) -> str:
    """A server that accepts and says nothing: a thread that reads from it takes its time to end."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=50))
    return f"rtsp://127.0.0.1:{listener.getsockname()[1]}/x"


def test_a_stop_in_every_state_is_orderly(tmp_path: Path, ended: contextlib.ExitStack) -> None:
    """All at the same time: warming up, running, reloading, draining."""
    url = silent_camera(ended)
    daemons: dict[tuple[str, signal.Signals], DaemonProcess] = {}
    for state in ("warming up", "running", "reloading", "draining"):
        for number in _STOPS:
            daemon = DaemonProcess(
                tmp_path / f"{state}-{number}", stream("clip", max_fps=10), stream("silent", url),
                warm_up_seconds=2.0 if state == "warming up" else 0.0, batch_seconds=0.4,
            )  # fmt: skip
            daemons[state, number] = ended.enter_context(daemon).start()
    for (state, number), daemon in daemons.items():
        reach(state, daemon, number)
        began = time.monotonic()
        daemon.process.send_signal(number)
        if state == "warming up":
            continue  # the next one would be ready meanwhile
        # The second one means "at once", whatever the first one waits for.
        expected = 128 + number if state == "draining" else 0
        assert daemon.process.wait(_ENDS_WITHIN_SECONDS) == expected, (state, number)
        assert time.monotonic() - began < _ENDS_WITHIN_SECONDS
    for (state, number), daemon in daemons.items():
        assert state != "warming up" or daemon.process.wait(_ENDS_WITHIN_SECONDS) == 0, number
        said = daemon.messages()
        assert "Traceback" not in said
        assert ("ready:" in said) == (state != "warming up")


def reach(state: str, daemon: DaemonProcess, number: signal.Signals) -> None:
    """Waits until the daemon is in a state, or brings it there."""
    if state == "warming up":
        assert daemon.process.stdout.readline() == "warming up\n"
        return
    daemon.wait_for("READY=1")
    if state == "reloading":
        daemon.write_config(stream("clip", max_fps=5))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("RELOADING=1")
    elif state == "draining":
        wait_until(lambda: daemon.count("frames_published_total"), "frames")
        daemon.process.send_signal(number)
        daemon.wait_for("STOPPING=1")


@pytest.mark.usefixtures("_engines_known")
def test_a_hangup_in_every_state_reloads_and_never_ends_it(tmp_path: Path, ended: contextlib.ExitStack) -> None:
    # The second failure in a row: the command waits a second before it starts.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "starts").write_text("2\n")
    environ = {"RUNTIME_DIRECTORY": str(tmp_path / "run")}
    starting = ended.enter_context(DaemonProcess(tmp_path / "starting", real=True, environ=environ)).start()
    warming = ended.enter_context(DaemonProcess(tmp_path / "warming", warm_up_seconds=0.5)).start()
    starting.wait_for("failures in a row")
    starting.process.send_signal(signal.SIGHUP)
    assert warming.process.stdout.readline() == "warming up\n"
    warming.process.send_signal(signal.SIGHUP)
    for daemon in (warming, starting):
        daemon.wait_for("READY=1")
        daemon.wait_for("RELOADING=1")
        daemon.wait_for("READY=1")
    # A hundred in a row, while others are being carried out.
    for _ in range(100):
        warming.process.send_signal(signal.SIGHUP)
    wait_until(lambda: warming.count("frames_published_total", stream="clip") > 3, "frames after all of them")
    warming.process.send_signal(signal.SIGTERM)
    warming.process.send_signal(signal.SIGHUP)
    assert warming.process.wait(_ENDS_WITHIN_SECONDS) == 0
    assert starting.end() == 0
    assert "configuration loaded" in starting.messages()


def test_a_killed_daemon_comes_back_and_its_subscribers_go_on_by_themselves(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "d", stream("clip", max_fps=20)).ready() as daemon:
        with subscribe(daemon.endpoint) as plain, subscribe(daemon.endpoint, replay=True) as replaying:
            before = {first_of(plain).epoch, first_of(replaying).epoch}
            daemon.end(signal.SIGKILL)
            killed_at = time.monotonic()
            daemon.ready()
            ready_seconds = time.monotonic() - killed_at
            assert len(before) == 1
            restarts, seqs = [], []
            for event in replaying:
                # Nothing of the new epoch is lost; what was lost of the one before is reported before it.
                assert not isinstance(event, Gap) or event.topic not in {restart.topic for restart in restarts}
                if isinstance(event, Restart):
                    restarts.append(event)
                elif isinstance(event, DetectionEvent) and event.epoch not in before:
                    seqs.append(event.seq)
                if len(seqs) >= 20:
                    break
            assert time.monotonic() - killed_at < ready_seconds + 10
            assert seqs == list(range(1, 21))
            assert {restart.before for restart in restarts} == before
            assert next(e for e in plain if isinstance(e, DetectionEvent) and e.epoch not in before)
        assert daemon.ask("GET", "/v1/streams")["streams"][0]["state"] == "up"
        assert daemon.is_exact("clip")
        assert daemon.end() == 0


def first_of(events: object) -> DetectionEvent:
    return next(event for event in events if isinstance(event, DetectionEvent))  # type: ignore[attr-defined]


def test_without_file_descriptors_pages_wait_and_streams_run(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "d", stream("clip", max_fps=20)).ready() as daemon:
        wait_until(lambda: daemon.count("frames_published_total") > 0, "frames")
        pid = daemon.process.pid
        with subscribe(daemon.endpoint) as events, subscribe(daemon.endpoint) as late:
            first_of(events)
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
            lowest_free = min(set(range(len(used) + 1)) - used)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
            with pytest.raises((TimeoutError, urllib.error.URLError)):
                daemon.page(timeout=1.0)
            with pytest.raises(ControlError):
                ask(daemon.control_path, "GET", "/v1/about", timeout_seconds=1.0)
            assert daemon.process.poll() is None
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            began = time.monotonic()
            assert daemon.is_exact("clip")
            assert daemon.ask("GET", "/v1/about")["pid"] == pid
            assert first_of(late)
            assert time.monotonic() - began < 5
            while (event := events.receive(0)) is not None:
                assert not isinstance(event, Gap)
        assert daemon.end() == 0
        assert "Too many open files" in daemon.messages()


@pytest.mark.package("gcc")
def test_a_clock_that_is_set_back_an_hour_moves_times_and_nothing_else(clock: Path, tmp_path: Path) -> None:
    environ = {"LD_PRELOAD": str(clock), "CLOCK_SHIFT_FILE": str(tmp_path / "shift")}
    set_clock(tmp_path, 0)
    with DaemonProcess(tmp_path / "d", stream("clip", max_fps=20), environ=environ).ready() as daemon:
        with subscribe(daemon.endpoint, replay=True) as events:
            begun = first_of(events)
            assert abs(begun.published_at - time.time()) < 5
            for seconds in (-3600, 3600):
                set_clock(tmp_path, seconds)
                set_at = time.monotonic()
                after = []
                while len(after) < 20:
                    event = events.receive(30)
                    assert event is not None
                    assert not isinstance(event, Gap | Restart)
                    if isinstance(event, StateEvent):
                        assert event.state == "up"
                    elif isinstance(event, DetectionEvent) and abs(event.published_at - time.time() - seconds) < 60:
                        after.append(event)
                assert time.monotonic() - set_at < 5
                assert all(0 <= event.published_at - event.frame.captured_at < 1 for event in after[1:])
        assert daemon.is_exact("clip")
        assert daemon.count("healthy") == 1
        assert 0 <= daemon.count("event_latency_seconds_sum") < 0.5 * daemon.count("event_latency_seconds_count")
        assert daemon.count("spool_events_not_kept_total") == 0
        assert daemon.end() == 0


def set_clock(folder: Path, shift_seconds: int) -> None:
    """In place: the file is mapped into memory."""
    with (folder / "shift").open("r+b" if (folder / "shift").exists() else "wb") as file:
        file.write(shift_seconds.to_bytes(8, sys.byteorder, signed=True))


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts the clock of the process that loads it."""
    library = tmp_path_factory.mktemp("clock") / "clock_shift.so"
    source = SUPPORT / "servers" / "clock_shift.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source], check=True)
    return library


@pytest.mark.package("util-linux")
def test_a_full_disk_costs_only_what_would_be_kept(tmp_path: Path) -> None:
    spool, streams = tmp_path / "d" / "spool", [stream(f"clip-{n}") for n in range(4)]
    small = 'mkdir "$0" && mount -t tmpfs -o size=1m none "$0" && head -c 1000k /dev/zero >"$0/ballast"; exec "$@"'
    daemon = DaemonProcess(tmp_path / "d", *streams, under=["unshare", "--mount", "sh", "-c", small, str(spool)])
    with daemon.ready(), subscribe(daemon.endpoint, replay=True) as events:
        seen = Counter[str]()
        full_at = None
        while full_at is None or time.monotonic() - full_at < 1:
            event = events.receive(30)
            assert not isinstance(event, Gap)
            assert event is not None
            seen[event.stream] += isinstance(event, DetectionEvent)
            if full_at is None and sum(seen.values()) % 20 == 0 and daemon.count("spool_events_not_kept_total"):
                full_at = time.monotonic()
        assert daemon.count("spool_events_not_kept_total", reason="disk_full") > 0
        assert daemon.count("healthy") == 1
        kept = daemon.count("spool_events_kept_total")
        Path(f"/proc/{daemon.process.pid}/root{spool}/ballast").unlink()
        freed_at = time.monotonic()
        wait_until(lambda: daemon.count("spool_events_kept_total") > kept, "events that are kept again")
        assert time.monotonic() - freed_at < 3
        assert all(daemon.is_exact(name) for name in seen)
        assert daemon.end() == 0
        said = daemon.messages()
    assert "cannot keep events" in said
    assert "No space left on device" in said
    assert "are kept in" in said


_READER = """
import sys, streamdet
with streamdet.subscribe(sys.argv[1]) as events:
    for _ in events:
        print(flush=True)
"""


def test_subscribers_that_stall_flood_vanish_and_come_again_cost_the_others_nothing(
    tmp_path: Path, ended: contextlib.ExitStack
) -> None:
    daemon = ended.enter_context(DaemonProcess(tmp_path / "d", stream("clip", max_fps=20), stream("b"))).ready()
    with subscribe(daemon.endpoint, replay=True) as events, zmq.Context() as context:
        first_of(events)
        connections = daemon.count("subscriber_connections")
        before = resident_bytes(daemon.process.pid)
        stalled = context.socket(zmq.SUB)
        stalled.linger, stalled.rcvhwm, stalled.rcvbuf = 0, 1, 4096
        stalled.subscribe("")
        stalled.connect(daemon.endpoint)
        vanishing = subprocess.Popen(
            [sys.executable, "-c", _READER, daemon.endpoint], stdout=subprocess.PIPE, text=True
        )
        with vanishing:
            assert vanishing.stdout is not None
            assert vanishing.stdout.readline()
            flood(context, daemon, seconds=1.5)
            vanishing.kill()
        for _ in range(50):
            with context.socket(zmq.SUB) as passing:
                passing.linger = 0
                passing.subscribe("")
                passing.connect(daemon.endpoint)
                time.sleep(0.01)
        stalled.close()
        got = Counter[str]()
        latest = 0.0
        while time.time() - latest > 0.3 or got["b"] < 20:
            event = events.receive(30)
            assert event is not None
            assert not isinstance(event, Gap)
            if isinstance(event, DetectionEvent):
                latest = event.published_at
                got[event.stream] += 1
                assert event.published_at - event.frame.captured_at < 1
        wait_until(lambda: daemon.count("subscriber_connections") <= connections, "their connections to be gone")
        assert daemon.count("replay_requests_total", outcome="refused") > 0
        assert resident_bytes(daemon.process.pid) - before < 50e6
    assert all(daemon.is_exact(name) for name in got)
    assert daemon.end() == 0


def flood(context: zmq.Context[zmq.Socket[bytes]], daemon: DaemonProcess, seconds: float) -> None:
    """Requests without end, and subscriptions without end."""
    with context.socket(zmq.DEALER) as asker, context.socket(zmq.SUB) as subscriber:
        asker.linger = subscriber.linger = 0
        asker.connect(f"tcp://127.0.0.1:{daemon.port + 1}")
        subscriber.connect(daemon.endpoint)
        deadline = time.monotonic() + seconds
        number = 0
        while time.monotonic() < deadline:
            number += 1
            with contextlib.suppress(zmq.Again):
                asker.send(b'{"version":1,"id":%d,"request":"snapshot"}' % number, zmq.NOBLOCK)
            if number % 100 == 0:
                subscriber.subscribe(f"detections/{number}")
