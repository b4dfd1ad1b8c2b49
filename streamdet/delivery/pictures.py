"""Pictures of objects and alerts: the JPEG of exactly the frame that the boxes belong to, encoded in a separate thread.

The publisher's thread offers each frame, and requests a picture when an object ends or an alert is raised. It gets the
description for the event at once; the JPEG is encoded and written to disk afterwards, by this thread and that of the
store. While an object is live, the JPEG of its best view is kept in memory, and replaced by a better one at most twice
a second, so no frame has to be kept until the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from streamdet.analytics.objects import LiveObject
from streamdet.config import PicturesConfig
from streamdet.delivery.file_store import FileStore
from streamdet.delivery.jpeg import fitted, to_jpeg
from streamdet.delivery.privacy import Hidden, Region
from streamdet.monitoring.metrics import Metrics
from streamdet.security.limits import Share
from streamdet.types import Box, FrameInfo, Picture, PictureInfo
from streamdet.worker import Worker

_MAX_SIDE = 3840
# A better view of an object is encoded at most this often.
_PAUSE_SECONDS = 0.5
# Best views take a quarter of a core at most, after a burst; pictures that events name come before them.
_SHARE_OF_BEST = 0.25
_BURST_OF_BEST_SECONDS = 1.0
# Frames that wait to be encoded, with their conversion to RGB, and JPEGs of objects that have not ended.
_MAX_WAITING_BYTES = 256 << 20
_BYTES_OF_A_PIXEL = 4.5
_MAX_JPEG_BYTES = 64 << 20
_MAX_DUE = 256
_MAX_DONE = 64
# At a stop, pictures that wait are encoded for this long.
_LAST_SECONDS = 1.0
_BOX_COLOUR = (255, 176, 0)


@dataclass(frozen=True, slots=True)
class View:
    """What a picture shows.

    Attributes:
        frame_seq: number of the frame.
        picture: the frame.
        hidden: what must not be seen in it.
        region: the part of the frame that is shown.
        box: of the object, in pixels of the frame; None if it is not of a single object.
        boxes: to be drawn, in pixels of the frame.
    """

    frame_seq: int
    picture: Picture
    hidden: Hidden
    region: Region
    box: Box | None
    boxes: tuple[Box, ...]

    @property
    def waiting_bytes(self) -> int:
        """The memory that it takes while it waits, in bytes."""
        return int(self.picture.width * self.picture.height * _BYTES_OF_A_PIXEL)

    def info(self, picture_id: str) -> PictureInfo:
        """The description of the picture for an event."""
        x1, y1, x2, y2 = self.region
        width, height = fitted(x2 - x1, y2 - y1, _MAX_SIDE)
        box = None
        if self.box is not None:
            across, down = width / (x2 - x1), height / (y2 - y1)
            left, top, right, bottom = self.box
            box = (
                _within((left - x1) * across, width),
                _within((top - y1) * down, height),
                _within((right - x1) * across, width),
                _within((bottom - y1) * down, height),
            )
        return PictureInfo(picture_id, self.frame_seq, width, height, box)

    def jpeg(self, quality: int) -> bytes | None:
        """The picture; None if it would be too large for one message."""
        piece = self.hidden.cut(self.picture.to_rgb(), self.region)
        if self.boxes:
            piece = drawn(piece, self.boxes, self.region)
        return to_jpeg(piece, _MAX_SIDE, quality)


@dataclass(frozen=True, slots=True)
class _Encoded:
    info: PictureInfo  # its id is empty
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class _Due:
    """A picture that an event names."""

    picture_id: str
    view: View


class Pictures(Worker):
    """Makes pictures, and passes them to the store.

    Its methods are called by the publisher's thread; none of them waits.

    Args:
        config: size, margin, quality, and whether boxes are drawn.
        store: keeps the pictures.
        metrics: counts dropped pictures and errors.
        on_error: called when the thread ends with an error.
        encoded: called when a picture can be taken with `take`.

    Attributes:
        store: the same.
        in_events: whether events carry their pictures.
    """

    join_timeout_seconds = 2.0

    def __init__(
        self,
        config: PicturesConfig,
        store: FileStore,
        metrics: Metrics,
        on_error: Callable[[Worker], None] | None = None,
        encoded: Callable[[], None] | None = None,
    ) -> None:
        super().__init__("pictures", on_error)
        self.store = store
        self.in_events = config.in_events
        self._config = config
        self._metrics = metrics
        self._encoded = encoded
        self._changed = threading.Condition()
        # Only for the publisher's thread: the objects that have a view, and their streams.
        self._known: dict[str, str] = {}
        self._due: dict[str, _Due] = {}  # by picture id, in the order in which they are encoded
        self._done: dict[str, bytes | None] = {}  # by picture id, where events carry them
        self._improving: tuple[str, View] | None = None
        self._better: dict[str, View] = {}  # by object id
        self._best: dict[str, _Encoded] = {}  # by object id
        self._best_bytes = 0
        self._next_at: dict[str, float] = {}  # by object id, when another view may be encoded
        self._budget = Share(_SHARE_OF_BEST, _BURST_OF_BEST_SECONDS)

    def offer(
        self, stream: str, frame: FrameInfo, picture: Picture, hidden: Hidden, objects: Iterable[LiveObject]
    ) -> None:
        """Queues a view of each object whose best view this frame is, or that has no view yet.

        Args:
            stream: name of the stream.
            frame: the frame.
            picture: its pixels.
            hidden: what must not be seen in it.
            objects: of the stream, including those that the frame does not show.
        """
        shown = [
            one
            for one in objects
            if one.is_confirmed
            and one.frame.seq == frame.seq
            and (one.best.frame_seq == frame.seq or one.object_id not in self._known)
        ]
        if not shown:
            return
        with self._changed:
            for one in shown:
                self._known[one.object_id] = stream
                self._better.pop(one.object_id, None)  # the newest comes last
                self._better[one.object_id] = self._view(frame, picture, hidden, one.box, (one.box,))
            lost = self._bound()
            self._changed.notify()
        self._lose(lost)

    def of_ended(self, stream: str, object_id: str) -> PictureInfo | None:
        """Stores the picture of an object that has ended; None if there is none.

        Args:
            stream: name of the stream.
            object_id: of the object.
        """
        with self._changed:
            best, better = self._pop(object_id)
            if better is None and self._improving is not None and self._improving[0] == object_id:
                better = self._improving[1]
        if better is not None:
            picture_id = self.store.promise(stream)
            self._append(_Due(picture_id, better))
            return better.info(picture_id)
        if best is not None:
            picture_id = self.store.promise(stream)
            self.store.keep(picture_id, best.jpeg)
            return replace(best.info, picture_id=picture_id, jpeg=best.jpeg if self.in_events else None)
        self._metrics.pictures.dropped("busy")
        return None

    def of_frame(
        self,
        stream: str,
        frame: FrameInfo,
        picture: Picture | None,
        hidden: Hidden | None,
        box: Box | None,
        boxes: Sequence[Box] = (),
    ) -> PictureInfo | None:
        """Queues a picture of the current frame; None if there can be none.

        Args:
            stream: name of the stream.
            frame: the frame.
            picture: its pixels; None if they were not kept, because too many frames waited.
            hidden: what must not be seen in it; None if that is not known.
            box: of the object of the alert; None for several or none.
            boxes: of all objects of the alert.
        """
        if picture is None or hidden is None:
            self._metrics.pictures.dropped("busy" if picture is None else "privacy")
            return None
        picture_id = self.store.promise(stream)
        view = self._view(frame, picture, hidden, box, boxes)
        self._append(_Due(picture_id, view))
        return view.info(picture_id)

    def forget(self, object_id: str) -> None:
        """Drops the views of an object that ends without an event, or whose views show what must be hidden now."""
        with self._changed:
            self._pop(object_id)
            if self._improving is not None and self._improving[0] == object_id:
                self._improving = None

    def forget_stream(self, stream: str) -> None:
        """Drops the views of all objects of a stream."""
        for object_id in [object_id for object_id, of in self._known.items() if of == stream]:
            self.forget(object_id)

    def take(self, picture_id: str) -> list[bytes] | None:
        """The third part of the message of an event with this picture: the JPEG, or nothing if it is lost.

        None while it is still being encoded.
        """
        with self._changed:
            if picture_id not in self._done:
                return None
            jpeg = self._done.pop(picture_id)
        return [] if jpeg is None else [jpeg]

    def wake(self) -> None:
        """Ends the wait of `run`."""
        with self._changed:
            self._changed.notify()

    def run(self) -> None:
        """Encodes until asked to stop; then only pictures that events name, for a second at most."""
        while not self.stopping:
            self._turn()
            self.beat()
        until = time.monotonic() + _LAST_SECONDS
        while self._due:
            due = self._next_due()
            if time.monotonic() < until:
                self._make(due)
            else:
                self._lose({due.picture_id: "shutdown"})

    def _turn(self) -> None:
        with self._changed:
            object_id, pause_seconds = self._next_better()
            if not self._due and not self.stopping and (object_id is None or pause_seconds > 0):
                self._changed.wait(None if object_id is None else pause_seconds)
                return
            better = None
            if not self._due and object_id is not None:
                better = self._better.pop(object_id)
                self._improving = object_id, better
                self._next_at[object_id] = time.monotonic() + _PAUSE_SECONDS
        if self._due:
            self._make(self._next_due())
        elif better is not None and object_id is not None:
            self._improve(object_id, better)

    def _next_due(self) -> _Due:
        with self._changed:
            return self._due.pop(next(iter(self._due)))

    def _next_better(self) -> tuple[str | None, float]:
        """The object of which a better view is encoded next, and in how many seconds that may be."""
        if not self._better:
            return None, 0.0
        object_id = min(self._better, key=lambda object_id: self._next_at.get(object_id, 0.0))
        pause_seconds = self._next_at.get(object_id, 0.0) - time.monotonic()
        return object_id, max(pause_seconds, self._budget.wait_seconds(), 0.0)

    def _improve(self, object_id: str, view: View) -> None:
        """Encodes a better view of an object that has not ended."""
        began = time.thread_time()
        jpeg = self._encode(view)
        self._budget.worked(time.thread_time() - began)
        with self._changed:
            self._improving = None
            if isinstance(jpeg, str):
                return  # the previous view stays
            if object_id not in self._next_at:
                return  # it has ended
            before = self._best.pop(object_id, None)
            self._best_bytes += len(jpeg) - (len(before.jpeg) if before else 0)
            self._best[object_id] = _Encoded(view.info(""), jpeg)
            while self._best_bytes > _MAX_JPEG_BYTES:
                oldest = next(iter(self._best))
                self._best_bytes -= len(self._best.pop(oldest).jpeg)

    def _make(self, due: _Due) -> None:
        """Encodes a picture that an event names, and passes it to the store."""
        jpeg = self._encode(due.view)
        if isinstance(jpeg, str):
            self._lose({due.picture_id: jpeg})
        else:
            self.store.keep(due.picture_id, jpeg)
            self._put_done(due.picture_id, jpeg)

    def _lose(self, lost: dict[str, str]) -> None:
        """Counts pictures that events name and that are dropped, by their ids, each with the reason."""
        for picture_id, reason in lost.items():
            self.store.lose(picture_id, reason)
            self._put_done(picture_id, None)

    def _put_done(self, picture_id: str, jpeg: bytes | None) -> None:
        if not self.in_events:
            return
        with self._changed:
            self._done[picture_id] = jpeg
            if len(self._done) > _MAX_DONE:  # objects that have ended do not wait for theirs
                del self._done[next(iter(self._done))]
        if self._encoded is not None:
            self._encoded()

    def _encode(self, view: View) -> bytes | str:
        """The JPEG, or the reason why it is dropped."""
        began = time.perf_counter()
        try:
            jpeg = view.jpeg(self._config.quality)
        except Exception as error:  # noqa: BLE001 - whatever it is: other pictures are to be made
            self._metrics.unexpected.report("pictures", error, "a picture is dropped")
            return "error"
        if jpeg is None:
            return "too_large"
        self._metrics.picture_encoded(time.perf_counter() - began)
        return jpeg

    def _view(self, frame: FrameInfo, picture: Picture, hidden: Hidden, box: Box | None, boxes: Sequence[Box]) -> View:
        size = picture.width, picture.height
        region = (
            (0, 0, *size) if box is None or self._config.size == "frame" else _around(box, self._config.margin, size)
        )
        return View(frame.seq, picture, hidden, region, box, tuple(boxes) if self._config.boxes else ())

    def _pop(self, object_id: str) -> tuple[_Encoded | None, View | None]:
        """Removes the views of an object: the best one that is encoded, and a better one that waits."""
        self._known.pop(object_id, None)
        self._next_at.pop(object_id, None)
        best, better = self._best.pop(object_id, None), self._better.pop(object_id, None)
        if best is not None:
            self._best_bytes -= len(best.jpeg)
        return best, better

    def _append(self, due: _Due) -> None:
        with self._changed:
            self._due[due.picture_id] = due
            lost = self._bound()
            self._changed.notify()
        self._lose(lost)

    def _bound(self) -> dict[str, str]:
        """Drops views that wait beyond the limit: best views before pictures that events name, the oldest first.

        Returns:
            The dropped pictures that events name, by their ids, each with the reason.
        """
        lost: dict[str, str] = {}
        while self._waiting_bytes() > _MAX_WAITING_BYTES or len(self._due) > _MAX_DUE:
            if self._better and len(self._due) <= _MAX_DUE:
                oldest = next(iter(self._better))
                del self._better[oldest]
                if oldest not in self._best:
                    self._known.pop(oldest, None)  # so that the next frame is taken
            elif len(self._due) > 1:
                lost[self._due.pop(next(iter(self._due))).picture_id] = "busy"
            else:
                break
        return lost

    def _waiting_bytes(self) -> int:
        views = [*self._better.values(), *(due.view for due in self._due.values())]
        return sum({id(view.picture): view.waiting_bytes for view in views}.values())


def _around(box: Box, margin: float, size: tuple[int, int]) -> Region:
    """The part of a frame around a box.

    Args:
        box: in pixels.
        margin: on each side, as a part of the longer side of the box.
        size: width and height of the frame in pixels.
    """
    x1, y1, x2, y2 = box
    around = margin * max(x2 - x1, y2 - y1)
    left, top = max(int(x1 - around), 0), max(int(y1 - around), 0)
    right, bottom = min(int(x2 + around) + 1, size[0]), min(int(y2 + around) + 1, size[1])
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _within(value: float, highest: int) -> float:
    return min(max(round(value, 2), 0.0), float(highest))


def drawn(piece: NDArray[np.uint8], boxes: Iterable[Box], region: Region) -> NDArray[np.uint8]:
    """The part of a frame with boxes drawn into it.

    Args:
        piece: uint8 [height, width, 3]; is not changed.
        boxes: in pixels of the frame.
        region: where the piece is in the frame.
    """
    piece = piece.copy()
    thickness = max(2, min(piece.shape[:2]) // 200)
    for x1, y1, x2, y2 in boxes:
        corners = [(round(x - region[0]), round(y - region[1])) for x, y in ((x1, y1), (x2, y2))]
        cv2.rectangle(piece, corners[0], corners[1], _BOX_COLOUR, thickness)
    return piece
