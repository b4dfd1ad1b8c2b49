"""The first configuration file is valid, and so is what it offers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamdet.config import load_config
from streamdet.config.new_file import NewStream, new_file_text

DOOR = NewStream("door", "rtsp://${DOOR_LOGIN}@192.0.2.5/x", ("h264, 1920x1080, 25 frames per second",))
YARD = NewStream("yard", 'a "quoted" \\ name.mp4')
ENVIRON = {"DOOR_LOGIN": "a:b", "FRONT_DOOR_LOGIN": "a:b"}


@pytest.mark.parametrize("streams", [(), (DOOR,), (DOOR, YARD)])
@pytest.mark.parametrize("with_examples", [False, True])
def test_the_file_loads_also_with_every_example_in_it(
    tmp_path: Path, streams: tuple[NewStream, ...], *, with_examples: bool
) -> None:
    text = new_file_text(streams)
    if with_examples:
        text = re.sub(r"^#(?=\S)", "", text, flags=re.MULTILINE)
    file = tmp_path / "streamdet.toml"
    file.write_text(text)
    config = load_config(file, ENVIRON)
    examples = 1 if with_examples and not streams else 0
    assert [stream.name for stream in config.streams] == [each.name for each in streams] + ["front-door"] * examples
    assert len(config.rules) == with_examples
    if YARD in streams:
        assert config.streams[1].url == str(tmp_path / YARD.url)


def test_a_limit_applies_to_every_stream(tmp_path: Path) -> None:
    file = tmp_path / "streamdet.toml"
    file.write_text(new_file_text((DOOR, YARD), 7.5))
    assert [stream.max_fps for stream in load_config(file, ENVIRON).streams] == [7.5, 7.5]
