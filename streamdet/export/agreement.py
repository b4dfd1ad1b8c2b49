"""How far the detections of one detector are from those of another, on the same frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import tensor
from torchvision.ops import box_iou

from streamdet.types import Detection

_SAME_OBJECT_OVERLAP = 0.5


@dataclass(frozen=True)
class Agreement:
    """What became of the detections of the original.

    Attributes:
        frames: that were looked at.
        detections: of the original.
        kept: how many of them the other has too: same label, overlap (IoU) of at least 0.5.
        added: detections of the other that the original does not have.
        score_difference: mean absolute difference of the scores of those kept; 0 to 1.
        box_difference_pixels: mean of the largest difference of a corner of those kept, in pixels of the frame.
    """

    frames: int
    detections: int
    kept: int
    added: int
    score_difference: float
    box_difference_pixels: float

    @property
    def kept_share(self) -> float:
        """Share of the original's detections that are kept, 0 to 1; 1 if there are none."""
        return self.kept / self.detections if self.detections else 1.0


def compare(original: Sequence[list[Detection]], other: Sequence[list[Detection]]) -> Agreement:
    """Compares detections frame by frame; each counts once, pairs of largest overlap first."""
    pairs = [pair for mine, theirs in zip(original, other, strict=True) for pair in _pairs(mine, theirs)]
    scores = [abs(a.score - b.score) for a, b in pairs]
    boxes = [float(np.abs(np.subtract(a.box, b.box)).max()) for a, b in pairs]
    return Agreement(
        frames=len(original),
        detections=sum(map(len, original)),
        kept=len(pairs),
        added=sum(map(len, other)) - len(pairs),
        score_difference=float(np.mean(scores)) if pairs else 0.0,
        box_difference_pixels=float(np.mean(boxes)) if pairs else 0.0,
    )


def _pairs(mine: list[Detection], theirs: list[Detection]) -> list[tuple[Detection, Detection]]:
    if not mine or not theirs:
        return []
    overlaps = box_iou(tensor([d.box for d in mine]), tensor([d.box for d in theirs])).numpy()
    overlaps[np.not_equal.outer([d.label for d in mine], [d.label for d in theirs])] = 0
    pairs = []
    while overlaps.max() >= _SAME_OBJECT_OVERLAP:
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        pairs.append((mine[row], theirs[column]))
        overlaps[row, :] = overlaps[:, column] = 0
    return pairs
