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

_FORMATS = 16


class Runner(Protocol):
    """Copies the bytes of frames to the device, runs a step, and copies the detections back."""

    def run(self, pixel_format: PixelFormat, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Detects.

        Args:
            pixel_format: of every frame.
            frames: uint8 [pixel_format.frame_bytes] each.

        Returns:
            float32 [batch, D + 1, 6], as `FinishInGraph` returns it.
        """


class EagerRunner:
    """Makes a step when a format is first used, and keeps the steps of the formats that were used last.

    Args:
        model: makes steps.
    """

    def __init__(self, model: GraphModel) -> None:
        self._model = model
        self._device = model.thresholds.device
        self._steps: OrderedDict[PixelFormat, GraphStep] = OrderedDict()

    @torch.inference_mode()
    def run(
        self, pixel_format: PixelFormat, frames: Sequence[NDArray[np.uint8]], clock: Clock = no_clock
    ) -> NDArray[np.float32]:
        """See `Runner`; the clock gets every stage."""
        with clock("input"):
            pixels = torch.from_numpy(np.stack(frames)).to(self._device)
        rows: NDArray[np.float32] = self._step(pixel_format)(pixels, clock).cpu().numpy()
        return rows

    def _step(self, pixel_format: PixelFormat) -> GraphStep:
        step = self._steps.pop(pixel_format, None) or self._model.step(pixel_format)
        self._steps[pixel_format] = step
        if len(self._steps) > _FORMATS:
            self._steps.popitem(last=False)
        return step
