"""Makes small pictures of large ones for lists, and keeps the newest of them."""

from __future__ import annotations

from collections import OrderedDict

from streamdet.types import Box

WIDTH = 400
"""Of a small picture, in pixels; cards are at most this wide."""

_MAX_HEIGHT = 400
# Around a box there is as much again on each side, and never less than this many pixels in all.
_AROUND = 2.0
_LEAST_PIXELS = 120.0
_SHAPE = 4 / 3
_QUALITY = 80
_MAX_PIXELS = 64 << 20
_MAX_KEPT_BYTES = 16 << 20
# Start-of-frame markers, which have the size; those between them are of other tables.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})


class Thumbnails:
    """The newest small pictures, by what was asked for; belongs to the event loop."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, asked: str) -> bytes | None:
        """A small picture that is kept."""
        if asked not in self._kept:
            return None
        self._kept.move_to_end(asked)
        return self._kept[asked]

    def keep(self, asked: str, jpeg: bytes) -> None:
        """Keeps a small picture; the ones that were not asked for longest make room."""
        self._bytes += len(jpeg) - len(self._kept.get(asked, b""))
        self._kept[asked] = jpeg
        while self._bytes > _MAX_KEPT_BYTES:
            self._bytes -= len(self._kept.popitem(last=False)[1])


def size_of(jpeg: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG in pixels, from its head; None where it has none."""
    at = 2
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        if jpeg[at + 1] in _FRAMES:
            return int.from_bytes(jpeg[at + 7 : at + 9]), int.from_bytes(jpeg[at + 5 : at + 7])
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return None


def small(jpeg: bytes, box: Box | None = None) -> bytes | None:
    """A picture of at most `WIDTH` pixels; itself where it is small already, None where it cannot be read.

    Args:
        jpeg: the picture.
        box: of the object in it, in pixels; the small picture shows it and what is around it. None for all.
    """
    import cv2  # noqa: PLC0415 - a page at which no one looks back does without
    import numpy as np  # noqa: PLC0415

    size = size_of(jpeg)
    if size is None or 0 in size or size[0] * size[1] > _MAX_PIXELS:
        return None
    left, top, right, bottom = (0, 0, *size) if box is None else _around(box, size)
    scale = min(WIDTH / (right - left), _MAX_HEIGHT / (bottom - top), 1.0)
    if scale == 1 and (right - left, bottom - top) == size:
        return jpeg
    # The decoder itself makes it half, a quarter or an eighth as large, which is much faster.
    reduced = next((by for by in (8, 4, 2) if scale * by <= 1), 1)
    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags.get(reduced, cv2.IMREAD_REDUCED_COLOR_8))
    if pixels is None:
        return None
    part = pixels[top // reduced : -(-bottom // reduced), left // reduced : -(-right // reduced)]
    width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    shrunk = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", shrunk, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1])


def _around(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A part of a picture around a box, in pixels: as wide and high as cards are, or all where there is no more."""
    width, height = size
    x1, y1, x2, y2 = box
    high = max(_AROUND * max(y2 - y1, (x2 - x1) / _SHAPE), _LEAST_PIXELS)
    wide = min(high * _SHAPE, width)
    high = min(high, height)
    left = min(max((x1 + x2 - wide) / 2, 0), width - wide)
    top = min(max((y1 + y2 - high) / 2, 0), height - high)
    return int(left), int(top), min(int(left + wide) + 1, width), min(int(top + high) + 1, height)
