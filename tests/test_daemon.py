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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from streamdet.assets import sample_clip
from streamdet.client.subscription import subscribe
from streamdet.config import Config, MetricsConfig, PublisherConfig, StreamConfig
from streamdet.errors import StreamdetError
from streamdet.service.daemon import Daemon
from streamdet.types import Detection, DetectionEvent, Picture

_WAIT_SECONDS = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


class OneBox:
    """Finds one person in every picture; raises what it is told to."""

    labels = ("person",)

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.free = threading.Event()
        self.free.set()

    def warm_up(self) -> None:
        pass

    def detect(self, pictures: Sequence[Picture]) -> list[list[Detection]]:
        self.free.wait()
        if self.error is not None:
            raise self.error
        return [[Detection("person", 0.9, (1.0, 2.0, 30.0, 40.0))] for _ in pictures]


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
        self.daemon = Daemon(self.config, path, load=lambda *_: self.detector, **options)
        self.exit_code: int | None = None
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready.set,))
        self._thread.start()
        assert ready.wait(_WAIT_SECONDS)

    def _run(self, on_ready: Callable[[], None]) -> None:
        self.exit_code = self.daemon.run(on_ready)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.config.metrics.endpoint}{path}", timeout=5) as answer:
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


def test_memory_that_no_one_uses_is_given_back_again_and_again(
    running: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[float] = []
    monkeypatch.setattr("streamdet.service.housekeeping.TRIM_SECONDS", 0.0)
    monkeypatch.setattr("streamdet.service.housekeeping.trim_memory", lambda: given_back.append(time.monotonic()))
    running(clip("east"))
    wait_until(lambda: len(given_back) >= 2)


def test_a_stuck_detector_is_told_before_the_watchdog_ends_it(
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


def test_a_port_in_use_is_told_before_anything_starts() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = Config(
            publisher=PublisherConfig(endpoint=f"tcp://127.0.0.1:{other.getsockname()[1]}"),
            metrics=MetricsConfig(endpoint=f"127.0.0.1:{free_port()}"),
            streams=(clip("east"),),
        )
        with pytest.raises(StreamdetError, match="another process uses it"):
            Daemon(config, load=lambda *_: OneBox()).run()


@pytest.fixture
def command(tmp_path: Path, _engines_known: None) -> Iterator[subprocess.Popen[str]]:
    """The real command with the embedded weights, ready; its log goes to `stderr`."""
    ports = Config(
        publisher=PublisherConfig(endpoint=f"tcp://127.0.0.1:{free_port()}"),
        metrics=MetricsConfig(endpoint=f"127.0.0.1:{free_port()}"),
    )
    path = tmp_path / "streamdet.toml"
    _write(path, ports, "east")
    notify = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(notify))
        systemd.settimeout(1)
        process = subprocess.Popen(
            [sys.executable, "-m", "streamdet", "run", "--config", str(path)],
            env={**os.environ, "NOTIFY_SOCKET": str(notify), "XDG_RUNTIME_DIR": str(tmp_path)},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            _wait_for_ready(systemd, process)
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def _wait_for_ready(systemd: socket.socket, process: subprocess.Popen[str]) -> None:
    while True:
        try:
            if b"READY=1" in systemd.recv(4096):
                return
        except TimeoutError:
            assert process.poll() is None, process.communicate()[1]


def test_sigterm_drains_and_ends_with_zero(command: subprocess.Popen[str]) -> None:
    time.sleep(1)
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0
    assert command.stderr is not None
    assert "Traceback" not in command.stderr.read()


def test_a_second_sigterm_forces_the_end(command: subprocess.Popen[str]) -> None:
    command.send_signal(signal.SIGTERM)
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) in {0, 128 + signal.SIGTERM}


def test_every_change_of_state_is_logged(command: subprocess.Popen[str]) -> None:
    time.sleep(2)
    command.send_signal(signal.SIGTERM)
    log = command.communicate(timeout=30)[1]
    assert "connecting" in log
    assert "east: up" in log


def test_sighup_reloads_and_the_daemon_goes_on(command: subprocess.Popen[str]) -> None:
    command.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert command.poll() is None
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0
    assert command.stderr is not None
    assert "configuration loaded: 1 streams" in command.stderr.read()
