"""The first configuration file is valid, and so is what it offers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamdet.config import load_config
from streamdet.config.new_file import NewStream, new_file_text, state_folder
from streamdet.security.passwords import Password, User, write_user

DOOR = NewStream("door", "rtsp://${DOOR_LOGIN}@192.0.2.5/x", ("h264, 1920x1080, 25 frames per second",))
YARD = NewStream("yard", 'a "quoted" \\ name.mp4')
ENVIRON = {"DOOR_LOGIN": "a:b", "FRONT_DOOR_LOGIN": "a:b"}


@pytest.mark.parametrize("streams", [(), (DOOR,), (DOOR, YARD)])
@pytest.mark.parametrize("with_examples", [False, True])
def test_the_file_loads_also_with_every_example_in_it(
    tmp_path: Path, streams: tuple[NewStream, ...], *, with_examples: bool
) -> None:
    file = tmp_path / "yard.toml"
    text = new_file_text(file, streams)
    if with_examples:
        text = re.sub(r"^#(?=\S)", "", text, flags=re.MULTILINE)
        write_user(tmp_path / "yard.users", User("alice", "operator", Password.of("1234567890", cost=(4, 8, 1))))
    file.write_text(text)
    config = load_config(file, ENVIRON)
    examples = 1 if with_examples and not streams else 0
    assert [stream.name for stream in config.streams] == [each.name for each in streams] + ["front-door"] * examples
    assert len(config.rules) == with_examples
    kept = config.spool.directory, config.pictures.directory, config.clips.directory
    assert kept == tuple(str(tmp_path / "yard.state" / name) for name in ("spool", "pictures", "clips"))
    if YARD in streams:
        assert config.streams[1].url == str(tmp_path / YARD.url)


def test_a_limit_applies_to_every_stream(tmp_path: Path) -> None:
    file = tmp_path / "streamdet.toml"
    file.write_text(new_file_text(file, (DOOR, YARD), 7.5))
    assert [stream.max_fps for stream in load_config(file, ENVIRON).streams] == [7.5, 7.5]


def test_a_service_keeps_what_happened_in_its_own_folder() -> None:
    assert state_folder(Path("/etc/streamdet/streamdet.toml")) == Path("/var/lib/streamdet/streamdet")
    assert state_folder(Path("/etc/streamdet/yard.toml")) == Path("/var/lib/streamdet/yard")
    assert state_folder(Path("/home/alice/yard.toml")) == Path("yard.state")
