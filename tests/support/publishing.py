"""What tests of publisher, client and watch share: a real publisher, and something to publish."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamdet.config import PublisherConfig, ReplayConfig
from streamdet.delivery.publisher import Publisher
from streamdet.delivery.replay import Archive
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Detection, Frame, Reason, State, StreamStatus

PERSON = Detection("person", 0.9, (10.0, 20.0, 30.0, 60.0))
CAR = Detection("car", 0.8, (100.0, 20.0, 300.0, 60.0))


@dataclass(frozen=True)
class Blank:
    width: int = 640
    height: int = 360

    def to_rgb(self) -> NDArray[np.uint8]:
        return np.zeros((self.height, self.width, 3), np.uint8)


def frame_of(stream: str, seq: int) -> Frame:
    return Frame(stream, seq, seq / 25, time.time(), "daemon", time.monotonic(), Blank())


def status_of(stream: str, state: State = State.UP, reason: Reason | None = None, detail: str = "") -> StreamStatus:
    return StreamStatus(stream, state, reason, detail, time.time())


def metrics_of(*streams: str) -> Metrics:
    metrics = Metrics(Ledger())
    for stream in streams:
        metrics.set_stream(stream, ["person", "car"])
    return metrics


def publisher_at(
    endpoint: str = "tcp://127.0.0.1:0",
    epoch: str = "epoch-1",
    metrics: Metrics | None = None,
    high_water_mark_events: int = 1000,
    state_interval_seconds: float = 60.0,
    preview_max_fps: float = 5.0,
    replay: ReplayConfig | None = None,
    archive: Archive | None = None,
) -> Publisher:
    config = PublisherConfig(
        endpoint=endpoint,
        high_water_mark_events=high_water_mark_events,
        state_interval_seconds=state_interval_seconds,
        preview_max_fps=preview_max_fps,
    )
    return Publisher(config, epoch, metrics or metrics_of(), replay=replay, archive=archive)
