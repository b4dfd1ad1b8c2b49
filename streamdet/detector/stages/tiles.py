"""Cuts frames into overlapping tiles, looks at each of them as well as at the whole, and merges what is found.

The detector sees every picture at the same few hundred pixels, so that of a person far off in a frame of 4K little is
left. In a tile of a quarter of the frame everything is nearly twice as large.

What is found in the whole frame stays as it is. A detection in a tile is added to it, unless

- its box ends at a border of the tile that is none of the frame: the object goes on behind it, and is whole in the
  next tile, or seen in the whole frame if it is larger than the tiles overlap;
- it is one that is already there, in the whole frame or with a higher score in another tile, or a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from streamdet.detector.stages.square_pixels import AnamorphicPicture, detect_with_square_pixels
from streamdet.types import Box, Detection, DetectionSettings, Picture

if TYPE_CHECKING:
    from streamdet.detector.graph.pixels import Yuv

# Of neighbouring tiles, as a part of a tile's side: what is smaller is whole in one of them.
_OVERLAP = 0.2
# So close to the border of a tile, as a part of its side, an object is taken to go on behind it.
_BORDER = 0.02
# Boxes are of one object from this overlap on (intersection over union): those of the same label, and of any.
_SAME_LABEL = 0.5
_ANY_LABEL = 0.7
# So much of a box within a larger one of the same label, as a part of the smaller one, makes it a part of that.
_PART = 0.7


class _Detector(Protocol):
    def detect(self, pictures: Sequence[Picture], settings: Sequence[DetectionSettings], /) -> list[list[Detection]]:
        """The detections of each picture."""


class _Whole:
    """The frame that tiles are cut from; converted once for all of them."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.width, self.height = picture.width, picture.height
        self._rgb: NDArray[np.uint8] | None = None
        self._yuv: tuple[Yuv | None] | None = None

    def rgb(self) -> NDArray[np.uint8]:
        if self._rgb is None:
            self._rgb = self.picture.to_rgb()
        return self._rgb

    def yuv(self) -> Yuv | None:
        if self._yuv is None:
            to_yuv = getattr(self.picture, "to_yuv", None)
            self._yuv = (None if to_yuv is None else to_yuv(),)
        return self._yuv[0]


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of a frame, as a picture; converts the frame when it is asked for pixels.

    Attributes:
        whole: the frame.
        left: of its left edge in the frame, in pixels.
        top: of its upper edge.
        width: in pixels.
        height: in pixels.
    """

    whole: _Whole
    left: int
    top: int
    width: int
    height: int

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel as a part of its height."""
        picture = self.whole.picture
        return picture.pixel_aspect if isinstance(picture, AnamorphicPicture) else 1.0

    def to_rgb(self) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], contiguous."""
        return np.ascontiguousarray(self._part(self.whole.rgb()))

    def to_yuv(self) -> Yuv | None:
        """The tile as the decoder left it, as `YuvPicture`; None where the frame is not available so."""
        yuv = self.whole.yuv()
        if yuv is None or any(side % 2 for side in (self.left, self.top, self.width, self.height)):
            return None
        pixels, layout, matrix, full_range = yuv
        height, width = self.whole.height, self.whole.width
        luma, chroma = pixels[: height * width].reshape(height, width), pixels[height * width :]
        if layout == "nv12":
            planes = [chroma.reshape(height // 2, width // 2, 2)]
        else:
            planes = list(chroma.reshape(2, height // 2, width // 2))
        parts = [self._part(luma), *(self._part(plane, 2) for plane in planes)]
        return np.concatenate([part.reshape(-1) for part in parts]), layout, matrix, full_range

    def to_whole(self, found: Detection) -> Detection:
        """The detection with its box in pixels of the frame."""
        x1, y1, x2, y2 = found.box
        return replace(found, box=(x1 + self.left, y1 + self.top, x2 + self.left, y2 + self.top))

    def cuts(self, box: Box) -> bool:
        """Whether a box ends where the tile does and the frame does not.

        Args:
            box: in pixels of the tile.
        """
        x1, y1, x2, y2 = box
        across, down = _BORDER * self.width, _BORDER * self.height
        return (
            (self.left > 0 and x1 < across)
            or (self.top > 0 and y1 < down)
            or (self.left + self.width < self.whole.width and x2 > self.width - across)
            or (self.top + self.height < self.whole.height and y2 > self.height - down)
        )

    def _part(self, plane: NDArray[np.uint8], step: int = 1) -> NDArray[np.uint8]:
        rows = slice(self.top // step, (self.top + self.height) // step)
        return plane[rows, self.left // step : (self.left + self.width) // step]


def tiles_of(picture: Picture, per_side: int) -> list[Tile]:
    """Cuts a frame into tiles of one size, which overlap by a fifth.

    Args:
        picture: the frame.
        per_side: tiles along each of its sides; with 1 there are none.
    """
    if per_side == 1:
        return []
    whole = _Whole(picture)
    lefts, width = _cuts_of(whole.width, per_side)
    tops, height = _cuts_of(whole.height, per_side)
    return [Tile(whole, left, top, width, height) for top in tops for left in lefts]


def one_of_each_size(picture: Picture, per_side: int) -> Iterator[Picture]:
    """The frame and one of its tiles; all of these have the same size."""
    yield picture
    yield from tiles_of(picture, per_side)[:1]


def detect_with_tiles(
    detector: _Detector, pictures: Sequence[Picture], settings: Sequence[DetectionSettings], at_once: int
) -> list[list[Detection]]:
    """Detects in frames, and in the tiles of those whose settings ask for them.

    Args:
        detector: finds objects in pictures with square pixels.
        pictures: frames of any sizes and shapes of pixels.
        settings: what counts as a detection in each of them.
        at_once: how many pictures the detector gets at the same time at most, frames and tiles.

    Returns:
        for each frame its detections by falling score, boxes in its own pixels. Those that the whole frame shows are
        among them, unchanged; tiles add no more than `max_detections` allows.

    Raises:
        MemoryError, DeviceLostError: as `FasterRcnnDetector.detect`.
    """
    tiles = [tiles_of(picture, wanted.tiles) for picture, wanted in zip(pictures, settings, strict=True)]
    looks: list[Picture] = []
    wanted_of: list[DetectionSettings] = []
    for picture, wanted, cut in zip(pictures, settings, tiles, strict=True):
        looks += [picture, *cut]
        # How high a box is in the frame is known after the merge.
        wanted_of += [wanted, *[replace(wanted, min_size=0.0, max_size=1.0)] * len(cut)]
    results: list[list[Detection]] = []
    for begin in range(0, len(looks), at_once):
        part = slice(begin, begin + at_once)
        results += detect_with_square_pixels(detector, looks[part], wanted_of[part])
    rest = iter(results)
    return [
        merge(next(rest), [(tile, next(rest)) for tile in cut], wanted, picture.height) if cut else next(rest)
        for picture, wanted, cut in zip(pictures, settings, tiles, strict=True)
    ]


def merge(
    whole: Sequence[Detection],
    in_tiles: Iterable[tuple[Tile, Sequence[Detection]]],
    settings: DetectionSettings,
    height: int,
) -> list[Detection]:
    """The detections of a frame and of its tiles, each object once.

    Args:
        whole: of the frame.
        in_tiles: each tile with its own, boxes in its pixels.
        settings: of the frame.
        height: of the frame, in pixels.

    Returns:
        by falling score, boxes in pixels of the frame: all of `whole`, and what only tiles show.
    """
    added = [tile.to_whole(one) for tile, found in in_tiles for one in found if not tile.cuts(one.box)]
    merged = list(whole)
    for one in sorted(added, key=lambda one: -one.score):
        if len(merged) >= settings.max_detections:
            break
        has_size = settings.min_size <= (one.box[3] - one.box[1]) / height <= settings.max_size
        if has_size and not any(_is_known(one, other) for other in merged):
            merged.append(one)
    return sorted(merged, key=lambda one: -one.score)


def _is_known(one: Detection, other: Detection) -> bool:
    """Whether two detections are of the same object, or one is of a part of the other's."""
    (x1, y1, x2, y2), (left, top, right, bottom) = one.box, other.box
    common = max(min(x2, right) - max(x1, left), 0.0) * max(min(y2, bottom) - max(y1, top), 0.0)
    area, other_area = (x2 - x1) * (y2 - y1), (right - left) * (bottom - top)
    overlap = common / (area + other_area - common)
    if one.label != other.label:
        return overlap > _ANY_LABEL
    return overlap > _SAME_LABEL or common > _PART * min(area, other_area)


def _cuts_of(side: int, count: int) -> tuple[list[int], int]:
    """Where tiles begin along a side, and how long they are; even numbers wherever the side is one."""
    length = min(side, 2 * math.ceil(side / (count - (count - 1) * _OVERLAP) / 2))
    last = side - length
    return [*(2 * round(last * number / (count - 1) / 2) for number in range(count - 1)), last], length
