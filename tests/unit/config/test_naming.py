"""Names for streams that are given by their urls alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.config.naming import names_of, slug
from streamdet.config.stream import NAME_PATTERN


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        (["rtsp://192.0.2.5/stream1"], ["192.0.2.5"]),
        (["rtsp://ann:secret@front-door.local:8554/x"], ["front-door"]),
        (["rtsp://${LOGIN}@${CAM_HOST}/x"], ["cam_host"]),
        (["rtsp://nvr/Channels/101", "rtsp://nvr/Channels/201"], ["nvr-101", "nvr-201"]),
        (["rtsp://nvr/1/main", "rtsp://nvr/2/main"], ["nvr-1-main", "nvr-2-main"]),
        (["rtsp://nvr/1", "rtsp://nvr/1", "rtsp://other/1"], ["nvr-1", "nvr-1-2", "other"]),
        (["http://[2001:db8::1]:80/x.mjpg?token=secret"], ["2001-db8-1"]),
        (["0", "/dev/video2", "/dev/v4l/by-id/usb-Cam_1-video-index0"], ["video0", "video2", "usb-cam_1-video-index0"]),
        (["My Clip.mp4", "file:///a/b%20c.mkv"], ["my-clip", "b-c"]),
        (["x/a.mp4", "y/a.mp4"], ["x-a", "y-a"]),
        (["/.mp4", "/\N{SNOWMAN}.mp4"], ["mp4", "file"]),
    ],
)
def test_a_name_is_short_and_distinguishes(urls: list[str], names: list[str]) -> None:
    assert names_of(urls) == names


def test_a_name_that_another_stream_has_is_numbered() -> None:
    assert names_of(["rtsp://door/1"], taken=["door", "door-2"]) == ["door-3"]


@given(
    urls=st.lists(
        st.one_of(
            st.from_regex(r"(?:rtsp|http)://[a-z0-9.-]{0,3}[a-z0-9](?:/[A-Za-z0-9/%._-]{0,80})?", fullmatch=True),
            st.from_regex(r"[a-zA-Z0-9/ ._-]{1,80}\.mp4", fullmatch=True),
        ),
        max_size=6,
    )
)
def test_names_are_valid_and_all_different(urls: list[str]) -> None:
    try:
        names = names_of(urls)
    except ValueError:
        return  # one of them is no url
    assert len(set(names)) == len(urls)
    assert all(re.fullmatch(NAME_PATTERN, name) for name in names)


def test_a_slug_is_a_name_or_nothing() -> None:
    assert slug("--Front Door!--") == "front-door"
    assert slug("\N{SNOWMAN}") == ""
    assert slug("Straße") == "strasse"
    assert slug("Überlauf Ägir São Łódź Ærø") == "uberlauf-agir-sao-lodz-aero"
    assert len(slug("a" * 100)) == 64
