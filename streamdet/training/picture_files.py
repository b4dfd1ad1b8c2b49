"""Reading pictures from files, and finding out what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from streamdet.errors import DataError

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
# Cameras append a few bytes of their own after the end marker.
_JPEG_TAIL_BYTES, _PNG_TAIL_BYTES = 4096, 64


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise DataError(msg) from None


def _decode(data: bytes) -> NDArray[np.uint8] | None:
    if not data:
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # a header that claims an absurd size
        return None
    # The stubs leave out None, which is what imdecode returns for what is no picture.
    return cast("NDArray[np.uint8] | None", image)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decodes a picture to RGB, uint8 [H, W, 3].

    Raises:
        DataError: the file is missing, truncated or no picture.
    """
    image = _decode(_read_bytes(path))
    if image is None:
        msg = f"{path} is not a picture"
        raise DataError(msg)
    return image


def _truncated(data: bytes) -> str | None:
    if data.startswith(_JPEG_START) and _JPEG_END not in data[-_JPEG_TAIL_BYTES:]:
        return "truncated JPEG"
    if data.startswith(_PNG_START) and _PNG_END not in data[-_PNG_TAIL_BYTES:]:
        return "truncated PNG"
    return None


def picture_problem(path: Path, width: int, height: int) -> tuple[str, str] | None:
    """What is wrong with a picture file: the kind of fault and an example's text; None when it is sound.

    A truncated file must be told by its missing end marker: decoders fill the rest with grey without a word.

    Args:
        path: the picture.
        width: pixels, as the annotation file says.
        height: pixels, as the annotation file says.
    """
    if not path.is_file():
        return "missing image", str(path)
    try:
        data = _read_bytes(path)
    except DataError as error:
        return "unreadable image", str(error)
    if kind := _truncated(data):
        return kind, str(path)
    image = _decode(data)
    if image is None:
        return "unreadable image", str(path)
    true_height, true_width = image.shape[:2]
    if (true_width, true_height) != (width, height):
        return "image of another size", f"{path} is {true_width}x{true_height}, annotated as {width}x{height}"
    return None
