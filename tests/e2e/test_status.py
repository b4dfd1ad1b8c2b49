"""`streamdet status`, `streams list --watch` and completion, asked of a daemon; only its detector is a stand-in."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ports import free_port
from support.processes import DaemonProcess, stream
from support.waiting import wait_until

pytestmark = pytest.mark.slow


def streamdet(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamdet", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environ}
    )


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One stream that is up, one that is paused, and one that no server answers."""
    refused = f"rtsp://ann:s3cret-Pw@127.0.0.1:{free_port()}/x"
    streams = stream("clip", max_fps=10), stream("resting", paused=True), stream("yard", refused)
    with DaemonProcess(tmp_path_factory.mktemp("d"), *streams) as process:
        process.ready()
        wait_until(lambda: process.ask("GET", "/v1/streams/clip")["latency_seconds"]["p50"], "frames")
        wait_until(lambda: process.ask("GET", "/v1/streams/yard")["state"] == "down", "yard is down")
        yield process


def status(daemon: DaemonProcess, *words: str) -> subprocess.CompletedProcess[str]:
    return streamdet("status", "--socket", str(daemon.control_path), *words)


def test_what_is_not_well_is_said_and_is_the_exit_code(daemon: DaemonProcess) -> None:
    result = status(daemon)
    assert (result.returncode, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert f"events   {daemon.endpoint}" in lines
    assert f"metrics  http://127.0.0.1:{daemon.metrics_port}/metrics" in lines
    assert str(daemon.path) in lines[0]
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("clip ", "resting ", "yard "))}
    assert (rows["clip"][1], rows["resting"][1]) == ("up", "paused")
    assert "ms" in rows["clip"]
    assert lines[-1].startswith("yard is down: refused: ")
    assert "s3cret-Pw" not in result.stdout


def test_a_reload_that_failed_is_a_problem(daemon: DaemonProcess) -> None:
    text = daemon.path.read_text()
    daemon.path.write_text(f"{text}[nonsense]\n")
    assert streamdet("reload", "--socket", str(daemon.control_path)).returncode == 2
    failed = f"{daemon.path} could not be used when it was read last"
    assert any(line.startswith(failed) for line in json.loads(status(daemon, "--json").stdout)["problems"])
    daemon.path.write_text(text)
    assert streamdet("reload", "--socket", str(daemon.control_path)).returncode == 0
    assert failed not in status(daemon).stdout


def test_json_has_all_of_it(daemon: DaemonProcess) -> None:
    result = status(daemon, "--json")
    facts = json.loads(result.stdout)
    assert (result.returncode, facts["ok"], facts["running"]) == (1, False, True)
    clip = next(each for each in facts["streams"] if each["name"] == "clip")
    assert clip["published"] > 0
    assert 0 < clip["latency_seconds"]["p50"] <= clip["latency_seconds"]["p95"]
    assert clip["dropped"].keys() <= {"rate_limited", "superseded", "stale", "damaged", "not_decoded"}
    assert (clip["alerts_last_hour"], facts["alerts_last_hour"]) == (0, 0)
    assert facts["addresses"]["control"] == [str(daemon.control_path)]
    assert len(facts["problems"]) == 1


def test_a_narrow_terminal_cuts_no_name(daemon: DaemonProcess) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 70))
    command = [sys.executable, "-m", "streamdet", "streams", "--socket", str(daemon.control_path), "list"]
    result = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # the other side is closed
        while part := os.read(ours, 4096):
            shown += part.decode()
    os.close(ours)
    assert result.wait(30) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["clip", "up"], ["resting", "down"], ["yard", "down"]]
    assert "resting: paused: until it is resumed" in lines


@pytest.mark.parametrize("command", [["status"], ["streams", "list"]])
def test_watching_prints_it_again_until_interrupted(daemon: DaemonProcess, command: list[str]) -> None:
    line = [sys.executable, "-m", "streamdet", *command, "--watch", "--json"]
    environ = {**os.environ, "STREAMDET_SOCKET": str(daemon.control_path)}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        assert first["streams"][0]["published"] < second["streams"][0]["published"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.communicate()[1] == ""


@pytest.mark.parametrize("words", [["status", "--watch"], ["streams", "list", "--watch"], ["watch"]])
def test_a_terminal_is_left_as_it_was_when_watching_is_stopped(daemon: DaemonProcess, words: list[str]) -> None:
    endpoint = [daemon.endpoint] if words == ["watch"] else []
    shown, code = _watched_in_terminal([*words, *endpoint], daemon, "clip", rows=24)
    assert code == 0
    assert "Traceback" not in shown
    assert 0 < shown.count("\x1b[?25l") <= shown.count("\x1b[?25h")  # the cursor is hidden, and shown again


def test_of_more_lines_than_a_terminal_has_the_last_are_shown(daemon: DaemonProcess) -> None:
    shown, _ = _watched_in_terminal(["status", "--watch"], daemon, "more lines", rows=10)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).splitlines()[-4:]
    assert any(line.startswith("yard is down: refused: ") for line in last)


def _watched_in_terminal(words: list[str], daemon: DaemonProcess, until: str, rows: int) -> tuple[str, int]:
    """What a command shows in a terminal until it has shown a text, and is stopped; and its exit code."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (rows, 200))
    command = [sys.executable, "-m", "streamdet", *words]
    sizes = {"COLUMNS": "200", "LINES": str(rows)}  # which workers of pytest have set otherwise
    environ = {**os.environ, **sizes, "STREAMDET_SOCKET": str(daemon.control_path), "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    shown, is_stopped = "", False
    with contextlib.suppress(OSError):  # the other side is closed
        while part := os.read(ours, 65536):
            shown += part.decode()
            if until in shown and not is_stopped:
                process.terminate()
                is_stopped = True
    os.close(ours)
    return shown, process.wait(30)


def test_without_a_daemon_it_is_one_line() -> None:
    result = streamdet("status", "--socket", "/nowhere/c.sock")
    assert (result.returncode, result.stdout) == (69, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("streamdet: there is no socket /nowhere/c.sock; is the daemon running")
    result = streamdet("status", "--json", "--socket", "/nowhere/c.sock")
    assert (result.returncode, json.loads(result.stdout)["running"]) == (69, False)


def completed(line: str, **environ: str) -> list[str]:
    """What bash offers for a line, by the script that `streamdet completion bash` prints."""
    words = line.split(" ")
    script = subprocess.run(
        [sys.executable, "-m", "streamdet", "completion", "bash"], capture_output=True, text=True, check=True
    ).stdout
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _streamdet_completion streamdet; "
    run = subprocess.run(
        ["bash", "-c", f"{script}\n{ask} printf '%s\\n' \"${{COMPREPLY[@]}}\""],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environ},
    )  # fmt: skip
    assert "Traceback" not in run.stderr
    return run.stdout.split()


def test_bash_completes_commands_options_and_streams(daemon: DaemonProcess) -> None:
    socket = {"STREAMDET_SOCKET": str(daemon.control_path)}
    assert completed("streamdet st") == ["status", "streams"]
    assert completed("streamdet streams re") == ["remove", "reset", "resume"]
    assert "--until-ended" in completed("streamdet run --")
    # A busy machine may take longer than a shell should wait.
    wait_until(lambda: completed("streamdet streams remove ", **socket) == ["clip", "resting", "yard"], "all streams")
    wait_until(lambda: completed("streamdet streams pause y", **socket) == ["yard"], "a stream")
    by_option = f"streamdet streams --socket {daemon.control_path} show c"
    wait_until(lambda: completed(by_option) == ["clip"], "a stream of the daemon that the line names")
    assert completed("streamdet streams remove ", STREAMDET_SOCKET="/nowhere") == []


def test_completion_does_not_wait_for_a_daemon_that_hangs(daemon: DaemonProcess) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        assert completed("streamdet streams remove ", STREAMDET_SOCKET=str(daemon.control_path)) == []
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def test_a_daemon_without_streams_waits_and_is_well(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "d") as daemon:
        daemon.path.write_text(daemon.path.read_text().partition("[[streams]]")[0] + "[[streams]]\n")
        daemon.ready()
        result = status(daemon)
        assert result.returncode == 0, result.stdout
        assert result.stdout.splitlines()[-2:] == [
            "there are no streams yet: streamdet streams add NAME URL --persist",
            "all is well",
        ]
        assert json.loads(daemon.page("/readyz"))["ready"]
        socket = ["--socket", str(daemon.control_path)]
        assert "streamdet streams add NAME URL" in streamdet("streams", *socket, "list").stdout
        values = {"name": "clip", "url": "/nowhere.mp4"}
        daemon.ask("POST", "/v1/streams?persist=true", values)
        kept = tmp_path / "d" / "streamdet.streams.json"
        assert list(json.loads(kept.read_text())["streams"]) == ["clip"]
        daemon.ask("DELETE", "/v1/streams/clip?persist=true")
        assert json.loads(kept.read_text())["streams"] == {}
        assert status(daemon).returncode == 0
