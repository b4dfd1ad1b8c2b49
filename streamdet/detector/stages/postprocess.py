"""Stage 7, postprocess: of many scored boxes, one for each object, in pixels of the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms

from streamdet.detector.boxes import at_least, clip, decode, scale
from streamdet.detector.stages.classify import Classified
from streamdet.detector.stages.preprocess import Batch, Size
from streamdet.detector.stages.proposals import Proposals
from streamdet.detector.weights.thresholds import thresholds_of
from streamdet.types import Detection, DetectionSettings

_SMALLEST_SIDE_PIXELS = 0.01  # torchvision's
_REMEMBERED_SETTINGS = 256


@dataclass(frozen=True)
class Candidates:
    """Boxes of one frame whose score passes; those of one object still overlap.

    Attributes:
        boxes: float32 [n, 4], xyxy in pixels of the batch, within the frame.
        scores: float32 [n], 0 to 1.
        classes: int64 [n], from 1.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor

    def __getitem__(self, keep: Tensor) -> Candidates:
        return Candidates(self.boxes[keep], self.scores[keep], self.classes[keep])


class Postprocess:
    """Does what torchvision's `RoIHeads.postprocess_detections` and `GeneralizedRCNNTransform.postprocess` do.

    Only boxes whose score passes are decoded. Suppression goes from the highest score down and by class, so
    thresholds and wanted labels may as well be applied before it. Each frame has settings of its own and is computed
    alone, so those of one frame change neither the detections of another nor the time that these take.

    Args:
        roi_heads: gives the box coder and the overlap above which two boxes of a class are one object.
        labels: name of each class, [0] is the background.
        device: of the scores.
    """

    def __init__(self, roi_heads: RoIHeads, labels: tuple[str, ...], device: torch.device) -> None:
        self._box_coder = roi_heads.box_coder
        self._overlap: float = roi_heads.nms_thresh
        self._labels = labels
        self._device = device
        # float32 [classes]; several threads may ask.
        self._thresholds = lru_cache(_REMEMBERED_SETTINGS)(self._make_thresholds)

    def __call__(
        self, batch: Batch, proposals: Proposals, classified: Classified, settings: Sequence[DetectionSettings]
    ) -> list[list[Detection]]:
        """Yields the detections of each frame, by falling score.

        Args:
            batch: the frames.
            proposals: of each frame.
            classified: the proposals of all frames.
            settings: of each frame.
        """
        candidates = self.candidates(batch, proposals, classified, settings)
        found = [self.select(*frame) for frame in zip(candidates, settings, batch.input_sizes, strict=True)]
        # float32 [n, 6]: box, score, class; one copy from the device for the whole batch.
        packed = torch.cat([torch.column_stack((c.boxes, c.scores, c.classes)) for c in found]).cpu()
        frames = torch.split(packed, [len(c.scores) for c in found])
        sizes = zip(batch.input_sizes, batch.frame_sizes, strict=True)
        return [self._detections(rows, *size) for rows, size in zip(frames, sizes, strict=True)]

    def candidates(
        self, batch: Batch, proposals: Proposals, classified: Classified, settings: Sequence[DetectionSettings]
    ) -> list[Candidates]:
        """Boxes of each frame whose score is above the threshold of their class, before suppression."""
        counts = [len(boxes) for boxes in proposals.boxes]
        scores = torch.split(classified.scores, counts)
        deltas = torch.split(classified.deltas, counts)
        thresholds = map(self._thresholds, settings)
        frames = zip(proposals.boxes, scores, deltas, thresholds, batch.input_sizes, strict=True)
        return [self._candidates_of_frame(*frame) for frame in frames]

    def select(self, candidates: Candidates, settings: DetectionSettings, size: Size) -> Candidates:
        """Non-maximum suppression: of boxes of one class that overlap much, keeps the one of highest score.

        Of these, the best that have the wanted size are kept.

        Args:
            candidates: of one frame.
            settings: of this frame.
            size: its height and width in the batch.
        """
        keep = batched_nms(candidates.boxes, candidates.scores, candidates.classes, self._overlap)
        if settings.min_size > 0 or settings.max_size < 1:
            boxes = candidates.boxes[keep]
            heights = (boxes[:, 3] - boxes[:, 1]) / size[0]
            keep = keep[(heights >= settings.min_size) & (heights <= settings.max_size)]
        return candidates[keep[: settings.max_detections]]

    def _make_thresholds(self, settings: DetectionSettings) -> Tensor:
        return torch.tensor(thresholds_of(self._labels, settings), device=self._device)

    def _candidates_of_frame(
        self, proposals: Tensor, scores: Tensor, deltas: Tensor, thresholds: Tensor, size: Size
    ) -> Candidates:
        passes = scores > thresholds
        passes[:, 0] = False
        region, classes = passes.nonzero(as_tuple=True)
        boxes = clip(decode(deltas[region, classes], proposals[region], self._box_coder), size)
        candidates = Candidates(boxes, scores[region, classes], classes)
        passes = at_least(boxes, _SMALLEST_SIDE_PIXELS)
        return candidates if passes.all() else candidates[passes]

    def _detections(self, rows: Tensor, input_size: Size, frame_size: Size) -> list[Detection]:
        boxes = scale(rows[:, :4], input_size, frame_size)
        scored = zip(boxes.tolist(), rows[:, 4:].tolist(), strict=True)
        return [
            Detection(self._labels[int(class_)], score, (x1, y1, x2, y2))
            for (x1, y1, x2, y2), (score, class_) in scored
            if x1 < x2 and y1 < y2  # in a tiny frame, rounding may leave nothing of a thin box
        ]
