"""A detector with fixed capacities (`engine = "graph"`): takes pictures of any sizes and returns detections."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Self, cast

import numpy as np
import torch
from numpy.typing import NDArray

from streamdet.config import DetectorConfig
from streamdet.detector.device import choose_devices, device_errors
from streamdet.detector.engines import make_dense
from streamdet.detector.engines.pytorch import TorchDense
from streamdet.detector.graph.align import weigh
from streamdet.detector.graph.choose import FastParts, fast_parts
from streamdet.detector.graph.finish import packed_limits
from streamdet.detector.graph.model import GraphModel, capacity_for
from streamdet.detector.graph.pixels import PixelFormat, read_bytes
from streamdet.detector.graph.runner import EagerRunner, Runner
from streamdet.detector.graph.step import Clock
from streamdet.detector.graph.suppress import suppress, suppress_until_settled
from streamdet.detector.pipeline import OnStage, prepare_model
from streamdet.detector.stages.preprocess import COMMON_SIZE, Size
from streamdet.detector.weights import Weights, load_weights
from streamdet.detector.weights.thresholds import known_labels
from streamdet.errors import DetectorError
from streamdet.types import Detection, DetectionSettings, Picture

_log = logging.getLogger(__name__)

_STAGED_EVERY = 100
_REMEMBERED_SETTINGS = 256
_WORKERS_OF_DEVICE = 2


class GraphDetector:
    """Detects with fixed capacities; on a CUDA device by graphs.

    The frames of a batch are grouped by format, and each group is a batch of its own. The detections are those of
    torchvision's `forward` for that group, except for the capacity that `FinishInGraph` describes.

    On a CUDA device several threads may call `detect` at the same time: while one waits for its detections, the
    frames of the next are on their way to the device. On a CPU, one thread at a time.

    Args:
        weights: what to run.
        config: precision, batch size, and the settings of pictures that have none of their own.
        device: where.
        on_stage: called with the times of the stages; of one batch in a hundred where a graph fuses them.
        kernels: whether to use streamdet's own kernels on a CUDA device, if they work there; else plain torch.

    Raises:
        DetectorError: the configuration names labels that do not exist.

    Attributes:
        labels: that the weights know.
        device: where it runs.
        model: what the steps are made of.
        frame_sizes: to warm up for.
    """

    def __init__(
        self,
        weights: Weights,
        config: DetectorConfig,
        device: torch.device,
        on_stage: OnStage | None = None,
        *,
        kernels: bool = True,
    ) -> None:
        self.device = device
        self.frame_sizes: tuple[Size, ...] = (COMMON_SIZE,)
        self._class_labels = weights.labels
        self._max_batch_size = config.largest_batch
        self._on_stage = on_stage
        self._batches = 0
        self.labels = known_labels(weights.labels, config)
        self._settings = config.settings_for()
        # One line of `Limits` for each; several threads may ask.
        self._limits = lru_cache(_REMEMBERED_SETTINGS)(partial(packed_limits, weights.labels))
        model = prepare_model(weights, device)
        parts = fast_parts(device) if kernels and device.type == "cuda" else FastParts(suppress, weigh, None)
        config = config.model_copy(update={"engine": "graph"})
        # Which is what engine "graph" means.
        dense = cast("TorchDense", make_dense(model, config, device, weights.exported, parts.epilogue))
        classes = len(weights.labels)
        self.model = GraphModel(model, dense, classes, device, suppress=parts.suppress, weigh=parts.weigh)
        # What plain torch has not settled is computed again, for as long as it takes.
        self._patient = EagerRunner(replace(self.model, suppress=suppress_until_settled))
        self._graphs = self._make_graphs() if device.type == "cuda" else None
        self._eager = EagerRunner(self.model)

    def _make_graphs(self) -> Runner:
        # Only CUDA devices need it.
        from streamdet.detector.graph.cuda_runner import GraphRunner  # noqa: PLC0415

        return GraphRunner(self.model, self._max_batch_size)

    def detect(self, pictures: Sequence[Picture], settings: Sequence[DetectionSettings] = ()) -> list[list[Detection]]:
        """Finds the objects in a batch of pictures, whose sizes may differ.

        Args:
            pictures: the batch.
            settings: what counts as a detection in each picture; that of the configuration where there are none.

        Returns:
            for each picture its detections by falling score, boxes in its own pixels.

        Raises:
            MemoryError: the device has not enough memory; a smaller batch may pass.
            DeviceLostError: the CUDA context is gone.
        """
        settings = settings or [self._settings] * len(pictures)
        shown = [read_bytes(picture) for picture in pictures]
        groups: dict[tuple[PixelFormat, int], list[int]] = {}
        for number, (pixel_format, _) in enumerate(shown):
            groups.setdefault((pixel_format, capacity_for(settings[number].max_detections)), []).append(number)
        found: dict[int, list[Detection]] = {}
        with device_errors():
            for (pixel_format, capacity), numbers in groups.items():
                frames = [shown[number][1] for number in numbers]
                limits = np.array([self._limits(settings[number]) for number in numbers], np.float32)
                rows = self._run(pixel_format, capacity, frames, limits)
                found.update(zip(numbers, map(self._detections, rows), strict=True))
        return [found[number] for number in range(len(pictures))]

    def for_another_thread(self) -> Self:
        """Itself on a CUDA device, where any thread may use it.

        Raises:
            NotImplementedError: on a CPU, where `pipeline.py` is faster anyway.
        """
        if self._graphs is None:
            msg = 'engine = "graph" on a CPU runs in one thread only'
            raise NotImplementedError(msg)
        return self

    def canvas_size(self, frame_size: Size) -> Size:
        """The size itself: frames of each are warmed up for."""
        return frame_size

    def prepare(self, frame_size: Size) -> None:
        """Does nothing: what frames of a size need is made with the first of them."""

    def warm_up(self) -> None:
        """Runs the largest batch of each size, so that memory runs out now or never.

        Raises:
            DetectorError: there is not enough memory for `max_batch_size`.
        """
        runner = self._graphs or self._eager
        try:
            with device_errors():
                for frame_size in self.frame_sizes:
                    pixel_format = PixelFormat(*frame_size)
                    noise = np.random.default_rng(0).integers(0, 256, pixel_format.frame_bytes, dtype=np.uint8)
                    limits = np.array([self._limits(self._settings)] * self._max_batch_size, np.float32)
                    capacity = capacity_for(self._settings.max_detections)
                    runner.run(pixel_format, capacity, [noise] * self._max_batch_size, limits)
        except MemoryError as error:
            size = self._max_batch_size
            msg = f"not enough memory for batches of {size} on {self.device}; lower detector.max_batch_size"
            raise DetectorError(msg) from error

    def _run(
        self, pixel_format: PixelFormat, capacity: int, frames: list[NDArray[np.uint8]], limits: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        self._batches += 1
        if self._graphs is None or (self._on_stage is not None and self._batches % _STAGED_EVERY == 0):
            rows = self._eager.run(pixel_format, capacity, frames, limits, self._clock())
        else:
            rows = self._graphs.run(pixel_format, capacity, frames, limits)
        uncertain = [number for number, row in enumerate(rows) if not row[-1, 0]]
        if uncertain:
            _log.debug("%d frames need more rounds of suppression", len(uncertain))
            again = [frames[number] for number in uncertain]
            rows[uncertain] = self._patient.run(pixel_format, capacity, again, limits[uncertain])
        return rows

    def _clock(self) -> Clock:
        @contextmanager
        def clock(stage: str) -> Iterator[None]:
            """On CUDA waits for the work of the stage, so that the time is the stage's own."""
            started = time.perf_counter()
            yield
            if self._on_stage is not None:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                self._on_stage(stage, time.perf_counter() - started)

        return clock

    def _detections(self, rows: NDArray[np.float32]) -> list[Detection]:
        count = np.count_nonzero(rows[:-1, 4] >= 0)
        return [
            Detection(self._class_labels[int(class_)], score, (x1, y1, x2, y2))
            for x1, y1, x2, y2, score, class_ in rows[:count].tolist()
            if x1 < x2 and y1 < y2  # in a tiny frame, rounding may leave nothing of a thin box
        ]


def load_graph_detectors(
    config: DetectorConfig, on_stage: OnStage | None = None, *, kernels: bool = True
) -> list[GraphDetector]:
    """Loads the weights to every device that the configuration names.

    Args:
        config: `[detector]` of the configuration.
        on_stage: called with the times of the stages of one batch in a hundred.
        kernels: see `GraphDetector`.

    Returns:
        what each inference worker is to use: two workers share a device, so that copies overlap with work.

    Raises:
        DetectorError: weights, labels or device are wrong, or there is no CUDA device.
    """
    devices = choose_devices(config.device)
    if devices[0].type != "cuda":
        msg = 'detector.engine: "graph" needs a CUDA device; use "auto", which takes the fastest for a CPU'
        raise DetectorError(msg)
    weights = load_weights(config)
    detectors = [GraphDetector(weights, config, device, on_stage, kernels=kernels) for device in devices]
    return [detector for detector in detectors for _ in range(_WORKERS_OF_DEVICE)]
