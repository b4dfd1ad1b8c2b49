"""torchvision's own forward behind the interface of our detector: slow, and what ours is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from streamdet.config import DetectorConfig
from streamdet.detector.device import choose_device, device_errors
from streamdet.detector.stages.input import read_pictures
from streamdet.detector.weights import Weights
from streamdet.detector.weights.architectures import build_model
from streamdet.detector.weights.thresholds import NEVER, thresholds_of
from streamdet.errors import DetectorError
from streamdet.types import Detection, Picture

_WARM_UP_SIZE = (1080, 1920)


class ReferenceDetector:
    """torchvision's Faster R-CNN, untouched; only the choice of labels and thresholds is ours.

    Args:
        weights: what to run.
        config: thresholds, wanted labels, device, batch size.

    Raises:
        DetectorError: the configuration names labels, a device or a precision that do not exist.

    Attributes:
        labels: that a detection may carry.
        device: where it runs.
    """

    def __init__(self, weights: Weights, config: DetectorConfig) -> None:
        if weights.exported is not None:
            msg = 'detector.engine: "reference" cannot run an OpenVINO file; use "auto" or "openvino"'
            raise DetectorError(msg)
        if config.precision not in {"auto", "fp32"}:
            msg = f'detector.precision: engine = "reference" has no "{config.precision}"; use "auto" or "fp32"'
            raise DetectorError(msg)
        self.device = choose_device(config.device)
        self._config = config
        self._class_labels = weights.labels
        self._thresholds = thresholds_of(weights.labels, config)
        wanted = zip(weights.labels, self._thresholds, strict=True)
        self.labels = tuple(label for label, threshold in wanted if threshold < NEVER)
        model = build_model(weights.architecture, len(weights.labels))
        model.transform.min_size, model.transform.max_size = (weights.min_size,), weights.max_size
        model.load_state_dict(weights.state, strict=False)  # names and shapes were checked when it was loaded
        # Suppression goes from the highest score down and by class, so what is below a label's own threshold changes
        # nothing above it; but all labels count for `detections_per_img`, so that is applied here, after the choice.
        model.roi_heads.score_thresh = min(self._thresholds)
        model.roi_heads.detections_per_img = _most_detections(model.rpn.post_nms_top_n(), len(weights.labels))
        self._model = model.eval().requires_grad_(requires_grad=False).to(self.device)

    @torch.inference_mode()
    def detect(self, pictures: Sequence[Picture]) -> list[list[Detection]]:
        """See `FasterRcnnDetector.detect`."""
        if not pictures:
            return []
        with device_errors():
            images = [image.float() / 255 for image in read_pictures(pictures, self.device)]
            return [self._detections(result) for result in self._model(images)]

    def for_another_thread(self) -> Self:
        """Itself: modules of torch keep nothing between calls."""
        return self

    def warm_up(self) -> None:
        """Runs the largest batch once.

        Raises:
            DetectorError: the memory does not suffice for `max_batch_size`.
        """
        size = self._config.largest_batch
        noise = np.random.default_rng(0).integers(0, 256, (*_WARM_UP_SIZE, 3), dtype=np.uint8)
        image = torch.from_numpy(noise).permute(2, 0, 1).to(self.device).float() / 255
        try:
            with torch.inference_mode(), device_errors():
                self._model([image] * size)
        except MemoryError as error:
            msg = f"memory does not suffice for batches of {size} on {self.device}; lower detector.max_batch_size"
            raise DetectorError(msg) from error

    def _detections(self, result: dict[str, Tensor]) -> list[Detection]:
        rows = zip(result["labels"].tolist(), result["scores"].tolist(), result["boxes"].tolist(), strict=True)
        found = [
            Detection(self._class_labels[class_], score, (x1, y1, x2, y2))
            for class_, score, (x1, y1, x2, y2) in rows
            if score > self._thresholds[class_] and x1 < x2 and y1 < y2
        ]
        return found[: self._config.max_detections]


def _most_detections(proposals: int, classes: int) -> int:
    """As many detections as there can be in one frame: one for each proposal and class but the background."""
    return proposals * (classes - 1)
