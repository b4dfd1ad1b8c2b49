"""Makes training pictures ahead of the steps that use them: in threads beside a CPU, in processes for a GPU."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from streamdet.training.pictures import TrainingPictures
from streamdet.training.targets import Target, Targets, pad_targets

Batch = tuple[Tensor, Targets]
"""uint8 [B, 3, S, S] (RGB), and what is known about them."""

_BATCHES_AHEAD = 4
_MOST_PROCESSES = 16


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


class _Batches(Dataset[Batch]):
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
