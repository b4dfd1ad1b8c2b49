from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamdet.training.dataset import Sample
from streamdet.training.pictures import _place


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (2, 2)])
def test_a_strip_that_would_be_enlarged_to_gigabytes_is_not(shape: tuple[int, int]) -> None:
    """As in a mosaic, where a photograph may be scaled until it covers its place."""
    height, width = shape
    boxes = np.array([[0, 0, width, height]], np.float32)
    sample = Sample(1, Path("x.png"), boxes, np.array([1]), np.zeros((0, 4), np.float32), np.array([True, True]))
    canvas = np.zeros((320, 320, 3), np.uint8)
    image = np.full((height, width, 3), 255, np.uint8)
    piece = _place(canvas, image, sample, (0, 0, 320, 320), 1e5, np.random.default_rng(0))
    assert canvas.any()
    x1, y1, x2, y2 = piece.region
    assert 0 <= x1 < x2 <= 320
    assert 0 <= y1 < y2 <= 320
