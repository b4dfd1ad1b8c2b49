"""Stage 4, proposals: the region proposal network (RPN) says where an object may be, of whatever class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import batched_nms

from streamdet.detector.anchors import Anchors, make_anchors
from streamdet.detector.boxes import at_least, clip, decode
from streamdet.detector.engines import ProposingDense, RpnDense
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


class Propose(Protocol):
    """Says where an object may be; to be used by one thread at a time."""

    def __call__(self, batch: Batch, features: FeatureMaps) -> Proposals:
        """Finds the proposals of each frame.

        Args:
            batch: the frames.
            features: of them, made last.
        """

    def likeliest(self, batch: Batch, features: FeatureMaps) -> tuple[Tensor, Tensor]:
        """What the network says about the likeliest anchors of each frame, before suppression.

        Returns:
            logits float32 [batch, n] and deltas float32 [batch, n, 4].
        """


def make_propose(rpn: RegionProposalNetwork, dense: RpnDense | ProposingDense) -> Propose:
    """The stage for an engine.

    Args:
        rpn: gives anchors, thresholds and capacities.
        dense: proposes itself, or runs the network's head.
    """
    return ProposeInEngine(dense) if isinstance(dense, ProposingDense) else ProposeInTorch(rpn, dense)


class ProposeInEngine:
    """Takes the proposals that an engine made along with the feature maps; see `Propose`."""

    def __init__(self, dense: ProposingDense) -> None:
        self._dense = dense

    def __call__(self, batch: Batch, features: FeatureMaps) -> Proposals:  # noqa: ARG002 - of the protocol
        """See `Propose`."""
        found = self._dense.propose(list(features.values()))
        return Proposals([each.boxes for each in found], [each.objectness for each in found])

    def likeliest(self, batch: Batch, features: FeatureMaps) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - likewise
        """See `Propose`."""
        found = self._dense.propose(list(features.values()))
        return torch.stack([each.logits for each in found]), torch.stack([each.deltas for each in found])


class ProposeInTorch:
    """Does what torchvision's `RegionProposalNetwork.forward` does, with the same numbers in a shorter time.

    torchvision decodes every anchor, keeps the best of each level, and then those of them that are apart; here the best
    are chosen first, by the same objectness, and only as many are decoded and compared as it takes. Anchors of the
    last few batch sizes are remembered.
    """

    def __init__(self, rpn: RegionProposalNetwork, dense: RpnDense) -> None:
        self._dense = dense
        self._rpn = rpn
        self._anchors: dict[tuple[Size, ...], Anchors] = {}

    def __call__(self, batch: Batch, features: FeatureMaps) -> Proposals:
        """See `Propose`."""
        logits, moves, places, levels = self._likeliest(batch, features)
        frames = zip(logits.sigmoid(), moves, places, batch.input_sizes, strict=True)
        kept = [self._best_of_frame(*frame, levels) for frame in frames]
        return Proposals([boxes for boxes, _ in kept], [scores for _, scores in kept])

    def likeliest(self, batch: Batch, features: FeatureMaps) -> tuple[Tensor, Tensor]:
        """See `Propose`."""
        logits, moves, _, _ = self._likeliest(batch, features)
        return logits, moves

    def _likeliest(self, batch: Batch, features: FeatureMaps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of all levels logits [batch, n], deltas and anchors [batch, n, 4]; and the level of each, int64 [n]."""
        levels = list(features.values())
        objectness, deltas = self._dense.rpn_head(levels)
        anchors = self._anchors_of(batch, levels)
        best = [self._best_of_level(*level) for level in zip(objectness, deltas, anchors.of_levels, strict=True)]
        logits, moves, places = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
        return logits, moves, places, anchors.level_of_best

    def _anchors_of(self, batch: Batch, levels: list[Tensor]) -> Anchors:
        picture, *of_levels = ((t.shape[-2], t.shape[-1]) for t in (batch.tensor, *levels))
        key = (picture, *of_levels)
        if key not in self._anchors:
            if len(self._anchors) >= _ANCHOR_CACHE_SIZES:
                self._anchors.clear()
            self._anchors[key] = make_anchors(self._rpn, picture, of_levels, batch.tensor.device)
        return self._anchors[key]

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
