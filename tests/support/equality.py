"""When a detector's answers count as those of torchvision's own forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from streamdet.types import Detection

MARGIN = 1e-3
"""How far scores may differ; detectors to be compared run with thresholds lower by this."""

_BOX_PIXELS = 0.5
_OVERLAP = 0.5
_CLOSE_CALL = 0.005

Answers = dict[str, Tensor]
"""torchvision's for one frame: boxes [n, 4], scores [n], labels [n]."""


def assert_same(
    wanted: Sequence[Answers],
    found: Sequence[Sequence[Detection]],
    labels: Sequence[str],
    threshold: float,
) -> None:
    """Each detection has a counterpart of the same label, score within 1e-3, corners within half a pixel.

    Counterparts of what just passes the threshold may just fail it. And of two boxes that overlap by half, to the
    rounding of the last digit, either detector may suppress one: that is no difference either.
    """
    assert len(wanted) == len(found)
    for theirs, detections in zip(wanted, found, strict=True):
        ours = answers(detections, labels)
        assert (ours["scores"].diff() <= 0).all()
        same = equal(theirs, ours)
        for answer, others, matched in ((theirs, ours, same.any(1)), (ours, theirs, same.any(0))):
            alone = ~matched & (answer["scores"] >= threshold) & ~_may_be_suppressed(answer, others)
            assert not alone.any(), {key: value[alone] for key, value in answer.items()}


def answers(detections: Sequence[Detection], labels: Sequence[str]) -> Answers:
    """Detections in torchvision's form."""
    return {
        "boxes": torch.tensor([d.box for d in detections]).reshape(-1, 4),
        "scores": torch.tensor([d.score for d in detections]),
        "labels": torch.tensor([list(labels).index(d.label) for d in detections], dtype=torch.int64),
    }


def equal(theirs: Answers, ours: Answers) -> Tensor:
    """Which detections are counterparts: bool [of theirs, of ours]."""
    return (
        (theirs["labels"][:, None] == ours["labels"])
        & ((theirs["scores"][:, None] - ours["scores"]).abs() <= MARGIN)
        & ((theirs["boxes"][:, None] - ours["boxes"]).abs().amax(-1) <= _BOX_PIXELS)
    )


def _may_be_suppressed(answer: Answers, others: Answers) -> Tensor:
    """Which detections overlap one of the others, of the same label, just as much as is allowed."""
    near = (box_iou(answer["boxes"], others["boxes"]) - _OVERLAP).abs() < _CLOSE_CALL
    return (near & (answer["labels"][:, None] == others["labels"])).any(1)
