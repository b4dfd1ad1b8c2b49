"""Resizes frames as torchvision does, bilinear without smoothing, and exactly, but reads no more than it must."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# From this factor on, the two rows that a row of the result lies between are less than 4/5 of the frame.
_FACTOR_OF_GATHERING = 2.5


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a frame.

    On a CPU it is OpenCV that does it, several times faster than torch: `remap` at the very places that torch looks at.
    Its `resize` computes these more precisely than torch, a difference that deep networks make visible; and on bytes,
    both round the result, so they are converted before.

    Args:
        image: uint8 [3, height, width], 0 to 255; fastest if the colours of a pixel lie side by side in memory.
        size: height and width of the result.

    Returns:
        float32 [height, width, 3], contiguous, 0 to 255.
    """
    if image.device.type != "cpu":
        pixels = image[None].to(torch.float32)
        small = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        return small[0].permute(1, 2, 0).contiguous()
    places = _places((image.shape[1], image.shape[2]), size)
    rgb = image.permute(1, 2, 0).numpy()
    if places.rows is not None:
        rgb = rgb[places.rows]
    floats = rgb.astype(np.float32)
    resized = cv2.remap(floats, places.x, places.y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(resized)


@dataclass(frozen=True, eq=False)
class _Places:
    """Where to look for the pixels of the result.

    Attributes:
        rows: of the frame, to be gathered first; None if it is looked at as it is.
        x: float32 [height, width], from 0, in what was gathered.
        y: float32 [height, width].
    """

    rows: NDArray[np.int64] | None
    x: NDArray[np.float32]
    y: NDArray[np.float32]


@lru_cache(maxsize=16)
def _places(source: tuple[int, int], target: tuple[int, int]) -> _Places:
    (y, x), rows = (_axis(*sides) for sides in zip(source, target, strict=True)), None
    if source[0] >= _FACTOR_OF_GATHERING * target[0]:
        above = y.astype(np.int64)
        rows = np.stack((above, np.minimum(above + 1, source[0] - 1)), 1).reshape(-1)
        y = (y - above + 2 * np.arange(target[0])).astype(np.float32)
    height, width = target
    return _Places(rows, np.tile(x, (height, 1)), np.repeat(y[:, None], width, 1))


def _axis(source: int, target: int) -> NDArray[np.float32]:
    """Where the middle of each pixel of the result lies in the frame; rounded as torch does it, once.

    Args:
        source: pixels of the frame along this side.
        target: pixels of the result along this side.
    """
    scale = np.float64(np.float32(source) / np.float32(target))
    return np.maximum(scale * (np.arange(target) + 0.5) - 0.5, 0).astype(np.float32)
