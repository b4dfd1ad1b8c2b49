"""Stage 1, input: pictures in the form that the decoder left them become RGB tensors on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamdet.types import Picture


def read_pictures(pictures: Sequence[Picture], device: torch.device) -> list[Tensor]:
    """Converts colour and moves the pixels to the device.

    Returns:
        uint8 [3, height, width] for each picture, RGB, 0 to 255; in memory the three colours of a pixel
        lie side by side, as the decoder wrote them.
    """
    return [_to_tensor(picture).to(device).permute(2, 0, 1) for picture in pictures]


def _to_tensor(picture: Picture) -> Tensor:
    rgb = picture.to_rgb()
    # torch warns about sharing read-only memory, so such a picture is copied.
    return torch.from_numpy(rgb) if rgb.flags.writeable else torch.tensor(rgb)
