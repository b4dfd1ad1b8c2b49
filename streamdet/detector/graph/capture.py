"""Captures a step as one CUDA graph, so that one launch replaces thousands."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamdet.detector.graph.finish import packed_size
from streamdet.detector.graph.step import GraphStep

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

_log = logging.getLogger(__name__)

_ROUNDS_BEFORE_CAPTURE = 3


class GraphedStep:
    """A step for a fixed number of frames, captured; a step that cannot be captured runs without a graph.

    Create and use it with the same current stream. Graphs of one pool share their memory: what `replay` returns
    is valid until any graph of the pool is replayed.

    Args:
        step: to be captured.
        frames: of each batch.
        classes: that the model knows, the background included.
        device: of the step.
        pool: what `torch.cuda.graph_pool_handle` returned.

    Raises:
        torch.OutOfMemoryError: the device has not enough memory.

    Attributes:
        pixels: uint8 [frames, frame_bytes]: what the next `replay` reads.
        limits: float32 [frames, classes + 3]: with which limits.
    """

    def __init__(self, step: GraphStep, frames: int, classes: int, device: torch.device, pool: _POOL_HANDLE) -> None:
        self._step = step
        self.pixels = torch.zeros(frames, step.pixel_format.frame_bytes, dtype=torch.uint8, device=device)
        self.limits = torch.zeros(frames, packed_size(classes), device=device)
        # Libraries choose their algorithms and workspaces, and kernels are compiled, before the capture.
        for _ in range(_ROUNDS_BEFORE_CAPTURE):
            step(self.pixels, self.limits)
        self._output: Tensor | None = None
        self._graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may allocate and copy meanwhile: only what this one does is refused.
            with torch.cuda.graph(
                self._graph, pool=pool, stream=torch.cuda.current_stream(device), capture_error_mode="thread_local"
            ):
                self._output = step(self.pixels, self.limits)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._output = None
            reason = str(error).partition("\n")[0]
            _log.warning("no CUDA graph for batches of %d frames (%s); running without it, slower", frames, reason)

    @property
    def captured(self) -> bool:
        """Whether there is a graph."""
        return self._output is not None

    def replay(self) -> Tensor:
        """Detects in `pixels`; enqueues and does not wait.

        Returns:
            float32 [frames, D + 1, 6], as `FinishInGraph` says.
        """
        if self._output is None:
            return self._step(self.pixels, self.limits)
        self._graph.replay()
        return self._output
