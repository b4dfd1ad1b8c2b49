"""Picture files: how they are called, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from streamdet.errors import DataError

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
"""Of names in lower case."""


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Decodes a picture to RGB, uint8 [height, width, 3], upright as its EXIF orientation says.

    Raises:
        DataError: the file is missing or no picture.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"cannot read the picture {path}: {error.strerror}"
        raise DataError(msg) from None
    picture = decode_rgb(content)
    if picture is None:
        msg = f"{path} cannot be decoded as a picture"
        raise DataError(msg)
    return picture


def decode_rgb(content: bytes, flags: int = cv2.IMREAD_COLOR_RGB) -> NDArray[np.uint8] | None:
    """Decodes the content of a picture file to uint8 [height, width, 3]; None if it is none.

    Args:
        content: of the file.
        flags: OpenCV's, for RGB.
    """
    if not content:
        return None
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:  # a header that claims an absurd size
        return None
    # The stubs leave out None, which is what imdecode returns for what is no picture.
    return cast("NDArray[np.uint8] | None", picture)
