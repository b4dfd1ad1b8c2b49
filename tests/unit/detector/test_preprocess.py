"""Frames are resized exactly as torchvision does it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from streamdet.detector.stages.preprocess import resize


def noise(height: int, width: int) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((540, 960), (90, 160)),  # rows are gathered
        ((540, 960), (201, 357)),  # the whole frame is read
        ((1520, 2688), (754, 1333)),
        ((540, 960), (270, 480)),  # exactly one half
        ((60, 80), (96, 128)),  # enlarged
        ((33, 97), (33, 97)),
        ((97, 33), (11, 5)),
        *itertools.product([(1, 1), (1, 7), (9, 2)], [(1, 1), (3, 320)]),
    ],
)
def test_equals_torch(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = noise(*source)
    wanted = functional.interpolate(image[None].float(), size=target, mode="bilinear", align_corners=False)[0]
    found = resize(image, target)
    assert found.shape == (*target, 3)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    # In noise, the smallest difference of where to look shows: torch computes places in float32, and whether it rounds
    # once or twice depends on the processor. So far from the edge, a place is known to half of a float's last digit.
    last_digit = float(np.spacing(np.float32(max(source))))
    torch.testing.assert_close(found.permute(2, 0, 1), wanted, rtol=0, atol=255 * last_digit / 2 + 2e-5)


def test_layout_in_memory_does_not_matter() -> None:
    image = noise(64, 80)
    assert torch.equal(resize(image, (20, 25)), resize(image.contiguous(), (20, 25)))
