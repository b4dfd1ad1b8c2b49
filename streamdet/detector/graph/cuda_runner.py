"""Keeps a CUDA device busy: one batch is copied to it while another is computed and a third is copied back."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray

from streamdet.detector.graph.capture import GraphedStep
from streamdet.detector.graph.finish import packed_size
from streamdet.detector.graph.model import CAPACITIES, GraphModel
from streamdet.detector.graph.pixels import PixelFormat

_SLOTS = 3
_GRAPHS = 32
_ROW = 6  # box, score, class


class GraphRunner:
    """Runs batches by graphs, one for each format, capacity and bucket.

    Several threads may call `run` at the same time. A bucket is a number of frames: the powers of two, and
    `max_batch_size`. A batch takes the smallest bucket that holds it; the frames left over contain data of an earlier
    batch, and their results are ignored.

    Copies to the device, work, and copies back have a stream each; events order the three of one batch. All work
    is enqueued in one stream, so graphs can share their memory.

    Args:
        model: makes steps; on a CUDA device.
        max_batch_size: frames at most.
    """

    def __init__(self, model: GraphModel, max_batch_size: int) -> None:
        self._model = model
        self._device = model.device
        powers = [1 << n for n in range(max_batch_size.bit_length())]
        self.buckets = sorted({*powers, max_batch_size})
        with torch.cuda.device(self._device):
            # torch has no types for the constructor of streams.
            self._upload, self._compute, self._download = (
                torch.cuda.Stream()  # type: ignore[no-untyped-call]
                for _ in range(3)
            )
            self._slots: SimpleQueue[Slot] = SimpleQueue()
            for _ in range(_SLOTS):
                rows = max_batch_size * (max(CAPACITIES) + 1) * _ROW
                self._slots.put(Slot(self._device, rows, (max_batch_size, packed_size(model.classes))))
            self._pool = torch.cuda.graph_pool_handle()
            # The model's weights were written in the stream that is current now.
            self._compute.wait_stream(torch.cuda.current_stream())
        self._graphs: OrderedDict[tuple[PixelFormat, int, int], GraphedStep] = OrderedDict()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def run(
        self, pixel_format: PixelFormat, capacity: int, frames: Sequence[NDArray[np.uint8]], limits: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """See `runner.Runner`; at most `max_batch_size` frames."""
        with torch.cuda.device(self._device):
            slot = self._slots.get()
            try:
                size_bytes = slot.fill(frames, limits)
                with self._lock:
                    graph = self._graph(pixel_format, capacity, next(b for b in self.buckets if b >= len(frames)))
                    self.enqueue(slot, graph, size_bytes, len(frames))
                slot.downloaded.synchronize()
                rows = slot.host_rows[: len(frames) * (capacity + 1) * _ROW]
                return rows.numpy().reshape(-1, capacity + 1, _ROW).copy()
            finally:
                self._slots.put(slot)

    def enqueue(self, slot: Slot, graph: GraphedStep, size_bytes: int, frames: int) -> None:
        """Submits all work of a batch to the device without waiting."""
        with torch.cuda.stream(self._upload):
            slot.device_bytes[:size_bytes].copy_(slot.host_bytes[:size_bytes], non_blocking=True)
            slot.device_limits[:frames].copy_(slot.host_limits[:frames], non_blocking=True)
            slot.uploaded.record()
        with torch.cuda.stream(self._compute):
            self._compute.wait_event(slot.uploaded)
            graph.pixels.view(-1)[:size_bytes].copy_(slot.device_bytes[:size_bytes])
            graph.limits[:frames].copy_(slot.device_limits[:frames])
            found = graph.replay()[:frames].reshape(-1)
            slot.device_rows[: len(found)].copy_(found)
            slot.computed.record()
        with torch.cuda.stream(self._download):
            self._download.wait_event(slot.computed)
            slot.host_rows[: len(found)].copy_(slot.device_rows[: len(found)], non_blocking=True)
            slot.downloaded.record()

    def _graph(self, pixel_format: PixelFormat, capacity: int, bucket: int) -> GraphedStep:
        """The graph for a format, capacity and bucket; it is captured at the first call, which takes a moment."""
        key = (pixel_format, capacity, bucket)
        graph = self._graphs.pop(key, None)
        if graph is None:
            if len(self._graphs) >= _GRAPHS:
                self._compute.synchronize()
                self._graphs.popitem(last=False)
            with torch.cuda.stream(self._compute):
                step = self._model.step(pixel_format, capacity)
                graph = GraphedStep(step, bucket, self._model.classes, self._device, self._pool)
        self._graphs[key] = graph
        return graph


class Slot:
    """Buffers and events of one batch outside of the graph; one thread uses it at a time.

    The buffers of the host are pinned: other memory cannot be copied while the device computes and the host goes on.

    Args:
        device: the CUDA device.
        rows: most float32 numbers that the result of a batch has.
        limits: frames and numbers for each of them, at most.

    Attributes:
        host_bytes: uint8, pinned: the frames.
        device_bytes: uint8: their copy on the device.
        host_limits: float32 [frames, classes + 3], pinned: what counts as a detection in each.
        device_limits: float32: their copy on the device.
        device_rows: float32: the result.
        host_rows: float32, pinned: its copy on the host.
        uploaded: recorded after the copies into `device_bytes` and `device_limits`.
        computed: recorded after `device_rows` is computed.
        downloaded: recorded after the copy into `host_rows`; a thread that waits for it uses no CPU time.
    """

    def __init__(self, device: torch.device, rows: int, limits: tuple[int, int]) -> None:
        self._device = device
        self.host_limits = torch.empty(limits, pin_memory=True)
        self.device_limits = torch.empty(limits, device=device)
        self._reserve(1)
        self.device_rows = torch.empty(rows, device=device)
        self.host_rows = torch.empty(rows, pin_memory=True)
        # torch has no types for the constructor of events.
        self.uploaded = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.computed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.downloaded = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def fill(self, frames: Sequence[NDArray[np.uint8]], limits: NDArray[np.float32]) -> int:
        """Copies frames into `host_bytes`, one after the other, and their limits; returns their number of bytes."""
        np.copyto(self.host_limits[: len(frames)].numpy(), limits)
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
        # Work that this thread's stream has not done yet may use the memory; the copies run in another stream.
        torch.cuda.current_stream(self._device).synchronize()
