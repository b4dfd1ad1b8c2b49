"""Stage 1, input: pictures in the form that the decoder left them become RGB tensors on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamdet.detector.stages.preprocess import Size
from streamdet.types import Picture


@runtime_checkable
class SampledPicture(Protocol):
    """A picture that can be resized before its colours are converted, which then costs a tenth."""

    def to_sampled_rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], contiguous: between the two rows and columns of pixels that are next to a place."""


def read_pictures(pictures: Sequence[Picture], device: torch.device) -> list[Tensor]:
    """Converts colour and moves the pixels to the device.

    Returns:
        uint8 [3, height, width] for each picture, RGB, 0 to 255; in memory the three colours of a pixel
        lie side by side, as the decoder wrote them.
    """
    return [_to_tensor(picture).to(device).permute(2, 0, 1) for picture in pictures]


def read_small(pictures: Sequence[Picture], sizes: Sequence[Size]) -> list[Tensor]:
    """Reads pictures in the size that the network looks at, where a rounded byte is exact enough.

    They are sampled at the places at which `preprocess.resize` samples them.

    Args:
        pictures: of any sizes.
        sizes: height and width to make of each; others than a `SampledPicture` keep their own.

    Returns:
        uint8 [3, height, width] for each picture, on the CPU, otherwise as `read_pictures`.
    """
    return [_to_small(picture, size).permute(2, 0, 1) for picture, size in zip(pictures, sizes, strict=True)]


def _to_small(picture: Picture, size: Size) -> Tensor:
    if not isinstance(picture, SampledPicture):
        return _to_tensor(picture)
    height, width = size
    return torch.from_numpy(picture.to_sampled_rgb(width, height))


def _to_tensor(picture: Picture) -> Tensor:
    rgb = picture.to_rgb()
    # torch warns about sharing read-only memory, so such a picture is copied.
    return torch.from_numpy(rgb) if rgb.flags.writeable else torch.tensor(rgb)
