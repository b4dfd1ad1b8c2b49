"""Pixel formats: what is taken can be converted, and what is not taken is refused before anything could end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import pytest
from av.video.format import names

from streamdet.capture.sources import open_source
from streamdet.capture.sources.picture import CONVERTIBLE, IN_HARDWARE, AvPicture
from streamdet.errors import SourceError
from streamdet.types import Reason, State
from support.capturing import Recorder, stream_config
from support.videos import make_video

# Each format at sizes that are odd, even and tiny, with every matrix and range; turned into RGB, and made smaller.
_CONVERT = """
import sys
import av
from av.video.reformatter import VideoReformatter
from streamdet.capture.sources.picture import AvPicture
for name in sys.argv[1:]:
    print(name, flush=True)
    for number, (width, height) in enumerate(((64, 48), (33, 17), (2, 2), (1, 1), (97, 31), *[(38, 20)] * 20)):
        frame = av.VideoFrame(width, height, name)
        frame.colorspace, frame.color_range = (number if number < 20 else 200, number % 4)
        rgb = AvPicture(frame).to_rgb()
        assert rgb.shape == (height, width, 3)
        assert VideoReformatter().reformat(frame, width=32, height=24, format="rgb24", threads=1).width == 32
"""


def test_all_that_is_taken_can_be_converted() -> None:
    command = [sys.executable, "-c", _CONVERT, *sorted(CONVERTIBLE)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout.split()[-1:], done.stderr)
    assert set(done.stdout.split()) == CONVERTIBLE <= names


@pytest.mark.parametrize("name", ["bgr4", "rgbaf32le", "bayer_rggb8", "yaf32le", "xv30be"])
def test_what_is_not_taken_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match=f"the pixel format {name} cannot be converted") as caught:
        AvPicture(av.VideoFrame(64, 48, name))
    assert caught.value.reason is Reason.DECODE_ERROR


def test_common_formats_are_taken() -> None:
    common = {
        "yuv420p",
        "yuvj420p",
        "yuvj422p",
        "yuv420p10le",
        "nv12",
        "p010le",
        "gray",
        "rgb24",
        "bgr24",
        "pal8",
        "gbrp",
    }
    assert common <= CONVERTIBLE
    assert not CONVERTIBLE & IN_HARDWARE


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Half a second of pictures that swscale cannot convert."""
    path = tmp_path / "hostile.nut"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr4"
        for number in range(5):
            frame = av.VideoFrame(64, 48, "bgr4")
            frame.pts = number
            output.mux(stream.encode(frame))
    return path


def test_a_stream_of_such_pictures_is_down_and_says_why(hostile: Path) -> None:
    with Recorder(stream_config(hostile)) as recorder:
        status = recorder.wait_for(State.DOWN, Reason.DECODE_ERROR)
        assert status.detail == "pictures in the pixel format bgr4 cannot be converted"
    assert not recorder.frames


@pytest.mark.parametrize("colorspace", ["ycgco", "bt2020c", "reserved", "chroma-derived-c"])
def test_a_rare_matrix_is_no_reason_to_see_nothing(tmp_path: Path, colorspace: str) -> None:
    numbers = {"ycgco": 8, "bt2020c": 10, "reserved": 3, "chroma-derived-c": 13}
    clip = make_video(tmp_path / "clip.mp4", frames=2, colorspace=numbers[colorspace])
    source = open_source(stream_config(clip, pace="fastest"))
    try:
        assert 30 < source.read().picture.to_rgb().mean() < 60
    finally:
        source.close()
