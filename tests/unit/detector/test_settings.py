"""Each picture of a batch has settings of its own, in every engine that runs on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import pytest
import torch

from streamdet.bench.cases import calibrated_weights
from streamdet.config import DetectorConfig
from streamdet.detector.engines.openvino import is_installed
from streamdet.detector.graph.detector import GraphDetector
from streamdet.detector.graph.model import CAPACITIES, capacity_for
from streamdet.detector.pipeline import FasterRcnnDetector
from streamdet.detector.reference import ReferenceDetector
from streamdet.detector.weights import Weights, load_weights
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE
from streamdet.types import Detection, DetectionSettings, Picture
from support.detecting import clip_frames, pictures

CONFIG = DetectorConfig(device="cpu", engine="torch", precision="fp32", max_batch_size=8)
EVERYTHING = DetectionSettings(score_threshold=0.02, max_detections=1000)
MIXED = [
    DetectionSettings(),
    DetectionSettings(score_threshold=0.05),
    DetectionSettings(score_threshold=0.9, score_thresholds=(("person", 0.2),)),
    DetectionSettings(labels=("car", "bus"), score_threshold=0.1),
    DetectionSettings(score_threshold=0.05, min_size=0.1, max_size=0.3),
    DetectionSettings(score_threshold=0.05, max_detections=3),
    DetectionSettings(score_threshold=0.05, max_detections=1000),
]


class Detects(Protocol):
    labels: tuple[str, ...]

    def detect(
        self, pictures: list[Picture], settings: list[DetectionSettings] | None = None
    ) -> list[list[Detection]]: ...


@functools.cache
def weights() -> Weights:
    return calibrated_weights(EMBEDDED_ARCHITECTURE)


def of_openvino(**keys: str) -> Detects:
    if not is_installed():
        pytest.skip("needs the extra, streamdet[openvino]")
    config = CONFIG.model_copy(update={"engine": "openvino", **keys})
    return FasterRcnnDetector(load_weights(config), config)


def of_torch(precision: str) -> Detects:
    return FasterRcnnDetector(weights(), CONFIG.model_copy(update={"precision": precision}))


ENGINES: dict[str, Callable[[], Detects]] = {
    "torch-fp32": lambda: of_torch("fp32"),
    "torch-bf16": lambda: of_torch("bf16"),
    "openvino-fp32": of_openvino,
    "graph": lambda: GraphDetector(weights(), CONFIG, torch.device("cpu")),
    "reference": lambda: ReferenceDetector(weights(), CONFIG),
}


@pytest.fixture(params=ENGINES)
def detector(request: pytest.FixtureRequest) -> Detects:
    return ENGINES[request.param]()


def selected(everything: list[Detection], settings: DetectionSettings, height: int) -> list[Detection]:
    """What a picture's settings leave of all that there is in it."""
    thresholds = dict(settings.score_thresholds)
    found = [
        one
        for one in everything
        if (not settings.labels or one.label in settings.labels)
        and one.score > thresholds.get(one.label, settings.score_threshold)
        and settings.min_size <= (one.box[3] - one.box[1]) / height <= settings.max_size
    ]
    return found[: settings.max_detections]


def test_a_picture_yields_what_it_yields_beside_pictures_of_the_same_settings(detector: Detects) -> None:
    frame = clip_frames(1)[0]
    shown = pictures([frame] * len(MIXED))
    mixed = detector.detect(shown, MIXED)
    # For torchvision, pictures of one setting are a batch.
    count = 1 if isinstance(detector, ReferenceDetector) else len(MIXED)
    everything = detector.detect(shown[:count], [EVERYTHING] * count)
    for number, settings in enumerate(MIXED):
        place = number % count
        alike = detector.detect(shown[:count], [settings] * count)
        assert mixed[number] == alike[place], settings
        assert mixed[number] == selected(everything[place], settings, len(frame)), settings
    # The settings say something different each.
    assert len({tuple(found) for found in mixed}) >= len(MIXED) - 1
    assert len(mixed[5]) == 3
    assert detector.detect(shown) == detector.detect(shown, [DetectionSettings()] * len(MIXED))


def test_a_picture_yields_what_it_yields_alone(detector: Detects) -> None:
    """Sums may be rounded differently in another batch, so numbers are compared closely and not exactly."""
    shown = pictures(clip_frames(len(MIXED)))
    for picture, settings, found in zip(shown, MIXED, detector.detect(shown, MIXED), strict=True):
        (alone,) = detector.detect([picture], [settings])
        near = [one for one in alone if any(is_near(one, other) for other in found)]
        lower = sum(one.score < settings.score_threshold + 0.02 for one in alone)
        assert len(near) >= len(alone) - lower, settings
        assert abs(len(found) - len(alone)) <= lower


def is_near(one: Detection, other: Detection) -> bool:
    corners = zip(one.box, other.box, strict=True)
    return one.label == other.label and abs(one.score - other.score) < 0.02 and all(abs(a - b) < 4 for a, b in corners)


def test_workers_of_the_reference_do_not_share_a_threshold() -> None:
    first = ReferenceDetector(weights(), CONFIG)
    second = first.for_another_thread()
    first.detect(pictures(clip_frames(1)), [DetectionSettings(score_threshold=0.9)])
    assert second._model.roi_heads.score_thresh != 0.9
    assert first._model.backbone is not second._model.backbone
    parameters = zip(first._model.parameters(), second._model.parameters(), strict=True)
    assert all(one is other for one, other in parameters)


def test_slots_are_there_for_all_detections_that_are_allowed() -> None:
    most = next(each.le for each in DetectorConfig.model_fields["max_detections"].metadata if hasattr(each, "le"))
    assert [capacity_for(count) for count in (1, 100, 512, 513, most)] == [512, 512, 512, 1000, 1000]
    assert (512, most) == CAPACITIES


def test_labels_that_the_weights_do_not_know_change_nothing(detector: Detects) -> None:
    shown = pictures(clip_frames(1))
    odd = DetectionSettings(labels=("person", "zebra"), score_thresholds=(("lion", 0.1),))
    assert detector.detect(shown, [odd]) == detector.detect(shown, [DetectionSettings(labels=("person",))])
