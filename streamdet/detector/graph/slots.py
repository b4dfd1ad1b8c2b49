"""Pinned memory for one batch on its way to the device, and for what was found on its way back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


class Slot:
    """What one batch needs outside of the graph; belongs to one thread at a time.

    Only pinned memory can be copied while the device computes and the host goes on.

    Args:
        device: to and from which is copied.
        rows: float32 numbers of a batch's answer, at most.

    Attributes:
        host_bytes: uint8, pinned: the frames.
        device_bytes: uint8: their copy.
        device_rows: float32: the answer.
        host_rows: float32, pinned: its copy.
        uploaded: happens when `device_bytes` is whole.
        computed: happens when `device_rows` is.
        downloaded: happens when `host_rows` is; waiting for it leaves the processor to others.
    """

    def __init__(self, device: torch.device, rows: int) -> None:
        self._device = device
        self._reserve(1)
        self.device_rows = torch.empty(rows, device=device)
        self.host_rows = torch.empty(rows, pin_memory=True)
        # torch has no types for the constructor of events.
        self.uploaded = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.computed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.downloaded = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def fill(self, frames: Sequence[NDArray[np.uint8]]) -> int:
        """Copies frames into `host_bytes`, one after the other; how many bytes they are."""
        total = sum(len(frame) for frame in frames)
        if total > len(self.host_bytes):
            self._reserve(total)
        target = self.host_bytes[:total].numpy().reshape(len(frames), -1)
        for line, frame in zip(target, frames, strict=True):
            np.copyto(line, frame)
        return total

    def _reserve(self, count: int) -> None:
        self.host_bytes = torch.empty(count, dtype=torch.uint8, pin_memory=True)
        self.device_bytes = torch.empty(count, dtype=torch.uint8, device=self._device)
        # The memory may have belonged to work of this thread's stream that is still to be done; ours is of another.
        torch.cuda.current_stream(self._device).synchronize()
