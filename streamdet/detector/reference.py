"""torchvision's own forward behind the interface of our detector: slow, and what ours is compared with.

Its stages are timed by hooks on its modules. What has no module of its own (choosing, suppressing and scaling the
boxes) is what is left of the time, and counts as `postprocess`.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from streamdet.config import DetectorConfig
from streamdet.detector.device import choose_device, device_errors
from streamdet.detector.stages.input import read_pictures
from streamdet.detector.stages.preprocess import COMMON_SIZE, Size
from streamdet.detector.weights import Weights, make_model
from streamdet.detector.weights.thresholds import known_labels, thresholds_of
from streamdet.errors import DetectorError
from streamdet.types import Detection, DetectionSettings, Picture


def torchvision_model(weights: Weights, device: torch.device) -> FasterRCNN:
    """The model as torchvision builds it, nothing folded, in inference mode."""
    return make_model(weights).to(device)


class ReferenceDetector:
    """torchvision's Faster R-CNN, untouched; only the choice of labels and thresholds is ours.

    Pictures of different settings are different batches: torchvision has one threshold for all pictures of a batch.

    Args:
        weights: what to run.
        config: device, batch size, and the settings of pictures that have none of their own.
        on_stage: called with the name of each stage and its seconds, for each batch.

    Raises:
        DetectorError: the configuration names labels, a device or a precision that do not exist.

    Attributes:
        labels: that the weights know.
        device: where it runs.
        frame_sizes: to warm up for.
    """

    def __init__(
        self, weights: Weights, config: DetectorConfig, on_stage: Callable[[str, float], None] | None = None
    ) -> None:
        if weights.exported is not None:
            msg = 'detector.engine: "reference" cannot run an OpenVINO file; use "auto" or "openvino"'
            raise DetectorError(msg)
        if config.precision not in {"auto", "fp32"}:
            msg = f'detector.precision: engine = "reference" has no "{config.precision}"; use "auto" or "fp32"'
            raise DetectorError(msg)
        self.frame_sizes: tuple[Size, ...] = (COMMON_SIZE,)
        self.device = choose_device(config.device)
        self._config = config
        self._class_labels = weights.labels
        self.labels = known_labels(weights.labels, config)
        self._settings = config.settings_for()
        self._on_stage = on_stage
        self._original = torchvision_model(weights, self.device)
        self._set_model()

    def _set_model(self) -> None:
        """Makes a model for this detector alone; it has the parameters of the original, and a threshold of its own."""
        original = self._original
        parameters = itertools.chain(original.parameters(), original.buffers())
        self._model = model = copy.deepcopy(original, {id(tensor): tensor for tensor in parameters})
        # All labels count for `detections_per_img`, so that is applied here, after the choice.
        model.roi_heads.detections_per_img = _most_detections(model.rpn.post_nms_top_n(), len(self._class_labels))
        self._stage_seconds: dict[str, float] = {}
        if self._on_stage is not None:
            heads = model.roi_heads
            self._time("preprocess", model.transform, model.transform)
            self._time("features", model.backbone, model.backbone)
            self._time("proposals", model.rpn, model.rpn)
            self._time("roi_pool", heads.box_roi_pool, heads.box_roi_pool)
            self._time("classify", heads.box_head, heads.box_predictor)

    @torch.inference_mode()
    def detect(self, pictures: Sequence[Picture], settings: Sequence[DetectionSettings] = ()) -> list[list[Detection]]:
        """See `FasterRcnnDetector.detect`."""
        batches: dict[DetectionSettings, list[int]] = {}
        for number, each in enumerate(settings or [self._settings] * len(pictures)):
            batches.setdefault(each, []).append(number)
        found: dict[int, list[Detection]] = {}
        with device_errors():
            for each, numbers in batches.items():
                detections = self._detect([pictures[number] for number in numbers], each)
                found.update(zip(numbers, detections, strict=True))
        return [found[number] for number in range(len(pictures))]

    def _detect(self, pictures: Sequence[Picture], settings: DetectionSettings) -> list[list[Detection]]:
        self._stage_seconds = {}
        started = self._now()
        images = [image.float() / 255 for image in read_pictures(pictures, self.device)]
        self._stage_seconds["input"] = self._now() - started
        thresholds = thresholds_of(self._class_labels, settings)
        # Suppression goes from the highest score down and by class, so what is below a label's own threshold changes
        # nothing above it.
        self._model.roi_heads.score_thresh = min(thresholds)
        results = zip(self._model(images), pictures, strict=True)
        found = [self._detections(result, thresholds, settings, picture.height) for result, picture in results]
        if self._on_stage is not None:
            self._stage_seconds["postprocess"] = self._now() - started - sum(self._stage_seconds.values())
            for stage, seconds in self._stage_seconds.items():
                self._on_stage(stage, seconds)
        return found

    def for_another_thread(self) -> Self:
        """One with the same parameters that can be used at the same time."""
        other = copy.copy(self)
        other._set_model()  # noqa: SLF001 - of its own class
        return other

    def release(self, unused_seconds: float) -> None:
        """Does nothing."""

    def canvas_size(self, frame_size: Size) -> Size:
        """The size itself: frames of each are warmed up for."""
        return frame_size

    def prepare(self, frame_size: Size) -> None:
        """Does nothing: what frames of a size need is made with the first of them."""

    def warm_up(self) -> None:
        """Runs the largest batch of each size once.

        Raises:
            DetectorError: there is not enough memory for `max_batch_size`.
        """
        size = self._config.largest_batch
        try:
            with torch.inference_mode(), device_errors():
                for frame_size in self.frame_sizes:
                    noise = np.random.default_rng(0).integers(0, 256, (*frame_size, 3), dtype=np.uint8)
                    image = torch.from_numpy(noise).permute(2, 0, 1).to(self.device).float() / 255
                    self._model([image] * size)
        except MemoryError as error:
            msg = f"not enough memory for batches of {size} on {self.device}; lower detector.max_batch_size"
            raise DetectorError(msg) from error

    def _now(self) -> float:
        if self._on_stage is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _time(self, stage: str, first: nn.Module, last: nn.Module) -> None:
        def begin(*_: Any) -> None:  # noqa: ANN401 - whatever the module is called with
            self._stage_seconds[stage] = -self._now()

        def end(*_: Any) -> None:  # noqa: ANN401
            self._stage_seconds[stage] += self._now()

        first.register_forward_pre_hook(begin)
        last.register_forward_hook(end)

    def _detections(
        self, result: dict[str, Tensor], thresholds: list[float], settings: DetectionSettings, height: int
    ) -> list[Detection]:
        rows = zip(result["labels"].tolist(), result["scores"].tolist(), result["boxes"].tolist(), strict=True)
        found = [
            Detection(self._class_labels[class_], score, (x1, y1, x2, y2))
            for class_, score, (x1, y1, x2, y2) in rows
            if score > thresholds[class_] and x1 < x2 and y1 < y2
            if settings.min_size <= (y2 - y1) / height <= settings.max_size
        ]
        return found[: settings.max_detections]


def _most_detections(proposals: int, classes: int) -> int:
    """As many detections as there can be in one frame: one for each proposal and class but the background."""
    return proposals * (classes - 1)
