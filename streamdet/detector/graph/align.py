"""RoIAlign over all levels and frames at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import MultiScaleRoIAlign

from streamdet.detector.stages.preprocess import Size

_BINS = 7


@dataclass(frozen=True)
class Taps:
    """Which rows of a table each bin of each box reads, and with what weights: those of its y times those of its x.

    Attributes:
        start: int64 [boxes]: row of the table where the map of a box begins.
        width: int64 [boxes]: of that map.
        rows: int64 [boxes, 7, taps]: lines of the map that each line of bins reads.
        row_weights: float32, likewise.
        columns: int64 [boxes, 7, taps]: columns of the map that each column of bins reads.
        column_weights: float32, likewise.
    """

    start: Tensor
    width: Tensor
    rows: Tensor
    row_weights: Tensor
    columns: Tensor
    column_weights: Tensor


Weigh = Callable[[Tensor, Taps], Tensor]
"""Sums what the taps read, as `weigh` does."""


def weigh(table: Tensor, taps: Taps) -> Tensor:
    """Sums what the taps read, in plain torch.

    Args:
        table: [rows, channels].
        taps: what to read.

    Returns:
        [boxes, 7, 7, channels], of the type of the table.
    """
    # [boxes, bins of y, bins of x, taps of y, taps of x]
    lines = taps.start[:, None, None] + taps.rows * taps.width[:, None, None]
    index = lines[:, :, None, :, None] + taps.columns[:, None, :, None, :]
    weights = taps.row_weights[:, :, None, :, None] * taps.column_weights[:, None, :, None, :]
    sums = functional.embedding_bag(
        index.flatten(0, 2).flatten(1),
        table,
        mode="sum",
        per_sample_weights=weights.flatten(0, 2).flatten(1).to(table.dtype),
    )
    return torch.unflatten(sums, 0, (-1, _BINS, _BINS))


class AlignInGraph:
    """Does what torchvision's `MultiScaleRoIAlign` does, for a fixed number of boxes.

    torchvision sorts the boxes by level, which needs their number; here each box finds its level by arithmetic and
    all of them read from one table of all maps. What a box samples is the product of what it samples in y and in x.

    Args:
        pool: gives bins, samples in each bin, and how sizes are mapped to levels.
        level_sizes: height and width of each map that is pooled from, the finest first.
        input_size: height and width of the frames in the batch.
        device: of the maps.
        weigh: sums what the boxes sample; plain torch unless given.

    Attributes:
        levels: how many maps are pooled from.
    """

    def __init__(
        self,
        pool: MultiScaleRoIAlign,
        level_sizes: Sequence[Size],
        input_size: Size,
        device: torch.device,
        weigh: Weigh = weigh,
    ) -> None:
        if pool.output_size != (_BINS, _BINS) or pool.sampling_ratio < 1:
            msg = f"no RoIAlign of {pool.output_size} bins with {pool.sampling_ratio} samples each"
            raise NotImplementedError(msg)
        self.levels = len(level_sizes)
        self._weigh = weigh
        self._samples = pool.sampling_ratio
        exponents = [round(math.log2(height / input_size[0])) for height, _ in level_sizes]
        self._finest, self._coarsest = -exponents[0], -exponents[-1]
        self._canonical_size, self._canonical_level = pool.canonical_scale, pool.canonical_level
        self._scales = torch.tensor([2.0**exponent for exponent in exponents], device=device)
        self._heights = torch.tensor([height for height, _ in level_sizes], device=device)
        self._widths = torch.tensor([width for _, width in level_sizes], device=device)
        areas = [height * width for height, width in level_sizes]
        # Of each level, its first row in a table for one frame; the table for n frames is n times as long.
        self._starts = torch.tensor([sum(areas[:i]) for i in range(len(areas))], device=device)
        self._places = (torch.arange(_BINS * self._samples, device=device) + 0.5) / self._samples

    def __call__(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Pools.

        Args:
            levels: [batch, channels, height, width] each, the finest first.
            boxes: float32 [batch, P, 4], xyxy in pixels of the batch.

        Returns:
            [batch * P, channels, 7, 7], of the type of the levels, channels last in memory.
        """
        frames, per_frame = boxes.shape[:2]
        table = torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels])
        x1, y1, x2, y2 = boxes.flatten(0, 1).unbind(-1)
        level = self._level_of((x2 - x1) * (y2 - y1))
        scale, height, width = self._scales[level], self._heights[level], self._widths[level]
        rows, row_weights = self._sample(y1 * scale, y2 * scale, height)
        columns, column_weights = self._sample(x1 * scale, x2 * scale, width)
        frame = torch.arange(frames, device=boxes.device)[:, None].expand(-1, per_frame).flatten()
        start = self._starts[level] * frames + frame * height * width
        taps = Taps(start, width, rows, row_weights, columns, column_weights)
        return self._weigh(table, taps).permute(0, 3, 1, 2)

    def _level_of(self, areas: Tensor) -> Tensor:
        """Which map fits a box: equation (1) of Lin et al. 2017, with torchvision's epsilon."""
        size = torch.log2(areas.sqrt() / self._canonical_size)
        level = torch.floor(self._canonical_level + size + 1e-6)
        return level.clamp(self._finest, self._coarsest).to(torch.int64) - self._finest

    def _sample(self, start: Tensor, end: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the places of a map between which the samples of a box lie, along one axis.

        Args:
            start: float32 [boxes]: where the box begins, in units of the map.
            end: float32 [boxes]: where it ends.
            length: int64 [boxes]: of the map.

        Returns:
            int64 [boxes, 7, 2 * samples], places of the map, and float32, their weights; each bin's sum to 1, or
            less where samples lie outside of the map.
        """
        bin_size = (end - start).clamp(min=1.0) / _BINS
        at = start[:, None] + self._places * bin_size[:, None]
        last = (length - 1)[:, None]
        inside = (at >= -1.0) & (at <= length[:, None])
        at = torch.minimum(at.clamp(min=0.0), last)
        low = at.to(torch.int64)
        fraction = at - low
        places = torch.stack((low, torch.minimum(low + 1, last)), -1)
        weights = torch.stack((1 - fraction, fraction), -1) * (inside[..., None] / self._samples)
        by_bin = (_BINS, 2 * self._samples)
        return places.reshape(-1, *by_bin), weights.reshape(-1, *by_bin)
