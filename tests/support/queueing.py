"""Frames for a batch queue, and a flood of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamdet.inference.batch_queue import BatchQueue
from streamdet.monitoring.ledger import Ledger
from streamdet.types import Frame


class _NoPicture:
    """The queue never looks at the pixels."""

    width = 0
    height = 0

    def to_rgb(self) -> NDArray[np.uint8]:
        raise AssertionError


def frame(stream: str, seq: int = 1, captured: float = 0.0) -> Frame:
    return Frame(stream, seq, None, 0.0, "daemon", captured, _NoPicture())


@dataclass(frozen=True)
class Rules:
    name: str
    pace: str = "realtime"
    max_fps: float | None = None
    max_frame_age_seconds: float = 2.0
    weight: float = 1.0


class Flood:
    """32 producers of all kinds, one consumer, and a ledger."""

    frames_per_stream = 150

    def __init__(self, seed: int) -> None:
        self.ledger = Ledger()
        self.queue = BatchQueue(8, 0.001, self.ledger.dropped)
        self.names = [f"stream-{n}" for n in range(32)]
        self.problems: list[str] = []
        self._last_seq = dict.fromkeys(self.names, 0)
        chance = np.random.default_rng(seed)
        for name in self.names:
            self.ledger.set_stream(name)
            pace = str(chance.choice(["realtime", "realtime", "fastest"]))
            max_fps = [None, None, 100.0, 2000.0][chance.integers(4)]
            self.queue.set_stream(Rules(name, pace, max_fps, float(chance.choice([0.0005, 2.0]))))

    def produce(self, name: str) -> None:
        for seq in range(1, self.frames_per_stream + 1):
            self.ledger.captured(name)
            self.queue.put(frame(name, seq, time.monotonic()))
            if seq % 50 == 0:
                time.sleep(0.001)

    def consume(self) -> None:
        while not self.queue.drained:
            batch = self.queue.take(0.5)
            if len({item.stream for item in batch}) != len(batch) or len(batch) > 8:
                self.problems.append(f"bad batch: {batch}")
            for item in batch:
                if item.seq <= self._last_seq[item.stream]:
                    self.problems.append(f"{item.stream}: {item.seq} after {self._last_seq[item.stream]}")
                self._last_seq[item.stream] = item.seq
                self.ledger.published(item.stream)
