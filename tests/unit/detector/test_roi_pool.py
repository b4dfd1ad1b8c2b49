"""One look-up for all levels and frames pools what torchvision's loops over them pool."""

from __future__ import annotations

import torch
from torchvision.ops import MultiScaleRoIAlign

from streamdet.detector.stages.preprocess import Batch
from streamdet.detector.stages.proposals import Proposals
from streamdet.detector.stages.roi_pool import RoiPool, _table

SIZES = [(250, 380), (256, 190), (31, 384)]


def test_equals_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = {str(i): torch.randn(3, 16, 256 >> i + 2, 384 >> i + 2, generator=generator) for i in range(4)}
    levels = {name: level.contiguous(memory_format=torch.channels_last) for name, level in levels.items()}
    boxes = []
    for (height, width), count in zip(SIZES, (40, 0, 25), strict=True):
        corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([width, height])
        boxes.append(torch.cat((corners.amin(1), corners.amax(1)), 1))
    # Boxes of the whole frame, of a point, and along the edge.
    boxes[2] = torch.cat((boxes[2], torch.tensor([[0.0, 0, 384, 31], [5, 5, 5, 5], [380, 0, 384, 31]])))
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    wanted = pool(levels, boxes, SIZES)
    batch = Batch(torch.zeros(3, 3, 256, 384), SIZES, SIZES)
    features = {**levels, "pool": torch.zeros(3, 16, 4, 6)}
    found = RoiPool(pool)(batch, features, Proposals(boxes, []))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_no_proposals_are_no_error() -> None:
    levels = {"0": torch.zeros(1, 4, 8, 8), "1": torch.zeros(1, 4, 4, 4), "pool": torch.zeros(1, 4, 2, 2)}
    batch = Batch(torch.zeros(1, 3, 32, 32), [(32, 32)], [(32, 32)])
    pool = RoiPool(MultiScaleRoIAlign(["0", "1"], 7, 2))
    assert pool(batch, levels, Proposals([torch.zeros(0, 4)], [])).shape == (0, 4, 7, 7)


def test_maps_that_lie_one_behind_the_other_are_not_copied() -> None:
    memory = torch.arange(4 * 30, dtype=torch.float32)
    first, second, third = memory[:40].view(10, 4), memory[40:80].view(10, 4), memory[80:].view(10, 4)
    table = _table([first, second, third])
    assert table.data_ptr() == memory.data_ptr()
    assert torch.equal(table, memory.view(30, 4))
    for parts in ([first, third], [second, first], [first, second.clone()], [first, second[:, [0, 1, 2, 3]]]):
        assert torch.equal(_table(parts), torch.cat(parts))
