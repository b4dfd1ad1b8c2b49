"""RoIAlign from one table of all maps is torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from streamdet.detector.graph.align import AlignInGraph

INPUT_SIZE = (250, 380)  # of a batch of 256 x 384
SIZES = ((64, 96), (32, 48), (16, 24), (8, 12))


def some_boxes(frames: int, count: int) -> torch.Tensor:
    """Of all sizes, some of them at the edges, some empty."""
    generator = torch.Generator().manual_seed(0)
    height, width = INPUT_SIZE
    corners = torch.rand(frames, count, 2, 2, generator=generator) ** 2 * torch.tensor([width, height])
    boxes = torch.cat((corners.amin(2), corners.amax(2)), 2)
    boxes[:, 0] = torch.tensor([0.0, 0.0, width, height])
    boxes[:, 1] = torch.tensor([width - 1.0, height - 1.0, width, height])
    boxes[:, 2] = 0.0
    return boxes


@pytest.mark.parametrize(("levels", "samples"), [(4, 2), (3, 1), (1, 2)])
def test_equals_torchvision(levels: int, samples: int) -> None:
    sizes = SIZES[:levels]
    maps = [torch.randn(2, 5, *size) for size in sizes]
    boxes = some_boxes(2, 40)
    pool = MultiScaleRoIAlign([str(i) for i in range(levels)], 7, samples)
    wanted = pool({str(i): level for i, level in enumerate(maps)}, list(boxes), [INPUT_SIZE] * 2)
    found = AlignInGraph(pool, sizes, INPUT_SIZE, torch.device("cpu"))(maps, boxes)
    assert found.shape == (80, 5, 7, 7)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_adaptive_sampling_is_refused() -> None:
    pool = MultiScaleRoIAlign(["0"], 7, 0)
    with pytest.raises(NotImplementedError, match="0 samples"):
        AlignInGraph(pool, SIZES[:1], INPUT_SIZE, torch.device("cpu"))
