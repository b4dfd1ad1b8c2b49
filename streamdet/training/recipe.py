"""What defines a training run, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import nn

from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE
from streamdet.training.pictures import AugmentConfig

# Sides of the training canvas relative to the model's shorter side; each a multiple of the coarsest stride.
_CANVAS_FACTORS = (1.0, 1.1, 1.2, 1.3)
_STRIDE_PIXELS = 32
# First children of the backbone that keep what a good file taught them: torchvision's own choices for
# fine-tuning (three of a ResNet's five stages and three of a MobileNet's six are trained).
_FROZEN_STAGES = {
    EMBEDDED_ARCHITECTURE: 4,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 7,
    "fasterrcnn_mobilenet_v3_large_fpn": 7,
    "fasterrcnn_resnet50_fpn": 5,
    "fasterrcnn_resnet50_fpn_v2": 5,
}


@dataclass(frozen=True)
class TrainConfig:
    """What defines a run; the same values give the same weights, bit by bit, on the same machine.

    Attributes:
        model: a key of `models.ARCHITECTURES`.
        epochs: how often each photograph leads a training picture.
        batch_size: training pictures per step.
        learning_rate: AdamW's, at its peak.
        weight_decay: AdamW's, not for biases and normalisation.
        warm_up_steps: steps of linear growth to the peak, at most a tenth of the run; half a cosine follows.
        ema_decay: of the running mean of the weights, which is what is evaluated and saved.
        frozen_stages: first children of the backbone that stay as they are.
        seed: of everything random.
        checkpoint_steps: steps between checkpoints.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        min_size: input's shorter side in evaluation; the model's own when None.
        max_size: input's longer side in evaluation, at most; the model's own when None.
        augment: how training pictures are made.
    """

    model: str = EMBEDDED_ARCHITECTURE
    epochs: int = 12
    batch_size: int = 8
    learning_rate: float = 4e-4
    weight_decay: float = 0.05
    warm_up_steps: int = 200
    ema_decay: float = 0.998
    frozen_stages: int = 4
    seed: int = 0
    checkpoint_steps: int = 100
    evaluate_every: int = 1
    min_size: int | None = None
    max_size: int | None = None
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig((320, 352, 384, 416)))

    def evaluates(self, epoch: int) -> bool:
        """Whether this epoch, from 1, ends with an evaluation."""
        return epoch % self.evaluate_every == 0 or epoch == self.epochs

    def evaluations_after(self, epoch: int) -> int:
        """How many evaluations follow that of this epoch, from 0."""
        return sum(self.evaluates(later) for later in range(epoch + 1, self.epochs + 1))


def config_from_json(values: dict[str, Any]) -> TrainConfig:
    """The configuration that `asdict` and JSON made of one; unknown keys are left out.

    Raises:
        TypeError: a value has another structure.
        KeyError: likewise.
    """
    augment: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["augment"].items()}
    known = {f.name: values[f.name] for f in fields(TrainConfig) if f.name in values}
    return replace(TrainConfig(**known), augment=AugmentConfig(**augment))


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """What differs between two configurations, one line each."""
    before, after = _flat(old), _flat(new)
    return [f"{name} was {before[name]}, now {after[name]}" for name in before if before[name] != after[name]]


def canvas_sizes(min_size: int) -> tuple[int, ...]:
    """Sides of training canvases for a model whose input's shorter side is `min_size` pixels."""
    sides = (max(round(min_size * f / _STRIDE_PIXELS), 2) * _STRIDE_PIXELS for f in _CANVAS_FACTORS)
    return tuple(dict.fromkeys(sides))


def frozen_stages(model: str, *, initialised: bool) -> int:
    """How many stages are kept as they are: none of a model that starts from nothing."""
    return _FROZEN_STAGES.get(model, 0) if initialised else 0


def learning_rate_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak; `step` counts from 0."""
    warm_up = min(config.warm_up_steps, total_steps // 10)
    if step < warm_up:
        return config.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(total_steps - warm_up, 1)
    return config.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay, biases and normalisation do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def frozen_norms_in(model: nn.Module, given: Iterable[str]) -> list[str]:
    """Names of the BatchNorm2d whose running statistics are among the `given` tensors.

    They saw far larger batches than a fine-tuning run has, so they keep their statistics.
    """
    names = set(given)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and f"{name}.running_mean" in names
    ]


def _flat(config: TrainConfig) -> dict[str, Any]:
    values = asdict(config)
    return {**{f"augment.{k}": v for k, v in values.pop("augment").items()}, **values}
