"""Stage 2, preprocess: frames of any size become one normalised batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from streamdet.detector.stages.resize import resize

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Batch:
    """What the network sees.

    Attributes:
        tensor: float32 [batch, 3, height, width], zero mean and unit deviation over ImageNet; smaller
            frames stand at the upper left, zeros beside them.
        input_sizes: size of each frame within `tensor`.
        frame_sizes: size of each frame as it came.
    """

    tensor: Tensor
    input_sizes: list[Size]
    frame_sizes: list[Size]


class Preprocess:
    """Resizes, normalises and batches as torchvision's `GeneralizedRCNNTransform` does.

    torchvision normalises at full size and resizes then; both are linear, so the other order gives the
    same numbers for a fraction of the work.
    """

    def __init__(self, transform: GeneralizedRCNNTransform, device: torch.device) -> None:
        self._min_size: int = transform.min_size[-1]
        self._max_size: int = transform.max_size
        self._divisor: int = transform.size_divisible
        deviation, mean = (torch.tensor(t, device=device) for t in (transform.image_std, transform.image_mean))
        self._gain = 1 / (255 * deviation)
        self._offset = -mean / deviation

    def __call__(self, images: Sequence[Tensor]) -> Batch:
        """Makes a batch.

        Args:
            images: uint8 [3, height, width] each, 0 to 255; sizes may differ.
        """
        frame_sizes = [(image.shape[1], image.shape[2]) for image in images]
        input_sizes = [self.input_size(size) for size in frame_sizes]
        height, width = (self._round_up(max(side)) for side in zip(*input_sizes, strict=True))
        # The three colours of a pixel lie side by side, so that a row of pixels is a row of numbers.
        rows = torch.empty(len(images), height, width * 3, device=self._gain.device)
        for slot, image, (shown_height, shown_width) in zip(rows, images, input_sizes, strict=True):
            small = resize(image, (shown_height, shown_width)).flatten(1)
            gain, offset = self._gain.repeat(shown_width), self._offset.repeat(shown_width)
            torch.addcmul(offset, small, gain, out=slot[:shown_height, : shown_width * 3])
            slot[:shown_height, shown_width * 3 :] = 0
            slot[shown_height:] = 0
        tensor = torch.unflatten(rows, 2, (width, 3)).permute(0, 3, 1, 2)
        return Batch(tensor, input_sizes, frame_sizes)

    def input_size(self, frame_size: Size) -> Size:
        """Size at which a frame is looked at: the shorter side `min_size`, unless the longer passes `max_size`."""
        scale = min(self._min_size / min(frame_size), self._max_size / max(frame_size))
        height, width = (max(1, math.floor(side * scale)) for side in frame_size)
        return height, width

    def canvas_size(self, frame_size: Size) -> Size:
        """Size of a batch in which only frames of this size stand."""
        height, width = map(self._round_up, self.input_size(frame_size))
        return height, width

    def _round_up(self, pixels: int) -> int:
        return math.ceil(pixels / self._divisor) * self._divisor
