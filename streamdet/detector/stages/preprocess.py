"""Stage 2, preprocess: frames of any size become one normalised batch, or one of bytes where the engine normalises.

uint8 [3, height, width] each -> float32 or uint8 [batch, 3, canvas height, canvas width].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from streamdet.detector.canvases import Canvases

# From this factor on, the two rows that a row of the result lies between are less than 4/5 of the frame.
_FACTOR_OF_GATHERING = 2.5
# Rows of the result that are made at once: what these take of the frame, in float32, stays in the cache of a core.
_BLOCK_ROWS = 64
# That OpenCV's `remap` takes; the rows that it gets are few.
_MOST_COLUMNS = 32766
Size = tuple[int, int]
"""Height and width in pixels."""

COMMON_SIZE: Size = (1080, 1920)
"""Of what most cameras send, 16:9; frames of the same shape stand on the same canvas."""


@dataclass(frozen=True)
class Batch:
    """What the network sees.

    Attributes:
        tensor: float32 [batch, 3, height, width], zero mean and unit deviation over ImageNet; smaller
            frames stand at the upper left, zeros beside them. Or uint8, before normalising, and nearly the mean there.
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

    Args:
        transform: torchvision's.
        device: where the batch is made.
        canvases: that may be used.
        to_bytes: leaves normalising to the engine.
    """

    def __init__(
        self,
        transform: GeneralizedRCNNTransform,
        device: torch.device,
        canvases: Canvases | None = None,
        *,
        to_bytes: bool = False,
    ) -> None:
        self._canvases = canvases or Canvases()
        self._min_size: int = transform.min_size[-1]
        self._max_size: int = transform.max_size
        self._divisor: int = transform.size_divisible
        deviation, mean = (torch.tensor(t, device=device) for t in (transform.image_std, transform.image_mean))
        # Of a whole row of the widest frame.
        self._gain = (1 / (255 * deviation)).repeat(self._max_size)
        self._offset = (-mean / deviation).repeat(self._max_size)
        self._to_bytes = to_bytes
        # Of a whole row of the widest canvas. Less than half a byte from the mean: the first step of a network in int8
        # rounds that to 0.
        self._mean = _rounded(255 * mean).repeat(self._round_up(self._max_size))

    def __call__(self, images: Sequence[Tensor], frame_sizes: Sequence[Size] = ()) -> Batch:
        """Makes a batch.

        Args:
            images: uint8 [3, height, width] each, 0 to 255; sizes may differ. Those that have their `input_size`
                already are not resized.
            frame_sizes: height and width of each frame; of the images unless given.
        """
        frame_sizes = list(frame_sizes) or [(image.shape[1], image.shape[2]) for image in images]
        input_sizes = [self.input_size(size) for size in frame_sizes]
        canvas = tuple(self._round_up(max(side)) for side in zip(*input_sizes, strict=True))
        height, width = self.fit((canvas[0], canvas[1]))
        # The three colours of a pixel lie side by side, so that a row of pixels is a row of numbers.
        dtype = torch.uint8 if self._to_bytes else torch.float32
        rows = torch.empty(len(images), height, width * 3, dtype=dtype, device=self._gain.device)
        for slot, image, size in zip(rows, images, input_sizes, strict=True):
            shown_height, shown_numbers = size[0], size[1] * 3
            shown, right, below = (
                slot[:shown_height, :shown_numbers],
                slot[:shown_height, shown_numbers:],
                slot[shown_height:],
            )
            if self._to_bytes:
                same = (image.shape[1], image.shape[2]) == size
                shown[:] = (image.permute(1, 2, 0) if same else _rounded(resize(image, size))).flatten(1)
                right[:], below[:] = self._mean[: right.shape[1]], self._mean[: below.shape[1]]
            else:
                gain, offset = self._gain[:shown_numbers], self._offset[:shown_numbers]
                torch.addcmul(offset, resize(image, size).flatten(1), gain, out=shown)
                right[:] = below[:] = 0
        tensor = torch.unflatten(rows, 2, (width, 3)).permute(0, 3, 1, 2)
        return Batch(tensor, input_sizes, frame_sizes)

    def normalised(self, batch: Batch) -> Tensor:
        """What the network computes with: float32 [batch, 3, height, width], zero mean and unit deviation."""
        if batch.tensor.dtype == torch.float32:
            return batch.tensor
        gain, offset = (part[:3, None, None] for part in (self._gain, self._offset))
        return torch.addcmul(offset, batch.tensor.to(torch.float32), gain)

    def input_size(self, frame_size: Size) -> Size:
        """Size at which a frame is looked at: the shorter side `min_size`, unless the longer passes `max_size`."""
        scale = min(self._min_size / min(frame_size), self._max_size / max(frame_size))
        height, width = (max(1, math.floor(side * scale)) for side in frame_size)
        return height, width

    def canvas_size(self, frame_size: Size) -> Size:
        """Size of a batch in which only frames of this size stand, if that canvas may be used."""
        height, width = map(self._round_up, self.input_size(frame_size))
        return height, width

    def fit(self, canvas: Size) -> Size:
        """The canvas that is used in its place; itself where no other has room for it."""
        return self._canvases.fit(canvas) or canvas

    def _round_up(self, pixels: int) -> int:
        return math.ceil(pixels / self._divisor) * self._divisor


def _rounded(pixels: Tensor) -> Tensor:
    return pixels.round().to(torch.uint8)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a frame.

    On a CPU it is OpenCV that does it, several times faster than torch: `remap` at the very places that torch looks at.
    Its `resize` computes these more precisely than torch, a difference that deep networks make visible; and on bytes,
    both round the result, so they are converted before.

    Args:
        image: uint8 [3, height, width], 0 to 255; fastest if the colours of a pixel lie side by side in memory.
        size: height and width of the result.

    Returns:
        float32 [height, width, 3], contiguous, 0 to 255.
    """
    if (image.shape[1], image.shape[2]) == size:
        return image.permute(1, 2, 0).to(torch.float32).contiguous()
    if image.device.type != "cpu" or image.shape[2] > _MOST_COLUMNS:
        pixels = image[None].to(torch.float32)
        small = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        return small[0].permute(1, 2, 0).contiguous()
    places = _places((image.shape[1], image.shape[2]), size)
    rgb = image.permute(1, 2, 0).numpy()
    resized = np.empty((*size, 3), np.float32)
    for top in range(0, size[0], _BLOCK_ROWS):
        block = slice(top, top + _BLOCK_ROWS)
        x, y = places.x[block], places.y[block]
        if places.rows is not None:
            first, rows = 2 * top, rgb[places.rows[2 * top : 2 * (top + _BLOCK_ROWS)]]
        else:
            first = int(y[0, 0])
            rows = rgb[first : int(y[-1, 0]) + 2]
        floats = rows.astype(np.float32)
        cv2.remap(floats, x, y - np.float32(first), cv2.INTER_LINEAR, resized[block], cv2.BORDER_REPLICATE)
    return torch.from_numpy(resized)


@dataclass(frozen=True, eq=False)
class _Places:
    """Where to look for the pixels of the result.

    Attributes:
        rows: of the frame, to be gathered first; None if it is looked at as it is.
        x: float32 [height, width], from 0, in what was gathered.
        y: float32 [height, width].
    """

    rows: NDArray[np.int64] | None
    x: NDArray[np.float32]
    y: NDArray[np.float32]


@lru_cache(maxsize=16)
def _places(source: tuple[int, int], target: tuple[int, int]) -> _Places:
    (y, x), rows = (_axis(*sides) for sides in zip(source, target, strict=True)), None
    if source[0] >= _FACTOR_OF_GATHERING * target[0]:
        above = y.astype(np.int64)
        rows = np.stack((above, np.minimum(above + 1, source[0] - 1)), 1).reshape(-1)
        y = (y - above + 2 * np.arange(target[0])).astype(np.float32)
    height, width = target
    return _Places(rows, np.tile(x, (height, 1)), np.repeat(y[:, None], width, 1))


def _axis(source: int, target: int) -> NDArray[np.float32]:
    """Where the middle of each pixel of the result lies in the frame; rounded as torch does it, once.

    Args:
        source: pixels of the frame along this side.
        target: pixels of the result along this side.
    """
    scale = np.float64(np.float32(source) / np.float32(target))
    return np.maximum(scale * (np.arange(target) + 0.5) - 0.5, 0).astype(np.float32)
