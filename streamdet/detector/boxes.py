"""Arithmetic of boxes [..., 4], xyxy in pixels: torchvision's numbers from a third of its operations.

Both coordinates of a corner go through an operation together, and no constant is uploaded to the device.
"""

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
    first, last = boxes[..., :2], boxes[..., 2:]
    sizes = last - first
    moves, stretches = _unweighted(deltas, coder)
    centres = moves * sizes + (first + 0.5 * sizes)
    halves = 0.5 * (stretches.clamp(max=coder.bbox_xform_clip).exp() * sizes)
    return torch.cat((centres - halves, centres + halves), -1)


def _unweighted(deltas: Tensor, coder: BoxCoder) -> tuple[Tensor, Tensor]:
    x_weight, y_weight, width_weight, height_weight = coder.weights
    if x_weight != y_weight or width_weight != height_weight:
        message = "a box coder must weight both directions the same"
        raise ValueError(message)
    moves, stretches = deltas[..., :2], deltas[..., 2:]
    if x_weight == width_weight == 1:
        return moves, stretches
    return moves / x_weight, stretches / width_weight


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Cuts off what lies outside of a picture."""
    height, width = size
    clipped = boxes.clamp(min=0)
    clipped[..., 0::2].clamp_(max=width)
    clipped[..., 1::2].clamp_(max=height)
    return clipped


def at_least(boxes: Tensor, side_pixels: float) -> Tensor:
    """Whether width and height are at least `side_pixels`: bool [...]."""
    return (boxes[..., 2:] - boxes[..., :2] >= side_pixels).all(-1)


def scale(boxes: Tensor, from_size: Size, to_size: Size) -> Tensor:
    """Scales boxes from one size of the picture to another, and keeps them within, whatever the rounding."""
    scale_y, scale_x = (to / from_ for to, from_ in zip(to_size, from_size, strict=True))
    scaled = boxes.clone()
    scaled[..., 0::2] *= scale_x
    scaled[..., 1::2] *= scale_y
    return clip(scaled, to_size)


def float_not_above(value: float) -> float:
    """The largest float32 that is not above a value.

    torchvision compares float32 overlaps with a double. `overlap > value` in doubles is the same as
    `overlap > float_not_above(value)` in float32; with the nearest float32 it would not always be.
    """
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(-np.inf)))
