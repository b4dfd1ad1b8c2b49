"""What is kept of a configuration that worked; `test_systemd_units` uses it in a real service."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from streamdet.config import load_config
from streamdet.config.last_good import LastGood, last_good
from streamdet.errors import EXIT_USAGE, ConfigError

STREAM = '[[streams]]\nname = "yard"\nurl = "rtsp://192.0.2.5/x"\n'


@pytest.fixture
def kept(tmp_path: Path) -> LastGood:
    (tmp_path / "state").mkdir()
    (tmp_path / "yard.toml").write_text(STREAM)
    found = last_good(tmp_path / "yard.toml", {"STATE_DIRECTORY": f"{tmp_path}/state:/another"})
    assert found is not None
    return found


def test_it_is_read_as_if_it_were_the_file(kept: LastGood) -> None:
    (kept.path.parent / "clip.mp4").write_bytes(b"")
    kept.path.write_text('[[streams]]\nname = "yard"\nurl = "clip.mp4"\n')
    config = load_config(kept.path)
    assert kept.keep(config)
    assert stat.S_IMODE(kept.copy.stat().st_mode) == 0o600
    kept.path.write_text("wrong")
    assert kept.load() == config


def test_only_what_is_in_force_is_kept(kept: LastGood) -> None:
    config = load_config(kept.path)
    kept.path.write_text(STREAM + "max_fps = 3\n")
    assert kept.keep(config)
    assert not kept.copy.exists()
    kept.path.write_text("wrong")
    assert not kept.keep(config)
    assert not kept.copy.exists()


def test_a_folder_that_cannot_be_written_ends_nothing(kept: LastGood, caplog: pytest.LogCaptureFixture) -> None:
    kept.copy.parent.rmdir()
    assert kept.keep(load_config(kept.path))
    assert "cannot be written" in caplog.text


def test_what_is_of_no_use_is_not_offered(kept: LastGood) -> None:
    assert kept.offer() == []
    kept.copy.write_text(STREAM)
    assert "sudo -u streamdet-yard cat " in kept.offer()[1]
    assert kept.offer()[1].endswith("sudo systemctl restart streamdet@yard")
    kept.copy.write_text("wrong")
    assert kept.offer() == []
    with pytest.raises(ConfigError):
        kept.load()


def test_outside_a_service_there_is_none(kept: LastGood, tmp_path: Path) -> None:
    assert last_good(kept.path, {}) is None
    kept.path.write_text("wrong")
    kept.copy.write_text(STREAM)
    program = Path(sys.prefix, "bin/streamdet")
    for options, environ in (([], {"STATE_DIRECTORY": str(kept.copy.parent)}), (["--or-last-good"], {})):
        command = [program, "run", "--config", kept.path, *options]
        result = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert result.returncode == EXIT_USAGE
        assert ("goes back to it" in result.stderr) == bool(environ)
