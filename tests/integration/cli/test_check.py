from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from streamdet.cli import main
from streamdet.detector import missing
from support.capturing import SECRET
from support.videos import make_video
from support.web import WebServer


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


Check = Callable[..., Result]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Check:
    """Runs the command in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["streamdet", "check", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        stdout, stderr = capfd.readouterr()
        assert SECRET not in stdout + stderr
        return Result(code, stdout, stderr)

    return run


def write(path: Path, streams: dict[str, str], extra: str = "") -> Path:
    tables = [f'[[streams]]\nname = "{name}"\nurl = "{url}"\n{extra}' for name, url in streams.items()]
    path.write_text("\n".join(tables))
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4")


def test_valid_file(tmp_path: Path, clip: Path, check: Check) -> None:
    config = write(tmp_path / "a.toml", {"yard": str(clip)})
    result = check(config)
    assert result.returncode == 0
    assert result.stdout.strip() == f"{config} is valid: 1 stream"
    assert json.loads(check(config, "--json").stdout)["streams"] == [{"name": "yard"}]
    config.write_text(config.read_text() + '[[rules]]\nname = "seen"\n')
    assert check(config).stdout.strip() == f"{config} is valid: 1 stream, 1 rule"


def test_the_file_may_be_named_as_for_other_commands(tmp_path: Path, clip: Path, check: Check) -> None:
    config = write(tmp_path / "a.toml", {"yard": str(clip)})
    assert check("--config", config).stdout == check(config).stdout


def test_problems_all_at_once(tmp_path: Path, check: Check) -> None:
    config = tmp_path / "a.toml"
    config.write_text(f'[[streams]]\nname = "UP CASE"\nurl = "rtps://user:{SECRET}@192.0.2.5/x"\ncolour = "red"\n')
    result = check(config)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) >= 3
    result = check(config, "--json")
    assert result.returncode == 2
    answer = json.loads(result.stdout)
    assert not answer["valid"]
    assert len(answer["problems"]) >= 3


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://{FRIGATE_LOGIN}@192.0.2.5/x", "rtsp://user:{{password}}@192.0.2.5/x", "rtsp://$CAM_LOGIN@192.0.2.5/x",
        "rtsp://user:<password>@192.0.2.5/x", "!secret front_door", "http://192.0.2.5/x?key=%(KEY)s", " clip.mp4",
    ],
)  # fmt: skip
def test_what_is_probably_not_meant_is_a_warning(tmp_path: Path, check: Check, url: str) -> None:
    config = write(tmp_path / "a.toml", {"yard": url})
    result = check(config)
    assert result.returncode == 0
    (warning,) = [line for line in result.stderr.splitlines() if "contains a password" not in line]
    assert warning.startswith(f"warning: {config}:3: streams[yard].url: ")
    assert json.loads(check(config, "--json").stdout)["warnings"]


@pytest.mark.parametrize(
    "url", ["rtsp://${A}@192.0.2.5/x", "http://192.0.2.5/{}?a={1}", "a{b/c}.mp4", "rtsp://192.0.2.5/$1"]
)
def test_what_is_meant_is_none(tmp_path: Path, check: Check, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "user:{word}")
    assert not check(write(tmp_path / "a.toml", {"yard": url})).stderr


def test_missing_file(tmp_path: Path, check: Check) -> None:
    result = check(tmp_path / "missing.toml")
    assert result.returncode == 2
    assert "missing.toml" in result.stderr


def test_probe_shows_what_streams_are_and_why_not(tmp_path: Path, clip: Path, check: Check) -> None:
    with WebServer(login=f"user:{SECRET}") as web:
        streams = {
            "file": str(clip),
            "camera": web.url("/mjpeg", f"user:{SECRET}"),
            "wrong-password": web.url("/mjpeg", f"user:{SECRET}-not"),
            "wrong-path": web.url("/nope", f"user:{SECRET}"),
            "unknown-name": f"rtsp://user:{SECRET}@nowhere.invalid/x",
        }
        config = write(tmp_path / "a.toml", streams)
        text, answer = check(config, "--probe"), check(config, "--probe", "--json")
    assert (text.returncode, answer.returncode) == (1, 1)
    rows = {line.split()[0]: line for line in text.stdout.splitlines()}
    assert "h264" in rows["file"]
    assert "64x48" in rows["file"]
    assert "mjpeg" in rows["camera"]
    assert "unauthorized" in rows["wrong-password"]
    assert "not_found" in rows["wrong-path"]
    assert "dns" in rows["unknown-name"]
    assert "2 of 5 streams can be read" in text.stdout
    found = {stream["name"]: stream for stream in json.loads(answer.stdout)["streams"]}
    assert found["file"]["fps"] == 25
    assert found["file"]["reason"] is None
    assert found["file"]["first_frame_seconds"] >= 0
    assert [found[name]["reason"] for name in streams] == [None, None, "unauthorized", "not_found", "dns"]


def test_probe_of_good_streams_succeeds(tmp_path: Path, clip: Path, check: Check) -> None:
    assert check(write(tmp_path / "a.toml", {"yard": str(clip)}), "--probe").returncode == 0


def test_probe_names_streams_that_have_no_clips_for_a_rule(tmp_path: Path, clip: Path, check: Check) -> None:
    with WebServer() as web:
        config = write(tmp_path / "a.toml", {"file": str(clip), "jpegs": web.url("/mjpeg")})
        rules = '[[rules]]\nname = "visitor"\nclip_seconds = [5, 5]\n[[rules]]\nname = "other"\n'
        config.write_text(f'{config.read_text()}[clips]\ndirectory = "clips"\n{rules}')
        warning = (
            "rules[visitor].clip_seconds: alerts of jpegs have no clip: its video is mjpeg, but clips need H.264 or "
            "H.265"
        )
        result = check(config, "--probe")
        assert (result.returncode, result.stderr) == (0, f"warning: {warning}\n")
        assert json.loads(check(config, "--probe", "--json").stdout)["warnings"] == [warning]


def test_streams_are_probed_at_the_same_time(tmp_path: Path, check: Check) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        url = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        config = write(tmp_path / "a.toml", {f"s{n}": url for n in range(20)}, "connect_timeout_seconds = 2\n")
        started = time.monotonic()
        answer = json.loads(check(config, "--probe", "--json").stdout)
    assert {stream["reason"] for stream in answer["streams"]} == {"timeout"}
    # One after the other they would take 40 s and more.
    assert time.monotonic() - started < 35


def test_check_needs_no_torch(tmp_path: Path, clip: Path) -> None:
    config = write(tmp_path / "a.toml", {"yard": str(clip)})
    code = (
        "import sys; from streamdet.cli import cli;"
        f"cli.main(['check', {str(config)!r}, '--probe'], standalone_mode=False);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60).returncode == 0


def test_a_file_of_the_service_finds_the_secrets_of_the_service(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "etc", tmp_path / "elsewhere"
    monkeypatch.setattr("streamdet.config.secrets.SERVICE_FOLDER", folder)
    for each in (folder, elsewhere):
        (each / "a.secrets").mkdir(parents=True)
        (each / "a.secrets/LOGIN").write_text(f"user:{SECRET}")
        (each / "a.toml").write_text('[[streams]]\nname = "a"\nurl = "rtsp://${LOGIN}@192.0.2.5/stream1"\n')
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert check(folder / "a.toml").returncode == 0
    # Any other file is read as `streamdet run` would read it: with the secrets beside it.
    assert check(elsewhere / "a.toml").returncode == 0
    (elsewhere / "b.toml").write_text((elsewhere / "a.toml").read_text())
    assert f"there is no file {elsewhere}/b.secrets/LOGIN" in check(elsewhere / "b.toml").stderr
    # What is said of a missing one names the file to make.
    (folder / "a.secrets/LOGIN").unlink()
    assert f"there is no file {folder}/a.secrets/LOGIN" in check(folder / "a.toml").stderr
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(elsewhere / "a.secrets"))
    assert check(folder / "a.toml").returncode == 0


@pytest.mark.parametrize(
    ("detector", "expected"),
    [
        (
            'weights = "coco"\nmodel = "fasterrcnn_resnet50_fpn"',
            r'"coco" with .* is not downloaded yet',
        ),
        ('device = "cuda"', r'"cuda" is asked for, and of CUDA devices this machine has none that works'),
        ('device = "cuda:3"', r'"cuda:3" is asked for, and of CUDA devices this machine has none that works'),
        ('engine = "openvino"', r"OpenVINO is not installed here"),
    ],
)
def test_what_the_detector_will_not_find_is_a_warning(
    tmp_path: Path, clip: Path, check: Check, monkeypatch: pytest.MonkeyPatch, detector: str, expected: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setattr(missing, "cuda_device_count", lambda: 0)
    monkeypatch.setattr(missing.importlib.util, "find_spec", lambda _: None)
    config = write(tmp_path / "a.toml", {"yard": str(clip)})
    config.write_text(f"[detector]\n{detector}\n{config.read_text()}")
    result = check(config)
    assert result.returncode == 0
    assert re.search(rf"^warning: detector\..*{expected}", result.stderr)
    assert len(json.loads(check(config, "--json").stdout)["warnings"]) == 1


def test_what_the_detector_finds_is_no_warning(
    tmp_path: Path, clip: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(missing, "cuda_device_count", lambda: 2)
    model = "fasterrcnn_resnet50_fpn"
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    (folder / missing.PUBLISHED_FILES[model]).touch()
    config = write(tmp_path / "a.toml", {"yard": str(clip)})
    rest = config.read_text()
    config.write_text(f'[detector]\nweights = "coco"\nmodel = "{model}"\ndevice = "cuda:1"\n{rest}')
    assert check(config).stderr == ""
