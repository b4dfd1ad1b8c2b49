"""A spool whose counts and answers tests read."""

from __future__ import annotations

import json
import queue
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from prometheus_client import CollectorRegistry

from streamdet.config import SpoolConfig
from streamdet.delivery.event_store import LeftBehind
from streamdet.delivery.spool import Spool
from streamdet.monitoring.metrics import DeliveryMetrics
from streamdet.monitoring.trusted_clock import TrustedClock
from streamdet.wire.replay import Replayed, ReplayRequest
from support.waiting import PATIENCE_SECONDS, wait_until

TOPIC = "detections/a/"


def payload_of(seq: int, size: int) -> bytes:
    return json.dumps({"seq": seq, "fill": "x" * size}).encode()


class Counted:
    """A spool with metrics of its own, and answers that are waited for."""

    def __init__(
        self,
        directory: Path,
        epoch: str = "e1",
        max_bytes: int = 2**30,
        max_age_seconds: float = 1e6,
        clock: TrustedClock | None = None,
        **seconds: float,
    ) -> None:
        self.registry = CollectorRegistry()
        config = SpoolConfig.model_construct(
            directory=str(directory), max_bytes=max_bytes, max_age_seconds=max_age_seconds
        )
        self.spool = Spool(config, epoch, DeliveryMetrics(self.registry), clock=clock, **seconds)

    def __enter__(self) -> Self:
        self.spool.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.spool.__exit__(None, None, None)
        assert self.spool.error is None

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"streamdet_spool_{name}", labels) or 0.0

    def put(self, seqs: range, topic: str = TOPIC, size: int = 100) -> None:
        for seq in seqs:
            self.spool.keep(topic, seq, payload_of(seq, size))

    def ask(self, epoch: str, from_seq: int, to_seq: int | None = None, topic: str = TOPIC) -> Replayed:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        assert self.spool.fetch(b"me", ReplayRequest(1, topic, from_seq, to_seq, epoch), answers.put)
        answer = answers.get(timeout=PATIENCE_SECONDS)
        assert isinstance(answer, Replayed)
        return answer

    def unfinished(self) -> list[tuple[str, int]]:
        """Type and number of the newest event of each object and alert of earlier epochs that has not ended."""
        return [(event["type"], event["seq"]) for event in map(json.loads, self.left_behind().unfinished)]

    def left_behind(self) -> LeftBehind:
        answers: queue.SimpleQueue[LeftBehind] = queue.SimpleQueue()
        self.spool.fetch_left_behind(answers.put)
        return answers.get(timeout=PATIENCE_SECONDS)

    def all_of(self, epoch: str, from_seq: int = 1, topic: str = TOPIC) -> list[int]:
        """What is kept of an epoch, answer by answer."""
        seqs: list[int] = []
        while True:
            answer = self.ask(epoch, from_seq, topic=topic)
            assert [json.loads(event)["seq"] for event in answer.events] == list(answer.seqs)
            seqs += answer.seqs
            if not answer.more:
                return seqs
            assert answer.next_seq > from_seq
            from_seq = answer.next_seq


def kept_and_not_kept(spool: Counted) -> float:
    return spool.count("events_kept_total") + spool.count("events_not_kept_total", reason="disk_full")


def full_disk(spool: Counted, free: Callable[[], None]) -> None:
    """Writes until it is full, and again when there is room."""
    seq = 0
    while not spool.count("events_not_kept_total", reason="disk_full"):
        spool.put(range(seq + 1, seq + 101), size=1000)
        seq += 100
        wait_until(lambda put=seq: kept_and_not_kept(spool) >= put)
    kept = int(spool.count("events_kept_total"))
    assert kept_and_not_kept(spool) == seq
    assert spool.all_of("e1") == list(range(1, kept + 1))
    free()
    wait_until(lambda: time.monotonic() > spool.spool._try_again_at)
    spool.put(range(seq + 1, seq + 11))
    wait_until(lambda: spool.count("events_kept_total") == kept + 10)
    assert spool.all_of("e1") == [*range(1, kept + 1), *range(seq + 1, seq + 11)]


def kept_events(spool: Path) -> list[dict[str, Any]]:
    """The events of objects and alerts on disk, over all epochs, in their order."""
    query = "SELECT event FROM events WHERE topic LIKE 'objects/%' OR topic LIKE 'alerts/%'"
    with closing(sqlite3.connect(f"file:{spool}/events.sqlite?mode=ro", uri=True)) as database:
        return [json.loads(event) for (event,) in database.execute(query)]
