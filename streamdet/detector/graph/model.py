"""What the steps of one model share: its weights and capacities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchvision.models.detection import FasterRCNN

from streamdet.detector.anchors import make_anchors
from streamdet.detector.engines import RpnDense
from streamdet.detector.graph.align import AlignInGraph, Weigh, weigh
from streamdet.detector.graph.canvas import Canvas
from streamdet.detector.graph.finish import FinishInGraph
from streamdet.detector.graph.pixels import PixelFormat
from streamdet.detector.graph.propose import ProposeInGraph
from streamdet.detector.graph.step import GraphStep
from streamdet.detector.graph.suppress import Suppress, suppress

CAPACITIES = (512, 1000)
"""D, the slots for detections of a frame, that steps are made with: for what is usual, and for all that is allowed."""


def capacity_for(max_detections: int) -> int:
    """The smallest of `CAPACITIES` that holds this number of detections."""
    return next(capacity for capacity in CAPACITIES if capacity >= max_detections)


@dataclass(frozen=True)
class GraphModel:
    """Makes steps, one for each pixel format and capacity.

    Attributes:
        model: prepared by `pipeline.prepare_model`; used for everything except the dense arithmetic.
        dense: runs the convolutions and matrix products of `model`.
        classes: that the model knows, the background included.
        device: where it is.
        max_candidates: boxes of each frame that go into the last suppression; M; None for the default.
        suppress: non-maximum suppression; plain torch unless given.
        weigh: the sums of RoIAlign; plain torch unless given.
    """

    model: FasterRCNN
    dense: RpnDense
    classes: int
    device: torch.device
    max_candidates: int | None = None
    suppress: Suppress = suppress
    weigh: Weigh = weigh

    @torch.inference_mode()
    def step(self, pixel_format: PixelFormat, capacity: int) -> GraphStep:
        """The whole way from pixels to detections, for frames of one format.

        Runs the model once, to learn the sizes of its maps.

        Args:
            pixel_format: of every frame.
            capacity: slots for detections of each frame.
        """
        device = self.device
        frame_size = (pixel_format.height, pixel_format.width)
        canvas = Canvas(self.model.transform, frame_size, device)
        levels = self.dense.features(torch.zeros(1, 3, *canvas.size, device=device))
        level_sizes = [(level.shape[2], level.shape[3]) for level in levels]
        anchors = make_anchors(self.model.rpn, canvas.size, level_sizes, device).of_levels
        heads = self.model.roi_heads
        pool = heads.box_roi_pool
        return GraphStep(
            pixel_format=pixel_format,
            canvas=canvas,
            dense=self.dense,
            propose=ProposeInGraph(self.model.rpn, anchors, canvas.input_size, self.suppress),
            align=AlignInGraph(pool, level_sizes[: len(pool.featmap_names)], canvas.input_size, device, self.weigh),
            finish=FinishInGraph(heads, capacity, canvas.input_size, frame_size, self.suppress, self.max_candidates),
        )
