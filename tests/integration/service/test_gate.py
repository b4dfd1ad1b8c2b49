"""The motion gate in a running service: real films, the queue, a detector that finds nothing, the ledger."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamdet import subscribe
from streamdet.capture.gate import Gates
from streamdet.config import PublisherConfig, StreamConfig
from streamdet.delivery.publisher import Publisher
from streamdet.inference.batch_queue import BatchQueue
from streamdet.service.streams import Streams
from streamdet.types import DetectionEvent, Drop
from support.publishing import metrics_of
from support.waiting import wait_until

SECONDS = 12
FPS = 10


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise; from the eighth to the ninth second, someone goes through the picture."""
    path = tmp_path_factory.mktemp("films") / "yard.mp4"
    chance = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(SECONDS * FPS):
            grey = 100 + chance.normal(0, 3, (240, 320))
            if 8 * FPS <= number < 9 * FPS:
                left = 20 * (number - 8 * FPS)
                grey[80:200, left : left + 50] += 70
            rgb = np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
            for packet in stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


class Service:
    def __init__(self) -> None:
        self.metrics = metrics_of()
        self.gates = Gates(self.metrics)
        self.queue = BatchQueue(8, 0.001, self.metrics.frame_dropped)
        config = PublisherConfig(endpoint="tcp://127.0.0.1:0", high_water_mark_events=10_000)
        self.publisher = Publisher(config, "e", self.metrics, gates=self.gates)
        self.streams = Streams(
            self.queue, self.publisher, self.metrics, self.metrics.ledger, ["person"], lambda _: None, None, self.gates
        )
        self.detects = threading.Thread(target=self._detect, name="detects", daemon=True)

    def _detect(self) -> None:
        while not self.queue.drained:
            for frame in self.queue.take(0.05):
                self.publisher.put_detections(frame, [])

    def counts(self, name: str) -> Any:  # of the ledger
        return self.metrics.ledger.snapshot()[name]


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    with service.publisher:
        service.detects.start()
        yield service
        service.streams.stop()
        service.queue.close()
        service.detects.join()


def stream_of(film: Path, **settings: Any) -> StreamConfig:
    return StreamConfig(name="yard", url=str(film), pace="fastest", **settings)


def test_a_film_through_the_gate_is_accounted_for_to_the_frame(service: Service, film: Path) -> None:
    with subscribe(service.publisher.endpoint, kinds=["detections"], timeout_seconds=30) as events:
        assert events.receive(0.5) is None
        service.streams.apply([stream_of(film, gate="motion")])
        wait_until(service.streams.all_ended)
        counts = service.counts("yard")
        assert counts.captured == SECONDS * FPS
        assert counts.captured == counts.published + counts.dropped[Drop.GATED]
        assert counts.dropped[Drop.GATED] >= 3 * FPS
        seen = []
        while len(seen) < counts.published:
            event = events.receive(10)
            # Frames that are held back are no gap.
            assert isinstance(event, DetectionEvent)
            seen.append(event)
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    # Every frame that has no event is one that was held back, up to the newest event.
    for before, event in pairwise(seen):
        assert event.frame.seq == before.frame.seq + event.gated + 1
    moving = {event.frame.seq for event in seen} & set(range(8 * FPS + 3, 9 * FPS))
    assert len(moving) >= FPS - 4


def test_a_gate_that_is_switched_all_the_time_loses_no_frame(service: Service, film: Path) -> None:
    chance = random.Random(5)  # noqa: S311 - any order will do
    choices = [{"gate": "off"}, {"gate": "motion"}, {"gate": "motion", "gate_max_seconds": 0.2}, {"max_fps": 3.0}]
    config = StreamConfig(name="yard", url=str(film), loop=True, gate="motion")
    service.streams.apply([config])
    wait_until(lambda: service.counts("yard").captured > 0)
    capture = service.streams._captures["yard"]
    for _ in range(25):
        service.streams.apply([config.model_copy(update=chance.choice(choices))])
        captured = service.counts("yard").captured
        wait_until(lambda captured=captured: service.counts("yard").captured > captured + 1)
    # The connection is the same.
    assert service.streams._captures["yard"] is capture
    service.streams.stop()
    wait_until(lambda: service.counts("yard").in_flight == 0)
    counts = service.counts("yard")
    assert counts.captured == counts.published + sum(counts.dropped.values())


def test_someone_who_looks_gets_pictures(service: Service, film: Path) -> None:
    service.streams.apply([StreamConfig(name="yard", url=str(film), loop=True, gate="motion", gate_max_seconds=60.0)])
    with subscribe(service.publisher.endpoint, kinds=["preview"], timeout_seconds=30) as events:
        pictures = [events.receive(30) for _ in range(5)]
    assert all(picture is not None for picture in pictures)
