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
_STREAM = """
[[streams]]
name = "yard"
url = "rtsp://127.0.0.1:8554/video"
max_fps = 5
"""
_CONFIG = f"""
[detector]
max_batch_size = 1
{_STREAM}"""
# Nothing is tried for this one.
_FIXED_CONFIG = f"""
[detector]
engine = "torch"
precision = "fp32"
max_batch_size = 1
{_STREAM}"""
# It loads nothing and never says that it is ready, as a version that waits for something that is not there.
_HANGS = """
import click, time
@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def command():
    while True:
        time.sleep(1)
"""
_CRASHES = "raise RuntimeError('this version is broken')\n"
# What it waits for is missing only in the service.
_HANGS_AFTER_ITS_TRIAL = f"""
import sys
if "--trial" in sys.argv:
    from streamdet.cli.real_run import command
else:
{"".join(f"    {line}{chr(10)}" for line in _HANGS.splitlines())}"""


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


def _wheel(container: Container, version: str, replaced: dict[str, str] | None = None) -> str:
    make_wheel(container.root / "srv", version, replaced)
    return f"/srv/streamdet-{version}-py3-none-any.whl"


def _refused(container: Container, version: str, replaced: dict[str, str], *options: str) -> str:
    """The line with which a version is refused, while the daemon goes on."""
    before = _current(container), container.show("streamdet", "MainPID")
    install = (_CURRENT, "install-service", *options, "--wheel", _wheel(container, version, replaced))
    refused = container.run(*install, check=False, seconds=_COPY_SECONDS)
    assert refused.returncode == 1
    assert (_current(container), container.show("streamdet", "MainPID")) == before
    assert "streamdet-trial" not in container.run("systemctl", "list-units", "--all").stdout
    assert not list((container.root / "run/systemd/system").glob("streamdet*"))
    (line,) = refused.stderr.splitlines()
    return line


def _tried_versions(container: Container) -> dict[str, float]:
    """For which versions the service's folder has a trial of the engines, and when each was made."""
    file = container.root / "var/lib/streamdet/streamdet/engines.json"
    assert file.stat().st_uid != 0
    reports = json.loads(file.read_text())["reports"]
    return {report["key"]["streamdet"].split()[0]: report["measured_at"] for report in reports}


def _seconds_of_start(container: Container) -> float:
    names = ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    begin, ready = (int(container.show("streamdet", name)) for name in names)
    return (ready - begin) / 1e6


def _log_of_this_start(container: Container) -> str:
    return container.journal(f"_SYSTEMD_INVOCATION_ID={container.show('streamdet', 'InvocationID')}")


def _longest_gap_seconds(events: Path) -> float:
    times = [json.loads(line)["frame"]["captured_at"] for line in events.read_text().splitlines()]
    assert len(times) > 20
    return max(later - earlier for earlier, later in pairwise(times))


def _check_that_broken_versions_change_nothing(container: Container, config: Path) -> None:
    """Versions that cannot run here: the daemon never stops for them."""
    line = _refused(container, "7.0.1", {"detector/tester.py": _CRASHES})
    assert "7.0.1 is not in use, and streamdet.service goes on: " in line
    assert "RuntimeError: this version is broken" in container.journal("--identifier=streamdet-trial")
    config.write_text(_FIXED_CONFIG)
    line = _refused(container, "7.0.2", {"cli/run.py": _CRASHES})
    assert line.endswith("streamdet.service goes on: it ended with 1 (exit-code): RuntimeError: this version is broken")
    line = _refused(container, "7.0.3", {"cli/run.py": _HANGS}, "--within", "8")
    assert line.endswith("streamdet.service goes on: it was not ready within 8 s")


def test_upgrades_lead_forward_and_back_and_a_broken_version_back_by_itself(container: Container) -> None:
    first = streamdet.__version__
    installed = container.run(_STREAMDET, "install-service", seconds=_COPY_SECONDS).stdout
    assert f"create          /opt/streamdet/{first}/\n" in installed
    config = container.root / "etc/streamdet/streamdet.toml"
    config.write_text(_CONFIG)
    _start_camera(container)
    container.run("systemctl", "start", "streamdet", seconds=_COPY_SECONDS)
    assert "finding the fastest engine" in _log_of_this_start(container)
    events = container.root / "srv/events.jsonl"
    watch = f"exec {_CURRENT} watch --json --kind detections >/srv/events.jsonl"
    container.run("systemd-run", "--unit=watch", "--property=KillSignal=SIGKILL", "/bin/sh", "-c", watch)
    container.wait_until(lambda: events.exists() and events.stat().st_size > 0, "events of the first version")

    # A good version, from a wheel and without a network. Its engines are tried before the switch, and only then.
    assert set(_tried_versions(container)) == {first}
    install = (_CURRENT, "install-service", "--within", "120", "--wheel", _wheel(container, "7.0.0"))
    upgraded = container.run(*install, seconds=_COPY_SECONDS).stdout.splitlines()
    tried, started, switched, ready = (
        next(number for number, line in enumerate(upgraded) if text in line)
        for text in ("7.0.0/bin/streamdet engines", "7.0.0/bin/streamdet beside", "current -> 7.0.0", "ready   ")
    )
    assert tried < started < switched < ready
    assert _current(container) == "7.0.0"
    assert "7.0.0" in container.run(_CURRENT, "--version").stdout
    torch = [next((container.root / "opt/streamdet" / name).rglob("libtorch_cpu.so")) for name in (first, "7.0.0")]
    assert torch[0].samefile(torch[1])
    log = _log_of_this_start(container)
    assert "ready: 1 stream" in log
    assert "finding the fastest engine" not in log
    assert set(_tried_versions(container)) == {first, "7.0.0"}
    slowest = _seconds_of_start(container)

    _check_that_broken_versions_change_nothing(container, config)

    # One that fails only in its real start is left again.
    real = Path(streamdet.__file__).with_name("cli") / "run.py"
    replaced = {"cli/run.py": _HANGS_AFTER_ITS_TRIAL, "cli/real_run.py": real.read_text()}
    within = f"{max(8.0, 4 * slowest):.0f}"  # also for its trial, which must succeed
    install = (_CURRENT, "install-service", "--within", within, "--wheel", _wheel(container, "7.0.4", replaced))
    failed = container.run(*install, check=False, seconds=_COPY_SECONDS)
    assert failed.returncode == 1
    assert f"7.0.4 is not in use: streamdet.service was not ready within {within} s" in failed.stderr
    assert failed.stderr.rstrip().endswith("7.0.0 runs again")
    assert _current(container) == "7.0.0"
    assert container.show("streamdet", "ActiveState") == "active"
    slowest = max(slowest, _seconds_of_start(container))

    back = container.run(_CURRENT, "install-service", "--rollback", "--within", "120", seconds=_COPY_SECONDS)
    assert "ready           streamdet.service\n" in back.stdout
    assert _current(container) == first
    assert config.read_text() == _FIXED_CONFIG
    size = events.stat().st_size
    container.wait_until(lambda: events.stat().st_size > size + 1000, "events after all of this")
    container.run("systemctl", "stop", "watch")
    # Over two good restarts and one broken version; a busy machine takes its time for each start.
    assert _longest_gap_seconds(events) < max(30.0, 4 * slowest + 15)

    container.run(_CURRENT, "install-service", "--uninstall", seconds=_COPY_SECONDS)
    assert not (container.root / "opt/streamdet").exists()
    assert config.exists()
