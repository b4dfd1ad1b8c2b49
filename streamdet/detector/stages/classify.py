"""Stage 6, classify: the box head says what each region shows, and where exactly it lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from streamdet.detector.engines import Dense


@dataclass(frozen=True)
class Classified:
    """What the box head says about every region of a batch.

    Attributes:
        scores: float32 [regions, classes], 0 to 1, each row sums to 1; class 0 is the background.
        deltas: float32 [regions, classes, 4]: how to move and stretch the proposal if it is of that class.
    """

    scores: Tensor
    deltas: Tensor


class Classify:
    """Runs the box head and its predictor."""

    def __init__(self, dense: Dense) -> None:
        self._dense = dense

    def __call__(self, regions: Tensor) -> Classified:
        """Classifies regions.

        Args:
            regions: float32 [regions, channels, 7, 7].
        """
        logits, deltas = self._dense.box_head(regions)
        return Classified(logits.softmax(-1), torch.unflatten(deltas, 1, (-1, 4)))
