"""The pictures of objects and alerts: what they show, when they are made, and what is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet.analytics.objects import LiveObject
from streamdet.config import PicturesConfig
from streamdet.delivery import pictures as module
from streamdet.delivery.file_store import FileStore, StoreLimits
from streamdet.delivery.pictures import Pictures
from streamdet.delivery.privacy import NOTHING, Hidden
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Box, FrameInfo, PictureInfo, Shot
from support.waiting import PATIENCE_SECONDS, wait_until

SIZE = (320, 240)
PLACE: Box = (100.0, 60.0, 140.0, 160.0)


@dataclass
class Scene:
    """A frame with one bright rectangle on grey."""

    box: Box = PLACE
    value: int = 40
    width: int = SIZE[0]
    height: int = SIZE[1]
    may_go_on: threading.Event = field(default_factory=threading.Event)
    waits: bool = False

    def to_rgb(self) -> NDArray[np.uint8]:
        if self.waits:
            assert self.may_go_on.wait(PATIENCE_SECONDS)
        rgb = np.full((self.height, self.width, 3), self.value, np.uint8)
        x1, y1, x2, y2 = (round(side) for side in self.box)
        rgb[y1:y2, x1:x2] = (220, 30, 30)
        return rgb


class Broken(Scene):
    def to_rgb(self) -> NDArray[np.uint8]:
        message = "no such pixels"
        raise RuntimeError(message)


@dataclass
class Live:
    """What is looked at of an object that has not ended."""

    object_id: str
    frame: FrameInfo
    best: Shot
    box: Box = PLACE
    is_confirmed: bool = True


def frame_of(seq: int) -> FrameInfo:
    return FrameInfo(seq, None, 1.0, "daemon", *SIZE)


def live(object_id: str, seq: int, best_seq: int | None = None, box: Box = PLACE, **more: Any) -> LiveObject:
    best = Shot(seq if best_seq is None else best_seq, 1.0, 0.9, box)
    return cast("LiveObject", Live(object_id, frame_of(seq), best, box, **more))


class Studio:
    """Pictures with a store and metrics of their own."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.metrics = Metrics(Ledger())
        self.encoded = threading.Event()
        self.store = FileStore("pictures", directory, ".jpg", StoreLimits(2**30, 1e6, 2**20), self.metrics.pictures)
        self.pictures = Pictures(PicturesConfig(**settings), self.store, self.metrics, None, self.encoded.set)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"streamdet_picture{name}", labels) or 0.0

    def wait_for_encoded(self, count: int) -> None:
        wait_until(lambda: self.count("_encode_seconds_count") >= count, f"{count} encoded pictures")

    def see(self, seq: int, *objects: LiveObject, scene: Scene | None = None, hidden: Hidden = NOTHING) -> None:
        self.pictures.offer("cam", frame_of(seq), scene or Scene(), hidden, objects)

    def fetch(self, info: PictureInfo | None) -> NDArray[Any]:
        assert info is not None
        jpeg = self.store.read(info.picture_id, PATIENCE_SECONDS)
        assert jpeg is not None
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert pixels is not None
        assert pixels.shape == (info.height, info.width, 3)
        return np.asarray(pixels)


@contextmanager
def studio_at(directory: Path, **settings: Any) -> Iterator[Studio]:
    studio = Studio(directory, **settings)
    with studio.store, studio.pictures:
        yield studio
    assert studio.pictures.error is None
    assert studio.store.error is None


def is_red(pixels: NDArray[Any]) -> bool:
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0)
    return bool(red > 180 and green < 80 and blue < 80)


def shows(pixels: NDArray[Any], info: PictureInfo, value: int = 40) -> None:
    """The object is inside its box, and nowhere else."""
    assert info.box is not None
    x1, y1, x2, y2 = (round(side) for side in info.box)
    assert is_red(pixels[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2])
    around = pixels.astype(int)
    around[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3] = value
    assert abs(around - value).max() < 25


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (91, 151)),
        ({"margin": 0}, (41, 101)),
        ({"size": "frame"}, SIZE),
        ({"margin": 4}, SIZE),
    ],
)  # fmt: skip
def test_the_picture_of_an_object_shows_it_inside_its_box(
    tmp_path: Path, settings: dict[str, Any], size: tuple[int, int]
) -> None:
    with studio_at(tmp_path, **settings) as studio:
        studio.see(7, live("o1", 7))
        studio.wait_for_encoded(1)
        info = studio.pictures.of_ended("cam", "o1")
        assert info is not None
        assert (info.frame_seq, (info.width, info.height)) == (7, size)
        shows(studio.fetch(info), info)
        assert "-cam-" in info.picture_id


def test_a_box_at_the_edge_and_a_huge_frame_are_cut_and_scaled_to_what_the_event_says(tmp_path: Path) -> None:
    with studio_at(tmp_path, size="frame") as studio:
        edge: Box = (6000.0, 3000.0, 8000.0, 4000.0)
        scene = Scene(edge, width=8000, height=4000)
        info = studio.pictures.of_frame("cam", frame_of(1), scene, NOTHING, edge)
        assert info is not None
        assert (info.width, info.height, info.box) == (3840, 1920, (2880.0, 1440.0, 3840.0, 1920.0))
        shows(studio.fetch(info), info)


def test_the_event_names_the_frame_and_the_box_that_the_picture_really_shows(tmp_path: Path) -> None:
    with studio_at(tmp_path) as studio:
        for seq in (1, 2, 3):
            box = (100.0 + 10 * seq, 60.0, 140.0 + 10 * seq, 160.0)
            studio.see(seq, live("o1", seq, box=box), scene=Scene(box))
            studio.wait_for_encoded(1)  # the first at once, the next ones not before half a second is over
        info = studio.pictures.of_ended("cam", "o1")
        assert info is not None
        assert info.frame_seq == 3
        shows(studio.fetch(info), info)


def test_views_that_are_no_better_cost_nothing_and_better_ones_at_most_two_a_second(tmp_path: Path) -> None:
    with studio_at(tmp_path) as studio:
        studio.see(1, live("o1", 1))
        studio.wait_for_encoded(1)
        began = time.monotonic()
        for seq in range(2, 60):
            studio.see(seq, live("o1", seq, best_seq=1))
        assert studio.pictures._better == {}
        for seq in range(60, 90):
            studio.see(seq, live("o1", seq))
        wait_until(lambda: not studio.pictures._better and not studio.pictures._improving)
        seconds = time.monotonic() - began
        assert seconds > 0.4
        info = studio.pictures.of_ended("cam", "o1")
        assert info is not None
        assert info.frame_seq == 89
        # Of all that were better, one; on a slow machine one every half second.
        assert 2 <= studio.count("_encode_seconds_count") <= 2 + 2 * seconds


def test_an_object_that_was_best_before_it_was_certain_has_the_next_view(tmp_path: Path) -> None:
    with studio_at(tmp_path) as studio:
        studio.see(1, live("o1", 1, is_confirmed=False))
        studio.see(2, live("o1", 2, best_seq=1))
        studio.see(3, live("o1", 3, best_seq=1))
        studio.see(4, live("o1", 3, best_seq=1))  # hidden in this frame
        info = studio.pictures.of_ended("cam", "o1")
        assert info is not None
        assert info.frame_seq == 2
        assert studio.pictures.of_ended("cam", "o2") is None
        assert studio.count("s_dropped_total", reason="busy") == 1


def test_an_object_that_ends_while_its_view_is_encoded_has_its_picture(tmp_path: Path) -> None:
    slow = Scene(waits=True)
    with studio_at(tmp_path) as studio:
        studio.see(1, live("o1", 1), scene=slow)
        wait_until(lambda: studio.pictures._improving)
        info = studio.pictures.of_ended("cam", "o1")
        slow.may_go_on.set()
        assert info is not None
        shows(studio.fetch(info), info)
        assert studio.pictures._best == {}


def test_a_view_that_is_forgotten_while_it_is_encoded_is_used_no_more(tmp_path: Path) -> None:
    slow = Scene(waits=True)
    with studio_at(tmp_path) as studio:
        studio.see(1, live("o1", 1), scene=slow)
        wait_until(lambda: studio.pictures._improving)
        studio.pictures.forget_stream("cam")
        info = studio.pictures.of_ended("cam", "o1")
        slow.may_go_on.set()
        assert info is None


def test_no_frame_is_kept_for_a_view_that_is_encoded(tmp_path: Path) -> None:
    with studio_at(tmp_path) as studio:
        for number in range(20):
            studio.see(1, live(f"o{number}", 1))
        studio.wait_for_encoded(20)
        wait_until(lambda: len(studio.pictures._best) == 20)
        assert studio.pictures._waiting_bytes() == 0
        assert studio.pictures._best_bytes == sum(len(best.jpeg) for best in studio.pictures._best.values())
        studio.pictures.forget_stream("cam")
        for kept in ("_best", "_better", "_known", "_next_at", "_best_bytes"):
            assert not getattr(studio.pictures, kept)


def test_an_alert_of_one_object_shows_it_and_one_of_several_the_frame(tmp_path: Path) -> None:
    with studio_at(tmp_path) as studio:
        info = studio.pictures.of_frame("cam", frame_of(5), Scene(), NOTHING, PLACE, (PLACE,))
        assert info is not None
        shows(studio.fetch(info), info)
        info = studio.pictures.of_frame("cam", frame_of(5), Scene(), NOTHING, None, (PLACE, PLACE))
        assert info is not None
        assert (info.box, info.width, info.height) == (None, *SIZE)
        assert is_red(studio.fetch(info)[70:150, 110:130])


def test_boxes_are_drawn_only_where_they_are_asked_for(tmp_path: Path) -> None:
    plain = Scene((0.0, 0.0, 0.0, 0.0))
    with studio_at(tmp_path / "with", boxes=True) as studio:
        info = studio.pictures.of_frame("cam", frame_of(5), plain, NOTHING, PLACE, (PLACE,))
        assert info is not None
        assert info.box is not None
        pixels, x1, y1 = studio.fetch(info), round(info.box[0]), round(info.box[1])
        assert pixels[y1 + 20, x1].max() > 150
        assert pixels[y1, x1 + 20].max() > 150
        assert abs(pixels[y1 + 20, x1 + 15].astype(int) - 40).max() < 15
    with studio_at(tmp_path / "without") as studio:
        info = studio.pictures.of_frame("cam", frame_of(5), plain, NOTHING, PLACE, (PLACE,))
        assert abs(studio.fetch(info).astype(int) - 40).max() < 15


def test_what_must_not_be_seen_is_not_seen_and_without_knowing_it_there_is_no_picture(tmp_path: Path) -> None:
    hidden = Hidden(((((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))),))
    with studio_at(tmp_path) as studio:
        info = studio.pictures.of_frame("cam", frame_of(5), Scene(), hidden, PLACE)
        assert studio.fetch(info).max() < 5
        studio.see(6, live("o1", 6), hidden=hidden)
        assert studio.fetch(studio.pictures.of_ended("cam", "o1")).max() < 5
        assert studio.pictures.of_frame("cam", frame_of(5), Scene(), None, PLACE) is None
        assert studio.count("s_dropped_total", reason="privacy") == 1


def test_a_picture_that_fails_costs_no_other_and_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with studio_at(tmp_path, in_events=True) as studio:
        lost = studio.pictures.of_frame("cam", frame_of(5), Broken(), NOTHING, PLACE)
        kept = studio.pictures.of_frame("cam", frame_of(5), Scene(), NOTHING, PLACE)
        assert lost is not None
        assert kept is not None
        assert studio.store.read(lost.picture_id, PATIENCE_SECONDS) is None
        shows(studio.fetch(kept), kept)
        assert "no such pixels" in caplog.text
        monkeypatch.setattr(module, "to_jpeg", lambda *_: None)
        large = studio.pictures.of_frame("cam", frame_of(5), Scene(), NOTHING, PLACE)
        assert large is not None
        assert studio.store.read(large.picture_id, PATIENCE_SECONDS) is None
        counts = [studio.count("s_dropped_total", reason=reason) for reason in ("error", "too_large")]
        assert counts == [1, 1]
        assert studio.pictures.take(lost.picture_id) == studio.pictures.take(large.picture_id) == []
        (jpeg,) = studio.pictures.take(kept.picture_id) or [b""]
        assert jpeg.startswith(b"\xff\xd8\xff")
        assert studio.pictures.take(kept.picture_id) is None


def test_while_encoding_is_slow_nothing_waits_and_the_newest_pictures_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING_BYTES", 10 * int(320 * 240 * 4.5))
    slow = Scene(waits=True)
    with studio_at(tmp_path) as studio:
        first = studio.pictures.of_frame("cam", frame_of(1), slow, NOTHING, PLACE)
        wait_until(lambda: not studio.pictures._due)
        began = time.monotonic()
        for seq in range(2, 32):
            studio.see(seq, live(f"o{seq}", seq), scene=Scene())
        infos = [studio.pictures.of_frame("cam", frame_of(seq), Scene(), NOTHING, PLACE) for seq in range(40, 60)]
        assert time.monotonic() - began < 2
        assert studio.pictures._better == {}, "pictures that events name come first"
        assert studio.count("s_dropped_total", reason="busy") == 10
        slow.may_go_on.set()
        for info in (first, *infos[10:]):
            shows(studio.fetch(info), cast("PictureInfo", info))
        assert infos[9] is not None
        assert studio.store.read(infos[9].picture_id, PATIENCE_SECONDS) is None


def test_jpegs_of_objects_that_go_on_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_JPEG_BYTES", 10_000)
    with studio_at(tmp_path) as studio:
        for number in range(30):
            studio.see(number + 1, live(f"o{number}", number + 1))
            studio.wait_for_encoded(number + 1)
        wait_until(lambda: "o29" in studio.pictures._best)
        assert studio.pictures._best_bytes <= 10_000
        assert studio.pictures.of_ended("cam", "o0") is None
        info = studio.pictures.of_ended("cam", "o29")
        shows(studio.fetch(info), cast("PictureInfo", info))


def test_pictures_that_are_due_at_a_stop_are_made(tmp_path: Path) -> None:
    slow = Scene(waits=True)
    with studio_at(tmp_path) as studio:
        infos = [studio.pictures.of_frame("cam", frame_of(1), slow, NOTHING, PLACE) for _ in range(5)]
        slow.may_go_on.set()
    for info in infos:
        shows(studio.fetch(info), cast("PictureInfo", info))
