"""Rewrites the convolutions of a model, so that what follows them is done while their results are stored.

Batch normalisation is folded into the weights. Activations and sums become part of the convolution: on a CPU by oneDNN,
with weights laid out once; elsewhere by an epilogue that goes over the result once. Without it torch's own modules
choose the layout again at each call, run small convolutions by a slow path when there is one thread, and go over the
result once more for each step; that is half of the time of a MobileNet.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

Activation = tuple[str, list[float]]
"""oneDNN's name of it, and its numbers: none, relu, hardtanh (from 0 to 6), hardswish."""

NO_ACTIVATION: Activation = ("none", [])
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": functional.relu_,
    "hardtanh": lambda x: functional.hardtanh_(x, 0.0, 6.0),
    "hardswish": lambda x: functional.hardswish(x, inplace=True),
}
Epilogue = Callable[[Tensor, Tensor, Tensor | None, str], Tensor]
"""Sums, bias, another map or None, name of the activation; returns the sums, changed in place."""

_log = logging.getLogger(__name__)
_ACTIVATIONS: dict[object, Activation] = {
    nn.ReLU: ("relu", []),
    functional.relu: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}
_SUMS = (operator.add, operator.iadd, torch.add)
MakeConvolution = Callable[[nn.Conv2d, Activation], nn.Module]
"""Makes a module that convolves, adds its second argument if there is one, and applies the activation."""


def fold_batch_norm(module: nn.Module) -> None:
    """Rewrites, in place, every convolution whose successor is a batch normalisation of the same width.

    All of our architectures register a normalisation right behind the convolution that it follows in the
    data; a test compares each with torchvision's own `forward`.
    """
    before: nn.Module | None = None
    for name, child in module.named_children():
        if isinstance(before, nn.Conv2d) and isinstance(child, nn.BatchNorm2d | FrozenBatchNorm2d):
            _fold(before, child)
            setattr(module, name, nn.Identity())
        else:
            fold_batch_norm(child)
        before = child


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
    """Uses that norm(y) = (y - mean) * scale + shift, with scale = weight / sqrt(variance + eps)."""
    state = norm.state_dict()
    weight, shift, mean, variance = (state[k].double() for k in ("weight", "bias", "running_mean", "running_var"))
    scale = weight / torch.sqrt(variance + norm.eps)
    bias = torch.zeros_like(mean) if convolution.bias is None else convolution.bias.detach().double()
    kernel = convolution.weight.detach().double() * scale[:, None, None, None]
    convolution.weight = nn.Parameter(kernel.float(), requires_grad=False)
    convolution.bias = nn.Parameter(((bias - mean) * scale + shift).float(), requires_grad=False)


class PackedConvolution(nn.Module):
    """A convolution and what follows it, as one call of oneDNN.

    Args:
        convolution: float32 or bfloat16, on the CPU.
        activation: oneDNN's name of it, and its numbers.
    """

    def __init__(self, convolution: nn.Conv2d, activation: Activation = NO_ACTIVATION) -> None:
        super().__init__()
        self._settings = (
            list(cast("tuple[int, int]", convolution.padding)),
            list(convolution.stride),
            list(convolution.dilation),
            convolution.groups,
        )
        self.activation = activation
        self._weight = convolution.weight.detach()
        self._bias = None if convolution.bias is None else convolution.bias.detach()
        self._laid_out: Tensor | None = None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolves, adds `other` if there is one, and applies the activation."""
        name, numbers = self.activation
        weight = self._lay_out(x) if self._laid_out is None else self._laid_out
        if other is None:
            convolve = torch.ops.mkldnn._convolution_pointwise  # noqa: SLF001 - what torch's compiler calls
            result = convolve(x, weight, self._bias, *self._settings, name, numbers, "")
        else:
            unary = (None, [], None) if name == "none" else (name, numbers, "")
            result = torch.ops.mkldnn._convolution_pointwise.binary(  # noqa: SLF001 - the same
                x, other, weight, self._bias, *self._settings, "add", None, *unary
            )
        return cast("Tensor", result)

    def _lay_out(self, x: Tensor) -> Tensor:
        """The weights in the order that oneDNN likes best for inputs of the first size that comes; others fit too."""
        lay_out = torch.ops.mkldnn._reorder_convolution_weight  # noqa: SLF001 - what torch's compiler calls
        weight: Tensor = lay_out(self._weight, *self._settings, list(x.shape))
        self._laid_out = weight
        return weight


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU have what is needed for convolutions in this precision.

    The operators are torch's own, but private: another version may have changed them. So they are tried.
    """
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call] # torch's
    if not (available and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001 - the same
        return False
    convolution = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(requires_grad=False).to(dtype)
    x = torch.linspace(-1, 1, 8 * 36).reshape(1, 8, 6, 6).to(dtype)
    wanted = (convolution(x) + x).relu()
    try:
        found = PackedConvolution(convolution, ("relu", []))(x, x)
    except (RuntimeError, TypeError, AttributeError) as error:
        _log.warning("convolutions are not packed, which is slower: %s", str(error).partition("\n")[0])
        return False
    return torch.allclose(found, wanted, atol=1e-4 if dtype == torch.float32 else 0.1)


class EpilogueConvolution(nn.Module):
    """A convolution without its bias, and then an epilogue.

    Args:
        convolution: of torch.
        activation: that follows.
        apply: does what `epilogue` does.
    """

    def __init__(self, convolution: nn.Conv2d, activation: Activation, apply: Epilogue) -> None:
        super().__init__()
        padding = cast("tuple[int, ...]", convolution.padding)
        self._convolve = partial(
            torch.conv2d,
            stride=convolution.stride,
            padding=padding,
            dilation=convolution.dilation,
            groups=convolution.groups,
        )
        self._weight = convolution.weight.detach()
        bias = convolution.bias
        self._bias = self._weight.new_zeros(len(self._weight)) if bias is None else bias.detach()
        self._activation, _ = activation
        self._apply_epilogue = apply

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolves, adds `other` if there is one, and applies the activation."""
        sums = self._convolve(x, self._weight, None)
        return self._apply_epilogue(sums, self._bias, other, self._activation)


def epilogue(sums: Tensor, bias: Tensor, other: Tensor | None, activation: str) -> Tensor:
    """activation(sums + bias + other), in place, by torch's own operators.

    Args:
        sums: [batch, channels, height, width], any floating point.
        bias: [channels], of the same type.
        other: of the same shape and type, or None.
        activation: one of `ACTIVATIONS`.
    """
    sums += bias[:, None, None]
    if other is not None:
        sums += other
    return ACTIVATIONS[activation](sums)


@torch.no_grad()
def pack(module: nn.Module, make: MakeConvolution = PackedConvolution) -> nn.Module:
    """Packs every convolution of a module whose `forward` takes one tensor; the module itself stays as it is.

    Args:
        module: batch normalisation folded.
        make: makes what takes the place of a convolution and what follows it.
    """
    traced = fx.symbolic_trace(module)
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], nn.Identity):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and type(modules[node.target]) is nn.Conv2d:
            _Rewrite(traced, modules, node, make).apply()
    traced.graph.lint()
    traced.recompile()
    return traced


@dataclass(frozen=True)
class _Rewrite:
    """Packs one convolution with as much of what follows as one call can do."""

    traced: fx.GraphModule
    modules: dict[str, nn.Module]
    convolution: fx.Node
    make: MakeConvolution

    def apply(self) -> None:
        last, other, activation = self.convolution, None, NO_ACTIVATION
        follower = _only_user(last)
        if follower is not None and (found := self._activation(follower)) is None:
            other = self._summand(follower)
            if other is not None:
                last, follower = follower, _only_user(follower)
                found = self._activation(follower) if follower is not None else None
        else:
            found = self._activation(follower) if follower is not None else None
        if found is not None and follower is not None:
            last, activation = follower, found
        self._replace(last, other, activation)

    def _replace(self, last: fx.Node, other: fx.Node | None, activation: Activation) -> None:
        """Puts the packed convolution in the place of everything from the convolution to `last`."""
        name = f"{str(self.convolution.target).replace('.', '_')}_packed"
        convolution = cast("nn.Conv2d", self.modules[str(self.convolution.target)])
        packed_module = self.make(convolution, activation)
        self.traced.add_submodule(name, packed_module)
        self.modules[name] = packed_module
        inputs = (self.convolution.args[0], *([] if other is None else [other]))
        with self.traced.graph.inserting_after(last):
            packed = self.traced.graph.call_module(name, inputs)
        last.replace_all_uses_with(packed)
        node: fx.Node | None = last
        while node is not None:
            before = None if node is self.convolution else self._before(node, other)
            self.traced.graph.erase_node(node)
            node = before

    def _before(self, node: fx.Node, other: fx.Node | None) -> fx.Node:
        return next(a for a in node.all_input_nodes if a is not other)

    def _activation(self, node: fx.Node) -> Activation | None:
        kind: Any = type(self.modules[str(node.target)]) if node.op == "call_module" else node.target
        return _ACTIVATIONS.get(kind)

    def _summand(self, node: fx.Node) -> fx.Node | None:
        """What is added to the convolution's result, if that is what the node does."""
        if node.op != "call_function" or node.target not in _SUMS or len(node.all_input_nodes) != 2:
            return None
        (other,) = (a for a in node.all_input_nodes if a is not self.convolution)
        return other


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None
