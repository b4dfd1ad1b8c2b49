"""Runs the detector, the same one that the daemon runs, over a data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from streamdet.config import DetectorConfig
from streamdet.config.explain import explain_options
from streamdet.detector.picture_files import read_rgb
from streamdet.detector.pipeline import ArrayPicture
from streamdet.errors import ConfigError
from streamdet.training.dataset import Dataset, Sample
from streamdet.training.metrics import ImageDetections
from streamdet.types import Detection, Picture

# torchvision's own default when it reports accuracy; the best hundred of a picture count.
SCORE_THRESHOLD = 0.05
MAX_DETECTIONS = 100
BATCH_SIZE = 8


class Detector(Protocol):
    """What evaluation needs of a detector."""

    def detect(self, pictures: list[Picture]) -> list[list[Detection]]:
        """For each picture its detections, boxes in its own pixels."""


def evaluation_config(**values: object) -> DetectorConfig:
    """A detector's configuration for evaluation, which keeps all detections with a score that counts.

    Args:
        **values: keys of `[detector]`, for example `weights`; they go before the defaults of measuring.

    Raises:
        ConfigError: a value cannot be.
    """
    defaults = {"score_threshold": SCORE_THRESHOLD, "max_detections": MAX_DETECTIONS, "max_batch_size": BATCH_SIZE}
    try:
        return DetectorConfig.model_validate(defaults | values)
    except ValidationError as error:
        raise ConfigError(explain_options(error)) from None


@dataclass(frozen=True)
class Found:
    """What a detector found in a data set.

    Attributes:
        detections: one per sample, in the same order.
        images_per_second: of the detector alone, without reading files.
    """

    detections: list[ImageDetections]
    images_per_second: float


def detect_all(detector: Detector, dataset: Dataset, on_progress: Callable[[int, int], None] | None = None) -> Found:
    """Detects objects in every picture of the data set.

    Pictures of like shape go together, so that an engine with a model for each shape needs each of them once.

    Args:
        detector: labels that the data set does not have are left out.
        dataset: the pictures, and the order of the labels.
        on_progress: hears how many of how many pictures are done.
    """
    index = {category.name: i for i, category in enumerate(dataset.categories, start=1)}
    order = sorted(range(len(dataset.samples)), key=lambda number: dataset.samples[number].aspect_ratio)
    found: list[ImageDetections] = []
    seconds = 0.0
    for pictures in _batches([dataset.samples[number] for number in order]):
        began = time.perf_counter()
        results = detector.detect(pictures)
        seconds += time.perf_counter() - began
        found += [_by_index(detections, index) for detections in results]
        if on_progress:
            on_progress(len(found), len(dataset.samples))
    of_sample = dict(zip(order, found, strict=True))
    return Found([of_sample[number] for number in range(len(found))], len(found) / max(seconds, 1e-9))


def _batches(samples: list[Sample]) -> Iterator[list[Picture]]:
    """The pictures of all samples in batches; the next one is read while this one is processed."""

    def read(start: int) -> list[Picture]:
        return [ArrayPicture(read_rgb(s.path)) for s in samples[start : start + BATCH_SIZE]]

    with ThreadPoolExecutor(1, "read-pictures") as pool:
        starts = range(0, len(samples), BATCH_SIZE)
        coming = pool.submit(read, 0)
        for start in starts:
            pictures = coming.result()
            if start + BATCH_SIZE < len(samples):
                coming = pool.submit(read, start + BATCH_SIZE)
            yield pictures


def _by_index(detections: list[Detection], index: dict[str, int]) -> ImageDetections:
    known = [d for d in detections if d.label in index]
    boxes: NDArray[np.float32] = np.array([d.box for d in known], np.float32).reshape(-1, 4)
    return ImageDetections(
        boxes, np.array([d.score for d in known], np.float32), np.array([index[d.label] for d in known], np.int64)
    )
