"""Arithmetic of boxes [..., 4], xyxy in pixels; like torchvision's, but without uploading constants to the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from streamdet.detector.stages.preprocess import Size


def decode(deltas: Tensor, boxes: Tensor, coder: BoxCoder) -> Tensor:
    """Moves and stretches boxes, as `BoxCoder.decode_single` does.

    Args:
        deltas: float32 [..., 4]: of the centre, in parts of the box, and of the logarithm of width and height.
        boxes: float32 [..., 4].
        coder: gives the weight of each delta, and how far a box may grow.
    """
    x_weight, y_weight, width_weight, height_weight = coder.weights
    x1, y1, x2, y2 = boxes.unbind(-1)
    dx, dy, dw, dh = deltas.unbind(-1)
    width, height = x2 - x1, y2 - y1
    centre_x = dx / x_weight * width + (x1 + 0.5 * width)
    centre_y = dy / y_weight * height + (y1 + 0.5 * height)
    half_width = 0.5 * (torch.exp((dw / width_weight).clamp(max=coder.bbox_xform_clip)) * width)
    half_height = 0.5 * (torch.exp((dh / height_weight).clamp(max=coder.bbox_xform_clip)) * height)
    corners = (centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height)
    return torch.stack(corners, -1)


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Cuts off what lies outside of a picture."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    x1, x2 = x1.clamp(0, width), x2.clamp(0, width)
    y1, y2 = y1.clamp(0, height), y2.clamp(0, height)
    return torch.stack((x1, y1, x2, y2), -1)


def at_least(boxes: Tensor, side_pixels: float) -> Tensor:
    """Whether width and height are at least `side_pixels`: bool [...]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1 >= side_pixels) & (y2 - y1 >= side_pixels)


def scale(boxes: Tensor, from_size: Size, to_size: Size) -> Tensor:
    """Scales boxes from one size of the picture to another, and keeps them within, whatever the rounding."""
    scale_y, scale_x = (to / from_ for to, from_ in zip(to_size, from_size, strict=True))
    x1, y1, x2, y2 = boxes.unbind(-1)
    return clip(torch.stack((x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y), -1), to_size)


def float_not_above(value: float) -> float:
    """The largest float32 that is not above a value.

    torchvision compares float32 overlaps with a double. `overlap > value` in doubles is the same as
    `overlap > float_not_above(value)` in float32; with the nearest float32 it would not always be.
    """
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(-np.inf)))
