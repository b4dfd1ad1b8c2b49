"""The arithmetic of boxes yields torchvision's very numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from streamdet.detector.boxes import at_least, clip, decode, scale


@pytest.fixture
def boxes() -> Tensor:
    """Some of them lie partly or wholly outside of a picture of 90 by 160 pixels, or are thin."""
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(500, 2, generator=random) * torch.tensor([300.0, 200.0]) - 70
    return torch.cat((corner, corner + torch.rand(500, 2, generator=random).pow(8) * 200), 1)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_boxes_are_moved_and_stretched(boxes: Tensor, weights: tuple[float, float, float, float]) -> None:
    coder = BoxCoder(weights)
    deltas = torch.randn(500, 4, generator=torch.Generator().manual_seed(1)) * 20
    expected = coder.decode_single(deltas, boxes)
    assert torch.equal(decode(deltas, boxes, coder), expected)
    assert torch.equal(decode(deltas.reshape(5, 100, 4), boxes.reshape(5, 100, 4), coder), expected.reshape(5, 100, 4))


def test_a_coder_that_weights_directions_differently_is_refused(boxes: Tensor) -> None:
    with pytest.raises(ValueError, match="both directions the same"):
        decode(boxes, boxes, BoxCoder((1.0, 2.0, 1.0, 1.0)))


def test_what_lies_outside_is_cut_off_and_the_argument_stays(boxes: Tensor) -> None:
    before = boxes.clone()
    assert torch.equal(clip(boxes, (90, 160)), clip_boxes_to_image(boxes, (90, 160)))
    assert torch.equal(boxes, before)


@pytest.mark.parametrize("side", [0.0, 0.001, 1.0])
def test_small_ones_are_found(boxes: Tensor, side: float) -> None:
    inside = clip(boxes, (90, 160))
    found = at_least(inside, side).nonzero().flatten()
    assert torch.equal(found, remove_small_boxes(inside, side))
    assert side == 0 or 0 < len(found) < len(boxes)


def test_boxes_are_scaled_to_another_size_of_the_picture(boxes: Tensor) -> None:
    inside = clip(boxes, (90, 160))
    factors = inside.new_tensor([1919 / 160, 1081 / 90] * 2)
    expected = clip_boxes_to_image(inside * factors, (1081, 1919))
    assert torch.equal(scale(inside, (90, 160), (1081, 1919)), expected)
