"""Suppression with fixed shapes is greedy suppression."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms

from streamdet.detector.boxes import float_not_above
from streamdet.detector.graph.suppress import suppress, suppress_until_settled

OVERLAPS = (0.3, 0.5, 0.7)

# Few coordinates, so that overlaps are often equal to the threshold, boxes equal to each other, or empty.
side = st.integers(0, 10)
box = st.tuples(side, side, side, side, st.integers(0, 2), st.integers(0, 4), st.booleans())


def greedy(boxes: Tensor, scores: Tensor, classes: Tensor, valid: Tensor, overlap: float) -> list[int]:
    """What torchvision keeps."""
    there = valid.nonzero()[:, 0]
    kept = batched_nms(boxes[there], scores[there], classes[there], overlap)
    return sorted(there[kept].tolist())


@settings(max_examples=150)
@given(st.lists(box, max_size=40), st.sampled_from(OVERLAPS))
def test_equals_torchvision(rows: list[tuple[int, int, int, int, int, int, bool]], overlap: float) -> None:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 7)
    scores, order = table[:, 5].sort(descending=True, stable=True)
    table = table[order]
    boxes = torch.cat((table[:, :2], table[:, :2] + table[:, 2:4]), 1)
    classes, valid = table[:, 4].long(), table[:, 6] > 0
    keep, settled = suppress(boxes[None], classes[None], valid[None], overlap, rounds=len(rows))
    assert settled.all()
    assert keep[0].nonzero()[:, 0].tolist() == greedy(boxes, scores, classes, valid, overlap)


def crowd(groups: int, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(groups, count, 2, generator=generator) * 60
    boxes = torch.cat((corner, corner + 40 * torch.rand(groups, count, 2, generator=generator)), 2)
    classes = torch.randint(0, 3, (groups, count), generator=generator)
    return boxes, classes, torch.rand(groups, count, generator=generator) > 0.1


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_groups_leave_each_other_alone(overlap: float) -> None:
    boxes, classes, valid = crowd(4, 300, seed=1)
    keep, settled = suppress(boxes, classes, valid, overlap)
    assert settled.all()
    falling = torch.arange(300, 0, -1).float()
    for group in range(4):
        wanted = greedy(boxes[group], falling, classes[group], valid[group], overlap)
        assert keep[group].nonzero()[:, 0].tolist() == wanted
        assert 20 < len(wanted) <= int(valid[group].sum())


def test_all_in_one_place_leaves_the_first() -> None:
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(50, 1)[None]
    keep, settled = suppress(boxes, torch.zeros(1, 50, dtype=torch.int64), torch.ones(1, 50, dtype=torch.bool), 0.5)
    assert keep[0].nonzero()[:, 0].tolist() == [0]
    assert settled.all()


def test_nothing_valid_keeps_nothing() -> None:
    boxes, classes, valid = crowd(2, 30, seed=2)
    keep, settled = suppress(boxes, classes, valid & False, 0.5)
    assert not keep.any()
    assert settled.all()


def test_a_long_chain_says_that_it_has_not_settled() -> None:
    """Each box overlaps only its neighbours, so whether one stays depends on all before it."""
    start = torch.arange(40.0) * 3
    boxes = torch.stack((start, start * 0, start + 10, start * 0 + 10), 1)[None]
    classes, valid = torch.zeros(1, 40, dtype=torch.int64), torch.ones(1, 40, dtype=torch.bool)
    _, settled = suppress(boxes, classes, valid, 0.5, rounds=10)
    assert settled.tolist() == [False]
    keep, settled = suppress_until_settled(boxes, classes, valid, 0.5)
    assert settled.tolist() == [True]
    assert keep[0].tolist() == [True, False] * 20


@pytest.mark.parametrize("value", [0.3, 0.5, 0.7, 0.1, 0.9, 1 / 3])
def test_float_not_above(value: float) -> None:
    below = float_not_above(value)
    above = torch.nextafter(torch.tensor(below), torch.tensor(2.0)).item()
    assert below <= value < above
