"""Streams of which not everything is decoded: through capture and queue, with every picture in the ledger."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from streamdet.capture.probe import probe
from streamdet.capture.thread import Capture
from streamdet.config import StreamConfig
from streamdet.errors import LeftOutError
from streamdet.inference.batch_queue import BatchQueue
from streamdet.monitoring.ledger import Ledger, StreamLedger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Drop, Frame, Reason, State, StreamStatus
from support import rtsp
from support.capturing import Recorder, stream_config
from support.films import make_film, number_in
from support.rtsp import RtspServer
from support.waiting import wait_until

_RTSP = pytest.mark.package("gst-rtsp-server")


class Detecting:
    """A capture, the real queue, and a taker that keeps what it gets."""

    def __init__(self, config: StreamConfig) -> None:
        self.metrics = Metrics(Ledger())
        self.metrics.set_stream(config.name, ())
        self.queue = BatchQueue(8, 0.0, self.metrics.frame_dropped)
        self.queue.set_stream(config)
        self.frames: list[Frame] = []
        self.statuses: list[StreamStatus] = []
        self._ending = threading.Event()
        self._taker = threading.Thread(target=self._take, name="taker", daemon=True)
        self.capture = Capture(
            config, self.queue.put, self.statuses.append, self.metrics, demand=self.queue.demand(config.name)
        )

    def _take(self) -> None:
        while not self.queue.drained:
            for frame in self.queue.take(0.05):
                self.frames.append(frame)
                self.metrics.frame_published(frame.stream, 0.0, ())

    @property
    def counts(self) -> StreamLedger:
        return self.metrics.ledger.snapshot()["yard"]

    def __enter__(self) -> Self:
        self._taker.start()
        self.capture.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.capture.stop()
        assert self.capture.join()
        self.queue.close()
        self._taker.join()


@pytest.fixture(scope="module")
def server() -> Iterator[RtspServer]:
    # A key frame every 10 pictures.
    with RtspServer({"/h264": rtsp.h264(), "/mjpeg": rtsp.MJPEG}) as running:
        yield running


def wait_for(detecting: Detecting, captured: int) -> None:
    wait_until(lambda: detecting.counts.captured >= captured, f"{captured} pictures: {detecting.counts}", 60)


@_RTSP
def test_of_a_camera_only_key_frames_are_decoded_and_all_pictures_are_counted(server: RtspServer) -> None:
    with Detecting(stream_config(server.url("/h264"), decode="keyframes")) as detecting:
        wait_for(detecting, 100)
        seqs = [frame.seq for frame in detecting.frames]
    counts = detecting.counts
    assert counts.captured == detecting.capture.last_seq == counts.published + sum(counts.dropped.values())
    # Numbers of frames are those of the stream's pictures.
    assert {later - earlier for earlier, later in itertools.pairwise(seqs)} == {10}
    assert 0.88 <= counts.dropped[Drop.NOT_DECODED] / counts.captured <= 0.92
    assert {status.state for status in detecting.statuses} == {State.CONNECTING, State.UP}


@_RTSP
def test_auto_decodes_the_key_frames_of_a_camera_as_often_as_max_fps_takes_them(server: RtspServer) -> None:
    with Detecting(stream_config(server.url("/h264"), max_fps=2.5)) as detecting:
        wait_for(detecting, 150)
        counts = detecting.counts
        assert counts.dropped[Drop.NOT_DECODED] > 70
        # More is wanted from now on: without another connection, and without a wait for a key frame.
        detecting.queue.set_stream(stream_config(server.url("/h264"), max_fps=None))
        before = detecting.counts
        wait_for(detecting, before.captured + 50)
        after = detecting.counts
    assert after.dropped[Drop.NOT_DECODED] - before.dropped[Drop.NOT_DECODED] <= 2
    assert [status.state for status in detecting.statuses] == [State.CONNECTING, State.UP]
    assert after.dropped[Drop.DAMAGED] == 0


@_RTSP
def test_of_mjpeg_only_what_is_due_is_decoded(server: RtspServer) -> None:
    with Detecting(stream_config(server.url("/mjpeg"), max_fps=1)) as detecting:
        wait_for(detecting, 40)
    counts = detecting.counts
    assert counts.dropped[Drop.NOT_DECODED] >= 33
    assert counts.published >= 3
    assert counts.dropped[Drop.RATE_LIMITED] <= 1


@pytest.mark.parametrize("values", [{"decode": "keyframes"}, {"max_fps": 1}])
def test_a_file_is_read_at_its_pace_although_most_of_it_is_not_decoded(tmp_path: Path, values: dict[str, Any]) -> None:
    clip = make_film(tmp_path / "a.mp4", seconds=6, fps=10, group=10)
    with Detecting(stream_config(clip, **values)) as detecting:
        wait_until(lambda: detecting.statuses[-1:] and detecting.statuses[-1].reason is Reason.ENDED, "its end", 60)
        wait_until(lambda: not detecting.counts.in_flight, "its last frame")
    counts, frames = detecting.counts, detecting.frames
    assert counts.captured == 60
    assert counts.dropped[Drop.NOT_DECODED] >= 20
    assert all(number_in(frame.picture.to_rgb()) == frame.seq - 1 for frame in frames)
    for earlier, later in itertools.pairwise(frames):
        took = later.captured_monotonic_seconds - earlier.captured_monotonic_seconds
        assert later.pts_seconds is not None
        assert earlier.pts_seconds is not None
        assert took >= later.pts_seconds - earlier.pts_seconds - 0.3
        assert later.pts_seconds - earlier.pts_seconds == pytest.approx((later.seq - earlier.seq) / 10, abs=0.01)


def test_what_is_read_as_fast_as_possible_is_decoded_whole(tmp_path: Path) -> None:
    clip = make_film(tmp_path / "a.mp4", seconds=6, fps=10, group=10)
    with Detecting(stream_config(clip, max_fps=1, pace="fastest")) as detecting:
        wait_until(lambda: detecting.statuses[-1:] and detecting.statuses[-1].reason is Reason.ENDED, "its end", 60)
        wait_until(lambda: not detecting.counts.in_flight, "its last frame")
    assert detecting.counts.published == 60


def test_a_probe_measures_what_a_stream_sends(tmp_path: Path) -> None:
    clip = make_film(tmp_path / "a.ts", seconds=2, fps=10)
    found = probe(stream_config(clip, decode="keyframes"))
    assert found.reason is None
    assert found.fps == pytest.approx(10, abs=0.5)


class _Thinned:
    """Stands in for a source of which few pictures are decoded."""

    def __init__(self, *, is_sound: bool) -> None:
        from streamdet.capture.sources import SourceInfo  # noqa: PLC0415 - beside its only use

        self.info = SourceInfo("h264", 4, 4, None, "fake")
        self._is_sound = is_sound
        self._given = False

    def read(self) -> Any:
        from streamdet.capture.sources import SourceFrame  # noqa: PLC0415
        from support.queueing import frame  # noqa: PLC0415

        if not self._given:
            self._given = True
            return SourceFrame(frame("yard").picture, None, time.time(), "daemon")
        time.sleep(0.02)
        raise LeftOutError(is_sound=self._is_sound)

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("is_sound", [True, False])
def test_pictures_that_are_not_decoded_show_that_a_stream_lives_unless_it_is_damaged(*, is_sound: bool) -> None:
    config = stream_config("rtsp://192.0.2.5/x", stall_seconds=0.4)
    with Recorder(config, open_source=lambda _config: _Thinned(is_sound=is_sound)) as recorder:
        recorder.wait_for(State.UP)
        if is_sound:
            wait_until(lambda: recorder.capture.last_seq > 60, "60 pictures")
            assert [status.state for status in recorder.statuses] == [State.CONNECTING, State.UP]
        else:
            recorder.wait_for(State.STALLED)
    counts = recorder.metrics.ledger.snapshot()["yard"]
    assert counts.dropped[Drop.NOT_DECODED] == counts.captured - len(recorder.frames) > 0
    assert counts.captured == recorder.capture.last_seq
