"""Reduces scored boxes to D slots of detections for each frame, in pixels of the frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads

from streamdet.detector.boxes import at_least, clip, decode, scale
from streamdet.detector.graph.propose import EMPTY, Slots
from streamdet.detector.graph.suppress import Suppress
from streamdet.detector.stages.preprocess import Size
from streamdet.detector.weights.thresholds import thresholds_of
from streamdet.types import DetectionSettings

_SMALLEST_SIDE_PIXELS = 0.01  # torchvision's
_LEAST_CANDIDATES = 1024
_BOUNDS = 3


@dataclass(frozen=True)
class Limits:
    """What counts as a detection in each frame of a batch, in tensors whose shape does not depend on the settings.

    Attributes:
        thresholds: float32 [batch, classes]: a score must be above it; 1 or more for classes that are not wanted.
        bounds: float32 [batch, 3]: height of a box as a part of the frame's height, at least and at most; detections
            at most.
    """

    thresholds: Tensor
    bounds: Tensor

    @classmethod
    def unpack(cls, packed: Tensor) -> Limits:
        """Of one tensor, float32 [batch, classes + 3]: one copy to the device."""
        return cls(packed[:, :-_BOUNDS], packed[:, -_BOUNDS:])


def packed_size(classes: int) -> int:
    """Numbers of one line of packed limits."""
    return classes + _BOUNDS


def packed_limits(classes: tuple[str, ...], settings: DetectionSettings) -> list[float]:
    """The line of `Limits.unpack` for one frame: its thresholds and bounds.

    Args:
        classes: name of each class, [0] is the background.
        settings: of the frame.
    """
    bounds = settings.min_size, settings.max_size, float(settings.max_detections)
    return [*thresholds_of(classes, settings), *bounds]


class FinishInGraph:
    """Does what torchvision's `RoIHeads.postprocess_detections` and `GeneralizedRCNNTransform.postprocess` do.

    M, the slots for boxes whose score passes, is the only capacity that torchvision does not have. The M best go
    into suppression, which goes by falling score, so boxes beyond M cannot change its result for these. The
    detections are torchvision's, unless more than M boxes pass and fewer than D of the M best stay; then the detections
    with the lowest scores are missing.

    Every frame has limits of its own, and neither the detections of another nor the time depend on them.

    Args:
        roi_heads: gives the box coder and the overlap above which two boxes of a class are one object.
        max_detections: D.
        input_size: height and width of the frames in the batch.
        frame_size: height and width of the original frames.
        suppress: non-maximum suppression.
        max_candidates: M; enough for hundreds of detections unless given.
    """

    def __init__(
        self,
        roi_heads: RoIHeads,
        max_detections: int,
        input_size: Size,
        frame_size: Size,
        suppress: Suppress,
        max_candidates: int | None = None,
    ) -> None:
        self._coder = roi_heads.box_coder
        self._overlap: float = roi_heads.nms_thresh
        self._max_detections = max_detections
        self._max_candidates = max_candidates or max(_LEAST_CANDIDATES, 2 * max_detections)
        self._input_size, self._frame_size = input_size, frame_size
        self._suppress = suppress

    def __call__(self, slots: Slots, logits: Tensor, deltas: Tensor, limits: Limits) -> Tensor:
        """Fills the slots.

        Args:
            slots: the proposals that were classified.
            logits: float32 [batch * P, classes]; class 0 is the background.
            deltas: float32 [batch * P, classes * 4].
            limits: of each frame; at most D detections.

        Returns:
            float32 [batch, D + 1, 6]. Rows 0 to D - 1: box (xyxy in pixels of the frame), score, class, by falling
            score; the score is below 0 in empty slots, which come last. Row D: 1 if suppression has settled (see
            `suppress`), else 0; how many boxes passed; zeros.
        """
        frames, per_frame = slots.objectness.shape
        classes = logits.shape[1]
        scores = logits.softmax(-1).reshape(frames, per_frame, classes)
        empty = (scores <= limits.thresholds[:, None]) | (slots.objectness < 0)[..., None]
        # The background is left out.
        scores = scores.masked_fill(empty, EMPTY)[..., 1:].flatten(1)
        passed = (scores >= 0).sum(1)
        scores, index = _best(scores, self._max_candidates)
        slot, class_ = index // (classes - 1), index % (classes - 1) + 1
        boxes = slots.boxes.gather(1, _four(slot))
        deltas = deltas.reshape(frames, per_frame * classes, 4).gather(1, _four(slot * classes + class_))
        boxes = clip(decode(deltas, boxes, self._coder), self._input_size)
        valid = (scores >= 0) & at_least(boxes, _SMALLEST_SIDE_PIXELS)
        keep, settled = self._suppress(boxes, class_, valid, self._overlap)
        smallest, largest, most = limits.bounds[:, None].unbind(-1)
        heights = (boxes[..., 3] - boxes[..., 1]) / self._input_size[0]
        keep = keep & (heights >= smallest) & (heights <= largest)
        return self._pack(boxes, scores.masked_fill(~keep, EMPTY), class_, most, settled & slots.settled, passed)

    def _pack(
        self, boxes: Tensor, scores: Tensor, classes: Tensor, most: Tensor, certain: Tensor, passed: Tensor
    ) -> Tensor:
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, : self._max_detections], order[:, : self._max_detections]
        scores = scores.masked_fill(torch.arange(scores.shape[1], device=scores.device) >= most, EMPTY)
        boxes = scale(boxes.gather(1, _four(order)), self._input_size, self._frame_size)
        rows = torch.cat((boxes, scores[..., None], classes.gather(1, order)[..., None].to(torch.float32)), -1)
        status = torch.stack((certain.to(torch.float32), passed.to(torch.float32)), -1)
        status = torch.nn.functional.pad(status, (0, 4))[:, None]
        return torch.cat((rows, status), 1)


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best of each row and their indices; equal ones in their original order, unlike `topk`."""
    _, index = scores.topk(min(count, scores.shape[1]), 1, sorted=False)
    index, _ = index.sort(1)
    scores, order = scores.gather(1, index).sort(dim=1, descending=True, stable=True)
    return scores, index.gather(1, order)


def _four(index: Tensor) -> Tensor:
    """The index for all four numbers of a box."""
    return index[..., None].expand(-1, -1, 4)
