"""`streamdet run` without a configuration file, and the three commands of the README, with the real detector."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ports import free_ports
from support.rtsp import RtspServer
from support.videos import make_video
from support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("_engines_known")]
# The first start of a test run tries the engines, on a busy machine for minutes.
_START_SECONDS = 400.0
PASSWORD = "pl4nted-Pw"  # noqa: S105 - a planted one


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "streamdet", *words]


@pytest.fixture
def environ() -> Iterator[dict[str, str]]:
    """A place for control sockets of its own; with a short name, as the path of a socket must be short."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RUNTIME_DIRECTORY", "STREAMDET_SOCKET")}
    with tempfile.TemporaryDirectory() as folder:
        yield {**kept, "XDG_RUNTIME_DIR": folder}


@pytest.fixture(scope="module")
def camera() -> Iterator[RtspServer]:
    login = {"user": "cam", "password": PASSWORD, "method": "digest"}
    with RtspServer(login=login) as server:
        yield server


@contextlib.contextmanager
def running(folder: Path, environ: dict[str, str], *words: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The daemon as a process, and the file with all that it prints."""
    output = folder / "output"
    with output.open("w") as file:
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        process = subprocess.Popen(command("run", *words), **streams, text=True, cwd=folder, env=environ)
    try:
        yield process, output
    finally:
        process.kill()
        process.wait()


def line_of(output: Path, title: str, process: subprocess.Popen[str]) -> str:
    """What stands behind a title, once it is printed."""

    def find() -> re.Match[str] | None:
        assert process.poll() is None, output.read_text()
        return re.search(rf"^{title} +(.*)$", output.read_text(), re.MULTILINE)

    wait_until(find, title, seconds=_START_SECONDS)
    found = find()
    assert found is not None
    return found[1]


def status(environ: dict[str, str]) -> tuple[int, dict[str, object]]:
    """What the daemon of this environment says; others may run on this machine."""
    (socket,) = Path(environ["XDG_RUNTIME_DIR"], "streamdet").glob("*.sock")
    ask = command("status", "--json", "--socket", str(socket))
    result = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=60)
    return result.returncode, json.loads(result.stdout)


def test_a_url_is_enough(camera: RtspServer, tmp_path: Path, environ: dict[str, str]) -> None:
    url = camera.url(login=f"cam:{PASSWORD}")
    with running(tmp_path, environ, f"door={url}", "--set", "max_fps=5") as (process, output):
        page = line_of(output, "page", process)
        assert line_of(output, "stream", process) == f"door  rtsp://***@127.0.0.1:{camera.port}/video"
        assert line_of(output, "events", process).startswith("streamdet watch tcp://127.0.0.1:")
        wait_until(lambda: status(environ)[0] == 0, "all is well")
        _, facts = status(environ)
        assert facts["config"] is None
        assert facts["page"] == page

        def page_is_there() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(page, timeout=5):  # noqa: S310 - on loopback
                return True
            return False

        wait_until(page_is_there, "the page")
        # Nothing shows the password: neither the process, nor its children, nor what it prints.
        lines = subprocess.run(
            ["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        shown = "\n".join(line for line in lines if "rtsp_server.py" not in line)
        assert PASSWORD not in shown
        assert f"rtsp://***@127.0.0.1:{camera.port}/video" in shown
        assert "a password on the command line stays in your shell's history" in output.read_text()
        assert PASSWORD not in output.read_text()
        # Its terminal is closed.
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0


def test_a_file_is_processed_to_its_end(tmp_path: Path, environ: dict[str, str]) -> None:
    make_video(tmp_path / "My Clip.mp4", frames=30)
    result = subprocess.run(
        command("run", "My Clip.mp4", "--no-page"),
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environ, timeout=_START_SECONDS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "my-clip: 30 frames; found no objects"
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    result = subprocess.run(
        command("run", "broken.mp4"), capture_output=True, text=True, check=False, cwd=tmp_path, env=environ, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("broken: cannot be read: ")


def test_three_commands_from_a_url_to_the_page(camera: RtspServer, tmp_path: Path, environ: dict[str, str]) -> None:
    written = subprocess.run(
        command("init", "--url-from-stdin", "--json"), input=f"door={camera.url(login=f'cam:{PASSWORD}')}\n",
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environ, timeout=60,
    )  # fmt: skip
    assert written.returncode == 0, written.stdout + written.stderr
    assert PASSWORD not in written.stdout + written.stderr + (tmp_path / "streamdet.toml").read_text()
    # The usual ports may be those of another test's daemon.
    port, metrics_port = free_ports()
    file = tmp_path / "streamdet.toml"
    text = file.read_text().replace('#endpoint = "tcp://127.0.0.1:5555"', f'endpoint = "tcp://127.0.0.1:{port}"')
    file.write_text(text.replace('#endpoint = "127.0.0.1:9095"', f'endpoint = "127.0.0.1:{metrics_port}"'))
    with running(tmp_path, environ, "streamdet.toml", "--page") as (process, output):
        line_of(output, ".*the page is at", process)
        wait_until(lambda: status(environ)[0] == 0, "all is well")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
