"""Stage 4, proposals: the region proposal network (RPN) says where an object may be, of whatever class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import batched_nms

from streamdet.detector.boxes import at_least, clip, decode
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

    torchvision decodes every anchor, keeps the best of each level, and then those of them that are apart; here the best
    are chosen first, by the same objectness, and only as many are decoded and compared as it takes. Anchors of the
    last few batch sizes are remembered.
    """

    def __init__(self, rpn: RegionProposalNetwork, dense: Dense) -> None:
        self._dense = dense
        self._rpn = rpn
        self._anchors: dict[tuple[Size, ...], _Anchors] = {}

    def __call__(self, batch: Batch, features: FeatureMaps) -> Proposals:
        """Finds the proposals of each frame."""
        levels = list(features.values())
        objectness, deltas = self._dense.rpn_head(levels)
        anchors = self._anchors_of(batch, levels)
        best = [self._best_of_level(*level) for level in zip(objectness, deltas, anchors.of_levels, strict=True)]
        logits, moves, places = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
        frames = zip(logits.sigmoid(), moves, places, batch.input_sizes, strict=True)
        kept = [self._best_of_frame(*frame, anchors.level_of_best) for frame in frames]
        return Proposals([boxes for boxes, _ in kept], [scores for _, scores in kept])

    def _anchors_of(self, batch: Batch, levels: list[Tensor]) -> _Anchors:
        sizes = tuple((t.shape[-2], t.shape[-1]) for t in (batch.tensor, *levels))
        if sizes not in self._anchors:
            if len(self._anchors) >= _ANCHOR_CACHE_SIZES:
                self._anchors.clear()
            generator = self._rpn.anchor_generator
            anchors: Tensor = generator(ImageList(batch.tensor[:1], batch.input_sizes[:1]), levels)[0]
            shapes = generator.num_anchors_per_location()
            counts = [n * h * w for n, (h, w) in zip(shapes, sizes[1:], strict=True)]
            best = torch.tensor([min(self._rpn.pre_nms_top_n(), count) for count in counts], device=anchors.device)
            level_of_best = torch.arange(len(counts), device=anchors.device).repeat_interleave(best)
            self._anchors[sizes] = _Anchors(torch.split(anchors, counts), level_of_best)
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
        rows = torch.unflatten(deltas, 1, (shapes, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)
        logits, index = objectness.topk(min(self._rpn.pre_nms_top_n(), objectness.shape[1]), dim=1)
        shape = (*index.shape, 4)
        places = anchors.index_select(0, index.flatten()).reshape(shape)
        if frames > 1:
            index = index + torch.arange(0, len(rows), len(anchors), device=index.device)[:, None]
        return logits, rows.index_select(0, index.flatten()).reshape(shape), places

    def _best_of_frame(
        self, scores: Tensor, moves: Tensor, places: Tensor, size: Size, level: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of proposals of one frame and level that overlap much, keeps the likeliest.

        Args:
            scores: float32 [n].
            moves: float32 [n, 4], deltas.
            places: float32 [n, 4], anchors.
            size: of the frame in the batch.
            level: int64 [n].

        Returns:
            boxes and scores, by falling score.
        """
        # Stable, as in torchvision: of equal scores the finer level comes first.
        scores, order = scores.sort(descending=True, stable=True)
        wanted = self._rpn.post_nms_top_n()
        # A box is suppressed only by likelier ones, so what stays of the likeliest stays in any case. The work grows
        # with the square of their number, and often they suffice.
        some = max(int(wanted * _TRIED_PER_WANTED), 1)
        while True:
            tried = order[:some]
            boxes = clip(decode(moves.index_select(0, tried), places.index_select(0, tried), self._rpn.box_coder), size)
            likely = scores[:some]
            passes = at_least(boxes, self._rpn.min_size) & (likely >= self._rpn.score_thresh)
            if not passes.all():
                tried, boxes, likely = tried[passes], boxes[passes], likely[passes]
            keep = batched_nms(boxes, likely, level.index_select(0, tried), self._rpn.nms_thresh)
            if len(keep) >= wanted or some >= len(order):
                keep = keep[:wanted]
                return boxes.index_select(0, keep), likely.index_select(0, keep)
            some *= 2


@dataclass(frozen=True)
class _Anchors:
    """Boxes that proposals start from, of one size of batches.

    Attributes:
        of_levels: float32 [places * shapes, 4] each, xyxy in pixels of the batch.
        level_of_best: int64 [n], of the likeliest of all levels together.
    """

    of_levels: tuple[Tensor, ...]
    level_of_best: Tensor
