"""Makes one normalised batch of RGB frames of one size."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from streamdet.detector.stages.preprocess import Preprocess, Size


class Canvas:
    """Resizes, normalises and pads frames of one size, with the numbers of torchvision's transform.

    Args:
        transform: gives the input size and the mean and deviation of frames.
        frame_size: height and width of every frame.
        device: of the frames.

    Attributes:
        input_size: height and width of a frame in the batch, which is in its upper left corner.
        size: height and width of the batch, zeros beside and below the frame.
    """

    def __init__(self, transform: GeneralizedRCNNTransform, frame_size: Size, device: torch.device) -> None:
        self.input_size = Preprocess(transform, device).input_size(frame_size)
        height, width = (math.ceil(n / transform.size_divisible) * transform.size_divisible for n in self.input_size)
        self.size: Size = (height, width)
        self._mean = 255 * torch.tensor(transform.image_mean, device=device)[:, None, None]
        self._deviation = 255 * torch.tensor(transform.image_std, device=device)[:, None, None]

    def __call__(self, rgb: Tensor) -> Tensor:
        """Makes the batch.

        Args:
            rgb: float32 [batch, 3, height, width], 0 to 255.

        Returns:
            float32 [batch, 3, *size], channels last in memory.
        """
        small = functional.interpolate(rgb, size=self.input_size, mode="bilinear", align_corners=False)
        below, beside = (total - used for total, used in zip(self.size, self.input_size, strict=True))
        padded = functional.pad((small - self._mean) / self._deviation, (0, beside, 0, below))
        return padded.contiguous(memory_format=torch.channels_last)
