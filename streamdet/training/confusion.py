"""What a detector takes for what."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamdet.training.dataset import Dataset, Sample
from streamdet.training.metrics import ImageDetections

_MIN_IOU = 0.5
_IGNORE_OVERLAP = 0.5


def confusion_matrix(dataset: Dataset, detections: list[ImageDetections], min_score: float) -> NDArray[np.int64]:
    """Counts pairs of truth and detection, matched by falling score at an IoU of at least 0.5, whatever the class.

    Classes that a picture does not label, and what lies in its ignored areas, are left out.

    Args:
        dataset: the truth.
        detections: one per sample, in the same order.
        min_score: detections below it are left out.

    Returns:
        int64 [C + 1, C + 1]: rows are truth, columns detections, in the order of the categories; the last
        row counts detections without an object, the last column objects without a detection.
    """
    nothing = len(dataset.categories)
    matrix = np.zeros((nothing + 1, nothing + 1), np.int64)
    for sample, found in zip(dataset.samples, detections, strict=True):
        is_known = sample.labelled[sample.labels]
        boxes, truth = sample.boxes[is_known], sample.labels[is_known] - 1
        keep = (found.scores >= min_score) & sample.labelled[found.labels]
        order = np.flatnonzero(keep)[np.argsort(-found.scores[keep], kind="stable")]
        free = np.ones(len(boxes), np.bool_)
        for i in order:
            overlaps = _iou(found.boxes[i], boxes) * free
            if len(boxes) and overlaps.max() >= _MIN_IOU:
                best = int(overlaps.argmax())
                free[best] = False
                matrix[truth[best], found.labels[i] - 1] += 1
            elif not _is_ignored(found.boxes[i], sample):
                matrix[nothing, found.labels[i] - 1] += 1
        matrix[:nothing, nothing] += np.bincount(truth[free], minlength=nothing)
    return matrix


def _intersection(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    area: NDArray[np.float32] = np.prod(np.maximum(sides, 0), axis=1)
    return area


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    area: NDArray[np.float32] = np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
    return area


def _iou(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    shared = _intersection(box, boxes)
    iou: NDArray[np.float32] = shared / np.maximum(_area(box) + _area(boxes) - shared, np.float32(1e-6))
    return iou


def _is_ignored(box: NDArray[np.float32], sample: Sample) -> bool:
    """Whether a detection lies mostly in an ignored area, as COCO's evaluator asks."""
    shared = _intersection(box, sample.ignore)
    return bool((shared >= _IGNORE_OVERLAP * max(float(_area(box)), 1e-6)).any())
