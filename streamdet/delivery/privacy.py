"""Hides what must not be seen in the pictures that leave the daemon: masks are black, objects of `blur` blurred.

A mask without labels and sizes hides an area, so it is black in every picture. One that is restricted to some objects
only removes their detections, and its area stays visible. Objects with a label in `blur` are replaced by a few blotches
of colour where they are detected and, for `track_max_lost_seconds` more, where they were last seen.

It fails closed: if it is not known what must be hidden, or it cannot be hidden, there is no picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from streamdet.analytics.tracker import overlap_of
from streamdet.config import StreamConfig
from streamdet.types import Box, Detection, Point

Region = tuple[int, int, int, int]
"""x1, y1, x2, y2 of a part of a frame, whole pixels."""

# The number of blotches along the shorter and, at most, the longer side of a blurred box.
_BLOTCHES = 3
_MAX_BLOTCHES = 6
# Boxes are not exact: the area around one, as a part of its sides, is hidden as well.
_AROUND = 0.1
# Detections without a track that overlap this much count as the same object.
_SAME_PLACE = 0.3
_MAX_PLACES = 1000
# Corners of polygons are given to OpenCV in sixteenths of a pixel.
_SHIFT = 4


@dataclass(frozen=True, slots=True)
class Hidden:
    """What must not be seen in one frame.

    Attributes:
        polygons: areas that are black, as fractions of the frame's width and height.
        boxes: objects that are blurred, in pixels of the frame.
        new_tracks: track ids of objects that are blurred from this frame on: earlier frames may show them.
    """

    polygons: tuple[tuple[Point, ...], ...] = ()
    boxes: tuple[Box, ...] = ()
    new_tracks: frozenset[int] = frozenset()

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to hide in this frame."""
        return bool(self.polygons or self.boxes)

    def cut(self, rgb: NDArray[np.uint8], region: Region | None = None) -> NDArray[np.uint8]:
        """The picture, or a part of it, without what must not be seen.

        Args:
            rgb: uint8 [height, width, 3] of the whole frame; not changed.
            region: part of the frame; None for the whole frame.
        """
        height, width = rgb.shape[:2]
        x1, y1, x2, y2 = region or (0, 0, width, height)
        piece = rgb[y1:y2, x1:x2]
        if not self.is_needed:
            return np.ascontiguousarray(piece)
        piece = piece.copy()
        self._blacken(piece, (x1, y1), (width, height))
        for box in self.boxes:
            _make_unrecognisable(piece, box, (x1, y1))
        if self.boxes:  # a blotch takes the colours around it
            self._blacken(piece, (x1, y1), (width, height))
        return piece

    def _blacken(self, piece: NDArray[np.uint8], origin: tuple[int, int], size: tuple[int, int]) -> None:
        for polygon in self.polygons:
            # The centre of the first pixel is at half a pixel.
            corners = np.array(polygon) * size - origin - 0.5
            points = [np.round(corners * (1 << _SHIFT)).astype(np.int32)]
            cv2.fillPoly(piece, points, (0, 0, 0), shift=_SHIFT)
            # OpenCV leaves out pixels along flat sides that are inside by up to a third of a pixel.
            cv2.polylines(piece, points, isClosed=True, color=(0, 0, 0), thickness=2, shift=_SHIFT)


NOTHING = Hidden()
"""Hides nothing."""


@dataclass(slots=True)
class _Stream:
    """What is hidden in the pictures of one stream.

    Attributes:
        blur: labels.
        polygons: black areas.
        max_lost_seconds: how long an object that is not detected stays blurred where it was last seen.
        tracked: by track id, the box of an object and when it is forgotten, in monotonic seconds.
        others: the same for detections without a track.
        size: width and height in pixels of the newest frame.
    """

    blur: frozenset[str]
    polygons: tuple[tuple[Point, ...], ...]
    max_lost_seconds: float
    tracked: dict[int, tuple[Box, float]] = field(default_factory=dict)
    others: list[tuple[Box, float]] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)

    def fit(self, size: tuple[int, int]) -> None:
        """Scales the boxes to frames of another size, which show the same."""
        if size != self.size and 0 not in self.size:
            x, y = size[0] / self.size[0], size[1] / self.size[1]
            self.tracked = {number: (_scaled(box, x, y), until) for number, (box, until) in self.tracked.items()}
            self.others = [(_scaled(box, x, y), until) for box, until in self.others]
        self.size = size


class Privacy:
    """Determines what must not be seen in each frame of all streams; for one thread."""

    def __init__(self) -> None:
        # None for a stream for which it is not known what must be hidden.
        self._streams: dict[str, _Stream | None] = {}

    def set_stream(self, config: StreamConfig) -> None:
        """Applies the masks and `blur` of a stream from the next frame on."""
        before = self._streams.get(config.name)
        self._streams[config.name] = None
        polygons = black_areas(config)
        stream = _Stream(frozenset(config.blur), polygons, config.track_max_lost_seconds)
        if before is not None:
            stream.tracked, stream.others, stream.size = before.tracked, before.others, before.size
        if config.blur or polygons:
            self._streams[config.name] = stream
        else:
            del self._streams[config.name]

    def remove_stream(self, stream: str) -> None:
        """Forgets a stream."""
        self._streams.pop(stream, None)

    def see(
        self,
        stream: str,
        detected: Sequence[Detection],
        published: Sequence[Detection],
        now: float,
        size: tuple[int, int],
    ) -> Hidden | None:
        """What must not be seen in the next frame; None if that is not known. To be called for each frame.

        Args:
            stream: name of the stream.
            detected: all detections of the frame, including those that a mask removes.
            published: those that are published, with their track ids.
            now: monotonic seconds at which the frame was captured.
            size: width and height of the frame in pixels.
        """
        if stream not in self._streams:
            return NOTHING
        of = self._streams[stream]
        if of is None:
            return None
        if not of.blur:
            return Hidden(of.polygons)
        of.fit(size)
        tracked = {track_id: place for track_id, place in of.tracked.items() if place[1] > now}
        others = [place for place in of.others if place[1] > now]
        until, before = now + of.max_lost_seconds, frozenset(tracked)
        known: set[Box] = set()
        for found in published:
            # The label of an object may change from one frame to the next; its track says that it is the same.
            if found.track_id is not None and (found.label in of.blur or found.track_id in tracked):
                tracked[found.track_id] = found.box, until
                known.add(found.box)
        boxes = [found.box for found in detected if found.label in of.blur and found.box not in known]
        others = [place for place in others if not any(overlap_of(place[0], box) > _SAME_PLACE for box in boxes)]
        others += [(box, until) for box in boxes]
        of.tracked, of.others = tracked, others[-_MAX_PLACES:]
        hidden = (*(box for box, _ in tracked.values()), *(box for box, _ in of.others))
        return Hidden(of.polygons, hidden, frozenset(tracked) - before)


def black_areas(config: StreamConfig) -> tuple[tuple[Point, ...], ...]:
    """The areas of a stream that are black in its pictures."""
    return tuple(
        mask.polygon for mask in config.masks if not mask.labels and mask.min_size == 0.0 and mask.max_size == 1.0
    )


def _make_unrecognisable(piece: NDArray[np.uint8], box: Box, origin: tuple[int, int]) -> None:
    """Replaces a box, with a margin, by a few blotches of its colours.

    Args:
        piece: uint8 [height, width, 3]; changed in place.
        box: in pixels of the frame.
        origin: of the piece in the frame.
    """
    height, width = piece.shape[:2]
    x1, y1, x2, y2 = box
    around_x, around_y = _AROUND * (x2 - x1), _AROUND * (y2 - y1)
    left, top = int(x1 - around_x - origin[0]), int(y1 - around_y - origin[1])
    right, bottom = int(x2 + around_x - origin[0]) + 1, int(y2 + around_y - origin[1]) + 1
    area = piece[max(top, 0) : max(min(bottom, height), 0), max(left, 0) : max(min(right, width), 0)]
    if area.size == 0:
        return
    # Of the same size as for the whole box, even if the piece contains only a part of it.
    side = max(min(right - left, bottom - top) / _BLOTCHES, max(right - left, bottom - top) / _MAX_BLOTCHES)
    columns, rows = max(round(area.shape[1] / side), 1), max(round(area.shape[0] / side), 1)
    few = cv2.resize(area, (columns, rows), interpolation=cv2.INTER_AREA)
    area[:] = cv2.resize(few, (area.shape[1], area.shape[0]), interpolation=cv2.INTER_NEAREST)


def _scaled(box: Box, x: float, y: float) -> Box:
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y
