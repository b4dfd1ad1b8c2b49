"""A running mean of the weights: single steps are noisy, their mean is not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WARM_UP_STEPS = 20


class WeightAverage:
    """Exponential moving average of a model's state (Tarvainen and Valpola 2017, arXiv:1703.01780).

    Attributes:
        tensors: the mean of each tensor of the state dict; counters are the latest.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.tensors: dict[str, Tensor] = {name: t.detach().clone() for name, t in model.state_dict().items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes the state after step number `step`, from 0."""
        # A short memory at first, so that the random start is forgotten.
        decay = min(self._decay, (1 + step) / (_WARM_UP_STEPS + step))
        state = model.state_dict()
        numbers = [name for name, tensor in state.items() if tensor.is_floating_point()]
        # One launch on a GPU instead of one for each tensor.
        torch._foreach_lerp_([self.tensors[n] for n in numbers], [state[n] for n in numbers], 1 - decay)
        for name in state.keys() - set(numbers):
            self.tensors[name].copy_(state[name])
