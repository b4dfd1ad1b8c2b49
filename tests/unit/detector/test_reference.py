"""Engine "reference" is torchvision's own forward, behind our thresholds."""

from __future__ import annotations

import pytest
import torch

from streamdet.bench.cases import calibrated_weights
from streamdet.config import DetectorConfig
from streamdet.detector.reference import ReferenceDetector
from streamdet.detector.weights import Weights
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE
from streamdet.errors import DetectorError
from support.detecting import clip_frames, forward, pictures, reference
from support.equality import answers

CONFIG = DetectorConfig(device="cpu", engine="reference", score_threshold=0.2, max_batch_size=2)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return calibrated_weights(EMBEDDED_ARCHITECTURE)


def test_detections_are_torchvision_s_bit_for_bit(weights: Weights) -> None:
    frames = clip_frames(2)
    expected = forward(reference(weights, CONFIG), frames)
    found = ReferenceDetector(weights, CONFIG).detect(pictures(frames))
    for wanted, detections in zip(expected, found, strict=True):
        assert len(detections) >= 5
        have = answers(detections, weights.labels)
        assert all(torch.equal(have[key], wanted[key]) for key in ("boxes", "scores", "labels"))


def test_labels_and_thresholds_select_before_the_best_are_kept(weights: Weights) -> None:
    frames = clip_frames(1)
    everything = ReferenceDetector(weights, CONFIG.model_copy(update={"max_detections": 1000})).detect(pictures(frames))
    counts = {label: sum(d.label == label for d in everything[0]) for label in weights.labels}
    label = max(counts, key=lambda label: counts[label])
    config = CONFIG.model_copy(
        update={"labels": (label,), "score_threshold": 0.9, "score_thresholds": {label: 0.25}, "max_detections": 2}
    )
    chosen = ReferenceDetector(weights, config)
    assert chosen.labels == weights.labels[1:]
    wanted = [d for d in everything[0] if d.label == label and d.score > 0.25]
    assert len(wanted) > 2
    assert chosen.detect(pictures(frames)) == [wanted[:2]]


def test_nothing_to_see_is_no_error(weights: Weights) -> None:
    assert ReferenceDetector(weights, CONFIG).detect([]) == []


def test_precision_is_torchvision_s(weights: Weights) -> None:
    with pytest.raises(DetectorError, match=r'detector\.precision: engine = "reference" has no "bf16"; use "auto" or'):
        ReferenceDetector(weights, CONFIG.model_copy(update={"precision": "bf16"}))


def test_warm_up_runs_the_largest_batch(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = ReferenceDetector(weights, CONFIG)
    detector.frame_sizes = ((90, 160), (160, 90))
    seen: list[list[tuple[int, ...]]] = []
    detector._model.register_forward_pre_hook(lambda _, inputs: seen.append([tuple(t.shape) for t in inputs[0]]))
    detector.warm_up()
    assert seen == [[(3, 90, 160)] * 2, [(3, 160, 90)] * 2]

    def run_out(*_: object) -> None:
        torch.empty(10**15)

    monkeypatch.setattr(detector, "_model", run_out)
    with pytest.raises(DetectorError, match=r"not enough memory for batches of 2 on cpu; lower detector\.max_b"):
        detector.warm_up()
