"""Anchors: the boxes that proposals start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from streamdet.detector.stages.preprocess import Size


@dataclass(frozen=True)
class Anchors:
    """Those of one size of pictures.

    Attributes:
        of_levels: float32 [height * width * shapes, 4] each, xyxy in pixels of the batch.
        level_of_best: int64 [n], of the likeliest of all levels together, level by level: from each as many as
            torchvision's `pre_nms_top_n`, or all.
    """

    of_levels: tuple[Tensor, ...]
    level_of_best: Tensor

    @property
    def counts_of_best(self) -> list[int]:
        """How many of the likeliest are of each level."""
        return torch.bincount(self.level_of_best, minlength=len(self.of_levels)).tolist()


def make_anchors(
    rpn: RegionProposalNetwork, picture: Size, levels: Sequence[Size], device: torch.device | str = "cpu"
) -> Anchors:
    """Asks torchvision for the anchors.

    Args:
        rpn: gives their shapes.
        picture: height and width of the batch in pixels.
        levels: height and width of each level map.
        device: where they will lie.
    """
    number = torch.zeros(1, device=device)
    maps = [number.expand(1, 1, *size) for size in levels]
    anchors: Tensor = rpn.anchor_generator(ImageList(number.expand(1, 3, *picture), [picture]), maps)[0]
    shapes = rpn.anchor_generator.num_anchors_per_location()
    counts = [n * height * width for n, (height, width) in zip(shapes, levels, strict=True)]
    best = torch.tensor([min(rpn.pre_nms_top_n(), count) for count in counts], device=device)
    level_of_best = torch.arange(len(counts), device=device).repeat_interleave(best)
    return Anchors(torch.split(anchors, counts), level_of_best)
