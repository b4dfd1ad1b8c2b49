"""How far the detections of one detector are from those of another, on the same frames.

Two detections are of the same object if they have the same label and overlap by half or more; each counts once, pairs
of the largest overlap first.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamdet.types import Detection

Detections = list[list[Detection]]
"""Of each frame."""

SCORE_THRESHOLD = 0.05
"""Low, so that what just passes the threshold of one engine and fails that of another is still there."""

_COUNTED_SCORE = 0.5
# For candidates that compute in fp32, as for all tests of equality; CUDA devices sum in another order.
_EXACT = {"cpu": (1e-3, 0.5), "cuda": (5e-3, 1.0)}
_CLOSE_CALL = 0.005
# For the others, of detections with a score of 0.5 or more: how many the other must have, too, how far scores may
# differ in the mean, and how much the boxes must overlap in the mean. The embedded weights reach 0.98, 0.03 and 0.93.
_KEPT_SHARE = 0.9
_SCORE_DIFFERENCE = 0.06
_OVERLAP = 0.85
# Below this, weights find too little in the sample clip to say that another precision keeps what they find.
_FEWEST_DETECTIONS = 20

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


def measure_agreement(original: Sequence[list[Detection]], other: Sequence[list[Detection]]) -> Agreement:
    """Measures how far the detections of another detector are from those of the original, frame by frame."""
    pairs = [
        (mine[a], theirs[b]) for mine, theirs in zip(original, other, strict=True) for a, b in _pairs(mine, theirs)
    ]
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


def compare(wanted: Detections, found: Detections, device: str, *, exact: bool, few: bool = False) -> tuple[bool, str]:
    """Whether detections are those of the reference, and how far they are from them, in a line.

    Args:
        wanted: of the reference, for each picture, from a score of 0.05 on.
        found: of the candidate.
        device: "cpu" or another; sums differ more on others.
        exact: whether they must be equal but for rounding.
        few: that few detections are enough to compare.
    """
    pairs = [dict(_pairs(mine, theirs)) for mine, theirs in zip(wanted, found, strict=True)]
    return _equal(wanted, found, pairs, device) if exact else _similar(wanted, found, pairs, few=few)


def _equal(wanted: Detections, found: Detections, pairs: list[dict[int, int]], device: str) -> tuple[bool, str]:
    score, pixels = _EXACT[device.partition(":")[0]]
    most_score = most_pixels = 0.0
    alone = count = 0
    for mine, theirs, paired in zip(wanted, found, pairs, strict=True):
        for a, b in paired.items():
            most_score = max(most_score, abs(mine[a].score - theirs[b].score))
            corners = zip(mine[a].box, theirs[b].box, strict=True)
            most_pixels = max(most_pixels, *(abs(p - q) for p, q in corners))
        count += len(mine)
        left = [(mine[i], theirs) for i in range(len(mine)) if i not in paired]
        left += [(theirs[i], mine) for i in set(range(len(theirs))) - set(paired.values())]
        alone += sum(not _is_close_call(detection, others, score) for detection, others in left)
    text = f"score {most_score:.1g}, box {most_pixels:.1g} px at the most, of {count} detections"
    good = most_score <= score and most_pixels <= pixels and not alone
    return good, text + (f"; {alone} that the other does not have" if alone else "")


def _is_close_call(detection: Detection, others: Sequence[Detection], margin: float) -> bool:
    """Whether rounding decides if it is there: it just passes the threshold, or just escapes suppression."""
    if detection.score < SCORE_THRESHOLD + margin:
        return True
    overlaps = overlaps_of([detection], [other for other in others if other.label == detection.label])
    return bool((abs(overlaps - _SAME_OBJECT_OVERLAP) < _CLOSE_CALL).any())


def _similar(wanted: Detections, found: Detections, pairs: list[dict[int, int]], *, few: bool) -> tuple[bool, str]:
    scores, overlaps = [], []
    counted = kept = 0
    for mine, theirs, paired in zip(wanted, found, pairs, strict=True):
        counted += sum(d.score >= _COUNTED_SCORE for d in [*mine, *theirs])
        kept += sum(mine[a].score >= _COUNTED_SCORE for a in paired) + sum(
            theirs[b].score >= _COUNTED_SCORE for b in paired.values()
        )
        for a, b in paired.items():
            if max(mine[a].score, theirs[b].score) >= _COUNTED_SCORE:
                scores.append(abs(mine[a].score - theirs[b].score))
                overlaps.append(float(overlaps_of([mine[a]], [theirs[b]])[0, 0]))
    if counted < (2 if few else 2 * _FEWEST_DETECTIONS):
        return few, f"too few detections to compare: {counted // 2} with a score of {_COUNTED_SCORE}"
    score, box = (statistics.fmean(scores), statistics.fmean(overlaps)) if scores else (1.0, 0.0)
    share = kept / counted
    good = share >= _KEPT_SHARE and score <= _SCORE_DIFFERENCE and box >= _OVERLAP
    if few:  # of a handful, a single one may be far
        good = share >= _KEPT_SHARE - 0.2 and score <= 2 * _SCORE_DIFFERENCE and box >= _OVERLAP - 0.15
    return (
        good,
        f"{100 * share:.1f} % of {counted // 2} detections kept, score {score:.3f}, overlap {box:.3f} in the mean",
    )


def overlaps_of(mine: Sequence[Detection], theirs: Sequence[Detection]) -> NDArray[np.float64]:
    """Intersection over union of each box with each other one, 0 to 1: float64 [mine, theirs]."""
    a, b = (np.array([d.box for d in side]).reshape(-1, 4) for side in (mine, theirs))
    a = a[:, None]
    sides = np.maximum(np.minimum(a[..., 2:], b[:, 2:]) - np.maximum(a[..., :2], b[:, :2]), 0)
    shared = sides.prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1)
    overlaps: NDArray[np.float64] = shared / np.maximum(areas - shared, 1e-9)
    return overlaps


def _pairs(mine: Sequence[Detection], theirs: Sequence[Detection]) -> list[tuple[int, int]]:
    """Which detection of the one is which of the other."""
    if not mine or not theirs:
        return []
    overlaps = overlaps_of(mine, theirs)
    overlaps[np.not_equal.outer([d.label for d in mine], [d.label for d in theirs])] = 0
    pairs = []
    while overlaps.max() >= _SAME_OBJECT_OVERLAP:
        a, b = divmod(int(overlaps.argmax()), len(theirs))
        pairs.append((a, b))
        overlaps[a, :] = overlaps[:, b] = 0
    return pairs
