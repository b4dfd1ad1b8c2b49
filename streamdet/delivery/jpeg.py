"""Encodes JPEG pictures: previews, and those of objects and alerts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from streamdet import wire
from streamdet.types import Picture

# A picture that would be too large for one message is tried again with these qualities.
_LOWER_QUALITIES = (50, 20)
# How much smaller or larger than wanted a half of a picture may be.
_SMALLEST_PART, _LARGEST_PART = 0.92, 1.1


def fitted(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Width and height of a picture that is made smaller where one of them is larger than `max_side`, in pixels."""
    scale = min(1.0, max_side / max(width, height))
    return (width, height) if scale == 1.0 else (max(1, round(width * scale)), max(1, round(height * scale)))


def near_half(longer: int, side: int, max_side: int) -> int:
    """The half or the quarter of a picture's longer side if it is close to `side`, else `side`, in pixels.

    Other sizes take twice the time to make.

    Args:
        longer: the longer side of the picture.
        side: what is wanted.
        max_side: what it must not exceed.
    """
    for times in (2, 4):
        part, rest = divmod(longer, times)
        if not rest and part <= max_side and _SMALLEST_PART <= part / side <= _LARGEST_PART:
            return part
    return side


@runtime_checkable
class ScalablePicture(Protocol):
    """A picture that is cheaper to get small than to make smaller."""

    def to_small_bgr(self, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], contiguous, in the order of colours that OpenCV encodes."""


def picture_to_jpeg(picture: Picture, max_side: int, quality: int) -> bytes | None:
    """Encodes a whole picture, made smaller where it is larger; arguments and result as of `to_jpeg`."""
    if isinstance(picture, ScalablePicture):
        return _encoded(picture.to_small_bgr(*fitted(picture.width, picture.height, max_side)), quality)
    return to_jpeg(picture.to_rgb(), max_side, quality)


def to_jpeg(rgb: NDArray[np.uint8], max_side: int, quality: int) -> bytes | None:
    """Encodes a picture, made smaller where it is larger.

    Args:
        rgb: uint8 [height, width, 3].
        max_side: pixels; neither width nor height is larger afterwards, their ratio stays.
        quality: 1 to 100.

    Returns:
        The JPEG, with a lower quality where it would exceed `wire.MAX_MESSAGE_BYTES`; None where that is not enough.
    """
    height, width = rgb.shape[:2]
    size = fitted(width, height, max_side)
    if size != (width, height):
        rgb = _shrunk(rgb, size)
    return _encoded(np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), np.uint8), quality)


def _shrunk(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture made smaller to this width and height.

    The mean of two by two pixels takes OpenCV a fraction of the time of all other means, so it is taken as often as
    possible. What is left is less than a half, for which it is enough to sample between pixels.
    """
    width, height = size
    while not (rgb.shape[0] % 2 or rgb.shape[1] % 2) and rgb.shape[0] >= 2 * height and rgb.shape[1] >= 2 * width:
        half = (rgb.shape[1] // 2, rgb.shape[0] // 2)
        rgb = np.asarray(cv2.resize(rgb, half, interpolation=cv2.INTER_AREA), np.uint8)
    is_near = rgb.shape[0] < 2 * height and rgb.shape[1] < 2 * width
    interpolation = cv2.INTER_LINEAR if is_near else cv2.INTER_AREA
    return np.asarray(cv2.resize(rgb, size, interpolation=interpolation), np.uint8)


def _encoded(bgr: NDArray[np.uint8], quality: int) -> bytes | None:
    for tried in (quality, *(lower for lower in _LOWER_QUALITIES if lower < quality)):
        _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, tried])
        if jpeg.size <= wire.MAX_MESSAGE_BYTES:
            return jpeg.tobytes()
    return None
