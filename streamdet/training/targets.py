"""What is known about training pictures, and which candidates (anchors, proposals) it makes right or wrong.

Everything is computed for a whole batch at once, on tensors whose empty places are filled up, so that a GPU is
kept busy and nothing waits for it.

Assignment and sampling are torchvision's own (Ren et al. 2015, arXiv:1506.01497), but for pictures in parts of
which some classes are not labelled, and for boxes that are to be ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection._utils import Matcher

NOTHING = -1
"""Label of a candidate from which nothing is learned."""

# Share of a candidate that must lie in an ignored box for it to be ignored; COCO's evaluator asks for
# the same intersection over the detection's area.
_IGNORE_OVERLAP = 0.5


@dataclass(frozen=True)
class Target:
    """What is known about one training picture; boxes are xyxy in pixels of the picture.

    Attributes:
        boxes: float32 [N, 4].
        labels: int64 [N], 1 to C.
        ignore: float32 [M, 4], areas in which nothing is learned.
        regions: float32 [R, 4], disjoint; together they hold every candidate's centre.
        labelled: bool [R, C + 1]; column 0 (background) is True.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    regions: Tensor
    labelled: Tensor


@dataclass(frozen=True)
class Targets:
    """The targets of a batch, filled up to the longest of each list; B pictures.

    Attributes:
        boxes: float32 [B, N, 4], N at least 1.
        labels: int64 [B, N], 0 where there is no box.
        ignore: float32 [B, M, 4], M at least 1; empty boxes ignore nothing.
        regions: float32 [B, R, 4]; empty regions hold nothing.
        labelled: bool [B, R, C + 1], True throughout for empty regions.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    regions: Tensor
    labelled: Tensor

    def to(self, device: torch.device) -> Targets:
        """The same on another device; does not wait where the memory is pinned."""
        return Targets(*(t.to(device, non_blocking=True) for t in self._tensors()))

    def pin_memory(self) -> Targets:
        """The same in memory from which a GPU can copy while the program goes on."""
        return Targets(*(t.pin_memory() for t in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


def pad_targets(targets: Sequence[Target]) -> Targets:
    """Puts the targets of a batch together."""

    def padded(tensors: list[Tensor], value: float = 0) -> Tensor:
        one = tensors[0].new_full((1, *tensors[0].shape[1:]), value)
        # A row more, so that there is at least one; it is taken away where another list has it.
        together = pad_sequence([*tensors, one], batch_first=True, padding_value=value)
        return together[:-1]

    return Targets(
        boxes=padded([t.boxes for t in targets]),
        labels=padded([t.labels for t in targets]),
        ignore=padded([t.ignore for t in targets]),
        regions=padded([t.regions for t in targets]),
        labelled=padded([t.labelled for t in targets], value=True),
    )


def _common(ones: Tensor, others: Tensor) -> Tensor:
    """Areas that boxes share: [B, K, 4] and [B, L, 4] give [B, K, L]."""
    x1, y1, x2, y2 = ones[:, :, None].unbind(-1)
    u1, v1, u2, v2 = others[:, None].unbind(-1)
    width = torch.minimum(x2, u2) - torch.maximum(x1, u1)
    height = torch.minimum(y2, v2) - torch.maximum(y1, v1)
    return width.clamp(min=0) * height.clamp(min=0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlaps(ones: Tensor, others: Tensor) -> Tensor:
    """Intersection over union, as `torchvision.ops.box_iou`, [B, K, L]."""
    common = _common(ones, others)
    return common / (_area(ones)[:, :, None] + _area(others)[:, None] - common).clamp(min=1e-9)


def match(targets: Targets, candidates: Tensor, matcher: Matcher) -> Tensor:
    """Which box each candidate stands for, as torchvision's matchers say.

    Args:
        targets: of B pictures.
        candidates: float32 [B or 1, K, 4].
        matcher: gives the thresholds, and whether each box gets the candidate that fits it best, however badly.

    Returns:
        int64 [B, K]: index of a box, or one of the matcher's two constants for none.
    """
    there = (targets.labels > 0)[:, :, None]
    overlap = _overlaps(targets.boxes, candidates).masked_fill(~there, -1.0)
    best, index = overlap.max(dim=1)
    found = index.masked_fill(best < matcher.high_threshold, matcher.BETWEEN_THRESHOLDS)
    found = found.masked_fill(best < matcher.low_threshold, matcher.BELOW_LOW_THRESHOLD)
    if matcher.allow_low_quality_matches:
        forced = ((overlap == overlap.amax(dim=2, keepdim=True)) & there).any(dim=1)
        found = torch.where(forced, index, found)
    return found


def ignored(candidates: Tensor, targets: Targets) -> Tensor:
    """Which candidates [B or 1, K, 4] lie mostly inside a box that is to be ignored; bool [B, K]."""
    inside = _common(targets.ignore, candidates).amax(dim=1)
    return inside / _area(candidates).clamp(min=1e-6) > _IGNORE_OVERLAP


def labelled_at(candidates: Tensor, targets: Targets) -> Tensor:
    """The classes labelled where the centre of each candidate [B or 1, K, 4] is: bool [B, K, C + 1].

    Where no region is, those that are labelled in all of them.
    """
    centre = ((candidates[..., :2] + candidates[..., 2:]) / 2)[:, :, None]
    regions = targets.regions[:, None]
    inside = ((centre >= regions[..., :2]) & (centre < regions[..., 2:])).all(dim=-1)  # [B, K, R]
    there = (inside.float() @ targets.labelled.float()) > 0
    return torch.where(inside.any(dim=-1, keepdim=True), there, targets.labelled.all(dim=1)[:, None])


def sample(labels: Tensor, count: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Chooses candidates at random, as torchvision's `BalancedPositiveNegativeSampler` does.

    Args:
        labels: int64 [B, K]: above 0 for objects, 0 for background, `NOTHING` for what is never chosen.
        count: at most so many in each picture.
        positive_share: at most this part of them are objects.

    Returns:
        int64 [B, S], which candidates, and bool [B, S], which of these count. S is fixed by the arguments.
    """
    chance = torch.rand(labels.shape, device=labels.device)
    size = labels.shape[1]
    positives, positive = chance.masked_fill(labels <= 0, -1.0).topk(min(int(count * positive_share), size))
    negatives, negative = chance.masked_fill(labels != 0, -1.0).topk(min(count, size))
    is_positive = positives >= 0
    room = count - is_positive.sum(dim=1, keepdim=True)
    is_negative = (negatives >= 0) & (torch.arange(negatives.shape[1], device=labels.device) < room)
    return torch.cat((positive, negative), 1), torch.cat((is_positive, is_negative), 1)
