"""`streamdet init` against real cameras, in empty folders."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from streamdet.cli import cli
from streamdet.config import load_config
from streamdet.config.secrets import environ_for
from streamdet.errors import ConfigError, StreamdetError
from support.ports import free_port
from support.rtsp import RtspServer
from support.videos import make_video

PASSWORD = "pl4nted-Pw"  # noqa: S105 - a planted one


@pytest.fixture(scope="module")
def camera() -> Iterator[RtspServer]:
    with RtspServer(login={"user": "cam", "password": PASSWORD, "method": "digest"}) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return tmp_path


def init(*words: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(cli, ["init", *words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit | StreamdetError), result.exception
    assert PASSWORD not in result.output
    return result


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_camera_is_tried_and_its_login_kept_apart(camera: RtspServer, folder: Path) -> None:
    refused = f"rtsp://127.0.0.1:{free_port()}/x"
    result = init(f"door={camera.url(login=f'cam:{PASSWORD}')}", f"yard={refused}", "--max-fps", "5")
    assert result.exit_code == 1
    assert "1 of 2 streams can be read" in result.stdout
    assert "what happens will be kept in streamdet.state/" in result.stdout
    assert "streamdet run streamdet.toml --page" in result.stdout
    assert "warning: a password on the command line" in result.stderr
    file, secrets = folder / "streamdet.toml", folder / "streamdet.secrets"
    assert [mode(file), mode(secrets), mode(secrets / "DOOR_LOGIN")] == [0o640, 0o700, 0o600]
    assert PASSWORD not in file.read_text()
    assert "# h264, 320x240, 25 frames per second\n" in file.read_text()
    assert "# It could not be read when this file was written: " in file.read_text()
    door, yard = load_config(file, environ_for(file)).streams
    assert door.url == camera.url(login=f"cam:{PASSWORD}")
    assert (yard.url, yard.max_fps) == (refused, 5.0)


@pytest.mark.root
def test_a_file_that_is_replaced_keeps_its_group(folder: Path) -> None:
    """Each instance of the service reads its file by a group of its own."""
    file = folder / "yard.toml"
    file.touch()
    os.chown(file, -1, 10_001)
    result = init("--force", "-o", "yard.toml")
    assert (result.exit_code, file.stat().st_gid, mode(file)) == (0, 10_001, 0o640)


def test_urls_and_json_for_programs(camera: RtspServer, folder: Path) -> None:
    clip = make_video(folder / "clip.mp4")
    given = f"door={camera.url(login=f'cam:{PASSWORD}')}\n\n{clip}\n"
    result = init("--url-from-stdin", "--json", "-o", "yard.toml", stdin=given)
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["ok"], result.stderr) == (0, True, "")
    assert facts["config"] == str(folder / "yard.toml")
    assert facts["secrets"] == [str(folder / "yard.secrets/DOOR_LOGIN")]
    assert [(each["name"], each["reason"]) for each in facts["streams"]] == [("door", None), ("clip", None)]
    assert facts["state"] == str(folder / "yard.state")
    assert facts["next"][0] == "streamdet run yard.toml --page"


def test_without_urls_the_file_is_valid_and_idle(folder: Path) -> None:
    result = init()
    assert result.exit_code == 0
    assert "wrote streamdet.toml: no streams yet" in result.stdout
    assert load_config(folder / "streamdet.toml", {}).streams == ()
    assert not (folder / "streamdet.secrets").exists()


def test_nothing_is_overwritten_without_force(folder: Path) -> None:
    file = folder / "streamdet.toml"
    file.write_text("mine")
    result = init("clip.mp4")
    assert str(result.exception).startswith("streamdet.toml exists; --force replaces it")
    assert file.read_text() == "mine"
    url = f"door=rtsp://cam:{PASSWORD}@192.0.2.5/x"
    assert init(url, "--no-probe", "--force").exit_code == 0
    secret = folder / "streamdet.secrets" / "DOOR_LOGIN"
    assert secret.read_text() == f"cam:{PASSWORD}"
    secret.write_text("other")
    file.unlink()
    result = init(url, "--no-probe")
    assert "DOOR_LOGIN holds another secret; --force replaces it" in str(result.exception)
    assert (secret.read_text(), file.exists()) == ("other", False)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["192.0.2.5/stream1"], "192.0.2.5/stream1: there is no such file; for a camera, write rtsp://192.0.2.5/stream1"),
        (["192.0.2.5:554/x"], "192.0.2.5:554/x: looks like a network address without its beginning; write rtsp://"),
        (["rtps://192.0.2.5/x"], 'rtps://192.0.2.5/x: begins with "rtps://", which is not supported; did you mean "rtsps://"?'),
        ([f"{'a' * 300}.mp4"], f"{'a' * 200}: there is no such file"),
        (["."], ".: is a folder; name the video files in it"),
        (["clp.mp4"], "clp.mp4: there is no such file; did you mean clip.mp4?"),
        (["streamdet.yaml"], "streamdet.yaml: is no video; a configuration of streamdet is TOML"),
        (["a=rtsp://h/1", "a=rtsp://h/2"], "a: two streams are to have this name"),
        (["rtsp://${NOT_SET_HERE}@192.0.2.5/x"], "streams[192.0.2.5].url: ${NOT_SET_HERE} is not set"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(folder: Path, words: list[str], problem: str) -> None:
    (folder / "clip.mp4").touch()
    result = init(*words)
    assert isinstance(result.exception, ConfigError)
    (line,) = result.exception.problems
    assert line.startswith(problem)
    assert [path.name for path in folder.iterdir()] == ["clip.mp4"]


def test_a_place_that_cannot_be_written_is_one_line(folder: Path) -> None:
    assert "there is no folder nowhere to write a.toml into" in str(init("-o", "nowhere/a.toml").exception)
    result = init("-o", "a.yaml")
    assert result.exit_code == 2
    assert "a configuration is TOML; give it a name such as a.toml" in result.output


def test_a_terminal_is_asked_for_what_is_missing(camera: RtspServer, folder: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "streamdet", "init"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, close_fds=True) as process:
        os.close(theirs)
        shown = ""

        def answer(question: str, text: str) -> None:
            nonlocal shown
            part = ""
            while question not in part:
                part += os.read(ours, 4096).decode()
            shown += part
            os.write(ours, f"{text}\n".encode())

        answer("URL", f"door={camera.url()}")
        answer("URL", "")
        answer("User", "cam")
        answer("Password", PASSWORD)
        try:
            while part := os.read(ours, 4096):
                shown += part.decode()
        except OSError:
            pass  # the other side is closed
        assert process.wait(30) == 0, shown
    os.close(ours)
    assert PASSWORD not in shown
    assert "1 of 1 streams can be read" in shown
    assert (folder / "streamdet.secrets" / "DOOR_LOGIN").read_text() == f"cam:{PASSWORD}"
