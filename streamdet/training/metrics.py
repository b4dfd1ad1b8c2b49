"""COCO's detection metrics on data sets whose pictures do not label every class.

A class counts only on the pictures on which it is labelled throughout: on others its detections are
neither right nor wrong and are left out, as in LVIS (Gupta et al. 2019, arXiv:1908.03195). Detections of any class
in an ignored area (`iscrowd`) are not counted as wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamdet.errors import ConfigError
from streamdet.extras import how_to_install
from streamdet.training.dataset import Dataset, Sample

try:
    from faster_coco_eval import COCO, COCOeval_faster
except ImportError as error:
    _msg = f"training and evaluation need more packages ({error.name}): {how_to_install('train')}"
    raise ConfigError([_msg]) from None

COCO_NUMBERS = (
    "map", "map_50", "map_75", "map_small", "map_medium", "map_large",
    "mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large",
)  # fmt: skip
_IOU_50 = 0


@dataclass(frozen=True)
class ImageDetections:
    """What the detector found in one picture.

    Attributes:
        boxes: float [N, 4], xyxy in pixels of the picture.
        scores: float [N].
        labels: int [N], 1 to C.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Metrics:
    """COCO's twelve numbers and those of each class; -1 where there is nothing to count.

    Attributes:
        numbers: by the names in `COCO_NUMBERS`, 0 to 1.
        per_class: for each category name, `ap` and `ap_50`.
        precision: float [T, R, C], interpolated precision by IoU threshold (0.5 to 0.95), recall
            (0 to 1 in 101 steps) and class; all areas, 100 detections per picture.
    """

    numbers: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: NDArray[np.float64]


def _xywh(box: NDArray[np.float32]) -> list[float]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _ground_truth(dataset: Dataset) -> dict[str, Any]:
    """In COCO's form. Pictures have their place in the data set as id: large ids are rounded by the evaluator."""
    annotations: list[dict[str, Any]] = []

    def add(image_id: int, label: int, box: NDArray[np.float32], crowd: int) -> None:
        xywh = _xywh(box)
        annotations.append({
            "id": len(annotations) + 1, "image_id": image_id, "category_id": label,
            "bbox": xywh, "area": xywh[2] * xywh[3], "iscrowd": crowd,
        })  # fmt: skip

    for number, sample in enumerate(dataset.samples, start=1):
        for box, label in zip(sample.boxes, sample.labels, strict=True):
            if sample.labelled[label]:
                add(number, int(label), box, 0)
        for box in sample.ignore:
            for label in np.flatnonzero(sample.labelled[1:]) + 1:
                add(number, int(label), box, 1)
    return {
        "info": {},
        "images": [{"id": i, "file_name": s.path.name} for i, s in enumerate(dataset.samples, start=1)],
        "categories": [{"id": i, "name": c.name} for i, c in enumerate(dataset.categories, start=1)],
        "annotations": annotations,
    }


def _results(dataset: Dataset, detections: list[ImageDetections]) -> list[dict[str, Any]]:
    return [
        {"image_id": number, "category_id": int(label), "bbox": _xywh(box), "score": float(score)}
        for number, (s, d) in enumerate(zip(dataset.samples, detections, strict=True), start=1)
        for box, score, label in zip(d.boxes, d.scores, d.labels, strict=True)
        if s.labelled[label]
    ]


def _mean(values: NDArray[np.float64]) -> float:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0


def coco_metrics(dataset: Dataset, detections: list[ImageDetections]) -> Metrics:
    """Compares detections with the data set's boxes.

    Args:
        dataset: the truth.
        detections: one per sample, in the same order.
    """
    truth = COCO(_ground_truth(dataset))
    evaluation = COCOeval_faster(truth, truth.loadRes(_results(dataset, detections)), "bbox", print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {
        c.name: {"ap": _mean(precision[:, :, i]), "ap_50": _mean(precision[_IOU_50, :, i])}
        for i, c in enumerate(dataset.categories)
    }
    numbers = {name: float(v) for name, v in zip(COCO_NUMBERS, evaluation.stats[:12], strict=True)}
    return Metrics(numbers, per_class, precision)


def _silent(*_: object) -> None:
    """Suppresses the evaluator's output; its results are returned."""


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
