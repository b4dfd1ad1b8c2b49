"""Detection on a camera's smaller stream, clips from its main one."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from streamdet.capture.packet_reader import PacketReader
from streamdet.capture.probe import probe_all
from streamdet.capture.thread import Backoff
from streamdet.config import StreamConfig
from streamdet.delivery.packet_ring import NO_PACKETS, Cut, PacketRing
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Frame, Reason, State
from support.capturing import SECRET, Recorder, stream_config
from support.clips import Packets, new_ring, write
from support.films import make_film, number_in, numbers_of
from support.rtsp import RtspServer
from support.waiting import wait_until

pytestmark = [pytest.mark.package("gst-rtsp-server"), pytest.mark.package("ffmpeg")]
_FPS = 10


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RtspServer]:
    """Two streams of the same pictures, each the same for all clients."""
    folder = tmp_path_factory.mktemp("films")
    make_film(folder / "main.mp4", seconds=120, fps=_FPS, width=192, height=128)
    make_film(folder / "sub.mp4", seconds=120, fps=_FPS)
    play = "filesrc location={} ! qtdemux ! h264parse ! rtph264pay name=pay0 config-interval=-1"
    with RtspServer({f"/{name}": play.format(folder / f"{name}.mp4") for name in ("main", "sub")}) as running:
        yield running


def both(camera: RtspServer, **values: object) -> StreamConfig:
    urls = {"url": camera.url("/main"), "detect_url": camera.url("/sub")}
    return StreamConfig.model_validate({"name": "yard", "connect_timeout_seconds": 20, **urls, **values})


def reader_of(config: StreamConfig, ring: PacketRing | Packets) -> PacketReader:
    return PacketReader(config, ring, Metrics(Ledger()).unexpected, Backoff(0.1, 0.2))


def frame_at(recorder: Recorder, moment: float) -> Frame:
    """The newest frame that had come at a moment."""
    return max(
        (frame for frame in recorder.frames if frame.captured_monotonic_seconds <= moment), key=lambda frame: frame.seq
    )


def test_clips_show_the_main_stream_at_the_moment_of_the_frame_that_was_detected(
    camera: RtspServer, tmp_path: Path
) -> None:
    cuts: list[Cut] = []
    ring = new_ring(cuts)
    config = both(camera)
    with ExitStack() as stack:
        # Beside them, who sees the main stream's pictures.
        seen = stack.enter_context(Recorder(stream_config(camera.url("/main"), connect_timeout_seconds=20)))
        reader = stack.enter_context(reader_of(config, ring))
        detected = stack.enter_context(Recorder(config))
        wait_until(lambda: ring.size_bytes > 0 and len(detected.frames) > 3 * _FPS and seen.frames, "both streams", 60)
        time.sleep(3)
        frame = detected.frames[-1]
        assert (frame.picture.width, frame.packet_pts) == (96, None)
        ring.want(lambda: "clip", frame.packet_pts, frame.captured_monotonic_seconds, (1.0, 1.0))
        wait_until(lambda: cuts, "the clip")
        there = number_in(frame_at(seen, frame.captured_monotonic_seconds).picture.to_rgb())
        assert reader.failure is None
    cut = cuts[0]
    shown = numbers_of(write(cut, tmp_path / "clip.mp4"))
    # A second before the moment, by the place of the packets in the clip.
    moment = min(range(len(cut.packets)), key=lambda n: abs(cut.packets[n].at - (cut.begin + cut.end) / 2))
    assert abs(shown[moment] - there) <= 1
    assert shown == [*range(shown[0], shown[-1] + 1)]


def test_there_is_no_connection_while_no_clip_is_wanted(camera: RtspServer) -> None:
    sink = Packets(is_open=False)
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(1.5)
        config = both(camera, url=f"rtsp://127.0.0.1:{door.getsockname()[1]}/x")
        with reader_of(config, sink), pytest.raises(TimeoutError):
            door.accept()
    with reader_of(both(camera), sink) as reader:
        sink.is_open = True
        wait_until(lambda: len(sink.packets) > 5, "packets")
        sink.is_open = False
        time.sleep(1.5)
        count = len(sink.packets)
        time.sleep(1)
        assert len(sink.packets) == count
    assert sink.packets[0].is_key
    assert reader.error is None


def test_one_stream_that_is_down_does_not_end_the_other(camera: RtspServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lost = f"rtsp://me:{SECRET}@127.0.0.1:1/main"
    ring = new_ring([])
    config = both(camera, url=lost)
    with reader_of(config, ring) as reader, Recorder(config) as detected:
        detected.wait_for_frames(5, 60)
        wait_until(lambda: reader.failure is not None, "the failure of the main stream")
        assert detected.state is State.UP
        with pytest.raises(LookupError, match=NO_PACKETS):
            ring.want(lambda: "clip", None, detected.frames[-1].captured_monotonic_seconds, (1.0, 1.0))
    assert "main stream cannot be read (refused" in caplog.text
    assert SECRET not in caplog.text
    sink = Packets()
    other = both(camera, detect_url="rtsp://127.0.0.1:1/sub")
    with reader_of(other, sink), Recorder(other) as detected:
        detected.wait_for(State.DOWN, Reason.REFUSED)
        wait_until(lambda: len(sink.packets) > 5, "packets", 60)


def test_the_main_stream_is_read_again_after_it_was_gone(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", seconds=60, fps=_FPS)
    play = f"filesrc location={film} ! qtdemux ! h264parse ! rtph264pay name=pay0 config-interval=-1"
    sink = Packets()
    mounts = {"/main": play, "/sub": play}
    with RtspServer(mounts) as server, reader_of(both(server, stall_seconds=2), sink) as reader:
        wait_until(lambda: len(sink.packets) > 5, "packets")
        server.kill()
        wait_until(lambda: reader.failure is not None, "the failure", 60)
        server.start()
        count = len(sink.packets)
        wait_until(lambda: len(sink.packets) > count + 5, "packets again", 60)
        wait_until(lambda: reader.failure is None, "no failure")
    assert sum(packet.begins for packet in sink.packets) >= 2


def test_a_probe_looks_at_both(camera: RtspServer) -> None:
    main, sub = probe_all([both(camera)])
    assert (main.stream, sub.stream) == ("yard", "yard (detect_url)")
    assert main.info is not None
    assert sub.info is not None
    assert (main.info.width, sub.info.width) == (192, 96)
