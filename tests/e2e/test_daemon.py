"""The whole process: real files, sockets and signals; the detector is a stand-in where its answers do not matter."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streamdet.assets import sample_clip
from streamdet.client.cluster import subscribe
from streamdet.config import Config, MetricsConfig, PublisherConfig, StreamConfig
from streamdet.detector.pool import DetectorPool
from streamdet.errors import StreamdetError
from streamdet.service.daemon import Daemon
from streamdet.types import DetectionEvent
from support.ports import free_port
from support.stand_in import OneBox
from support.waiting import wait_until

_WAIT_SECONDS = 20.0


def clip(name: str, **changes: Any) -> StreamConfig:
    return StreamConfig(name=name, url=str(sample_clip()), loop=True, **changes)


class Running:
    """A daemon in a thread of this process."""

    def __init__(self, *streams: StreamConfig, path: Path | None = None, **options: Any) -> None:
        self.detector = OneBox()
        self.config = Config(
            publisher=PublisherConfig(endpoint=f"tcp://127.0.0.1:{free_port()}"),
            metrics=MetricsConfig(endpoint=f"127.0.0.1:{free_port()}"),
            streams=streams,
        )
        self.daemon = Daemon(self.config, path, load=lambda *_: DetectorPool([self.detector]), **options)
        self.exit_code: int | None = None
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready.set,), daemon=True)
        self._thread.start()
        assert ready.wait(_WAIT_SECONDS)

    def _run(self, on_ready: Callable[[], None]) -> None:
        self.exit_code = self.daemon.run(on_ready)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.config.metrics.endpoint}{path}", timeout=30) as answer:
            body: bytes = answer.read()
        return body.decode()

    def join(self) -> int | None:
        self._thread.join(_WAIT_SECONDS)
        assert not self._thread.is_alive()
        return self.exit_code

    def stop(self) -> int | None:
        self.daemon.stop()
        return self.join()


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*streams: StreamConfig, **options: Any) -> Running:
        started.append(Running(*streams, **options))
        return started[-1]

    yield start
    for daemon in started:
        if daemon.exit_code is None:
            daemon.stop()


def published(daemon: Running, stream: str) -> int:
    return daemon.daemon.ledger.snapshot()[stream].published


def test_events_arrive_and_the_ledger_balances_after_the_end(running: Callable[..., Running]) -> None:
    daemon = running(clip("east"), clip("west", max_fps=5))
    seen = set()
    with subscribe(daemon.config.publisher.endpoint) as events:
        for event in events:
            if isinstance(event, DetectionEvent):
                assert event.epoch == daemon.daemon.epoch
                assert (event.frame.width, event.frame.height) == (768, 576)
                assert event.detections[0].label == "person"
                seen.add(event.stream)
            if seen == {"east", "west"}:
                break
    wait_until(lambda: published(daemon, "east") > 10)
    assert daemon.stop() == 0
    for ledger in daemon.daemon.ledger.snapshot().values():
        assert ledger.in_flight == 0
        assert ledger.captured == ledger.published + sum(ledger.dropped.values())
    assert daemon.daemon.ledger.snapshot()["west"].dropped["rate_limited"] > 0  # type: ignore[index]


def test_health_and_metrics_pages(running: Callable[..., Running]) -> None:
    daemon = running(clip("east"))
    wait_until(lambda: published(daemon, "east") > 0)
    ready = json.loads(daemon.get("/readyz"))
    assert ready["ready"] is True
    assert ready["streams"]["east"]["state"] == "up"
    page = daemon.get("/metrics")
    assert 'streamdet_stream_state{state="up",stream="east"} 1.0' in page


def test_files_played_to_their_end_lose_nothing_and_end_the_process(running: Callable[..., Running]) -> None:
    stream = StreamConfig(name="file", url=str(sample_clip()), pace="fastest")
    daemon = running(stream, stop_when_ended=True)
    assert daemon.join() == 0
    ledger = daemon.daemon.ledger.snapshot()["file"]
    assert ledger.captured == ledger.published == 600


def test_a_stuck_detector_is_reported_before_the_watchdog_ends_it(
    running: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    daemon = running(clip("east"))
    wait_until(lambda: published(daemon, "east") > 0)
    daemon.detector.free.clear()
    # Without a watchdog this would take a minute.
    wait_until(lambda: not daemon.daemon.health().healthy)
    assert "streamdet_healthy 0.0" in daemon.get("/metrics")
    daemon.detector.free.set()
    wait_until(lambda: daemon.daemon.health().healthy)


def test_an_error_in_the_detector_ends_the_process_non_zero(running: Callable[..., Running]) -> None:
    daemon = running(clip("east"))
    daemon.detector.error = ValueError("broken on purpose")
    assert daemon.join() == 1


def test_an_error_of_ours_gives_its_exit_code(running: Callable[..., Running]) -> None:
    class CustomError(StreamdetError):
        exit_code = 70

    daemon = running(clip("east"))
    daemon.detector.error = CustomError("gone")
    assert daemon.join() == 70


def _write(path: Path, daemon_ports: Config, *names: str, extra: str = "") -> None:
    streams = "".join(f'[[streams]]\nname = "{n}"\nurl = "{sample_clip()}"\nloop = true\n' for n in names)
    path.write_text(
        f'[publisher]\nendpoint = "{daemon_ports.publisher.endpoint}"\n'
        f'[metrics]\nendpoint = "{daemon_ports.metrics.endpoint}"\n{streams}{extra}'
    )


def test_reload_adds_and_removes_streams_and_leaves_the_others_alone(
    running: Callable[..., Running], tmp_path: Path
) -> None:
    path = tmp_path / "streamdet.toml"
    daemon = running(clip("east"), clip("west"), path=path)
    wait_until(lambda: published(daemon, "east") > 0 and published(daemon, "west") > 0)
    since = daemon.daemon.health().streams["east"].since
    _write(path, daemon.config, "east", "north")
    daemon.daemon.reload()
    wait_until(lambda: set(daemon.daemon.ledger.snapshot()) == {"east", "north"})
    wait_until(lambda: published(daemon, "north") > 0)
    assert daemon.daemon.health().streams["east"].since == since
    assert 'stream="west"' not in daemon.get("/metrics")
    assert "streamdet_config_last_reload_successful 1.0" in daemon.get("/metrics")


def test_a_bad_file_changes_nothing(running: Callable[..., Running], tmp_path: Path) -> None:
    path = tmp_path / "streamdet.toml"
    daemon = running(clip("east"), path=path)
    _write(path, daemon.config, "north", extra="colour = 3\n")
    daemon.daemon.reload()
    wait_until(lambda: "streamdet_config_last_reload_successful 0.0" in daemon.get("/metrics"))
    assert set(daemon.daemon.ledger.snapshot()) == {"east"}
    wait_until(lambda: published(daemon, "east") > 0)


def test_a_port_in_use_is_reported_before_anything_starts() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = Config(
            publisher=PublisherConfig(endpoint=f"tcp://127.0.0.1:{other.getsockname()[1]}"),
            metrics=MetricsConfig(endpoint=f"127.0.0.1:{free_port()}"),
            streams=(clip("east"),),
        )
        with pytest.raises(StreamdetError, match="another process uses it"):
            Daemon(config, load=lambda *_: DetectorPool([OneBox()])).run()


@dataclass(frozen=True)
class Command:
    """A daemon as a process of its own; its log goes to `stderr`."""

    process: subprocess.Popen[str]
    systemd: socket.socket
    metrics: str

    def wait_for(self, message: bytes) -> None:
        """Waits for a message to systemd."""
        deadline = time.monotonic() + 100
        while True:
            try:
                if message in self.systemd.recv(4096):
                    return
            except TimeoutError:
                assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, message

    def metric(self, name: str) -> float:
        """The sum of all series of a metric."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=30) as answer:
            page = answer.read().decode()
        values = [line.rsplit(" ", 1)[1] for line in page.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(map(float, values))

    def end(self) -> str:
        """Asks for the end, which must be an orderly one; the log."""
        self.process.send_signal(signal.SIGTERM)
        log = self.process.communicate(timeout=30)[1]
        assert self.process.returncode == 0, log
        return log


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `streamdet run`, or `code` in its place, on one stream."""
    started: list[subprocess.Popen[str]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        notify = tmp_path / "notify"
        systemd.bind(str(notify))
        systemd.settimeout(1)

        def start(code: str = "from streamdet.cli import main; main()", **environment: str) -> Command:
            ports = Config(
                publisher=PublisherConfig(endpoint=f"tcp://127.0.0.1:{free_port()}"),
                metrics=MetricsConfig(endpoint=f"127.0.0.1:{free_port()}"),
            )
            path = tmp_path / "streamdet.toml"
            _write(path, ports, "east", extra='[replay]\nendpoint = "off"\n')
            process = subprocess.Popen(
                [sys.executable, "-c", code, "run", "--config", str(path)],
                env={**os.environ, "NOTIFY_SOCKET": str(notify), "XDG_RUNTIME_DIR": str(tmp_path), **environment},
                stderr=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
            started.append(process)
            return Command(process, systemd, ports.metrics.endpoint)

        yield start
        for process in started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def command(start: Start, _engines_known: None) -> Command:
    """The real command with the embedded weights, ready."""
    command = start()
    command.wait_for(b"READY=1")
    return command


def test_sigterm_drains_and_ends_with_zero(command: Command) -> None:
    wait_until(lambda: command.metric("streamdet_frames_published_total") > 0)
    log = command.end()
    assert "service.daemon: stopping: signal SIGTERM\n" in log
    assert "Traceback" not in log


def test_every_change_of_state_is_logged(command: Command) -> None:
    wait_until(lambda: command.metric("streamdet_stream_connects_total") > 0)
    log = command.end()
    assert "connecting" in log
    assert "east: up" in log


def test_sighup_reloads_and_the_daemon_goes_on(command: Command) -> None:
    command.process.send_signal(signal.SIGHUP)
    command.wait_for(b"RELOADING=1")
    command.wait_for(b"READY=1")
    published = command.metric("streamdet_frames_published_total")
    wait_until(lambda: command.metric("streamdet_frames_published_total") > published)
    assert "configuration loaded: 1 streams" in command.end()


_STUCK = """
import sys, threading
from pathlib import Path
from streamdet.config import load_config
from streamdet.detector.pool import DetectorPool
from streamdet.monitoring import systemd
from streamdet.service.daemon import Daemon

class Stuck:
    labels = ("person",)
    def warm_up(self): pass
    def detect(self, pictures, *settings):
        systemd.status("detecting")
        threading.Event().wait()

daemon = Daemon(load_config(Path(sys.argv[3])), load=lambda *_: DetectorPool([Stuck()]))
with daemon.signals():
    sys.exit(daemon.run())
"""


def test_a_second_sigterm_ends_a_daemon_whose_orderly_end_hangs(start: Start) -> None:
    command = start(_STUCK)
    command.wait_for(b"STATUS=detecting")
    command.process.send_signal(signal.SIGTERM)
    command.wait_for(b"STOPPING=1")
    # It waits for the detector now, 10 s.
    with pytest.raises(subprocess.TimeoutExpired):
        command.process.wait(0.5)
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(20) == 128 + signal.SIGTERM


_LOADS_FOR_EVER = """
import ctypes
from streamdet.monitoring import systemd
from streamdet.service import daemon
from streamdet.cli import main

def load(*_, **__):
    systemd.status("loading")
    ctypes.CDLL(None).sleep(600)

daemon.load_real_detector = load
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_a_library_loads_the_detector_ends_at_once(start: Start, number: int) -> None:
    command = start(_LOADS_FOR_EVER)
    command.wait_for(b"STATUS=loading")
    command.process.send_signal(number)
    assert command.process.wait(20) == 0


def test_a_stop_during_the_trial_of_engines_ends_every_process_of_it(start: Start, tmp_path: Path) -> None:
    command = start(XDG_STATE_HOME=str(tmp_path / "state"))
    wait_until(lambda: len(processes_of(command.process.pid)) > 1)
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(20) == 0
    wait_until(lambda: processes_of(command.process.pid) == [])


def processes_of(session: int) -> list[int]:
    """The processes of a session that run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its_session = status.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(status.parent.name))
    return found
