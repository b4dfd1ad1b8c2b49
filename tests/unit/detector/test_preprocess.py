"""Frames are resized exactly as torchvision does it, or to the nearest byte where that is exact enough."""

from __future__ import annotations

import itertools

import av
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from streamdet.capture.sources.picture import AvPicture
from streamdet.detector.pipeline import ArrayPicture
from streamdet.detector.stages.input import read_pictures, read_small
from streamdet.detector.stages.preprocess import Preprocess, resize


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
        ((2, 40_000), (1, 512)),  # more columns and rows than OpenCV's function takes
        ((40_000, 2), (512, 1)),
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


def test_pictures_that_are_small_already_make_the_same_batch() -> None:
    preprocess = Preprocess(GeneralizedRCNNTransform(96, 160, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), torch.device("cpu"))
    rgb = [noise(*size).permute(1, 2, 0).contiguous().numpy() for size in ((270, 480), (48, 64))]
    frames = [AvPicture(av.VideoFrame.from_ndarray(pixels, format="rgb24")) for pixels in rgb]
    sizes = [(picture.height, picture.width) for picture in frames]
    wanted = preprocess(read_pictures(frames, torch.device("cpu")))
    small = read_small(frames, [preprocess.input_size(size) for size in sizes])
    assert [tuple(image.shape) for image in small] == [(3, 90, 160), (3, 96, 128)]
    found = preprocess(small, sizes)
    assert (found.frame_sizes, found.input_sizes) == (wanted.frame_sizes, wanted.input_sizes)
    assert torch.equal(read_small([ArrayPicture(rgb[0])], [(90, 160)])[0].permute(1, 2, 0), torch.from_numpy(rgb[0]))
    # A pixel is rounded to a byte, and OpenCV weighs in steps of a 2048th.
    torch.testing.assert_close(found.tensor, wanted.tensor, rtol=0, atol=1.5 / 255 / 0.2)


def test_bytes_are_those_that_would_be_normalised() -> None:
    transform = GeneralizedRCNNTransform(96, 160, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    floats, to_bytes = (Preprocess(transform, torch.device("cpu"), to_bytes=kind) for kind in (False, True))
    # One has its size already; the other is resized.
    images, sizes = [noise(90, 160), noise(48, 64)], [(270, 480), (48, 64)]
    wanted, found = floats(images, sizes), to_bytes(images, sizes)
    assert (found.frame_sizes, found.input_sizes) == (wanted.frame_sizes, wanted.input_sizes)
    assert found.tensor.dtype == torch.uint8
    assert found.tensor.shape == wanted.tensor.shape
    assert found.tensor.permute(0, 2, 3, 1).is_contiguous()
    normalised = to_bytes.normalised(found)
    # The first is the same but for the mean below it, rounded to a byte, as all of the second.
    torch.testing.assert_close(normalised[0, :, :90], wanted.tensor[0, :, :90], rtol=0, atol=1e-6)
    torch.testing.assert_close(normalised, wanted.tensor, rtol=0, atol=0.5001 / 255 / 0.224)
    assert floats.normalised(wanted) is wanted.tensor


@pytest.mark.parametrize("size", [(90, 200), (1, 5000), (5000, 1), (1, 1)])
def test_bytes_fill_canvases_that_are_wider_than_any_frame(size: tuple[int, int]) -> None:
    # As with torchvision's own sizes, 800 and 1333: the canvas is a multiple of 32, the longest side is none.
    transform = GeneralizedRCNNTransform(96, 150, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    floats, to_bytes = (Preprocess(transform, torch.device("cpu"), to_bytes=kind) for kind in (False, True))
    images = [noise(*size)]
    found, wanted = to_bytes(images), floats(images)
    assert found.tensor.shape == wanted.tensor.shape
    torch.testing.assert_close(to_bytes.normalised(found), wanted.tensor, rtol=0, atol=0.5001 / 255 / 0.224)
