"""Runs steps one operation after the other, on any device; the tests compare graphs with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from streamdet.detector.graph.model import GraphModel
from streamdet.detector.graph.pixels import PixelFormat
from streamdet.detector.graph.step import Clock, GraphStep, no_clock

_STEPS = 16


class Runner(Protocol):
    """Copies the bytes of frames to the device, runs a step, and copies the detections back."""

    def run(
        self, pixel_format: PixelFormat, capacity: int, frames: Sequence[NDArray[np.uint8]], limits: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Detects.

        Args:
            pixel_format: of every frame.
            capacity: D, one of `model.CAPACITIES`.
            frames: uint8 [pixel_format.frame_bytes] each.
            limits: [batch, classes + 3], as `finish.Limits` unpacks them; at most D detections.

        Returns:
            float32 [batch, D + 1, 6], as `FinishInGraph` returns it.
        """


class EagerRunner:
    """Makes a step when it is first needed, and keeps those that were used last.

    Args:
        model: makes steps.
    """

    def __init__(self, model: GraphModel) -> None:
        self._model = model
        self._steps: OrderedDict[tuple[PixelFormat, int], GraphStep] = OrderedDict()

    @torch.inference_mode()
    def run(
        self,
        pixel_format: PixelFormat,
        capacity: int,
        frames: Sequence[NDArray[np.uint8]],
        limits: NDArray[np.float32],
        clock: Clock = no_clock,
    ) -> NDArray[np.float32]:
        """See `Runner`; the clock gets every stage."""
        with clock("input"):
            pixels = torch.from_numpy(np.stack(frames)).to(self._model.device)
            there = torch.from_numpy(limits).to(self._model.device)
        rows: NDArray[np.float32] = self._step(pixel_format, capacity)(pixels, there, clock).cpu().numpy()
        return rows

    def _step(self, pixel_format: PixelFormat, capacity: int) -> GraphStep:
        key = pixel_format, capacity
        step = self._steps.pop(key, None) or self._model.step(pixel_format, capacity)
        self._steps[key] = step
        if len(self._steps) > _STEPS:
            self._steps.popitem(last=False)
        return step
