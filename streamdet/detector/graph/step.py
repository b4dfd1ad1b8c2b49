"""Runs all stages of a batch, from bytes to detections, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from torch import Tensor

from streamdet.detector.engines import RpnDense
from streamdet.detector.graph.align import AlignInGraph
from streamdet.detector.graph.canvas import Canvas
from streamdet.detector.graph.finish import FinishInGraph, Limits
from streamdet.detector.graph.pixels import PixelFormat, to_rgb
from streamdet.detector.graph.propose import ProposeInGraph

Clock = Callable[[str], AbstractContextManager[None]]
"""Called with the name of a stage; the context that it returns encloses the work of that stage."""


@contextmanager
def no_clock(_stage: str) -> Iterator[None]:
    """Measures nothing."""
    yield


@dataclass(frozen=True)
class GraphStep:
    """The stages of one model for frames of one format; made by `GraphModel.step`.

    A batch may have any number of frames; batches of the same size have tensors of the same shapes.
    """

    pixel_format: PixelFormat
    canvas: Canvas
    dense: RpnDense
    propose: ProposeInGraph
    align: AlignInGraph
    finish: FinishInGraph

    def __call__(self, pixels: Tensor, limits: Tensor, clock: Clock = no_clock) -> Tensor:
        """Detects.

        Args:
            pixels: uint8 [batch, pixel_format.frame_bytes].
            limits: float32 [batch, classes + 3]: what counts as a detection in each frame, as `Limits` unpacks it.
            clock: gets the stages, all but the first of `streamdet.monitoring.metrics.STAGES`.

        Returns:
            float32 [batch, D + 1, 6], as `FinishInGraph` says.
        """
        with clock("preprocess"):
            images = self.canvas(to_rgb(pixels, self.pixel_format))
        with clock("features"):
            levels = self.dense.features(images)
        with clock("proposals"):
            slots = self.propose(*self.dense.rpn_head(levels))
        with clock("roi_pool"):
            regions = self.align(levels[: self.align.levels], slots.boxes)
        with clock("classify"):
            logits, deltas = self.dense.box_head(regions)
        with clock("postprocess"):
            return self.finish(slots, logits, deltas, Limits.unpack(limits))
