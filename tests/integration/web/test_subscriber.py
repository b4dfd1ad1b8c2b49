"""What the page's server reads from a daemon."""

from __future__ import annotations

import time

from streamdet.web.board import Board
from streamdet.web.pictures import Pictures
from streamdet.web.settings import Settings
from streamdet.web.subscriber import PictureSubscriber
from support.publishing import PERSON, frame_of, publisher_at
from support.waiting import wait_until

_STREAMS = [f"s{number}" for number in range(12)]


def test_browsers_hear_once_of_pictures_that_come_together() -> None:
    pictures, rung = Pictures(), [0]

    def ring() -> None:
        rung[0] += 1

    def has_all() -> bool:
        pictures.want(_STREAMS, time.monotonic())
        return rung[0] > 0 and len(pictures.newer(dict.fromkeys(_STREAMS, 0))) == len(_STREAMS)

    with publisher_at() as publisher:
        board = Board(publisher.endpoint)
        pictures.want(_STREAMS, time.monotonic())
        with PictureSubscriber(Settings(publisher.endpoint), board, pictures, ring):
            wait_until(lambda: pictures.want(_STREAMS, time.monotonic()) or all(map(publisher.is_watched, _STREAMS)))
            for name in _STREAMS:
                publisher.put_detections(frame_of(name, 1), [PERSON])
            wait_until(has_all)
    # Once is enough, but on a busy machine they may come in several parts.
    assert rung[0] < len(_STREAMS)
