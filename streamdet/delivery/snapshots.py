"""Requests for the newest frame of a stream as a picture: who waits for which, and how it is made.

Without requests a frame costs one look into an empty dictionary. A request waits for the next frame of its stream,
which is then kept and encoded by the thread of the previews, once for all requests that want it in the same way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamdet.delivery.jpeg import to_jpeg
from streamdet.delivery.pictures import drawn
from streamdet.delivery.privacy import Hidden
from streamdet.security.limits import Share
from streamdet.types import Box, Picture

MIN_WIDTH = 16
MAX_WIDTH = 3840
"""Of a picture, and of its height: larger frames are made smaller."""

# Frames of a stream are this far apart, however many clients ask.
_PAUSE_SECONDS = 0.25
# All of them take a quarter of a core at most, after a burst.
_SHARE_OF_ENCODING = 0.25
_BURST_SECONDS = 1.0
_MAX_LOOKS = 4
_MAX_WAITING = 256


@dataclass(frozen=True, slots=True)
class Look:
    """How a picture is wanted.

    Attributes:
        width: in pixels, at most that of the frame; None for that of the frame.
        boxes: whether the boxes of the detections are drawn.
    """

    width: int | None = None
    boxes: bool = False


Reply = Callable[[bytes | None], None]


class Snapshots:
    """Requests for pictures of the newest frames, by stream; for any thread, and none of its methods waits.

    Args:
        quality: of the JPEG, 1 to 100.
    """

    def __init__(self, quality: int) -> None:
        self._quality = quality
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[Look, list[Reply]]] = {}
        self._next_at: dict[str, float] = {}  # by stream, in monotonic seconds
        self._budget = Share(_SHARE_OF_ENCODING, _BURST_SECONDS)

    def fetch(self, stream: str, look: Look, reply: Reply) -> bool:
        """Has a picture made of the stream's next frame; False when too many requests wait.

        Args:
            stream: name of the stream.
            look: how it is wanted.
            reply: called once, by the thread that makes it or removes the stream, with the JPEG or None; must not wait.
        """
        with self._lock:
            of_stream = self._waiting.get(stream, {})
            count = sum(len(replies) for looks in self._waiting.values() for replies in looks.values())
            if count >= _MAX_WAITING or (look not in of_stream and len(of_stream) >= _MAX_LOOKS):
                return False
            of_stream.setdefault(look, []).append(reply)
            self._waiting[stream] = of_stream
        return True

    def give_up(self, stream: str, look: Look, reply: Reply) -> None:
        """Takes back a request whose client does not wait any longer."""
        with self._lock:
            replies = self._waiting.get(stream, {}).get(look, [])
            if reply in replies:
                replies.remove(reply)
            if not replies and stream in self._waiting:
                self._waiting[stream].pop(look, None)
                if not self._waiting[stream]:
                    del self._waiting[stream]

    def is_waiting(self, stream: str) -> bool:
        """Whether someone waits for a picture of a stream."""
        return stream in self._waiting

    def is_due(self, stream: str, now: float) -> bool:
        """Whether the picture of the stream's frame should be kept.

        Args:
            stream: name of the stream.
            now: monotonic seconds at which the frame was captured.
        """
        if stream not in self._waiting:
            return False
        with self._lock:
            if now < self._next_at.get(stream, now) or self._budget.wait_seconds() > 0:
                return False
            self._next_at[stream] = now + _PAUSE_SECONDS
        return True

    def make(self, stream: str, picture: Picture, hidden: Hidden, boxes: Sequence[Box]) -> None:
        """Encodes a frame for all requests that wait for one of its stream.

        Args:
            stream: name of the stream.
            picture: the frame.
            hidden: what must not be seen in it.
            boxes: of the detections, in pixels of the frame.
        """
        with self._lock:
            looks = self._waiting.pop(stream, {})
        began = time.thread_time()
        made: dict[Look, bytes | None] = {}
        try:
            plain = hidden.cut(picture.to_rgb()) if looks else None
            for look in looks:
                if plain is not None:
                    shown = drawn(plain, boxes, (0, 0, picture.width, picture.height)) if look.boxes else plain
                    made[look] = to_jpeg(shown, _max_side(look, picture.width, picture.height), self._quality)
        finally:
            for look, replies in looks.items():
                for reply in replies:
                    reply(made.get(look))
            with self._lock:
                self._budget.worked(time.thread_time() - began)

    def remove_stream(self, stream: str) -> None:
        """Answers the requests of a stream that has no frames any more."""
        with self._lock:
            looks = self._waiting.pop(stream, {})
            self._next_at.pop(stream, None)
        for replies in looks.values():
            for reply in replies:
                reply(None)


def _max_side(look: Look, width: int, height: int) -> int:
    """The longer side of a picture that is to have a width, in pixels."""
    if look.width is None or look.width >= width:
        return MAX_WIDTH
    return min(max(round(look.width * max(width, height) / width), 1), MAX_WIDTH)
