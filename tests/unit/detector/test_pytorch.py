"""The dense parts in torch: laid out differently, they yield what torchvision's modules yield; bf16 nearly so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from streamdet.bench.cases import calibrated_weights
from streamdet.detector.engines import pytorch as torch_dense
from streamdet.detector.engines.packing import epilogue
from streamdet.detector.engines.pytorch import TorchDense
from streamdet.detector.pipeline import prepare_model
from streamdet.detector.weights import Weights
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE, build_model
from streamdet.errors import DetectorError

ARCHITECTURES = [EMBEDDED_ARCHITECTURE, "fasterrcnn_mobilenet_v3_large_320_fpn"]

Outputs = list[Tensor]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def weights(request: pytest.FixtureRequest) -> Weights:
    return calibrated_weights(request.param)


def model_of(weights: Weights) -> FasterRCNN:
    return prepare_model(weights, torch.device("cpu"))


def inputs(weights: Weights) -> tuple[Tensor, Tensor]:
    """Images and regions: noise."""
    generator = torch.Generator().manual_seed(0)
    channels = model_of(weights).backbone.out_channels
    images, regions = (torch.randn(*s, generator=generator) for s in ((2, 3, 64, 96), (5, channels, 7, 7)))
    return tuple(t.contiguous(memory_format=torch.channels_last) for t in (images, regions))  # type: ignore[return-value]


@torch.inference_mode()
def torchvision_outputs(weights: Weights) -> Outputs:
    model, (images, regions) = model_of(weights), inputs(weights)
    levels = list(model.backbone(images).values())
    objectness, deltas = model.rpn.head(levels)
    return [*levels, *objectness, *deltas, *model.roi_heads.box_predictor(model.roi_heads.box_head(regions))]


@torch.inference_mode()
def outputs(dense: TorchDense, weights: Weights) -> Outputs:
    images, regions = inputs(weights)
    levels = dense.features(images)
    objectness, deltas = dense.rpn_head(levels)
    assert all(t.dtype == torch.float32 for t in (*objectness, *deltas))
    return [*levels, *objectness, *deltas, *dense.box_head(regions)]


@pytest.mark.parametrize("packed", [True, False])
def test_equals_torchvision(weights: Weights, monkeypatch: pytest.MonkeyPatch, *, packed: bool) -> None:
    if not packed:
        monkeypatch.setattr(torch_dense, "can_pack", lambda _: False)
    wanted, found = torchvision_outputs(weights), outputs(TorchDense(model_of(weights)), weights)
    for want, have in zip(wanted, found, strict=True):
        assert have.shape == want.shape
        assert have.dtype == torch.float32
        torch.testing.assert_close(have, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


def test_equals_torchvision_with_an_epilogue_of_its_own(weights: Weights) -> None:
    """As on a CUDA device, where the epilogue is one kernel."""
    calls: list[tuple[str, bool]] = []

    def counted(sums: Tensor, bias: Tensor, other: Tensor | None, activation: str) -> Tensor:
        calls.append((activation, other is not None))
        return epilogue(sums, bias, other, activation)

    wanted, found = torchvision_outputs(weights), outputs(TorchDense(model_of(weights), "fp32", counted), weights)
    for want, have in zip(wanted, found, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
    assert {("relu", False), ("none", False), ("none", True)} <= set(calls)


def test_bf16_is_near(weights: Weights) -> None:
    """Eight bits of mantissa through a deep random network: some hundredths of the values' deviation."""
    wanted, found = torchvision_outputs(weights), outputs(TorchDense(model_of(weights), "bf16"), weights)
    for want, have in zip(wanted, found, strict=True):
        assert have.shape == want.shape
        difference = (have.float() - want).square().mean().sqrt() / want.std().clamp(min=1e-3)
        assert 0 < difference < 0.2


def test_no_regions_are_no_error(weights: Weights) -> None:
    dense = TorchDense(model_of(weights))
    _, regions = inputs(weights)
    with torch.inference_mode():
        logits, deltas = dense.box_head(regions[:0])
    assert (logits.shape, deltas.shape) == ((0, len(weights.labels)), (0, len(weights.labels) * 4))


def test_int8_is_refused() -> None:
    with pytest.raises(DetectorError, match=r'detector\.precision: engine = "torch" has no "int8"; use'):
        TorchDense(model_of(calibrated_weights(EMBEDDED_ARCHITECTURE)), "int8")


@pytest.fixture
def _tf32() -> Iterator[None]:
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.mark.usefixtures("_tf32")
def test_float32_on_a_device_is_not_rounded_to_less() -> None:
    """On the device of tensors without numbers, which like CUDA is not the CPU."""
    model = build_model(EMBEDDED_ARCHITECTURE, 3).eval().to("meta")
    TorchDense(model, "bf16")
    assert torch.backends.cudnn.allow_tf32
    TorchDense(model, "fp32")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
