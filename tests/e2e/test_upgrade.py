"""Another version in place of the one that runs, in a real systemd: forward, back, and back by itself."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import streamdet
from support.container import Container, why_no_container
from support.paths import TESTS
from support.rtsp import h264
from support.wheels import make_wheel

pytestmark = [
    pytest.mark.package("systemd-container"),
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

_STREAMDET = str(Path(sys.prefix, "bin/streamdet"))
_CURRENT = "/opt/streamdet/current/bin/streamdet"
# Copying a whole environment, and compiling it where that was not done.
_COPY_SECONDS = 400.0
_CONFIG = """
[detector]
engine = "torch"
precision = "fp32"
max_batch_size = 1

[[streams]]
name = "yard"
url = "rtsp://127.0.0.1:8554/video"
max_fps = 5
"""
# It loads nothing and never says that it is ready, as a version that waits for something that is not there.
_HANGS = """
import click, time
@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def command():
    while True:
        time.sleep(1)
"""
_CRASHES = "raise RuntimeError('this version is broken')\n"


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    if reason := why_no_container():
        pytest.skip(f"this machine cannot start containers: {reason}")
    with Container(tmp_path) as booted:
        yield booted
    shutil.rmtree(booted.root / "opt")  # more than a gigabyte


def _current(container: Container) -> str:
    return (container.root / "opt/streamdet/current").readlink().name


def _start_camera(container: Container) -> None:
    wanted = {"port": 8554, "login": None, "tls": None, "shared": True, "udp_ports": None}
    wanted["mounts"] = {"/video": {"launch": h264(10), "transport": None}}
    script = TESTS / "support/servers/rtsp_server.py"
    container.run("systemd-run", "--unit=camera", "/usr/bin/python3", str(script), json.dumps(wanted))


def _wheel(container: Container, version: str, **replaced: str) -> str:
    files = {f"cli/{name}.py": text for name, text in replaced.items()}
    make_wheel(container.root / "srv", version, files)
    return f"/srv/streamdet-{version}-py3-none-any.whl"


def _seconds_of_start(container: Container) -> float:
    names = ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    begin, ready = (int(container.show("streamdet", name)) for name in names)
    return (ready - begin) / 1e6


def _longest_gap_seconds(events: Path) -> float:
    times = [json.loads(line)["frame"]["captured_at"] for line in events.read_text().splitlines()]
    assert len(times) > 20
    return max(later - earlier for earlier, later in pairwise(times))


def test_upgrades_lead_forward_and_back_and_a_broken_version_back_by_itself(container: Container) -> None:
    first = streamdet.__version__
    installed = container.run(_STREAMDET, "install-service", seconds=_COPY_SECONDS).stdout
    assert f"create          /opt/streamdet/{first}/\n" in installed
    config = container.root / "etc/streamdet/streamdet.toml"
    config.write_text(_CONFIG)
    _start_camera(container)
    container.run("systemctl", "start", "streamdet")
    events = container.root / "srv/events.jsonl"
    watch = f"exec {_CURRENT} watch --json --kind detections >/srv/events.jsonl"
    container.run("systemd-run", "--unit=watch", "--property=KillSignal=SIGKILL", "/bin/sh", "-c", watch)
    container.wait_until(lambda: events.exists() and events.stat().st_size > 0, "events of the first version")

    slowest = _seconds_of_start(container)

    # A good version, from a wheel and without a network.
    install = (_CURRENT, "install-service", "--within", "120", "--wheel", _wheel(container, "7.0.0"))
    upgraded = container.run(*install, seconds=_COPY_SECONDS)
    assert "ready           streamdet.service\n" in upgraded.stdout
    assert _current(container) == "7.0.0"
    about = container.run(_CURRENT, "--version").stdout
    assert "7.0.0" in about
    torch = [next((container.root / "opt/streamdet" / name).rglob("libtorch_cpu.so")) for name in (first, "7.0.0")]
    assert torch[0].samefile(torch[1])

    # One that cannot start is not switched to, and the daemon goes on.
    pid = container.show("streamdet", "MainPID")
    wheel = _wheel(container, "7.0.1", check=_CRASHES)
    refused = container.run(_CURRENT, "install-service", "--wheel", wheel, check=False, seconds=_COPY_SECONDS)
    assert refused.returncode == 1
    assert "7.0.1 is not in use: RuntimeError: this version is broken" in refused.stderr
    assert (_current(container), container.show("streamdet", "MainPID")) == ("7.0.0", pid)

    # One that never becomes ready is left again.
    install = (_CURRENT, "install-service", "--within", "8", "--wheel", _wheel(container, "7.0.2", run=_HANGS))
    failed = container.run(*install, check=False, seconds=_COPY_SECONDS)
    assert failed.returncode == 1
    assert "7.0.2 is not in use: streamdet.service was not ready within 8 s" in failed.stderr
    assert failed.stderr.rstrip().endswith("7.0.0 runs again")
    assert _current(container) == "7.0.0"
    assert container.show("streamdet", "ActiveState") == "active"
    slowest = max(slowest, _seconds_of_start(container))

    back = container.run(_CURRENT, "install-service", "--rollback", "--within", "120", seconds=_COPY_SECONDS)
    assert "ready           streamdet.service\n" in back.stdout
    assert _current(container) == first
    assert config.read_text() == _CONFIG
    size = events.stat().st_size
    container.wait_until(lambda: events.stat().st_size > size + 1000, "events after all of this")
    container.run("systemctl", "stop", "watch")
    # Over two good restarts and one broken version; a busy machine takes its time for each start.
    assert _longest_gap_seconds(events) < max(30.0, 4 * slowest + 15)

    container.run(_CURRENT, "install-service", "--uninstall")
    assert not (container.root / "opt/streamdet").exists()
    assert config.exists()
