"""A publisher whose events are recorded in files, and what is in these."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamdet.bridges.files import FilesThread
from streamdet.bridges.process import Source
from streamdet.config import ReplayConfig
from streamdet.config.files import FilesConfig
from streamdet.delivery.publisher import Publisher
from streamdet.monitoring.bridge_metrics import BridgeMetrics
from streamdet.types import Detection
from support.publishing import frame_of, publisher_at
from support.waiting import wait_until

REPLAY = ReplayConfig(endpoint="tcp://127.0.0.1:0", max_events=100_000)
MANY = [Detection("person", 0.9, (10.0 + number, 20.0, 30.0 + number, 60.0), number) for number in range(20)]


class Recorder:
    """The thread of the bridge, and its metrics."""

    def __init__(self, folder: Path, publisher: Publisher, *, from_start: bool = False, **keys: Any) -> None:
        keys = {"formats": ("jsonl",), "compression": "none", "rotate_seconds": 1.0, **keys}
        self.folder = folder
        self._metrics = BridgeMetrics("files")
        source = Source(publisher.endpoint, publisher.replay_endpoint)
        target = self._metrics.of("directory")
        self.worker = FilesThread(FilesConfig(**keys), folder, source, target, from_start=from_start)

    def count(self, name: str) -> float:
        labels = {"bridge": "files", "target": "directory"}
        return self._metrics.registry.get_sample_value(f"streamdet_bridge_{name}", labels) or 0.0

    def seqs(self, table: str = "frames") -> list[int]:
        """The numbers of all events in a table, as they stand in its files."""
        return [row["seq"] for row in self.rows(table)]

    def rows(self, table: str) -> list[dict[str, Any]]:
        files = sorted(self.folder.glob(f"{table}/*/*/*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@contextmanager
def recorded(folder: Path, publisher: Publisher, **keys: Any) -> Iterator[Recorder]:
    """Records until the end of the block, and all of what was received until then."""
    thread = Recorder(folder, publisher, **keys)
    with thread.worker:
        yield thread
    assert thread.worker.error is None


def publish(publisher: Publisher, seqs: range, stream: str = "a") -> None:
    for seq in seqs:
        publisher.put_detections(frame_of(stream, seq), MANY)
        wait_until(lambda seq=seq: publisher._writer.seqs.get(f"detections/{stream}/", 0) > seq - 50)
    wait_until(lambda: publisher._writer.seqs.get(f"detections/{stream}/") == seqs[-1], "all published")


def full_disk(folder: Path, free: Callable[[], None]) -> None:
    """Records until the disk is full, and again when there is room."""
    with publisher_at(replay=REPLAY) as publisher:
        publish(publisher, range(1, 2))
        with recorded(folder, publisher) as thread:
            wait_until(lambda: thread.worker._recording.position, "the daemon has answered")
            last = 1
            while not thread.count("retries_total"):
                publish(publisher, range(last + 1, last + 51))
                last += 50
                wait_until(lambda last=last: thread.count("retries_total") or thread.count("events_total") >= last - 1)
            before = thread.count("events_total")
            assert thread.seqs() == list(range(2, len(thread.seqs()) + 2))
            free()
            wait_until(lambda: thread.count("events_total") > before, "it is written again")
            wait_until(lambda: len(thread.seqs()) >= last - 1, "all of it")
        assert thread.seqs() == list(range(2, last + 1))
        assert len(thread.rows("detections")) == (last - 1) * len(MANY)
        assert thread.count("lost_events_total") == 0
