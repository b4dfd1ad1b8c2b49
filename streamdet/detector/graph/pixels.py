"""Frames as bytes in the layout of the decoder, and their conversion to RGB on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamdet.types import Picture

PixelLayout = Literal["rgb24", "yuv420p", "nv12"]
Matrix = Literal["bt601", "bt709", "bt2020", "smpte240m"]
Yuv = tuple[NDArray[np.uint8], PixelLayout, Matrix, bool]
"""The bytes of a frame in one dimension, and its `layout`, `matrix` and `full_range` as in `PixelFormat`."""

# How much V adds to red, U to blue, and U and V take from green, in 65536ths, for limited range (16 to 235 and 16 to
# 240); from the definitions of the standards, as FFmpeg's swscale rounds them.
_MATRICES: dict[Matrix, tuple[int, int, int, int]] = {
    "bt601": (104597, 132201, 25675, 53279),
    "bt709": (117489, 138438, 13975, 34925),
    "bt2020": (110013, 140363, 12277, 42626),
    "smpte240m": (117579, 136230, 16907, 35559),
}


@dataclass(frozen=True)
class PixelFormat:
    """The layout of the bytes of a frame; each step is made for one format.

    Attributes:
        height: pixels; even unless `layout` is "rgb24".
        width: pixels; even unless `layout` is "rgb24".
        layout: "rgb24" is [height, width, 3]. "yuv420p" is Y [height, width], U and V [height / 2, width / 2].
            "nv12" is Y [height, width], UV [height / 2, width / 2, 2].
        matrix: of the conversion from RGB to YUV.
        full_range: whether YUV uses 0 to 255.
    """

    height: int
    width: int
    layout: PixelLayout = "rgb24"
    matrix: Matrix = "bt601"
    full_range: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.height * self.width * 3 // (1 if self.layout == "rgb24" else 2)


@runtime_checkable
class YuvPicture(Protocol):
    """A picture that may be available as the decoder left it, which takes half the bytes of RGB and no conversion."""

    def to_yuv(self) -> Yuv | None:
        """The picture as it is; None where it is no YUV 4:2:0 of 8 bits, or stands askew."""


def read_bytes(picture: Picture) -> tuple[PixelFormat, NDArray[np.uint8]]:
    """A picture as bytes, and how to read them: as the decoder left it if it is available, else as RGB.

    Returns:
        the format, and uint8 [frame_bytes].
    """
    yuv = picture.to_yuv() if isinstance(picture, YuvPicture) else None
    if yuv is None:
        return PixelFormat(picture.height, picture.width), picture.to_rgb().reshape(-1)
    pixels, layout, matrix, full_range = yuv
    return PixelFormat(picture.height, picture.width, layout, matrix, full_range), pixels


def to_rgb(pixels: Tensor, pixel_format: PixelFormat) -> Tensor:
    """Reads a batch of frames.

    YUV is converted by the integer arithmetic of FFmpeg's swscale, so the result is bit for bit that of
    `Picture.to_rgb` where swscale uses it (x86, "yuv420p").

    Args:
        pixels: uint8 [batch, frame_bytes].
        pixel_format: how to read them.

    Returns:
        float32 [batch, 3, height, width], whole numbers from 0 to 255.
    """
    height, width = pixel_format.height, pixel_format.width
    if pixel_format.layout == "rgb24":
        return torch.unflatten(pixels, 1, (height, width, 3)).permute(0, 3, 1, 2).to(torch.float32)
    luma = torch.unflatten(pixels[:, : height * width], 1, (1, height, width)).to(torch.int32)
    chroma = pixels[:, height * width :]
    if pixel_format.layout == "nv12":
        chroma = torch.unflatten(chroma, 1, (height // 2, width // 2, 2)).permute(0, 3, 1, 2)
    else:
        chroma = torch.unflatten(chroma, 1, (2, height // 2, width // 2))
    return _to_rgb(luma, chroma.to(torch.int32), pixel_format).clamp(0, 255).to(torch.float32)


def _to_rgb(luma: Tensor, chroma: Tensor, pixel_format: PixelFormat) -> Tensor:
    """int32 [batch, 3, height, width], perhaps outside of 0 to 255; products keep their upper 16 bits."""
    full = pixel_format.full_range
    gain, black = (65536, 0) if full else (65536 * 255 // 219, 16)
    coefficients = _MATRICES[pixel_format.matrix]
    red, blue, green_u, green_v = (c * 224 // 255 if full else c for c in coefficients)
    u, v = ((chroma - 128) * 8).unbind(1)
    green = ((u * _rounded(-green_u)) >> 16) + ((v * _rounded(-green_v)) >> 16)
    colour = torch.stack(((v * _rounded(red)) >> 16, green, (u * _rounded(blue)) >> 16), 1)
    # Each sample of colour serves 2x2 pixels.
    colour = colour[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).flatten(4, 5).flatten(2, 3)
    return (((luma - black) * 8 * _rounded(gain)) >> 16) + colour


def _rounded(coefficient: int) -> int:
    """From 65536ths to 8192ths."""
    return (coefficient * 8192 + 32768) >> 16
