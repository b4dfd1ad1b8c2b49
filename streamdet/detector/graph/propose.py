"""Turns the output of the region proposal network into P slots of proposals for each frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.rpn import RegionProposalNetwork

from streamdet.detector.boxes import at_least, clip, decode
from streamdet.detector.graph.suppress import Suppress
from streamdet.detector.stages.preprocess import Size

EMPTY = -1.0
"""Score of an empty slot."""


@dataclass(frozen=True)
class Slots:
    """Proposals of a batch.

    Attributes:
        boxes: float32 [batch, P, 4], xyxy in pixels of the batch.
        objectness: float32 [batch, P], 0 to 1, falling; below 0 in empty slots, which come last.
        settled: bool [batch]: whether suppression has settled (see `suppress.py`).
    """

    boxes: Tensor
    objectness: Tensor
    settled: Tensor


class ProposeInGraph:
    """Does what torchvision's `RegionProposalNetwork.forward` does after its head.

    K, the slots of a level before suppression, and P, those of a frame after it, are torchvision's own
    `pre_nms_top_n` and `post_nms_top_n`: nothing is lost that torchvision would keep.

    Args:
        rpn: gives thresholds and capacities.
        anchors: of each level: float32 [height * width * shapes, 4], xyxy in pixels of the batch.
        input_size: height and width of the frames in the batch.
        suppress: non-maximum suppression.
    """

    def __init__(
        self, rpn: RegionProposalNetwork, anchors: Sequence[Tensor], input_size: Size, suppress: Suppress
    ) -> None:
        self._anchors = anchors
        self._input_size = input_size
        self._suppress = suppress
        self._coder = rpn.box_coder
        self._smallest_side_pixels: float = rpn.min_size
        self._threshold: float = rpn.score_thresh
        self._overlap: float = rpn.nms_thresh
        self._per_level = min(rpn.pre_nms_top_n(), max(len(a) for a in anchors))
        self._per_frame = min(rpn.post_nms_top_n(), self._per_level * len(anchors))

    def __call__(self, objectness: Sequence[Tensor], deltas: Sequence[Tensor]) -> Slots:
        """Fills the slots.

        Args:
            objectness: of each level: float32 [batch, shapes, height, width], logits.
            deltas: of each level: float32 [batch, shapes * 4, height, width].
        """
        best = [self._best_of_level(*level) for level in zip(objectness, deltas, self._anchors, strict=True)]
        scores = torch.stack([scores for scores, _ in best], 1)
        boxes = torch.stack([boxes for _, boxes in best], 1)
        frames, levels = scores.shape[:2]
        # A group is one level of one frame.
        grouped = scores.flatten(0, 1)
        one_class = torch.zeros_like(grouped, dtype=torch.int64)
        keep, settled = self._suppress(boxes.flatten(0, 1), one_class, grouped >= 0, self._overlap)
        scores = scores.flatten(1).masked_fill(~keep.reshape(frames, -1), EMPTY)
        # Stable, as in torchvision: of equal scores the finer level comes first.
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        order = order[:, : self._per_frame, None].expand(-1, -1, 4)
        return Slots(
            boxes.flatten(1, 2).gather(1, order),
            scores[:, : self._per_frame],
            settled.reshape(frames, levels).all(1),
        )

    def _best_of_level(self, objectness: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """K slots for the likeliest anchors of one level: scores [batch, K], falling, and boxes [batch, K, 4]."""
        frames, shapes = objectness.shape[:2]
        objectness = objectness.permute(0, 2, 3, 1).reshape(frames, -1)
        deltas = torch.unflatten(deltas, 1, (shapes, 4)).permute(0, 3, 4, 1, 2).reshape(frames, -1, 4)
        logits, index = objectness.topk(min(self._per_level, len(anchors)), 1)
        chosen = index[..., None].expand(-1, -1, 4)
        boxes = decode(deltas.gather(1, chosen), anchors.expand(frames, -1, -1).gather(1, chosen), self._coder)
        boxes = clip(boxes, self._input_size)
        scores = logits.sigmoid()
        scores = scores.masked_fill(~at_least(boxes, self._smallest_side_pixels) | (scores < self._threshold), EMPTY)
        missing = self._per_level - scores.shape[1]
        return functional.pad(scores, (0, missing), value=EMPTY), functional.pad(boxes, (0, 0, 0, missing))
