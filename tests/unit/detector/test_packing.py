"""Packed convolutions yield what torch's own do, whatever follows them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from streamdet.detector.engines import packing
from streamdet.detector.engines.packing import PackedConvolution, can_pack, pack

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def image(channels: int = 8, size: tuple[int, int] = (20, 24), batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, *size).contiguous(memory_format=torch.channels_last)


def check(module: nn.Module, x: Tensor, packed: int) -> nn.Module:
    """Packs a module, and finds as many packed convolutions and the same results.

    Args:
        module: to be packed.
        x: its input.
        packed: how many convolutions must have been packed; none may be left.
    """
    module = module.eval().requires_grad_(requires_grad=False)
    wanted = module(x.clone())
    found = pack(module)
    assert sum(isinstance(m, PackedConvolution) for m in found.modules()) == packed
    called = {node.target for node in found.graph.nodes if node.op == "call_module"}  # type: ignore[union-attr, operator]
    assert not any(isinstance(found.get_submodule(str(name)), nn.Conv2d) for name in called)
    with torch.inference_mode():
        torch.testing.assert_close(found(x.clone()), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module(x.clone()), wanted)
    return found


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardswish(inplace=True), nn.Sigmoid(), nn.Identity()],
)
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Conv2d(8, 16, 1, bias=False),
        nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8),
        nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=4),
    ],
)
def test_activations_are_done_while_storing(convolution: nn.Module, activation: nn.Module) -> None:
    found = check(nn.Sequential(convolution, activation), image() * 5, packed=1)
    calls = [node for node in found.graph.nodes if node.op.startswith("call")]  # type: ignore[union-attr, operator]
    assert len(calls) == (2 if isinstance(activation, nn.Sigmoid) else 1)


class Residual(nn.Module):
    """A block of a ResNet, or of a MobileNet that adds without an activation."""

    def __init__(self, *, activated: bool, swapped: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.activated = activated
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.activation(self.first(x)))
        y = x + y if self.swapped else y + x
        return self.activation(y) if self.activated else y


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_sums_are_done_while_storing(*, activated: bool, swapped: bool) -> None:
    found = check(Residual(activated=activated, swapped=swapped), image(), packed=2)
    calls = [node for node in found.graph.nodes if node.op.startswith("call")]  # type: ignore[union-attr, operator]
    assert len(calls) == 2


class Shared(nn.Module):
    """A convolution whose result is used twice, and one that is added to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 1)
        self.second = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(y)
        return y.relu() + (z + z)


def test_results_used_twice_stay_as_they_are() -> None:
    check(Shared(), image(), packed=2)


def test_weights_laid_out_for_one_size_fit_others() -> None:
    module = nn.Conv2d(8, 16, 3, padding=1).requires_grad_(requires_grad=False)
    packed = pack(nn.Sequential(module))
    with torch.inference_mode():
        for size, batch in (((40, 30), 1), ((7, 5), 3), ((1, 1), 8)):
            x = image(size=size, batch=batch)
            torch.testing.assert_close(packed(x), module(x), rtol=1e-4, atol=1e-4)


def test_another_version_of_the_operators_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def changed(*_: object) -> Tensor:
        message = "expected at most 9 arguments"
        raise RuntimeError(message)

    monkeypatch.setattr(packing.PackedConvolution, "forward", changed)
    can_pack.cache_clear()
    try:
        assert not can_pack(torch.float32)
    finally:
        can_pack.cache_clear()
    assert caplog.messages == ["convolutions are not packed, which is slower: expected at most 9 arguments"]
