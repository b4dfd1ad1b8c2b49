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


def fitted(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Width and height of a picture that is made smaller where one of them is larger than `max_side`, in pixels."""
    scale = min(1.0, max_side / max(width, height))
    return (width, height) if scale == 1.0 else (max(1, round(width * scale)), max(1, round(height * scale)))


@runtime_checkable
class ScalablePicture(Protocol):
    """A picture that is cheaper to get small than to make smaller."""

    def to_small_rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], contiguous."""


def small_rgb(picture: Picture, max_side: int) -> NDArray[np.uint8]:
    """A picture whose sides have `max_side` pixels at most, if it can be had so; else as it is.

    Returns:
        uint8 [height, width, 3].
    """
    size = fitted(picture.width, picture.height, max_side)
    if size != (picture.width, picture.height) and isinstance(picture, ScalablePicture):
        return picture.to_small_rgb(*size)
    return picture.to_rgb()


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
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment] # of the same dtype
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    for tried in (quality, *(lower for lower in _LOWER_QUALITIES if lower < quality)):
        _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, tried])
        if jpeg.size <= wire.MAX_MESSAGE_BYTES:
            return jpeg.tobytes()
    return None
