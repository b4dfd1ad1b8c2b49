"""The file with the streams of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamdet.cluster.cameras import read_cameras
from streamdet.errors import ConfigError

CAMERA = '[[streams]]\nname = "gate"\nurl = "rtsp://${LOGIN}@192.0.2.7:${PORT}/stream1"\n'


def problems(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_cameras(path)
    return caught.value.problems


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cameras.toml"


def test_values_are_as_written_with_the_defaults_of_the_file(file: Path) -> None:
    file.write_text(f'[stream_defaults]\nmax_fps = 5\nloop = true\nstall_seconds = "7 s"\n{CAMERA}')
    cameras = read_cameras(file)
    assert {name: (camera.fps, dict(camera.values)) for name, camera in cameras.items()} == {
        "gate": (
            5.0,
            {
                "max_fps": 5,
                "stall_seconds": "7 s",
                "name": "gate",
                "url": "rtsp://${LOGIN}@192.0.2.7:${PORT}/stream1",
            },
        )
    }


def test_a_file_without_streams_is_one_of_none(file: Path) -> None:
    file.write_text("streams = []\n")
    assert read_cameras(file) == {}


@pytest.mark.parametrize("max_fps", ["", 'max_fps = "${FPS}"\n'])
def test_a_stream_says_what_it_takes(file: Path, max_fps: str) -> None:
    (problem,) = problems(file, CAMERA + max_fps)
    assert problem.startswith(f"{file}")
    assert "max_fps" in problem


def test_tables_of_a_daemon_do_not_belong_there(file: Path) -> None:
    assert problems(file, f"[detector]\nworkers = 2\n{CAMERA}max_fps = 5\n") == [
        (
            f"{file}: [detector] does not belong here: each node has its own streamdet.toml; here stand [[streams]] "
            "and [stream_defaults]"
        )
    ]


def test_what_is_wrong_is_reported_with_its_line(file: Path) -> None:
    both = problems(file, f'{CAMERA}max_fps = 5\n{CAMERA}max_fps = "many"\n')
    assert any("name" in problem and "gate" in problem for problem in both)
    assert any(f"{file}:8" in problem for problem in both)
    assert problems(file.with_name("none.toml").parent / "bad.toml", "x = [") != []


def test_tiles_take_from_a_node_what_they_cost(file: Path) -> None:
    file.write_text('[[streams]]\nname = "yard"\nurl = "rtsp://192.0.2.5/1"\nmax_fps = 2\ntiles = "2x2"\n')
    assert read_cameras(file)["yard"].fps == 10
