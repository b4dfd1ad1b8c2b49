"""Detectors made ready to be measured: a round is one batch in each of their workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Self

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from streamdet.bench.cases import REFERENCE, Case
from streamdet.bench.frames import pictures
from streamdet.bench.machine import core_count, cpu_seconds
from streamdet.config import DetectorConfig
from streamdet.detector.device import use_threads
from streamdet.detector.pipeline import FasterRcnnDetector
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


# torchvision's own default, so that both look at as many boxes.
SCORE_THRESHOLD = 0.05


@dataclass(frozen=True)
class Sample:
    """What one round took, for each frame.

    Attributes:
        seconds: by the clock on the wall.
        cpu_seconds: of all cores together.
        stage_seconds: of each stage; with several workers they add up to `seconds` as well, nearly.
    """

    seconds: float
    cpu_seconds: float
    stage_seconds: dict[str, float]


class Detects(Protocol):
    """What every detector here can do."""

    def detect(self, pictures: Sequence[Picture]) -> object:
        """Detects a batch."""


class Contender:
    """One engine and precision, for batches of any size up to a limit.

    Args:
        make: makes a detector that tells its stages to whom it is given; the first one may share with the others.
        workers: how many detectors run at the same time.
        threads: that each may use.
        device: where they run.
    """

    def __init__(
        self, make: Callable[[Callable[[str, float], None]], Detects], workers: int, threads: int, device: torch.device
    ) -> None:
        self.workers = workers
        self._threads = threads
        self._device = device
        self._stage_seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        use_threads(threads)
        first = make(self._on_stage)
        self._detectors = [first, *(_sibling(first) or make(self._on_stage) for _ in range(workers - 1))]
        self._pool = ThreadPoolExecutor(workers, "bench") if workers > 1 else None

    def round(self, frames: Sequence[av.VideoFrame], batch: int) -> Sample:
        """Detects one batch in each worker.

        Args:
            frames: to take the batches from.
            batch: frames in each.
        """
        use_threads(self._threads)
        batches = [pictures(frames[number % len(frames) :], batch) for number in range(self.workers)]
        self._stage_seconds = {}
        started, cpu = time.perf_counter(), cpu_seconds()
        self._detect(batches)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        count = batch * self.workers
        stages = {stage: seconds / count for stage, seconds in self._stage_seconds.items()}
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
        # The stages of several workers pass at the same time.
        shared = {stage: value / self.workers for stage, value in stages.items()}
        return Sample(seconds / count, cpu / count, shared)

    def close(self) -> None:
        """Ends the workers."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _detect(self, batches: Sequence[Sequence[Picture]]) -> None:
        if self._pool is None:
            self._detectors[0].detect(batches[0])
            return
        waiting = [self._pool.submit(d.detect, batch) for d, batch in zip(self._detectors, batches, strict=True)]
        for future in waiting:
            future.result()

    def _on_stage(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._stage_seconds[stage] = self._stage_seconds.get(stage, 0.0) + seconds


def make_contender(weights: Weights, case: Case, device: torch.device) -> Contender:
    """Loads the detector of a case; its batch size is the largest that will be asked for.

    Raises:
        DetectorError: the engine is not installed, or cannot run these weights so.
    """
    if case.engine == REFERENCE:
        return Contender(lambda on_stage: TorchvisionForward(weights, device, on_stage), 1, core_count(), device)
    config = DetectorConfig.model_validate(
        {
            "engine": case.engine,
            "precision": case.precision,
            "workers": case.workers,
            "max_batch_size": case.batch,
            "score_threshold": SCORE_THRESHOLD,
            "device": str(device),
        }
    )
    if case.engine == "graph":
        # Its parts for CUDA take long to import.
        from streamdet.detector.graph.detector import GraphDetector  # noqa: PLC0415

        return Contender(lambda on_stage: GraphDetector(weights, config, device, on_stage), case.workers, 1, device)
    return Contender(lambda on_stage: FasterRcnnDetector(weights, config, on_stage), case.workers, 1, device)


def _sibling(detector: Detects) -> Detects | None:
    """Another detector for another thread, which shares the weights; None where detectors cannot do that."""
    if isinstance(detector, FasterRcnnDetector):
        return detector.for_another_thread()
    return None
