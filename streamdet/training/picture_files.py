"""Reading pictures from files, and finding out what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from streamdet.errors import DataError

_JPEG_START, _PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# Markers in the compressed data of a JPEG: anything but a stuffed byte, a restart, or a filler.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_END = 0xD9
_JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise DataError(msg) from None


def _decode(data: bytes, flags: int = cv2.IMREAD_COLOR_RGB) -> NDArray[np.uint8] | None:
    if not data:
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # a header that claims an absurd size
        return None
    # The stubs leave out None, which is what imdecode returns for what is no picture.
    return cast("NDArray[np.uint8] | None", image)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decodes a picture to RGB, uint8 [H, W, 3], upright as its EXIF orientation says.

    Raises:
        DataError: the file is missing, truncated or no picture.
    """
    image = _decode(_read_bytes(path))
    if image is None:
        msg = f"{path} is not a picture"
        raise DataError(msg)
    return image


def find_picture(directory: Path, name: str) -> Path:
    """The file that an annotation file means, which may have been written on Windows, with backslashes.

    Args:
        directory: what the names are relative to.
        name: as it stands in the annotation file.
    """
    path = directory / name
    if "\\" in name and not path.is_file():
        slashed = directory / name.replace("\\", "/")
        return slashed if slashed.is_file() else path
    return path


class Turn(Enum):
    """How a picture that is stored on its side is made upright; the numbers are those of EXIF's orientation."""

    TRANSPOSED = 5
    CLOCKWISE = 6
    TRANSVERSED = 7
    COUNTER_CLOCKWISE = 8

    def upright(self, box: Sequence[float], width: float, height: float) -> list[float]:
        """A box of the stored picture in pixels of the upright one.

        Args:
            box: x, y, width, height.
            width: pixels of the stored picture.
            height: pixels of the stored picture.
        """
        x, y, w, h = box
        left = y if self in (Turn.TRANSPOSED, Turn.COUNTER_CLOCKWISE) else height - y - h
        top = x if self in (Turn.TRANSPOSED, Turn.CLOCKWISE) else width - x - w
        return [left, top, h, w]


@dataclass(frozen=True)
class PictureCheck:
    """What a look at a picture file has shown.

    Attributes:
        problem: the kind of fault and an example's text; None when it is sound.
        turn: how it was made upright, where the annotation file describes it as it is stored.
    """

    problem: tuple[str, str] | None = None
    turn: Turn | None = None


def check_picture(path: Path, width: int, height: int) -> PictureCheck:
    """Looks at a picture file.

    A truncated file shows by its missing end alone: decoders fill the rest with grey without a word.

    Args:
        path: the picture.
        width: pixels, as the annotation file says.
        height: pixels, as the annotation file says.
    """
    if not path.is_file():
        return PictureCheck(("missing image", _missing(path)))
    try:
        data = _read_bytes(path)
    except DataError as error:
        return PictureCheck(("unreadable image", str(error)))
    image = _decode(data)
    kind = _truncated(data)
    if kind or image is None:
        return PictureCheck((kind or "unreadable image", str(path)))
    true_height, true_width = image.shape[:2]
    if (true_width, true_height) == (width, height):
        return PictureCheck()
    if (true_width, true_height) == (height, width) and (turn := _turn_of(data, image)):
        return PictureCheck(turn=turn)
    text = f"{path} is {true_width}x{true_height}, annotated as {width}x{height}"
    return PictureCheck(("image of another size", text))


def _missing(path: Path) -> str:
    """The path of a file that is not there, with what may be meant."""
    if "\\" in path.name:
        return f"{path} (its name holds backslashes, and with slashes there is no such file either)"
    folder = path.parent
    if not folder.is_dir():
        return f"{path} (there is no folder {folder}; names are relative to --images)"
    for other in (path.with_suffix(path.suffix.swapcase()), path.with_suffix(".jpg"), path.with_suffix(".png")):
        if other.is_file():
            return f"{path} (there is {other.name})"
    return str(path)


def _turn_of(data: bytes, upright: NDArray[np.uint8]) -> Turn | None:
    """How the stored picture was made upright; None where it was not turned."""
    stored = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if stored is None:
        return None
    transposed = stored.transpose(1, 0, 2)
    turned = {
        Turn.TRANSPOSED: transposed,
        Turn.CLOCKWISE: transposed[:, ::-1],
        Turn.TRANSVERSED: transposed[::-1, ::-1],
        Turn.COUNTER_CLOCKWISE: transposed[::-1],
    }
    return next((turn for turn, image in turned.items() if np.array_equal(image, upright)), None)


def _truncated(data: bytes) -> str | None:
    """The kind of fault, where a JPEG or PNG ends before its end. What follows the end does not count."""
    if data.startswith(_JPEG_START) and not _has_jpeg_end(data):
        return "truncated JPEG"
    if data.startswith(_PNG_START) and not _has_png_end(data):
        return "truncated PNG"
    return None


def _has_jpeg_end(data: bytes) -> bool:
    """Goes from marker to marker (ITU T.81, annex B): a thumbnail or a film within or behind has ends of its own."""
    at = 2
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        kind, at = data[marker.start() + 1], marker.end()
        if kind == _JPEG_END:
            return True
        if kind not in _JPEG_WITHOUT_LENGTH:
            if at + 2 > len(data):
                return False
            # After a scan's header comes compressed data, in which the next marker is searched all the same.
            at += max(int.from_bytes(data[at : at + 2]), 2)
    return False


def _has_png_end(data: bytes) -> bool:
    """Goes from chunk to chunk: length, type, content, checksum."""
    at = len(_PNG_START)
    while at + 12 <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4])
    return False
