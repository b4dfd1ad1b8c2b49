"""torchvision's own forward, as its users write it: what everything else is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from streamdet.detector.weights import Weights
from streamdet.detector.weights.architectures import build_model
from streamdet.types import Picture


def torchvision_model(weights: Weights, device: torch.device) -> FasterRCNN:
    """The model as torchvision builds it, nothing folded, in inference mode."""
    model = build_model(weights.architecture, len(weights.labels))
    model.transform.min_size, model.transform.max_size = (weights.min_size,), weights.max_size
    model.load_state_dict(weights.state, strict=False)  # names and shapes were checked when it was loaded
    return model.eval().requires_grad_(requires_grad=False).to(device)


def to_input(rgb: NDArray[np.uint8], device: torch.device) -> Tensor:
    """What torchvision's detectors take: float32 [3, height, width], 0 to 1."""
    return torch.from_numpy(rgb).to(device).permute(2, 0, 1).float() / 255


class TorchvisionForward:
    """Runs the model and takes the time of its parts, by our names of the stages.

    Args:
        weights: what to run.
        device: where.
        on_stage: told the name of each stage and its seconds.
    """

    def __init__(self, weights: Weights, device: torch.device, on_stage: Callable[[str, float], None]) -> None:
        self.model = torchvision_model(weights, device)
        self._device = device
        self._on_stage = on_stage
        self._seconds: dict[str, float] = {}
        heads = self.model.roi_heads
        self._time("preprocess", self.model.transform, self.model.transform)
        self._time("features", self.model.backbone, self.model.backbone)
        self._time("proposals", self.model.rpn, self.model.rpn)
        self._time("roi_pool", heads.box_roi_pool, heads.box_roi_pool)
        self._time("classify", heads.box_head, heads.box_predictor)

    @torch.inference_mode()
    def detect(self, pictures: Sequence[Picture]) -> list[dict[str, Tensor]]:
        """Detects, and tells the stages."""
        self._seconds = {}
        started = self._now()
        images = [to_input(picture.to_rgb(), self._device) for picture in pictures]
        self._seconds["input"] = self._now() - started
        results: list[dict[str, Tensor]] = self.model(images)
        # What has no module of its own: choosing, suppressing and scaling the boxes.
        rest = self._now() - started - sum(self._seconds.values())
        for stage, seconds in {**self._seconds, "postprocess": rest}.items():
            self._on_stage(stage, seconds)
        return results

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _time(self, stage: str, first: nn.Module, last: nn.Module) -> None:
        def begin(*_: Any) -> None:  # noqa: ANN401 - whatever the module is called with
            self._seconds[stage] = -self._now()

        def end(*_: Any) -> None:  # noqa: ANN401
            self._seconds[stage] += self._now()

        first.register_forward_pre_hook(begin)
        last.register_forward_hook(end)
