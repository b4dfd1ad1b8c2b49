"""Makes pixels square before detection, and takes the boxes back to pixels of the source frame.

Recorders and converters of analogue cameras send half of the width, or 704x576 for a picture of 4:3, and say in the
stream how wide a pixel is. Detectors have learned from square pixels: of people who look half as wide, one in nine is
lost, of cars one in three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from streamdet.types import Detection, DetectionSettings, Picture


@runtime_checkable
class AnamorphicPicture(Protocol):
    """A picture that knows the shape of its pixels."""

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel as a part of its height; 1.0 where it is square or unknown."""


class _Detector(Protocol):
    def detect(self, pictures: Sequence[Picture], settings: Sequence[DetectionSettings], /) -> list[list[Detection]]:
        """The detections of each picture."""


class SquarePicture:
    """A picture with square pixels, made larger along the side on which its pixels are long.

    Args:
        picture: with pixels of another shape.
        pixel_aspect: width of its pixels as a part of their height, above 0.
    """

    def __init__(self, picture: Picture, pixel_aspect: float) -> None:
        self._picture = picture
        self.width = round(picture.width * max(pixel_aspect, 1.0))
        self.height = round(picture.height * max(1 / pixel_aspect, 1.0))

    def to_rgb(self) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], contiguous."""
        size = self.width, self.height
        return np.asarray(cv2.resize(self._picture.to_rgb(), size, interpolation=cv2.INTER_LINEAR), np.uint8)

    def to_source(self, found: Detection) -> Detection:
        """The detection with its box in pixels of the picture as it came."""
        across, down = self._picture.width / self.width, self._picture.height / self.height
        x1, y1, x2, y2 = found.box
        return Detection(found.label, found.score, (x1 * across, y1 * down, x2 * across, y2 * down))


def detect_with_square_pixels(
    detector: _Detector, pictures: Sequence[Picture], settings: Sequence[DetectionSettings]
) -> list[list[Detection]]:
    """Detects in pictures whose pixels may have any shape.

    Args:
        detector: finds objects in square pixels.
        pictures: of any sizes.
        settings: what counts as a detection in each of them.

    Returns:
        for each picture its detections by falling score, boxes in its own pixels.

    Raises:
        MemoryError, DeviceLostError: as `FasterRcnnDetector.detect`.
    """
    squares = [_square(picture) for picture in pictures]
    shown = [square or picture for square, picture in zip(squares, pictures, strict=True)]
    results = detector.detect(shown, settings)
    return [
        found if square is None else [square.to_source(one) for one in found]
        for square, found in zip(squares, results, strict=True)
    ]


def square_size(picture: Picture) -> tuple[int, int]:
    """Height and width, in pixels, of a picture as the detector sees it."""
    seen = _square(picture) or picture
    return seen.height, seen.width


def _square(picture: Picture) -> SquarePicture | None:
    if not isinstance(picture, AnamorphicPicture) or picture.pixel_aspect == 1.0:
        return None
    return SquarePicture(picture, picture.pixel_aspect)
