"""Training pictures: every one is a pure function of (seed, number), so a resumed run sees the same.

A picture is a square canvas. It holds one photograph, or a mosaic (Bochkovskiy et al. 2020,
arXiv:2004.10934) of four or nine, in which objects are as small as in the view of a camera high on a wall: a
mosaic of nine shows them at a third of their size. Each piece keeps its own list of labelled classes.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from streamdet.detector.picture_files import read_rgb
from streamdet.training.dataset import Dataset, Sample
from streamdet.training.losses import Target, Targets, pad_targets

_Image = NDArray[np.uint8]
_GREY = 114
# A clipped box keeps its label while this share of it is visible and its sides are this long.
_MIN_VISIBLE = 0.3
_MIN_SIDE_PIXELS = 4.0
# Of a photograph that is scaled: a strip that is to cover its place well would take gigabytes.
_MOST_SIDE_PIXELS = 8192
Batch = tuple[Tensor, Targets]
"""uint8 [B, 3, S, S] (RGB), and what is known about them."""
_BATCHES_AHEAD = 4
_MOST_PROCESSES = 16


@dataclass(frozen=True)
class AugmentConfig:
    """How training pictures are made.

    Attributes:
        sizes: canvas sides in pixels; a batch has one of them.
        mosaic_of_four: share of pictures that are mosaics of four, 0 to 1.
        mosaic_of_nine: share of pictures that are mosaics of nine, 0 to 1.
        scale: range of a single photograph's longer side relative to the canvas.
    """

    sizes: tuple[int, ...]
    mosaic_of_four: float = 0.4
    mosaic_of_nine: float = 0.2
    scale: tuple[float, float] = (0.7, 1.6)


class TrainingPictures:
    """The endless sequence of training pictures; number i belongs to batch i // batch_size."""

    def __init__(self, dataset: Dataset, config: AugmentConfig, batch_size: int, seed: int) -> None:
        self._samples = dataset.samples
        self._config = config
        self._batch_size = batch_size
        self._seed = seed

    def __getitem__(self, number: int) -> tuple[Tensor, Target]:
        """The picture as uint8 [3, S, S] (RGB) and its target."""
        epoch, position = divmod(number, len(self._samples))
        batch = number // self._batch_size
        size = int(np.random.default_rng([self._seed, 2, batch]).choice(self._config.sizes))
        rng = np.random.default_rng([self._seed, 3, number])
        chosen = self._samples[_order(self._seed, epoch, len(self._samples))[position]]
        kind = rng.random()
        if kind < self._config.mosaic_of_four + self._config.mosaic_of_nine:
            count = 4 if kind < self._config.mosaic_of_four else 9
            others = [self._samples[i] for i in rng.integers(0, len(self._samples), count - 1)]
            canvas, pieces = _mosaic(size, [chosen, *others], rng)
        else:
            canvas, pieces = _single(size, chosen, self._config, rng)
        canvas = _colour(canvas, rng)
        return torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1))), _to_target(pieces)


def feed(pictures: TrainingPictures, shares: Sequence[range], device: torch.device) -> Generator[Batch, None, None]:
    """Yields batches in order.

    Args:
        pictures: by number.
        shares: of each batch, the numbers of its pictures.
        device: that is fed. One thread is enough beside a step on the CPU, since decoding and resizing run without
            the interpreter's lock; a GPU takes more pictures than one interpreter can make.
    """
    make = _by_processes if device.type == "cuda" else _by_thread
    with closing(make(pictures, shares)) as batches:
        yield from batches


def _batch(made: Sequence[tuple[Tensor, Target]]) -> Batch:
    return torch.stack([picture for picture, _ in made]), pad_targets([target for _, target in made])


def _by_thread(pictures: TrainingPictures, shares: Sequence[range]) -> Generator[Batch, None, None]:
    coming: deque[list[Future[tuple[Tensor, Target]]]] = deque()
    with ThreadPoolExecutor(1, "pictures") as pool:
        try:
            for share in shares:
                coming.append([pool.submit(pictures.__getitem__, number) for number in share])
                if len(coming) > _BATCHES_AHEAD:
                    yield _batch([future.result() for future in coming.popleft()])
            while coming:
                yield _batch([future.result() for future in coming.popleft()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Batches(TorchDataset[Batch]):
    """Batch by batch, for processes that make a whole one each."""

    def __init__(self, pictures: TrainingPictures, shares: Sequence[range]) -> None:
        self._pictures = pictures
        self._shares = shares

    def __len__(self) -> int:
        return len(self._shares)

    def __getitem__(self, number: int) -> Batch:
        return _batch([self._pictures[i] for i in self._shares[number]])


def _one_thread(_: int) -> None:
    cv2.setNumThreads(1)


def _by_processes(pictures: TrainingPictures, shares: Sequence[range]) -> Generator[Batch, None, None]:
    # A process that uses a GPU must not be forked. A server that has loaded the libraries once is forked instead;
    # were each process to load them, they would start one after the other, for seconds each.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    loader = DataLoader(
        _Batches(pictures, shares),
        batch_size=None,  # they are batches already
        num_workers=min(max(len(os.sched_getaffinity(0)) - 1, 1), _MOST_PROCESSES),
        prefetch_factor=_BATCHES_AHEAD,
        multiprocessing_context=context,
        worker_init_fn=_one_thread,
        pin_memory=torch.cuda.is_available(),
    )
    yield from loader


@dataclass
class _Piece:
    """The part of the picture from one photograph: its boxes in canvas pixels, clipped to `region`."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignore: NDArray[np.float32]
    region: tuple[int, int, int, int]
    labelled: NDArray[np.bool_]


def _clip(boxes: NDArray[np.float32], region: tuple[int, int, int, int]) -> NDArray[np.float32]:
    x1, y1, x2, y2 = region
    return np.clip(boxes, np.array([x1, y1, x1, y1], np.float32), np.array([x2, y2, x2, y2], np.float32))


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    area: NDArray[np.float32] = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    return area


def _place(
    canvas: _Image,
    image: _Image,
    sample: Sample,
    region: tuple[int, int, int, int],
    scale: float,
    rng: np.random.Generator,
) -> _Piece:
    """Pastes a photograph into a region of the canvas, at a random offset, flipped half of the time."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = region
    scale = min(scale, _MOST_SIDE_PIXELS / max(height, width))
    new_width, new_height = max(round(width * scale), 1), max(round(height * scale), 1)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cast("_Image", cv2.resize(image, (new_width, new_height), interpolation=interpolation))
    factor = np.array([new_width / width, new_height / height] * 2, np.float32)
    boxes, ignore = sample.boxes * factor, sample.ignore * factor
    if rng.random() < 0.5:
        image = image[:, ::-1]
        for b in (boxes, ignore):
            b[:, [0, 2]] = new_width - b[:, [2, 0]]
    # Where the photograph is larger than the region the offset is negative: a crop.
    slack_x, slack_y = (x2 - x1) - new_width, (y2 - y1) - new_height
    left = x1 + int(np.floor(slack_x * rng.random()))
    top = y1 + int(np.floor(slack_y * rng.random()))
    shown = (max(left, x1), max(top, y1), min(left + new_width, x2), min(top + new_height, y2))
    canvas[shown[1] : shown[3], shown[0] : shown[2]] = image[
        shown[1] - top : shown[3] - top, shown[0] - left : shown[2] - left
    ]
    shift = np.array([left, top, left, top], np.float32)
    boxes, ignore = boxes + shift, ignore + shift
    clipped = _clip(boxes, shown)
    visible = _area(clipped) / np.maximum(_area(boxes), 1e-6)
    side = np.min(clipped[:, 2:] - clipped[:, :2], axis=1) if len(clipped) else np.zeros(0)
    keep = (visible >= _MIN_VISIBLE) & (side >= _MIN_SIDE_PIXELS)
    leftover = clipped[~keep & (_area(clipped) > 0)]
    ignore = np.concatenate([_clip(ignore, shown), leftover]).astype(np.float32)
    return _Piece(clipped[keep], sample.labels[keep], ignore[_area(ignore) > 0], shown, sample.labelled)


def _colour(image: _Image, rng: np.random.Generator) -> _Image:
    """Changes light, contrast, colour and sharpness as cameras and weather do."""
    gain, bias = rng.uniform(0.6, 1.4), rng.uniform(-30, 30)
    table = np.clip((np.arange(256) - 128) * gain + 128 + bias, 0, 255)
    picture: cv2.typing.MatLike = cv2.LUT(image, table.astype(np.uint8))
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
        hue = ((np.arange(256) + rng.integers(-9, 10)) % 180).astype(np.uint8)
        saturation = np.clip(np.arange(256) * rng.uniform(0.4, 1.5), 0, 255).astype(np.uint8)
        same = np.arange(256, dtype=np.uint8)
        picture = cv2.cvtColor(cv2.LUT(hsv, np.dstack([hue, saturation, same])), cv2.COLOR_HSV2RGB)
    if rng.random() < 0.1:
        picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    kind = rng.random()
    if kind < 0.1:
        picture = cv2.GaussianBlur(picture, (3, 3), 0)
    elif kind < 0.2:
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 70))])
        picture = cast("_Image", cv2.imdecode(data, cv2.IMREAD_COLOR))
    elif kind < 0.25:
        noise = rng.normal(0, rng.uniform(2, 10), picture.shape)
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return cast("_Image", picture)


def _single(size: int, sample: Sample, config: AugmentConfig, rng: np.random.Generator) -> tuple[_Image, list[_Piece]]:
    canvas = np.full((size, size, 3), _GREY, np.uint8)
    image = read_rgb(sample.path)
    low, high = np.log(config.scale)
    scale = float(np.exp(rng.uniform(low, high))) * size / max(image.shape[:2])
    return canvas, [_place(canvas, image, sample, (0, 0, size, size), scale, rng)]


def _cuts(size: int, grid: int, rng: np.random.Generator) -> list[int]:
    """Where the grid's lines run along one axis: uneven, from 0 to size."""
    inner = (np.arange(1, grid) + rng.uniform(-0.3, 0.3, grid - 1)) * size / grid
    return [0, *(int(v) for v in inner), size]


def _mosaic(size: int, samples: list[Sample], rng: np.random.Generator) -> tuple[_Image, list[_Piece]]:
    """A square number of photographs in an uneven grid, each between fitting its cell and covering it well."""
    canvas = np.full((size, size, 3), _GREY, np.uint8)
    grid = math.isqrt(len(samples))
    columns, rows = _cuts(size, grid, rng), _cuts(size, grid, rng)
    pieces = []
    for i, sample in enumerate(samples):
        row, column = divmod(i, grid)
        region = (columns[column], rows[row], columns[column + 1], rows[row + 1])
        image = read_rgb(sample.path)
        height, width = image.shape[:2]
        ratios = ((region[2] - region[0]) / width, (region[3] - region[1]) / height)
        scale = rng.uniform(min(ratios), max(ratios) * 1.3)
        pieces.append(_place(canvas, image, sample, region, scale, rng))
    return canvas, pieces


def _to_target(pieces: list[_Piece]) -> Target:
    return Target(
        boxes=torch.from_numpy(np.concatenate([p.boxes for p in pieces]).astype(np.float32)),
        labels=torch.from_numpy(np.concatenate([p.labels for p in pieces])),
        ignore=torch.from_numpy(np.concatenate([p.ignore for p in pieces]).astype(np.float32)),
        regions=torch.tensor([p.region for p in pieces], dtype=torch.float32),
        labelled=torch.from_numpy(np.stack([p.labelled for p in pieces])),
    )


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """In which order the photographs lead a picture in this epoch."""
    return np.random.default_rng([seed, 1, epoch]).permutation(count)
