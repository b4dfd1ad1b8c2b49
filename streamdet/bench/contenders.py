"""Prepares the detectors to measure; one round is one batch in each of a detector's workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self

import av
import torch

from streamdet.bench.cases import REFERENCE, Case
from streamdet.bench.frames import pictures
from streamdet.bench.machine import core_count, cpu_seconds
from streamdet.config import DetectorConfig
from streamdet.detector.device import use_threads
from streamdet.detector.pipeline import FasterRcnnDetector
from streamdet.detector.reference import ReferenceDetector
from streamdet.detector.weights import Weights
from streamdet.types import DetectionSettings, Picture

# torchvision's own default, so that both look at as many boxes.
SCORE_THRESHOLD = 0.05


@dataclass(frozen=True)
class Sample:
    """The time of one round, per frame.

    Attributes:
        seconds: by the clock on the wall.
        cpu_seconds: of all cores together.
        stage_seconds: of each stage; with several workers they add up to `seconds` as well, nearly.
    """

    seconds: float
    cpu_seconds: float
    stage_seconds: dict[str, float]


class Detects(Protocol):
    """The interface of the measured detectors."""

    def detect(self, pictures: Sequence[Picture], settings: Sequence[DetectionSettings] = ()) -> object:
        """Detects a batch."""


class Contender:
    """One engine and precision, for batches of any size up to a limit.

    Args:
        make: makes a detector that calls what it is given with the seconds of each stage; the first one may share its
            weights with the others.
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

    def round(self, frames: Sequence[av.VideoFrame], batch: int, settings: Sequence[DetectionSettings] = ()) -> Sample:
        """Detects one batch in each worker.

        Args:
            frames: to take the batches from.
            batch: frames in each.
            settings: what counts as a detection in each frame of a batch; a low threshold for all where there are none.
        """
        use_threads(self._threads)
        batches = [pictures(frames[number % len(frames) :], batch) for number in range(self.workers)]
        self._stage_seconds = {}
        started, cpu = time.perf_counter(), cpu_seconds()
        self._detect(batches, settings)
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

    def _detect(self, batches: Sequence[Sequence[Picture]], settings: Sequence[DetectionSettings]) -> None:
        if self._pool is None:
            self._detectors[0].detect(batches[0], settings)
            return
        pairs = zip(self._detectors, batches, strict=True)
        waiting = [self._pool.submit(detector.detect, batch, settings) for detector, batch in pairs]
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
    if case.engine == REFERENCE:
        return Contender(lambda on_stage: ReferenceDetector(weights, config, on_stage), 1, core_count(), device)
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
