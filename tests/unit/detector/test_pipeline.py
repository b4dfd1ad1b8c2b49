"""The seven stages give the detections of torchvision's own forward, on real video."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from torchvision.models.detection import FasterRCNN

from streamdet.assets import sample_clip
from streamdet.bench.cases import EMBEDDED_LABELS as LABELS
from streamdet.bench.cases import calibrated_weights
from streamdet.capture.sources.picture import AvPicture
from streamdet.config import DetectorConfig
from streamdet.detector import pipeline
from streamdet.detector.boxes import scale
from streamdet.detector.device import choose_device, device_errors
from streamdet.detector.pipeline import FasterRcnnDetector
from streamdet.detector.weights import Weights, load_weights
from streamdet.detector.weights.architectures import ARCHITECTURES, EMBEDDED_ARCHITECTURE
from streamdet.errors import DetectorError, DeviceLostError
from streamdet.monitoring.metrics import STAGES
from streamdet.types import Detection, Picture
from support.detecting import EASY, Rgb, clip_frames, forward, pictures, reference
from support.equality import MARGIN, assert_same

GATE_THRESHOLD = 0.05
GATE = DetectorConfig(
    device="cpu", engine="torch", precision="fp32", score_threshold=GATE_THRESHOLD - MARGIN, max_detections=1000
)


@pytest.fixture(scope="module")
def frames() -> list[Rgb]:
    return clip_frames(3)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return calibrated_weights(EMBEDDED_ARCHITECTURE)


@pytest.fixture(scope="module")
def detector(weights: Weights) -> FasterRcnnDetector:
    return FasterRcnnDetector(weights, EASY)


def passes_the_gate(weights: Weights, frames: list[Rgb], shown: Sequence[Picture], config: DetectorConfig) -> int:
    """Compares a detector with torchvision's own forward of each frame alone.

    Args:
        weights: for both.
        frames: what torchvision sees.
        shown: the same, as our detector gets it.
        config: for both.

    Returns:
        how many detections of torchvision's there were to find.
    """
    model = reference(weights, config)
    expected = [forward(model, [frame])[0] for frame in frames]
    assert_same(expected, FasterRcnnDetector(weights, config).detect(shown), weights.labels, GATE_THRESHOLD)
    return min(int((e["scores"] >= GATE_THRESHOLD).sum()) for e in expected)


def decoded_frames(count: int) -> list[AvPicture]:
    """Frames of the sample clip as captures hand them on: YUV."""
    with av.open(str(sample_clip())) as container:
        return [AvPicture(frame) for frame in itertools.islice(container.decode(video=0), 0, 30 * count, 30)]


@pytest.fixture
def fewer_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand proposals would take the largest model half a minute."""
    for architecture, build in ARCHITECTURES.items():
        monkeypatch.setitem(ARCHITECTURES, architecture, functools.partial(_build_with_fewer_proposals, build))


def _build_with_fewer_proposals(build: Callable[[int], FasterRCNN], num_classes: int) -> FasterRCNN:
    model = build(num_classes)
    model.rpn._post_nms_top_n["testing"] = 60
    return model


@pytest.mark.usefixtures("fewer_proposals")
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_every_architecture_equals_torchvision(architecture: str, frames: list[Rgb]) -> None:
    weights = calibrated_weights(architecture)
    assert passes_the_gate(weights, frames[:1], pictures(frames[:1]), GATE) >= 5


def test_embedded_weights_equal_torchvision(frames: list[Rgb]) -> None:
    assert passes_the_gate(load_weights(GATE), frames, pictures(frames), GATE) >= 3


def test_decoded_frames_equal_torchvision(weights: Weights) -> None:
    decoded = decoded_frames(2)
    assert decoded[0].frame.format.name == "yuv420p"
    assert passes_the_gate(weights, [picture.to_rgb() for picture in decoded], decoded, GATE) >= 5


def test_frames_of_different_sizes_equal_torchvision(weights: Weights, frames: list[Rgb]) -> None:
    mixed = [
        frames[0],
        np.ascontiguousarray(frames[1][:, 100:430]),
        np.ascontiguousarray(frames[2][50:300, :]),
        np.repeat(np.repeat(frames[0], 2, 0), 2, 1),  # so large that only some of its rows are read
    ]
    assert passes_the_gate(weights, mixed, pictures(mixed), GATE) >= 3


def test_several_threads_at_once_find_what_one_finds(weights: Weights, frames: list[Rgb]) -> None:
    first = FasterRcnnDetector(weights, GATE)
    shown = [pictures([frames[0]]), pictures(frames[1:]), pictures([frames[2], frames[0][:300].copy()])]
    expected = [first.detect(batch) for batch in shown]
    several = [first.for_another_thread() for _ in range(3)]

    def detect(number: int) -> list[list[list[Detection]]]:
        """Each thread begins with another batch, so that sizes differ at any moment."""
        order = [(number + i) % len(shown) for i in range(2 * len(shown))]
        found = {place: several[number].detect(shown[place]) for place in order}
        return [found[place] for place in range(len(shown))]

    with ThreadPoolExecutor(len(several)) as pool:
        assert list(pool.map(detect, range(len(several)))) == [expected] * len(several)


def test_stages_hold_real_numbers_of_proposals(detector: FasterRcnnDetector, frames: list[Rgb]) -> None:
    outputs = detector.run(pictures(frames))
    counts = [len(boxes) for boxes in outputs.proposals.boxes]
    assert min(counts) > 100
    assert outputs.regions.shape == (sum(counts), 128, 7, 7)
    assert outputs.classified.scores.shape == (sum(counts), len(LABELS))
    assert all((scores.diff() <= 0).all() for scores in outputs.proposals.objectness)


def test_max_detections_keeps_the_best(weights: Weights, frames: list[Rgb]) -> None:
    config = EASY.model_copy(update={"max_detections": 3})
    expected = forward(reference(weights, config), frames)
    assert [len(e["boxes"]) for e in expected] == [3] * len(frames)
    found = FasterRcnnDetector(weights, config).detect(pictures(frames))
    assert [len(detections) for detections in found] == [3] * len(frames)
    assert_same(expected, found, LABELS, config.score_threshold)


def test_labels_and_thresholds_select(weights: Weights, frames: list[Rgb]) -> None:
    frames = frames[:1]
    everything = FasterRcnnDetector(weights, EASY.model_copy(update={"max_detections": 1000})).detect(pictures(frames))
    counts = {label: sum(d.label == label for found in everything for d in found) for label in LABELS}
    first, second = sorted(counts, key=lambda label: counts[label])[-2:]
    config = EASY.model_copy(update={"labels": (first, second), "score_thresholds": {second: 0.5}})
    config = config.model_copy(update={"max_detections": 1000})
    narrowed = FasterRcnnDetector(weights, config)
    assert narrowed.labels == LABELS[1:]
    limits = {first: 0.2, second: 0.5}
    expected = [[d for d in found if d.score > limits.get(d.label, math.inf)] for found in everything]
    assert narrowed.detect(pictures(frames)) == expected
    assert 0 < sum(map(len, expected)) < sum(map(len, everything))


def test_boxes_lie_in_the_frame(detector: FasterRcnnDetector, frames: list[Rgb]) -> None:
    shapes = [(576, 768), (31, 500), (7, 5), (300, 2)]
    crops = [np.ascontiguousarray(frames[0][:height, :width]) for height, width in shapes]
    for (height, width), detections in zip(shapes, detector.detect(pictures(crops)), strict=True):
        for detection in detections:
            x1, y1, x2, y2 = detection.box
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert 0.2 < detection.score <= 1


def test_scaling_never_leaves_the_frame() -> None:
    shown, frame = (319, 511), (1079, 1917)
    corner = torch.tensor([[0.0, 0.0, shown[1], shown[0]]])
    assert scale(corner, shown, frame).tolist() == [[0.0, 0.0, frame[1], frame[0]]]


def test_nothing_to_see_is_no_error(detector: FasterRcnnDetector, weights: Weights, frames: list[Rgb]) -> None:
    assert detector.detect([]) == []
    unreachable = FasterRcnnDetector(weights, EASY.model_copy(update={"score_threshold": 1.0}))
    assert unreachable.detect(pictures(frames)) == [[]] * len(frames)


def test_frames_without_proposals_are_no_error(weights: Weights, frames: list[Rgb]) -> None:
    detector = FasterRcnnDetector(weights, EASY)
    detector._propose._rpn.score_thresh = 1.0
    assert detector.detect(pictures(frames)) == [[]] * len(frames)


def test_read_only_pixels_are_taken(detector: FasterRcnnDetector, frames: list[Rgb]) -> None:
    frozen = frames[0].copy()
    frozen.flags.writeable = False
    assert detector.detect(pictures([frozen])) == detector.detect(pictures(frames[:1]))


def test_every_stage_is_timed_in_order(weights: Weights, frames: list[Rgb]) -> None:
    reported: list[tuple[str, float]] = []
    detector = FasterRcnnDetector(weights, EASY, lambda stage, seconds: reported.append((stage, seconds)))
    detector.warm_up()
    assert reported == []
    detector.detect(pictures(frames[:1]))
    assert tuple(stage for stage, _ in reported) == STAGES
    assert all(seconds > 0 for _, seconds in reported)


def test_warm_up_reports_when_memory_runs_out(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = FasterRcnnDetector(weights, EASY)

    def run_out(*_: object) -> None:
        torch.empty(10**15)

    monkeypatch.setattr(detector, "_classify", run_out)
    with pytest.raises(DetectorError, match=r"not enough memory for batches of 2 .* lower detector\.max_batch"):
        detector.warm_up()


def test_errors_of_the_device_can_be_distinguished() -> None:
    with pytest.raises(MemoryError, match="can't allocate"), device_errors():
        torch.empty(10**15)
    with pytest.raises(MemoryError), device_errors():
        raise torch.OutOfMemoryError
    message = "illegal access\nsecond line"
    with pytest.raises(DeviceLostError, match=r"the CUDA device failed: illegal access$"), device_errors():
        raise torch.AcceleratorError(message)
    with pytest.raises(RuntimeError, match="size of tensor a"), device_errors():
        torch.zeros(2) + torch.zeros(3)


@pytest.mark.parametrize("key", ["labels", "score_thresholds"])
def test_unknown_label_names_the_nearest(weights: Weights, key: str) -> None:
    value = ("persom",) if key == "labels" else {"persom": 0.5}
    config = EASY.model_copy(update={key: value})
    with pytest.raises(DetectorError, match=rf"detector\.{key}: unknown label 'persom'; did you mean 'person'\? Known"):
        FasterRcnnDetector(weights, config)


def test_labels_leave_out_what_no_detection_carries(weights: Weights) -> None:
    with_gap = replace(weights, labels=("__background__", "person", "N/A", "car", "motorcycle", "bus", "truck"))
    assert FasterRcnnDetector(with_gap, EASY).labels == ("person", "car", "motorcycle", "bus", "truck")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0", ""])
def test_device_that_is_none(name: str) -> None:
    with pytest.raises(DetectorError, match="is not a device; use"):
        choose_device(name)


@pytest.mark.parametrize(("count", "there"), [(0, "no CUDA device"), (2, "only cuda:0, cuda:1")])
def test_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, count: int, there: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(DetectorError, match=f"'cuda:7' is asked for, but this machine has {there}"):
        choose_device("cuda:7")
    assert choose_device("auto").type == ("cuda" if count else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


def test_load_detector_loads_what_the_configuration_names(
    weights: Weights, detector: FasterRcnnDetector, frames: list[Rgb], tmp_path: pytest.TempPathFactory
) -> None:
    path = f"{tmp_path}/w.pth"
    torch.save(weights.state, path)
    threads = torch.get_num_threads()
    try:
        config = EASY.model_copy(update={"weights": path, "model": EMBEDDED_ARCHITECTURE})
        loaded = pipeline.load_detector(config, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert loaded.labels == tuple(f"class_{i}" for i in range(1, len(LABELS)))
    assert len(loaded.detect(pictures(frames[:1]))[0]) > 0


@pytest.mark.gpu
def test_cuda_equals_torchvision(weights: Weights, frames: list[Rgb]) -> None:
    config = EASY.model_copy(update={"device": "cuda", "precision": "fp32"})
    model = reference(weights, config).cuda()
    with torch.inference_mode():
        images = [torch.from_numpy(frame).cuda().permute(2, 0, 1).float() / 255 for frame in frames]
        expected = [{key: t.cpu() for key, t in result.items()} for result in model(images)]
    found = FasterRcnnDetector(weights, config).detect(pictures(frames))
    assert_same(expected, found, LABELS, config.score_threshold + MARGIN)
