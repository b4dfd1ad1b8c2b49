"""What follows the sums of a convolution: the bias, another map, the activation; all in one pass over memory.

On a GPU torch goes over the result of a convolution once for each of them: in resnet50_fpn that takes as long as the
convolutions themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

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
