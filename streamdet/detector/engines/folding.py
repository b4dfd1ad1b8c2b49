"""Folds batch normalisation, which is an affine map once training is over, into the convolution before it."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d


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
