"""Starts and stops at every moment, by many threads at a time; after each round the ledger is exact.

`make stress` runs a thousand rounds of each, `make test` fewer.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from streamdet.bench.stand_in import StandIn
from streamdet.capture.thread import Capture
from streamdet.config import StreamConfig
from streamdet.delivery.publisher import Publisher
from streamdet.detector.pool import DetectorPool
from streamdet.inference.batch_queue import BatchQueue
from streamdet.inference.thread import InferenceGroup
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Detection, Frame
from streamdet.worker import Worker
from support.publishing import frame_of, metrics_of, publisher_at
from support.queueing import Flood, Rules
from support.videos import make_video
from support.waiting import join, wait_until

pytestmark = [pytest.mark.stress, pytest.mark.usefixtures("_threads_switch_often")]

_ROUNDS = int(os.environ.get("STREAMDET_STRESS_ROUNDS", "30"))
_PATIENCE_SECONDS = 60.0


@pytest.fixture
def _threads_switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(int(request.config.getoption("randomly_seed", 0)))  # noqa: S311 - not a secret


def assert_exact(metrics: Metrics) -> None:
    for name, counts in metrics.ledger.snapshot().items():
        assert counts.in_flight == 0, (name, counts)
        assert counts.captured == counts.published + sum(counts.dropped.values()), (name, counts)


class Ticking(Worker):
    def __init__(self, error: Exception | None, reported: list[Worker]) -> None:
        super().__init__("ticking", reported.append)
        self.ended = threading.Event()
        self._error_to_raise = error

    def run(self) -> None:
        while not self.sleep(0.0001):
            self.beat()
            if self._error_to_raise is not None:
                raise self._error_to_raise
        self.ended.set()


def test_workers_start_and_stop(chance: random.Random) -> None:
    before = threading.active_count()
    for number in range(_ROUNDS):
        reported: list[Worker] = []
        error = ValueError(number) if number % 5 == 0 else None
        workers = [Ticking(error, reported) for _ in range(4)]
        for worker in workers:
            worker.start()
        time.sleep(chance.choice((0, 0, 0.0005)))
        stoppers = [threading.Thread(target=worker.stop, daemon=True) for worker in workers for _ in range(2)]
        for stopper in stoppers:
            stopper.start()
        assert all(worker.join() for worker in workers)
        for stopper in stoppers:
            join(stopper)
        assert all(worker.ended.is_set() == (worker not in reported) for worker in workers)
        assert all(worker.error is error for worker in reported)
    assert threading.active_count() == before


class Taking:
    """A queue whose frames someone takes, and captures that come and go."""

    def __init__(self, url: Path, chance: random.Random) -> None:
        self.metrics = metrics_of()
        self.captured = 0
        self._queue = BatchQueue(4, 0.0, self.metrics.frame_dropped)
        self._url, self._chance = str(url), chance
        self._taker = threading.Thread(target=self._take, daemon=True)

    def _take(self) -> None:
        while not self._queue.drained:
            for frame in self._queue.take(0.05):
                self.metrics.frame_published(frame.stream, 0.0, [])

    def round(self, *, removed_first: bool) -> None:
        pace = self._chance.choice(("fastest", "realtime"))
        configs = [StreamConfig(name=f"s{n}", url=self._url, loop=True, pace=pace) for n in range(3)]
        captures = [Capture(config, self._queue.put, lambda status: None, self.metrics) for config in configs]
        for config, capture in zip(configs, captures, strict=True):
            self.metrics.set_stream(config.name, ())
            self._queue.set_stream(config)
            capture.start()
        time.sleep(self._chance.choice((0, 0.001, 0.01)))
        if removed_first:
            self._queue.remove_stream("s0")
        for capture in captures:
            capture.stop()
        for config, capture in zip(configs, captures, strict=True):
            self._queue.remove_stream(config.name)
            assert capture.join()
            assert capture.error is None
        ledger = self.metrics.ledger
        wait_until(lambda: not any(counts.in_flight for counts in ledger.snapshot().values()), "nothing in flight")
        assert_exact(self.metrics)
        self.captured += sum(counts.captured for counts in ledger.snapshot().values())
        for config in configs:
            self.metrics.remove_stream(config.name)

    def __enter__(self) -> Self:
        self._taker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.close()
        join(self._taker)


@pytest.mark.timeout(1800)
def test_captures_start_and_stop_while_frames_are_taken(chance: random.Random, tmp_path: Path) -> None:
    before = threading.active_count()
    with Taking(make_video(tmp_path / "v.mp4", frames=5), chance) as taking:
        for number in range(_ROUNDS):
            # A stream is removed before its capture has ended where a library holds that up.
            taking.round(removed_first=number % 2 == 1)
    wait_until(lambda: threading.active_count() <= before, "the end of all threads")
    assert taking.captured > _ROUNDS


@pytest.mark.timeout(1800)
def test_32_producers(chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flood, "frames_per_stream", 20)
    for _ in range(_ROUNDS):
        flood = Flood(chance.randrange(2**31))
        consumer = threading.Thread(target=flood.consume, daemon=True)
        producers = [threading.Thread(target=flood.produce, args=(name,), daemon=True) for name in flood.names]
        for thread in (consumer, *producers):
            thread.start()
        if chance.random() < 0.5:
            flood.queue.remove_stream(chance.choice(flood.names))
        if chance.random() < 0.5:
            time.sleep(chance.random() * 0.01)
            flood.queue.close()
        for thread in producers:
            thread.join(_PATIENCE_SECONDS)
        flood.queue.close()
        consumer.join(_PATIENCE_SECONDS)
        assert not flood.problems
        for name, counts in flood.ledger.snapshot().items():
            assert counts.captured == flood.frames_per_stream, name
            assert counts.in_flight == 0, (name, counts)


class Failing(StandIn):
    """Raises, now and then."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def for_another_thread(self) -> Failing:
        return Failing(self._chance)

    def detect(self, pictures: Sequence[object], *settings: object) -> list[list[Detection]]:  # type: ignore[override]
        kind = self._chance.random()
        if kind < 0.02:
            raise ValueError
        if kind < 0.1:
            raise MemoryError
        return [[] for _ in pictures]


@pytest.mark.timeout(1800)
def test_detection_starts_stops_and_fails(chance: random.Random) -> None:
    for _ in range(_ROUNDS):
        metrics = metrics_of("a", "b", "c")
        queue = BatchQueue(2, 0.0, metrics.frame_dropped)
        for name in ("a", "b", "c"):
            queue.set_stream(Rules(name))

        def publish(frame: Frame, _: list[Detection], metrics: Metrics = metrics) -> None:
            metrics.frame_published(frame.stream, 0.0, [])

        errors: list[Worker] = []
        detector = DetectorPool([Failing(chance) for _ in range(3)])
        with InferenceGroup(queue, detector, publish, metrics, errors.append):
            for seq in range(1, chance.randrange(1, 40)):
                for name in ("a", "b", "c"):
                    metrics.frame_captured(name, time.time())
                    queue.put(frame_of(name, seq))
        queue.discard()
        assert_exact(metrics)


def produce(name: str, publisher: Publisher, metrics: Metrics, ending: threading.Event) -> None:
    for seq in itertools.count(1):
        metrics.frame_captured(name, time.time())
        publisher.put_detections(frame_of(name, seq), [])
        if ending.is_set():
            return


@pytest.mark.timeout(1800)
def test_a_publisher_stops_while_others_publish(chance: random.Random) -> None:
    for _ in range(max(1, _ROUNDS // 10)):
        metrics = metrics_of("a", "b")
        publisher = publisher_at(metrics=metrics)
        ending = threading.Event()

        producers = [
            threading.Thread(target=produce, args=(name, publisher, metrics, ending), daemon=True) for name in "ab"
        ]
        with publisher:
            for thread in producers:
                thread.start()
            time.sleep(chance.random() * 0.02)
        ending.set()
        for thread in producers:
            thread.join(_PATIENCE_SECONDS)
        assert publisher.error is None
        assert_exact(metrics)
