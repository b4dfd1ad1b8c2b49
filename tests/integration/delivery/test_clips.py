"""Clips of real streams: they play, begin at a key frame, and show the moment of the alert."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from streamdet.config import ClipsConfig, RuleConfig
from streamdet.delivery.clips import Clips
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Frame, State
from support import rtsp
from support.capturing import Recorder, stream_config
from support.clips import Packets, check_clip, probe, read_into
from support.films import make_film, number_in, numbers_of
from support.hls import FPS, LiveHls
from support.paths import TESTS
from support.rtsp import RtspServer
from support.waiting import wait_until
from support.web import WebServer

# ffprobe reads the films, as another program that knows nothing of ours.
pytestmark = pytest.mark.package("ffmpeg")

_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS)}
RULE = RuleConfig(name="any", clip_seconds=(1.5, 1.5))


class Kept(Clips):
    """Clips with metrics of their own, and what tests ask about them."""

    def __init__(self, directory: Path, **values: Any) -> None:
        metrics = Metrics(Ledger())
        self.registry = metrics.registry
        super().__init__(ClipsConfig(directory=str(directory), **values), metrics)
        self.set_rules([RULE])

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"streamdet_clip{name}", labels) or 0.0

    def dropped(self, reason: str) -> float:
        return self.count("s_dropped_total", reason=reason)

    def wait_for(self, clip_id: str | None) -> Path:
        assert clip_id is not None
        wait_until(lambda: self.path_of(clip_id), f"clip {clip_id}")
        path = self.path_of(clip_id)
        assert path is not None
        return path


@contextmanager
def kept(directory: Path, **values: Any) -> Iterator[Kept]:
    with Kept(directory, **values) as clips:
        yield clips
    assert clips.error is None


def around(clips: Kept, frame: Frame, before: float = 1.5, after: float = 1.5) -> str:
    return clips.want("yard", frame.packet_pts, frame.captured_monotonic_seconds, (before, after))


def shown(recorder: Recorder, number: int, after: int = 0) -> Frame:
    """Waits for the frame that shows a number, not one of the first `after`."""
    found: list[Frame] = []

    def has_come() -> bool:
        frames = recorder.frames[after:][-40:]
        found.extend(frame for frame in frames if number_in(frame.picture.to_rgb()) == number)
        return bool(found)

    wait_until(has_come, f"frame {number}")
    return found[0]


def mount(film: Path, codec: str = "h264") -> str:
    return f"filesrc location={film} ! qtdemux ! {codec}parse ! rtp{codec}pay name=pay0 config-interval=-1"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    make_film(folder / "h264.mp4", seconds=30, bframes=2)
    make_film(folder / "h265.mp4", seconds=30, codec="libx265")
    make_film(folder / "wide.mp4", seconds=30, width=192)
    return folder


@pytest.mark.package("gst-rtsp-server")
def test_a_clip_of_rtsp_shows_the_moment(films: Path, tmp_path: Path) -> None:
    mounts = {f"/{codec}": mount(films / f"{codec}.mp4", codec) for codec in ("h264", "h265")}
    with RtspServer(mounts, shared=False) as server, kept(tmp_path) as clips:
        for codec in ("h264", "h265"):
            config = stream_config(server.url(f"/{codec}"), connect_timeout_seconds=20)
            with Recorder(config, packets=clips.ring("yard")) as recorder:
                path = clips.wait_for(around(clips, shown(recorder, 33)))
            check_clip(path, 33)
            assert probe(path)["codec_name"] == ("hevc" if codec == "h265" else "h264")
        assert clips.count("s_stored_total") == 2
        assert clips.count("s_shortened_total", missing="begin") == clips.count("s_shortened_total", missing="end") == 0


def test_a_clip_of_a_file_that_is_played_as_it_was_taken(films: Path, tmp_path: Path) -> None:
    with kept(tmp_path) as clips, Recorder(stream_config(films / "h264.mp4"), packets=clips.ring("yard")) as recorder:
        path = clips.wait_for(around(clips, shown(recorder, 33)))
    check_clip(path, 33)


def test_a_clip_of_a_file_that_is_read_as_fast_as_it_goes(films: Path, tmp_path: Path) -> None:
    """Seconds are those of the film: the clip is complete long before they have passed here."""
    asked: list[str] = []
    with kept(tmp_path) as clips:

        def put(frame: Frame) -> None:
            if frame.seq == 101:
                asked.append(around(clips, frame, 5, 10))

        recorder = Recorder(stream_config(films / "h264.mp4", pace="fastest"), packets=clips.ring("yard"))
        recorder.capture._put = put
        with recorder:
            recorder.wait_for(State.DOWN)
        path = clips.wait_for(asked[0])
    check_clip(path, 100, before=5, after=10)


def test_a_clip_of_live_hls(tmp_path: Path) -> None:
    film = make_film(tmp_path / "all.m3u8", seconds=60, fps=FPS, container="hls", hls_time="1", hls_list_size="0")
    with WebServer(tmp_path) as web, kept(tmp_path / "clips") as clips:
        LiveHls(web, film, "live")
        with Recorder(stream_config(web.url("/live.m3u8")), packets=clips.ring("yard")) as recorder:
            recorder.wait_for_frames(25)
            frame = recorder.frames[-1]
            path = clips.wait_for(around(clips, frame))
    check_clip(path, number_in(frame.picture.to_rgb()))


def test_alerts_that_overlap_share_a_clip_and_others_do_not(films: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    with kept(tmp_path, ring_seconds=5) as clips:

        def put(frame: Frame) -> None:
            if frame.seq - 1 in (25, 33, 53):
                asked.append(around(clips, frame))

        recorder = Recorder(stream_config(films / "h264.mp4", pace="fastest"), packets=clips.ring("yard"))
        recorder.capture._put = put
        with recorder:
            recorder.wait_for(State.DOWN)
            first, second, third = asked
            assert first == second != third
            one, other = clips.wait_for(first), clips.wait_for(third)
        assert {25, 33, 47} <= {*numbers_of(one)}
        check_clip(other, 53)
        assert clips.count("s_stored_total") == 2


@pytest.mark.package("gst-rtsp-server")
def test_a_stream_that_goes_down_gives_what_there_is_and_one_that_comes_back_otherwise_begins_again(
    films: Path, tmp_path: Path
) -> None:
    with RtspServer({"/video": mount(films / "h264.mp4")}, shared=False) as server, kept(tmp_path) as clips:
        url = server.url("/video")
        config = stream_config(url, connect_timeout_seconds=20, stall_seconds=20)
        with Recorder(config, packets=clips.ring("yard")) as recorder:
            clip_id = around(clips, shown(recorder, 33), after=4)
            server.kill()
            path = clips.wait_for(clip_id)
            numbers = numbers_of(path)
            assert 33 in numbers
            assert numbers[-1] < 73
            assert clips.count("s_shortened_total", missing="end") == 1
            other = RtspServer({"/video": mount(films / "wide.mp4")}, shared=False)
            other._wanted["port"] = server.port
            with other:
                frame = shown(recorder, 13, after=len(recorder.frames))
                path = clips.wait_for(around(clips, frame, before=10))
    assert probe(path)["width"] == frame.picture.width == 192
    assert numbers_of(path)[0] == 0
    assert {13, 27} <= {*numbers_of(path)}


@pytest.mark.package("gst-rtsp-server")
def test_a_stream_of_jpegs_has_no_clips_which_is_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RtspServer({"/video": rtsp.MJPEG}) as server, kept(tmp_path) as clips:
        config = stream_config(server.url(), connect_timeout_seconds=20)
        assert clips.missing_of("yard") is None
        with Recorder(config, packets=clips.ring("yard")) as recorder:
            recorder.wait_for_frames(2)
            assert clips.missing_of("yard") == "codec"
            for frame in recorder.frames[:2]:
                with pytest.raises(LookupError, match="codec"):
                    around(clips, frame)
    assert clips.dropped("codec") == 2
    assert caplog.text.count("the stream has no clips: its video is mjpeg") == 1


LEFT = {"name": "left", "polygon": [[0, 0.5], [0.5, 0.5], [0.5, 1], [0, 1]]}


@pytest.mark.parametrize("turns", [0, 3])
def test_what_a_mask_hides_is_black_in_every_picture_of_a_clip(tmp_path: Path, turns: int) -> None:
    film = make_film(
        tmp_path / "a.mp4", seconds=8, width=96, height=64, sample_aspect=Fraction(4, 3), quarter_turns=turns
    )
    with kept(tmp_path / "clips") as clips:
        config = stream_config(film, pace="fastest", masks=[LEFT])
        clips.set_stream(config)
        asked: list[str] = []

        def put(frame: Frame) -> None:
            if frame.seq == 41:
                asked.append(around(clips, frame))

        recorder = Recorder(config, packets=clips.ring("yard"))
        recorder.capture._put = put
        with recorder:
            recorder.wait_for(State.DOWN)
            path = clips.wait_for(asked[0])
    found = probe(path)
    assert (found["codec_name"], found["width"], found["height"]) == ("vp9", *((64, 96) if turns else (96, 64)))
    assert found["sample_aspect_ratio"] == ("3:4" if turns else "4:3")
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert 29 <= len(pictures) <= 32
    height, width = pictures[0].shape[:2]
    for picture in pictures:
        assert picture[height // 2 + 4 :, : width // 2 - 4].max() < 24
        assert picture[: height // 2 - 4].max() > 150
    if not turns:
        check_clip(path, 40, is_cut_exactly=True)


def test_packets_from_before_a_mask_changes_are_in_no_clip(films: Path, tmp_path: Path) -> None:
    with kept(tmp_path) as clips:
        ring = clips.ring("yard")
        sink = Packets()
        read_into(sink, films / "wide.mp4", pace="fastest")
        for packet in sink.packets[:100]:
            ring.put(packet)
        config = stream_config(films / "wide.mp4", masks=[LEFT])
        clips.set_stream(config)
        assert clips.count("_ring_bytes") == 0
        with pytest.raises(LookupError, match="no_packets"):
            clips.want("yard", sink.packets[90].pts, time.monotonic(), (5, 0))
        assert clips.dropped("no_packets") == 1
        for packet in sink.packets[100:140]:
            ring.put(packet)
        clips.set_stream(config)  # nothing has changed
        assert clips.count("_ring_bytes") > 0


def test_a_stream_with_blur_has_no_clips(films: Path, tmp_path: Path) -> None:
    with kept(tmp_path) as clips:
        config = stream_config(films / "wide.mp4", pace="fastest", blur=["person"])
        clips.set_stream(config)
        with Recorder(config, packets=clips.ring("yard")) as recorder:
            recorder.wait_for_frames(10)
            with pytest.raises(LookupError, match="privacy"):
                around(clips, recorder.frames[-1])
        assert clips.count("_ring_bytes") == 0
        assert clips.dropped("privacy") == 1
        assert clips.missing_of("yard") == "privacy"
        # Its rules go on, and have clips again without it.
        clips.set_stream(config.model_copy(update={"blur": ()}))
        assert clips.ring("yard").is_open


def test_without_an_encoder_nothing_that_is_masked_leaves(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamdet.delivery.masked_mp4.ENCODER", "libmissing")
    with kept(tmp_path) as clips:
        clips.set_stream(stream_config(films / "wide.mp4", masks=[LEFT]))
        assert clips.missing_of("yard") == "privacy"
        sink = Packets()
        read_into(sink, films / "wide.mp4", pace="fastest")
        for packet in sink.packets:
            clips.ring("yard").put(packet)
        clips.want("yard", sink.packets[-30].pts, time.monotonic(), (1, 1))
        wait_until(lambda: clips.dropped("privacy") == 1)
    assert not list(tmp_path.iterdir())


def test_streams_without_a_rule_cost_nothing(films: Path, tmp_path: Path) -> None:
    with kept(tmp_path) as clips:
        clips.set_rules([RULE.model_copy(update={"streams": ("other",)})])
        with Recorder(stream_config(films / "h264.mp4", pace="fastest"), packets=clips.ring("yard")) as recorder:
            recorder.wait_for_frames(100)
            assert clips.ring("yard").size_bytes == 0
            with pytest.raises(LookupError):
                around(clips, recorder.frames[-1])
        assert clips.count("s_dropped_total", reason="no_packets") == 0


def test_memory_stays_within_its_bound_and_clips_are_shorter_then(tmp_path: Path) -> None:
    """20 Mbit/s for 8 s, into rings of 8 MiB."""
    film = make_film(
        tmp_path / "a.mp4", seconds=8, fps=25, width=640, height=352, noise=True, bit_rate=20_000_000, maxrate="20M"
    )
    assert film.stat().st_size > 15_000_000
    asked: list[str] = []
    largest = 0
    with kept(tmp_path / "clips", max_ring_bytes=8 << 20) as clips:
        ring = clips.ring("yard")

        def put(frame: Frame) -> None:
            nonlocal largest
            largest = max(largest, ring.size_bytes)
            if frame.seq == 176:
                asked.append(around(clips, frame, 7, 0.5))

        recorder = Recorder(stream_config(film, pace="fastest"), packets=ring)
        recorder.capture._put = put
        with recorder:
            recorder.wait_for(State.DOWN)
        path = clips.wait_for(asked[0])
        assert 5 << 20 < largest <= 8 << 20
        assert clips.count("s_shortened_total", missing="begin") == 1
        clips.remove_stream("yard")
        assert clips.count("_ring_bytes") == 0
    assert 175 in numbers_of(path)
    assert path.stat().st_size <= 8 << 20


@pytest.mark.root
@pytest.mark.package("util-linux")
def test_a_full_disk_is_counted_and_leaves_no_half_clip(films: Path, tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=200k none "$1" && exec "$2" "$3" "$1" "$4" 100'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, str(_WRITER)]
    done = subprocess.run(
        [*command, str(films / "wide.mp4")],
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS,
        env=_ENVIRONMENT,
        timeout=100,
    )
    if "mount:" in done.stderr and not os.environ.get("STREAMDET_REQUIRE_PACKAGES"):
        pytest.skip("nothing can be mounted here")
    lines = done.stdout.splitlines()
    stored, full, other, halves = (int(word) for word in lines[-1].split())
    assert stored >= 1
    assert full >= 1
    assert (stored + full, other, halves) == (100, 0, 0), done.stderr


def test_after_a_kill_only_whole_clips_are_there(films: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(_WRITER), str(tmp_path), str(films / "h264.mp4"), "100000"]
    writer = subprocess.Popen(command, cwd=TESTS, env=_ENVIRONMENT, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.mp4"))) > 20)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
    with kept(tmp_path) as clips:
        wait_until(lambda: clips.count("s_stored_bytes") > 0)
        names = [path.name for path in tmp_path.iterdir()]
    assert len(names) > 20
    assert all(name.endswith(".mp4") and not name.startswith(".") for name in names)
    assert all(numbers_of(tmp_path / name)[:10] == [*range(10)] for name in [*names[:5], *sorted(names)[-5:]])


_WRITER = TESTS / "support" / "clip_writer.py"


def test_no_thread_waits_for_a_disk_that_hangs(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, begun = threading.Event(), threading.Event()

    def write(*_: object) -> None:
        begun.set()
        hangs.wait(30)

    sink = Packets()
    read_into(sink, films / "wide.mp4", pace="fastest")
    with kept(tmp_path) as clips:
        monkeypatch.setattr("streamdet.delivery.clips.write_mp4", write)
        ring = clips.ring("yard")
        began = time.monotonic()
        for number, packet in enumerate(sink.packets):
            ring.put(packet)
            if number % 20 == 10:
                clips.want("yard", packet.pts, packet.arrived_monotonic_seconds, (1, 0.5))
        assert begun.wait(30)
        assert time.monotonic() - began < 5
        hangs.set()
