from __future__ import annotations

import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet.config import StreamConfig
from streamdet.delivery.publisher import Publisher
from streamdet.delivery.snapshots import Look, Snapshots
from streamdet.types import Detection, Frame
from support.publishing import PERSON, metrics_of, publisher_at, status_of

_LEFT = [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]


class White:
    def __init__(self, width: int = 640, height: int = 360) -> None:
        self.width, self.height = width, height

    def to_rgb(self) -> NDArray[np.uint8]:
        return np.full((self.height, self.width, 3), 255, np.uint8)


class Broken(White):
    def to_rgb(self) -> NDArray[np.uint8]:
        message = "no memory for this frame"
        raise MemoryError(message)


class Asked:
    """Requests for pictures of the stream `a` of a publisher."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher, self.snapshots = publisher, publisher.snapshots
        self._seq = 0
        self._captured = time.monotonic()

    def ask(self, look: Look) -> SimpleQueue[bytes | None]:
        answers: SimpleQueue[bytes | None] = SimpleQueue()
        assert self.snapshots.fetch("a", look, answers.put)
        return answers

    def set(self, **keys: Any) -> None:
        self.publisher.set_stream(StreamConfig.model_validate({"name": "a", "url": "rtsp://192.0.2.5/x", **keys}))

    def show(self, *found: Detection, picture: White | None = None) -> None:
        """A frame one second later than the one before."""
        self._seq += 1
        self._captured += 1
        frame = Frame("a", self._seq, float(self._seq), time.time(), "daemon", self._captured, picture or White())
        self.publisher.put_detections(frame, found)

    def seen(self, look: Look, *found: Detection, picture: White | None = None) -> NDArray[Any]:
        answers = self.ask(look)
        self.show(*found, picture=picture)
        return pixels(answers.get(timeout=30))


def pixels(jpeg: bytes | None) -> NDArray[Any]:
    assert jpeg is not None
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(decoded)


@pytest.fixture
def asked() -> Iterator[Asked]:
    with publisher_at(metrics=metrics_of("a")) as publisher:
        publisher.put_status(status_of("a"))
        yield Asked(publisher)
    assert publisher.error is None


def test_the_next_frame_is_encoded_once_for_all_who_want_it_alike(asked: Asked) -> None:
    plain = [asked.ask(Look()) for _ in range(3)]
    small = asked.ask(Look(width=320))
    asked.show()
    jpegs = [answers.get(timeout=30) for answers in plain]
    assert all(jpeg is jpegs[0] for jpeg in jpegs)
    assert pixels(jpegs[0]).shape == (360, 640, 3)
    assert pixels(small.get(timeout=30)).shape == (180, 320, 3)


@pytest.mark.parametrize(("width", "shape"), [(None, (640, 360)), (90, (160, 90)), (3840, (640, 360))])
def test_a_width_makes_it_smaller_also_where_it_is_upright(
    asked: Asked, width: int | None, shape: tuple[int, int]
) -> None:
    assert asked.seen(Look(width), picture=White(360, 640)).shape[:2] == shape


def test_boxes_are_drawn_on_request(asked: Asked) -> None:
    assert asked.seen(Look(), PERSON).min() > 250
    assert asked.seen(Look(boxes=True), PERSON)[20, 10].min() < 100


def test_masks_and_blur_are_applied(asked: Asked) -> None:
    asked.set(masks=[{"name": "m", "polygon": _LEFT}])
    image = asked.seen(Look())
    assert image[:, :310].max() < 10
    assert image[:, 330:].min() > 245
    asked.set(blur=["person"])

    class Striped(White):
        def to_rgb(self) -> NDArray[np.uint8]:
            rgb = super().to_rgb()
            rgb[:, ::2] = 0
            return rgb

    image = asked.seen(Look(), PERSON, picture=Striped())
    assert image[30:50, 14:26].std() < 40
    assert image[200:300, 200:300].std() > 80


def test_where_it_is_not_known_what_to_hide_there_is_no_picture(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.delivery.privacy.Privacy.see", lambda *_: None)
    answers = asked.ask(Look())
    asked.show()
    asked.publisher.remove_stream("a")
    assert answers.get(timeout=30) is None


def test_a_picture_that_cannot_be_made_is_answered_and_the_next_one_is_made(asked: Asked) -> None:
    answers = asked.ask(Look())
    asked.show(picture=Broken())
    assert answers.get(timeout=30) is None
    assert asked.seen(Look()).shape == (360, 640, 3)


def test_frames_of_a_stream_are_far_enough_apart_and_none_is_kept_without_a_request() -> None:
    snapshots = Snapshots(80)
    assert not snapshots.is_due("a", 1.0)
    answers: SimpleQueue[bytes | None] = SimpleQueue()
    assert snapshots.fetch("a", Look(), answers.put)
    due = [snapshots.is_due("a", 1.0 + number / 32) for number in range(32)]
    assert due == [number % 8 == 0 for number in range(32)]
    assert not snapshots.is_due("b", 2.0)
    snapshots._budget.worked(5.0)
    assert not snapshots.is_due("a", 9.0)


def test_requests_that_wait_are_limited_and_can_be_given_up() -> None:
    snapshots = Snapshots(80)
    answers: SimpleQueue[bytes | None] = SimpleQueue()
    put = answers.put
    looks = [Look(width) for width in range(100, 110)]
    taken = [snapshots.fetch("a", look, put) for look in looks]
    assert (taken[0], taken[-1]) == (True, False)
    assert snapshots.fetch("a", looks[0], put)
    assert not all(snapshots.fetch("a", looks[0], put) for _ in range(300))
    for _ in range(400):
        for look in looks:
            snapshots.give_up("a", look, put)
    assert not snapshots.is_due("a", 1.0)
    assert answers.empty()
