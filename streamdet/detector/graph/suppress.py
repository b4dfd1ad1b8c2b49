"""Non-maximum suppression of many groups at once, with shapes that do not depend on the data.

Greedy suppression goes through the boxes of a group by falling score and keeps a box unless one kept before it
overlaps it too much. That is the only fixed point of

    keep[j] = valid[j] and not any(keep[i] and overlaps[i, j] for i < j)

since, by induction, keep[0] can have only one value, then keep[1], and so on. Repeating the right side from
keep = valid settles box j after as many rounds as the longest chain of suppressions that leads to it: one to ten
in practice, N in theory. So a fixed number of rounds is run, and the result includes whether it has settled.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from streamdet.detector.boxes import float_not_above

ROUNDS = 24
"""Rounds of `suppress` by default; twice the longest chain that was measured."""


class Suppress(Protocol):
    """Suppresses in many groups at once; see `suppress`."""

    def __call__(self, boxes: Tensor, classes: Tensor, valid: Tensor, overlap: float) -> tuple[Tensor, Tensor]:
        """Returns which boxes stay, and which groups have settled."""


def suppress(
    boxes: Tensor, classes: Tensor, valid: Tensor, overlap: float, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor]:
    """Suppresses, in plain torch.

    Args:
        boxes: float32 [groups, n, 4], xyxy, by falling score.
        classes: int64 [groups, n]; boxes of different classes do not suppress each other.
        valid: bool [groups, n]; other slots are empty.
        overlap: intersection over union above which the later of two boxes is suppressed.
        rounds: at most; n are always enough.

    Returns:
        bool [groups, n], which boxes stay, and bool [groups], whether the group has settled: if not, it needs more
        rounds.
    """
    earlier = _earlier(boxes, classes, overlap)
    before = keep = valid
    for _ in range(min(rounds, boxes.shape[1]) + 1):
        before, keep = keep, _round(earlier, valid, keep)
    return keep, (before == keep).all(1)


def suppress_until_settled(boxes: Tensor, classes: Tensor, valid: Tensor, overlap: float) -> tuple[Tensor, Tensor]:
    """Like `suppress`, with as many rounds as are needed; waits for the device after each."""
    earlier = _earlier(boxes, classes, overlap)
    before, keep = valid, _round(earlier, valid, valid)
    while not torch.equal(before, keep):
        before, keep = keep, _round(earlier, valid, keep)
    return keep, torch.ones_like(valid.any(1))


def _round(earlier: Tensor, valid: Tensor, keep: Tensor) -> Tensor:
    """One round: which boxes stay if `keep` is right; bool [groups, n]."""
    return valid & (torch.bmm(earlier, keep[:, :, None].to(earlier.dtype))[:, :, 0] == 0)


def _earlier(boxes: Tensor, classes: Tensor, overlap: float) -> Tensor:
    """1 where the box of the column, if it stays, suppresses that of the row: [groups, n, n]."""
    # Half the memory traffic on a GPU; sums of ones that are compared with 0 are exact enough in any precision.
    dtype = torch.float16 if boxes.device.type == "cuda" else torch.float32
    return (_overlaps(boxes, overlap) & (classes[:, :, None] == classes[:, None, :])).tril(-1).to(dtype)


def _overlaps(boxes: Tensor, overlap: float) -> Tensor:
    """Whether each two boxes overlap too much: bool [groups, n, n]; the formula is that of `torchvision.ops.nms`."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    area = (x2 - x1) * (y2 - y1)
    width = torch.minimum(x2[:, :, None], x2[:, None, :]) - torch.maximum(x1[:, :, None], x1[:, None, :])
    height = torch.minimum(y2[:, :, None], y2[:, None, :]) - torch.maximum(y1[:, :, None], y1[:, None, :])
    common = width.clamp(min=0) * height.clamp(min=0)
    return common / (area[:, :, None] + area[:, None, :] - common) > float_not_above(overlap)
