"""A tiny run that several tests share."""

from __future__ import annotations

from streamdet.training.pictures import AugmentConfig
from streamdet.training.run import TrainConfig
from streamdet.training.train import Listener

CONFIG = TrainConfig(
    epochs=2, batch_size=4, learning_rate=1e-3, frozen_stages=0, checkpoint_steps=2, min_size=64, max_size=96,
    augment=AugmentConfig((64,)),
)  # fmt: skip


class Losses(Listener):
    """Notes the loss of each step, and breaks off after one of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.sums: list[float] = []
        self._stop_after = stop_after

    def on_step(self, step: int, total_steps: int, losses: dict[str, float], images_per_second: float) -> None:
        self.sums.append(sum(losses.values()))
        if step == self._stop_after:
            raise KeyboardInterrupt
