"""Stage 4, proposals: the region proposal network (RPN) says where an object may be, of whatever class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from streamdet.detector.engines import Dense
from streamdet.detector.stages.features import FeatureMaps
from streamdet.detector.stages.preprocess import Batch, Size

_ANCHOR_CACHE_SIZES = 8
# How many of the likeliest proposals are tried first for each one that is wanted; twice as many where too few stay.
_TRIED_PER_WANTED = 1.5


@dataclass(frozen=True)
class Proposals:
    """Where an object may be, for each frame of a batch.

    Attributes:
        boxes: float32 [n, 4] each, xyxy in pixels of the batch, by falling objectness.
        objectness: float32 [n] each, 0 to 1.
    """

    boxes: list[Tensor]
    objectness: list[Tensor]


class Propose:
    """Does what torchvision's `RegionProposalNetwork.forward` does, with the same numbers in a shorter time.

    torchvision decodes every anchor and then keeps the best of each level; here the best are chosen first,
    by the same objectness, and only they are decoded. Anchors of the last few batch sizes are remembered.
    """

    def __init__(self, rpn: RegionProposalNetwork, dense: Dense) -> None:
        self._dense = dense
        self._rpn = rpn
        self._anchors: dict[tuple[Size, ...], list[Tensor]] = {}

    def __call__(self, batch: Batch, features: FeatureMaps) -> Proposals:
        """Finds the proposals of each frame."""
        levels = list(features.values())
        objectness, deltas = self._dense.rpn_head(levels)
        anchors = self._anchors_of(batch, levels)
        best = [self._best_of_level(*level) for level in zip(objectness, deltas, anchors, strict=True)]
        scores, moves, places = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
        scores = scores.sigmoid()
        boxes = self._rpn.box_coder.decode_single(moves.flatten(0, 1), places.flatten(0, 1)).reshape(places.shape)
        counts = torch.tensor([logits.shape[1] for logits, _, _ in best], device=scores.device)
        level = torch.repeat_interleave(torch.arange(len(best), device=scores.device), counts)
        kept = [self._suppress(*frame, level) for frame in zip(boxes, scores, batch.input_sizes, strict=True)]
        return Proposals([boxes for boxes, _ in kept], [scores for _, scores in kept])

    def _anchors_of(self, batch: Batch, levels: list[Tensor]) -> list[Tensor]:
        """Anchors of each level: float32 [places * shapes, 4], xyxy in pixels of the batch."""
        sizes = tuple((t.shape[-2], t.shape[-1]) for t in (batch.tensor, *levels))
        if sizes not in self._anchors:
            if len(self._anchors) >= _ANCHOR_CACHE_SIZES:
                self._anchors.clear()
            generator = self._rpn.anchor_generator
            anchors: Tensor = generator(ImageList(batch.tensor[:1], batch.input_sizes[:1]), levels)[0]
            shapes = generator.num_anchors_per_location()
            counts = [n * h * w for n, (h, w) in zip(shapes, sizes[1:], strict=True)]
            self._anchors[sizes] = list(torch.split(anchors, counts))
        return self._anchors[sizes]

    def _best_of_level(self, objectness: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Chooses the likeliest anchors of one level.

        Args:
            objectness: float32 [batch, shapes, height, width], logits.
            deltas: float32 [batch, shapes * 4, height, width].
            anchors: float32 [height * width * shapes, 4].

        Returns:
            logits float32 [batch, k], and deltas and anchors float32 [batch, k, 4], by falling objectness.
        """
        frames, shapes = objectness.shape[:2]
        objectness = objectness.permute(0, 2, 3, 1).reshape(frames, -1)
        deltas = torch.unflatten(deltas, 1, (shapes, 4)).permute(0, 3, 4, 1, 2).reshape(frames, -1, 4)
        scores, index = objectness.topk(min(self._rpn.pre_nms_top_n(), objectness.shape[1]), dim=1)
        deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4))
        return scores, deltas, anchors[index]

    def _suppress(self, boxes: Tensor, scores: Tensor, size: Size, level: Tensor) -> tuple[Tensor, Tensor]:
        """Of proposals of one frame and level that overlap much, keeps the likeliest."""
        boxes = clip_boxes_to_image(boxes, size)
        keep = remove_small_boxes(boxes, self._rpn.min_size)
        keep = keep[scores[keep] >= self._rpn.score_thresh]
        keep = keep[scores[keep].argsort(descending=True)]
        boxes, scores, level = boxes[keep], scores[keep], level[keep]
        wanted = self._rpn.post_nms_top_n()
        # A box is suppressed only by likelier ones, so what stays of the likeliest stays in any case. The work grows
        # with the square of their number, and often they suffice.
        some = max(int(wanted * _TRIED_PER_WANTED), 1)
        keep = self._apart(boxes[:some], scores[:some], level[:some])
        while len(keep) < wanted and some < len(boxes):
            some *= 2
            keep = self._apart(boxes[:some], scores[:some], level[:some])
        return boxes[keep[:wanted]], scores[keep[:wanted]]

    def _apart(self, boxes: Tensor, scores: Tensor, level: Tensor) -> Tensor:
        keep: Tensor = batched_nms(boxes, scores, level, self._rpn.nms_thresh)
        return keep
