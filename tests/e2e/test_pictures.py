"""Pictures of a real daemon: a real film and the real detector, compared with the film's own frames."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet import AlertEvent, DetectionEvent, ObjectEvent, Subscription, subscribe
from streamdet.assets import sample_clip
from streamdet.capture.sources.picture import AvPicture
from streamdet.client.control import _UnixConnection
from streamdet.types import Box, PictureInfo
from streamdet.wire import Kind
from support.processes import PATIENCE_SECONDS, DaemonProcess, stream
from support.waiting import wait_until

FRAMES = 50
RULE = '[[rules]]\nname = "someone"\nlabels = ["person"]\nfor_seconds = 1\npicture = true\n'
EXACT = '[detector]\nengine = "torch"\nprecision = "fp32"\nmax_batch_size = 8\n'


def film(path: Path, frames: int = FRAMES) -> Path:
    """The beginning of the sample clip, as it is."""
    with av.open(str(sample_clip())) as source, av.open(str(path), "w") as cut:
        video = source.streams.video[0]
        track = cut.add_stream_from_template(video)
        for number, packet in enumerate(source.demux(video)):
            if number == frames or packet.dts is None:
                break
            packet.stream = track
            cut.mux(packet)
    return path


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as source:
        return [AvPicture(frame).to_rgb() for frame in source.decode(video=0)]


def pixels_of(jpeg: bytes | None, info: PictureInfo) -> NDArray[Any]:
    assert jpeg is not None
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    assert pixels.shape == (info.height, info.width, 3)
    return np.asarray(pixels)


@contextlib.contextmanager
def daemon_at(folder: Path, more: str, *, real: bool = True, **keys: Any) -> Iterator[DaemonProcess]:
    environ = {"XDG_STATE_HOME": str(folder / "state")}
    with DaemonProcess(folder / "daemon", environ=environ, real=real) as daemon:
        daemon.write_config(stream("cam", film(folder / "film.mp4"), pace="fastest", **keys), more=more)
        yield daemon


def crop(frame: NDArray[np.uint8], info: PictureInfo, box: Box) -> NDArray[np.uint8]:
    """The part of a frame that a picture shows, found by where its box is in both."""
    assert info.box is not None
    left, top = round(box[0] - info.box[0]), round(box[1] - info.box[1])
    return frame[top : top + info.height, left : left + info.width]


def difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.shape != other.shape:
        return 255.0
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


class Collected:
    """What a daemon published of a film: the boxes of each frame, the pictured events, and their pictures."""

    def __init__(self, events: Subscription) -> None:
        self.boxes: dict[int, list[Box]] = {}
        self.pictured: list[ObjectEvent | AlertEvent] = []
        self.jpegs: dict[str, bytes | None] = {}
        self.open: set[str] = set()
        for event in events:
            if isinstance(event, DetectionEvent):
                self.boxes[event.frame.seq] = [found.box for found in event.detections]
            elif isinstance(event, ObjectEvent | AlertEvent):
                self._take(event, events)
            if FRAMES in self.boxes and not self.open:
                return

    def _take(self, event: ObjectEvent | AlertEvent, events: Subscription) -> None:
        if isinstance(event, ObjectEvent):
            (self.open.discard if event.phase == "end" else self.open.add)(event.object.object_id)
        if event.phase in ("end", "raised"):
            assert event.picture is not None
            self.pictured.append(event)
            self.jpegs[event.picture.picture_id] = events.picture(event, PATIENCE_SECONDS)


@pytest.mark.slow
def test_a_picture_shows_its_object_in_the_very_frame_that_the_event_names(tmp_path: Path) -> None:
    pictures = f'[pictures]\ndirectory = "{tmp_path}/kept"\nmargin = 0.1\nquality = 95\n'
    kinds: tuple[Kind, ...] = ("detections", "objects", "alerts")
    with (
        daemon_at(tmp_path, EXACT + pictures + RULE) as daemon,
        subscribe(daemon.endpoint, kinds=kinds, timeout_seconds=PATIENCE_SECONDS) as events,
    ):
        daemon.start()
        seen = Collected(events)
        wait_until(lambda: daemon.count("pictures_stored_total") == len(seen.jpegs))
        assert {f"{picture_id}.jpg" for picture_id in seen.jpegs} == {
            path.name for path in (tmp_path / "kept").iterdir()
        }
        assert daemon.count("pictures_dropped_total") == 0
        assert daemon.end() == 0
    frames = frames_of(tmp_path / "film.mp4")
    assert {event.phase for event in seen.pictured} == {"end", "raised"}
    assert len(seen.pictured) >= 4
    for event in seen.pictured:
        info = event.picture
        assert info is not None
        picture = pixels_of(seen.jpegs[info.picture_id], info)
        best, box = min(
            (difference(picture, crop(frames[info.frame_seq - 1], info, box)), box)
            for box in seen.boxes[info.frame_seq]
        )
        assert best < 10  # of a picture of 14 x 19 pixels; larger ones differ by 1 to 3
        assert best <= min(difference(picture, crop(frame, info, box)) for frame in frames) + 0.2
        if isinstance(event, AlertEvent):
            assert info.frame_seq == event.frame.seq
            assert event.alert.box in seen.boxes[event.frame.seq]


def fetched(daemon: DaemonProcess, picture_id: str) -> tuple[int, bytes]:
    """Status and body of the answer of the control API."""
    with closing(_UnixConnection(daemon.control_path, PATIENCE_SECONDS)) as connection:
        connection.request("GET", f"/v1/pictures/{picture_id}")
        response = connection.getresponse()
        return response.status, response.read()


def test_a_kill_costs_no_picture_that_was_kept_and_both_ways_lead_to_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with daemon_at(tmp_path, f'[pictures]\ndirectory = "{kept}"\n', real=False) as daemon:
        daemon.write_config(stream("cam", max_fps=10), more=f'[pictures]\ndirectory = "{kept}"\n')
        daemon.start()
        with subscribe(daemon.endpoint, kinds=["objects"], timeout_seconds=PATIENCE_SECONDS) as events:
            assert isinstance(next(events), ObjectEvent)
            wait_until(lambda: daemon.count("picture_encode_seconds_count") > 0)
            daemon.ask("PATCH", "/v1/streams/cam", {"paused": True})
            end = next(event for event in events if isinstance(event, ObjectEvent) and event.phase == "end")
            assert end.picture is not None
            assert end.picture.picture_id.split("Z-")[1].startswith("cam-")
            jpeg = events.picture(end)
        assert jpeg is not None
        assert fetched(daemon, end.picture.picture_id) == (200, jpeg)
        wait_until(lambda: daemon.count("pictures_stored_total") == 1)
        daemon.end(signal.SIGKILL)
        (kept / f".{end.picture.picture_id}.jpg.0123abcd.part").write_bytes(jpeg[:100])
        daemon.ready()
        with subscribe(daemon.endpoint, kinds=["objects"]) as events:
            assert events.picture(end, PATIENCE_SECONDS) == jpeg
        assert fetched(daemon, end.picture.picture_id) == (200, jpeg)
        assert fetched(daemon, "other")[0] == 404
        wait_until(lambda: not list(kept.glob(".*")))
        assert (kept / f"{end.picture.picture_id}.jpg").read_bytes() == jpeg
        assert daemon.end() == 0


def test_a_directory_that_cannot_be_used_ends_the_start_with_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with daemon_at(tmp_path, f'[pictures]\ndirectory = "{tmp_path}/file"\n') as daemon:
        daemon.start()
        _, errors = daemon.process.communicate(timeout=PATIENCE_SECONDS)
        assert daemon.process.returncode == 69
        assert errors.count("\n") == 1
        assert f"cannot keep pictures in {tmp_path}/file: File exists" in errors
