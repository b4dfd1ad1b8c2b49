"""The fixed path gives torchvision's detections, with no shape that depends on the data."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from streamdet.assets import sample_clip
from streamdet.bench.cases import EMBEDDED_LABELS, calibrated_weights
from streamdet.config import DetectorConfig
from streamdet.detector.device import choose_device, choose_devices
from streamdet.detector.graph.detector import GraphDetector, load_graph_detectors
from streamdet.detector.graph.finish import packed_limits
from streamdet.detector.graph.pixels import PixelFormat
from streamdet.detector.graph.suppress import suppress
from streamdet.detector.pipeline import ArrayPicture, FasterRcnnDetector, prepare_model
from streamdet.detector.stages.preprocess import Preprocess
from streamdet.detector.stages.proposals import ProposeInTorch
from streamdet.detector.weights import Weights, load_weights
from streamdet.detector.weights.architectures import ARCHITECTURES, EMBEDDED_ARCHITECTURE, build_model
from streamdet.errors import DetectorError
from streamdet.monitoring.metrics import STAGES

Rgb = NDArray[np.uint8]

CPU = torch.device("cpu")
EASY = DetectorConfig(device="cpu", engine="torch", precision="fp32", score_threshold=0.05, max_batch_size=4)
FORMAT = PixelFormat(576, 768)


@functools.cache
def clip_frames() -> list[Rgb]:
    """Two frames of the sample clip, 768x576, 10 s apart."""
    with av.open(str(sample_clip())) as container:
        decoded = container.decode(video=0)
        return [frame.to_ndarray(format="rgb24") for frame in itertools.islice(decoded, 0, 120, 100)]


@functools.cache
def random_weights() -> Weights:
    return calibrated_weights(EMBEDDED_ARCHITECTURE)


@functools.cache
def random_detector() -> GraphDetector:
    return GraphDetector(random_weights(), EASY, CPU)


def reference(weights: Weights, frames: list[Rgb]) -> list[dict[str, Tensor]]:
    """What torchvision's own model says."""
    model = build_model(weights.architecture, len(weights.labels))
    model.load_state_dict(weights.state)
    model.transform.min_size, model.transform.max_size = (weights.min_size,), weights.max_size
    model.roi_heads.score_thresh = EASY.score_threshold
    model.roi_heads.detections_per_img = EASY.max_detections
    with torch.inference_mode():
        results: list[dict[str, Tensor]] = model.eval()(
            [torch.from_numpy(frame).permute(2, 0, 1).float() / 255 for frame in frames]
        )
    return results


def assert_same(wanted: dict[str, Tensor], rows: Tensor) -> None:
    """Each detection has its own counterpart: same label, score within 1e-3, corners within half a pixel.

    Args:
        wanted: torchvision's detections.
        rows: float32 [n, 6], box, score, class.
    """
    equal = (
        (wanted["labels"][:, None] == rows[:, 5])
        & ((wanted["scores"][:, None] - rows[:, 4]).abs() <= 1e-3)
        & ((wanted["boxes"][:, None] - rows[:, :4]).abs().amax(-1) <= 0.5)
    )
    assert equal.shape == (len(rows), len(rows))
    assert equal.any(0).all()
    assert equal.any(1).all()


def rows_of(detector: GraphDetector, frames: list[Rgb]) -> list[Tensor]:
    found = detector.detect([ArrayPicture(frame) for frame in frames])
    names = random_weights().labels
    return [
        torch.tensor([(*d.box, d.score, names.index(d.label)) for d in detections]).reshape(-1, 6)
        for detections in found
    ]


def pixels(frames: list[Rgb]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).flatten(1)


def limits(*configs: DetectorConfig) -> Tensor:
    return torch.tensor([packed_limits(EMBEDDED_LABELS, config.settings_for()) for config in configs])


def test_embedded_weights_equal_torchvision() -> None:
    assert load_weights(DetectorConfig()).labels == EMBEDDED_LABELS
    weights = load_weights(DetectorConfig())
    frames = clip_frames()
    for wanted, rows in zip(
        reference(weights, frames), rows_of(GraphDetector(weights, EASY, CPU), frames), strict=True
    ):
        assert len(rows) > 20
        assert_same(wanted, rows)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_every_architecture_equals_torchvision(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = ARCHITECTURES[architecture]

    def build_with_fewer_proposals(num_classes: int) -> torch.nn.Module:
        model = build(num_classes)
        model.rpn._pre_nms_top_n["testing"] = 200
        model.rpn._post_nms_top_n["testing"] = 30  # a thousand would take the largest model half a minute
        return model

    monkeypatch.setitem(ARCHITECTURES, architecture, build_with_fewer_proposals)  # type: ignore[arg-type]
    weights = calibrated_weights(architecture)
    frames = clip_frames()[:1]
    (wanted,) = reference(weights, frames)
    assert len(wanted["boxes"]) >= 5
    (rows,) = rows_of(GraphDetector(weights, EASY, CPU), frames)
    assert_same(wanted, rows)


def test_each_size_of_a_mixed_batch_is_a_batch_of_its_own() -> None:
    first, second = clip_frames()
    small = np.ascontiguousarray(first[100:400, 50:250])
    found = rows_of(random_detector(), [first, small, second])
    for wanted, rows in zip(reference(random_weights(), [first, second]), (found[0], found[2]), strict=True):
        assert_same(wanted, rows)
    assert_same(reference(random_weights(), [small])[0], found[1])


def test_labels_and_thresholds_are_those_of_the_compact_path() -> None:
    config = EASY.model_copy(update={"labels": ("person", "car"), "score_thresholds": {"car": 0.3}})
    compact = FasterRcnnDetector(random_weights(), config)
    fixed = GraphDetector(random_weights(), config, CPU)
    assert fixed.labels == compact.labels == EMBEDDED_LABELS[1:]
    picture = [ArrayPicture(clip_frames()[0])]
    wanted, found = compact.detect(picture)[0], fixed.detect(picture)[0]
    assert [d.label for d in found] == [d.label for d in wanted]
    assert {d.label for d in found} == {"person", "car"}
    torch.testing.assert_close(
        torch.tensor([(*d.box, d.score) for d in found]),
        torch.tensor([(*d.box, d.score) for d in wanted]),
        atol=0.05,
        rtol=0,
    )


def test_tiny_frames_and_none() -> None:
    assert random_detector().detect([]) == []
    frame = clip_frames()[0]
    crops = [np.ascontiguousarray(frame[:height, :width]) for height, width in ((7, 5), (300, 2), (31, 500))]
    for crop, detections in zip(crops, random_detector().detect([ArrayPicture(crop) for crop in crops]), strict=True):
        for detection in detections:
            x1, y1, x2, y2 = detection.box
            assert 0 <= x1 < x2 <= crop.shape[1]
            assert 0 <= y1 < y2 <= crop.shape[0]


def test_too_many_candidates_shorten_the_list_from_its_end() -> None:
    batch = pixels(clip_frames()[:1])
    whole = random_detector().model
    with torch.inference_mode():
        (wanted,) = replace(whole, max_candidates=100_000).step(FORMAT, 1000)(batch, limits(EASY))
        (found,) = replace(whole, max_candidates=60).step(FORMAT, 1000)(batch, limits(EASY))
    passed, kept = int(wanted[-1, 1]), int((found[:-1, 4] >= 0).sum())
    assert passed > 200
    assert found[-1, :2].tolist() == [1, passed]
    assert 10 < kept <= 60
    torch.testing.assert_close(found[:kept], wanted[:kept])
    assert (found[kept:-1, 4] < 0).all()


def test_what_has_not_settled_is_computed_until_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = GraphDetector(random_weights(), EASY, CPU)
    hasty = replace(detector.model, suppress=functools.partial(suppress, rounds=1))
    with torch.inference_mode():
        rows = hasty.step(FORMAT, 512)(pixels(clip_frames()), limits(EASY, EASY))
    assert rows[:, -1, 0].tolist() == [0, 0]
    monkeypatch.setattr(detector._eager, "_model", hasty)
    for found, wanted in zip(rows_of(detector, clip_frames()), rows_of(random_detector(), clip_frames()), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_every_stage_is_timed_in_order() -> None:
    reported: list[tuple[str, float]] = []
    detector = GraphDetector(random_weights(), EASY, CPU, lambda stage, seconds: reported.append((stage, seconds)))
    detector.detect([ArrayPicture(clip_frames()[0])])
    assert tuple(stage for stage, _ in reported) == STAGES
    assert all(seconds > 0 for _, seconds in reported)


class Forbid(TorchDispatchMode):
    """Refuses what makes a GPU wait for the host, or copies a constant to it."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique", "lift_fresh", "equal", "nms")

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            msg = f"{name} waits for the device"
            raise AssertionError(msg)
        indices = args[1] if name in {"index", "index_put_"} else ()
        if any(i is not None and i.dtype in {torch.bool, torch.uint8} for i in indices):
            msg = "an index by truth values waits for the device"
            raise AssertionError(msg)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("pixel_format", [FORMAT, PixelFormat(576, 768, "nv12"), PixelFormat(576, 768, "yuv420p")])
def test_nothing_in_a_step_waits(pixel_format: PixelFormat) -> None:
    step = random_detector().model.step(pixel_format, 512)
    several = limits(EASY, EASY)
    with torch.inference_mode(), Forbid():
        step(torch.zeros(2, pixel_format.frame_bytes, dtype=torch.uint8), several)


def shapes_alone(work: Callable[[], object]) -> object:
    """Runs work on tensors that have shapes and no numbers: what asks for a number raises."""
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        return work()


class PlainDense:
    """torchvision's modules themselves: those that are packed for a CPU cannot run without numbers."""

    def __init__(self) -> None:
        self.model = prepare_model(random_weights(), CPU)

    def features(self, images: Tensor) -> list[Tensor]:
        return list(self.model.backbone(images).values())

    def rpn_head(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self.model.rpn.head(levels)

    def box_head(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.roi_heads.box_predictor(self.model.roi_heads.box_head(regions))


def test_no_shape_depends_on_the_data() -> None:
    step = replace(random_detector().model, dense=PlainDense()).step(FORMAT, 512)
    several = limits(EASY, EASY)
    found = shapes_alone(lambda: step(torch.zeros(2, FORMAT.frame_bytes, dtype=torch.uint8), several))
    assert isinstance(found, Tensor)
    assert found.shape == (2, 513, 6)


def test_shapes_of_the_compact_path_do_depend_on_the_data() -> None:
    """Shows that the tests before this one can fail."""
    dense = PlainDense()
    propose = ProposeInTorch(dense.model.rpn, dense)
    batch = Preprocess(dense.model.transform, CPU)([torch.zeros(3, 576, 768, dtype=torch.uint8)])
    maps = {str(i): level for i, level in enumerate(dense.features(batch.tensor))}
    with pytest.raises(DynamicOutputShapeException):
        shapes_alone(lambda: propose(batch, maps))
    detector = FasterRcnnDetector(random_weights(), EASY)
    with pytest.raises(AssertionError, match="waits for the device"), torch.inference_mode(), Forbid():
        detector.detect([ArrayPicture(clip_frames()[0])])


def test_devices_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_devices("auto") == [CPU]
    with pytest.raises(DetectorError, match="has no CUDA device"):
        choose_devices("cuda:all")
    with pytest.raises(DetectorError, match='"graph" needs a CUDA device'):
        load_graph_detectors(EASY)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    both = [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert choose_devices("auto") == choose_devices("cuda:all") == both
    assert choose_devices("cuda:1") == both[1:]
    with pytest.raises(DetectorError, match='goes with engine = "graph" alone'):
        choose_device("cuda:all")
