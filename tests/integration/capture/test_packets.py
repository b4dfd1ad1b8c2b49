"""What is passed on of real streams as it came, encoded, makes films that play."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from streamdet.capture.sources.av import AvSource
from streamdet.capture.thread import _OwnPackets
from streamdet.errors import SourceError
from support import rtsp
from support.capturing import Recorder, stream_config
from support.clips import Packets, probe, read_into, times_of, whole_film
from support.films import make_film, numbers_of
from support.hls import make_hls
from support.rtsp import RtspServer
from support.videos import concatenate, make_video
from support.web import WebServer

# ffprobe reads the films, as another program that knows nothing of ours.
pytestmark = pytest.mark.package("ffmpeg")

_FILMS: dict[str, tuple[str, dict[str, Any]]] = {
    "mp4": ("a.mp4", {}),
    "reordered": ("a.mp4", {"bframes": 2}),
    "matroska": ("a.mkv", {"bframes": 2}),
    "mpeg-ts": ("a.ts", {"bframes": 2}),
    "without a container": ("a.h264", {}),
    "hevc": ("a.mp4", {"codec": "libx265", "bframes": 2}),
    "hevc in mpeg-ts": ("a.ts", {"codec": "libx265", "bframes": 2}),
    "anamorphic": ("a.mp4", {"sample_aspect": Fraction(4, 3)}),
    "turned": ("a.mp4", {"quarter_turns": 1}),
    "one slow frame after the other": ("a.mp4", {"fps": 1, "seconds": 8, "group": 4}),
}


@pytest.mark.parametrize("name", list(_FILMS))
def test_what_a_file_holds_makes_the_same_film(tmp_path: Path, name: str) -> None:
    file, options = _FILMS[name]
    film = make_film(tmp_path / file, **options)
    sink = Packets()
    read_into(sink, film, pace="fastest")
    clip = tmp_path / "clip.mp4"
    whole_film(sink.packets, clip)
    assert numbers_of(clip) == numbers_of(film)
    found, wanted = probe(clip), probe(film)
    for key in ("codec_name", "profile", "level", "width", "height", "pix_fmt", "display_aspect_ratio", "has_b_frames"):
        assert found.get(key) == wanted.get(key), key
    assert found.get("side_data_list") == wanted.get("side_data_list")
    if found["codec_name"] == "h264" and film.suffix == ".mp4":
        assert found["extradata_hash"] == wanted["extradata_hash"]
    assert found["codec_tag_string"] == ("hvc1" if "hevc" in name else "avc1")
    fps = options.get("fps", 10)
    times = times_of(clip)
    assert times == pytest.approx([n / fps for n in range(len(times))], abs=0.001)
    assert found["length"] == pytest.approx(len(times) / fps, abs=0.01)


@pytest.mark.parametrize("only_keys", [True, False])
def test_pictures_in_parts_are_joined(tmp_path: Path, *, only_keys: bool) -> None:
    whole = make_film(
        tmp_path / "whole.h264", width=192, height=128, **{"x264-params": "slices=3:repeat-headers=1:scenecut=0"}
    )
    parts = _cut_in_parts(whole, only_keys=only_keys)
    sink = Packets()
    assert len(read_into(sink, parts, pace="fastest")) >= 37
    whole_film(sink.packets, tmp_path / "clip.mp4")
    assert numbers_of(tmp_path / "clip.mp4") == list(range(40))


def _cut_in_parts(path: Path, *, only_keys: bool) -> Path:
    """The same film, with parameter sets or a delimiter before each further slice of a picture."""
    units = [b"\0\0\1" + unit.rstrip(b"\0") for unit in path.read_bytes().split(b"\0\0\1")[1:]]
    sets = b"".join(unit for unit in units[:2] if unit[3] & 31 in (7, 8))
    cut = b""
    for unit in units:
        is_first = unit[4] & 128
        if unit[3] & 31 == 5 and not is_first:
            cut += sets
        elif unit[3] & 31 == 1 and not is_first and not only_keys:
            cut += b"\0\0\0\1\x09\xf0"
        cut += unit
    parts = path.with_stem("parts")
    parts.write_bytes(cut)
    return parts


def test_rounds_of_a_file_follow_each_other(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", seconds=1, bframes=2)
    sink = Packets()
    read_into(sink, film, 35, pace="fastest", loop=True)
    assert [packet.begins for packet in sink.packets].count(True) == 4
    whole_film(sink.packets, tmp_path / "clip.mp4")
    numbers = numbers_of(tmp_path / "clip.mp4")
    assert numbers[:30] == [*range(10)] * 3
    times = times_of(tmp_path / "clip.mp4")
    assert times == sorted(set(times))


def test_parameters_that_change_begin_another_film(tmp_path: Path) -> None:
    """Nothing but the stream itself says so."""
    wide = make_film(tmp_path / "wide.h264", width=192, seconds=1, first=10)
    both = concatenate(tmp_path / "both.h264", make_film(tmp_path / "narrow.h264", seconds=1), wide)
    sink = Packets()
    assert read_into(sink, both, pace="fastest") == [*range(20)]
    assert len({packet.parameters for packet in sink.packets}) == 2
    cut = whole_film(sink.packets, tmp_path / "clip.mp4")
    assert cut.lacks_begin
    assert numbers_of(tmp_path / "clip.mp4") == [*range(10, 20)]
    assert probe(tmp_path / "clip.mp4")["width"] == 192


def test_hls_goes_on_in_another_format(tmp_path: Path) -> None:
    lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-TARGETDURATION:1"]
    for name, width in (("a", 64), ("b", 128)):
        options = {"hls_segment_type": "fmp4", "hls_fmp4_init_filename": f"{name}-init.mp4"}
        playlist = make_hls(tmp_path, name, 2, options, width).read_text().splitlines()
        begin = next(n for n, line in enumerate(playlist) if line.startswith("#EXT-X-MAP"))
        lines += ["#EXT-X-DISCONTINUITY", *(line for line in playlist[begin:] if line != "#EXT-X-ENDLIST")]
    with WebServer(tmp_path) as web:
        web.pages["/x.m3u8"] = "\n".join([*lines, "#EXT-X-ENDLIST"]).encode
        sink = Packets()
        assert len(read_into(sink, web.url("/x.m3u8"))) == 40
    assert len({packet.parameters for packet in sink.packets}) == 2
    whole_film(sink.packets, tmp_path / "clip.mp4")
    assert len(times_of(tmp_path / "clip.mp4")) == 20
    assert probe(tmp_path / "clip.mp4")["width"] == 128


def test_discontinuities_of_hls_are_no_gaps(tmp_path: Path) -> None:
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:2"]
    for name in ("a", "b"):
        playlist = make_hls(tmp_path, name, 2).read_text().splitlines()
        lines += ["#EXT-X-DISCONTINUITY", *(line for line in playlist if line.startswith("#EXTINF") or "#" not in line)]
    with WebServer(tmp_path) as web:
        web.pages["/x.m3u8"] = "\n".join([*lines, "#EXT-X-ENDLIST"]).encode
        sink = Packets()
        # FFmpeg takes the first packet after the discontinuity for damaged.
        assert len(read_into(sink, web.url("/x.m3u8"))) >= 38
    whole_film(sink.packets, tmp_path / "clip.mp4")
    times = times_of(tmp_path / "clip.mp4")
    assert len(times) >= 38
    assert times[-1] == pytest.approx(3.9, abs=0.5)


_RTSP = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,format=I420,framerate=20/1"
_MOUNTS = {
    "/h264": rtsp.h264(20),
    "/h265": rtsp.H265,
    # The session says nothing of the parameters; key frames bring them.
    "/reordered": f"{_RTSP} ! x264enc bframes=2 b-adapt=false speed-preset=ultrafast key-int-max=10 ! "
    "h264parse ! rtph264pay name=pay0 config-interval=-1",
    "/mjpeg": rtsp.MJPEG,
    "/sizes": rtsp.TWO_SIZES,
}


@pytest.mark.package("gst-rtsp-server")
def test_rtsp(tmp_path: Path) -> None:
    with RtspServer(_MOUNTS) as server:
        for path, codec in (("/h264", "h264"), ("/h265", "hevc"), ("/reordered", "h264")):
            sink = Packets()
            read_into(sink, server.url(path), 30)
            clip = tmp_path / "clip.mp4"
            whole_film(sink.packets, clip)
            found, times = probe(clip), times_of(clip)
            assert (found["codec_name"], found["width"], found["height"]) == (codec, 320, 240)
            assert 20 <= len(times) <= 45, path
            assert found["length"] == pytest.approx(len(times) / (10 if codec == "hevc" else 20), rel=0.2)
        sink = Packets()
        read_into(sink, server.url("/mjpeg"), 2)
        assert (sink.refused, sink.packets) == (["mjpeg"], [])
        sink = Packets()
        read_into(sink, server.url("/sizes"), 25)
        assert len({packet.parameters for packet in sink.packets}) == 2
        whole_film(sink.packets, tmp_path / "clip.mp4")
        assert probe(tmp_path / "clip.mp4")["width"] == 480


def test_other_codecs_are_refused(tmp_path: Path) -> None:
    sink = Packets()
    read_into(sink, make_video(tmp_path / "a.avi", codec="mpeg4"), pace="fastest")
    assert (sink.refused, sink.packets) == (["mpeg4"], [])


def test_nothing_is_copied_for_a_sink_that_is_closed(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", codec="libx265", seconds=2)
    sink = Packets(is_open=False)
    assert len(read_into(sink, film, pace="fastest")) == 20
    assert not sink.packets


def test_a_capture_that_is_left_behind_passes_nothing_on(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", seconds=2)
    sink = Packets()
    with Recorder(stream_config(film, loop=True), packets=sink) as recorder:
        recorder.wait_for_frames(5)
        source = AvSource(stream_config(film, pace="fastest"), _OwnPackets(recorder.capture, sink))
        source.read()
    count = len(sink.packets)
    assert count
    with suppress(SourceError):
        while True:
            source.read()
    source.close()
    assert len(sink.packets) == count


def test_an_open_sink_holds_the_encoded_bytes_and_nothing_else(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", seconds=2, noise=True)
    sink = Packets()
    read_into(sink, film, pace="fastest")
    with av.open(str(film)) as container:
        wanted = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    assert [packet.data for packet in sink.packets] == wanted
    assert all(sys.getrefcount(packet.data) <= 3 for packet in sink.packets)
    assert all(0 < time.monotonic() - packet.arrived_monotonic_seconds < 60 for packet in sink.packets)
