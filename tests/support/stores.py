"""A store of files whose counts and answers tests read."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from prometheus_client import CollectorRegistry

from streamdet.delivery.file_store import FileStore, StoreLimits
from streamdet.monitoring.metrics import PICTURES_DROPPED, FileStoreMetrics
from streamdet.monitoring.trusted_clock import TrustedClock
from support.waiting import PATIENCE_SECONDS, wait_until


class Counted:
    """A store with metrics of its own."""

    def __init__(
        self,
        directory: Path,
        max_bytes: int = 2**30,
        max_age_seconds: float = 1e6,
        max_file_bytes: int = 2**20,
        clock: TrustedClock | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        metrics = FileStoreMetrics(self.registry, "pictures", PICTURES_DROPPED)
        limits = StoreLimits(max_bytes, max_age_seconds, max_file_bytes)
        self.store = FileStore("pictures", directory, ".jpg", limits, metrics, clock=clock)

    def __enter__(self) -> Self:
        self.store.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.store.__exit__(None, None, None)
        assert self.store.error is None

    def count(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        return self.registry.get_sample_value(f"streamdet_pictures_{name}", dict(labels or {})) or 0.0

    def dropped(self, reason: str) -> float:
        return self.count("dropped_total", {"reason": reason})

    def put(self, content: bytes, stream: str = "cam") -> str:
        file_id = self.store.promise(stream)
        self.store.keep(file_id, content)
        return file_id

    def wait_for_stored(self, count: int) -> None:
        wait_until(lambda: self.count("stored_total") == count, f"{count} stored files")

    def fetch(self, file_id: str, client: bytes = b"me") -> bytes | str:
        answers: queue.SimpleQueue[bytes | str] = queue.SimpleQueue()
        assert self.store.fetch(client, file_id, answers.put)
        return answers.get(timeout=PATIENCE_SECONDS)


def full_disk(stored: Counted, free: Callable[[], None]) -> None:
    """Writes until it is full, and again when there is room."""
    kept = []
    while not stored.dropped("disk_full"):
        before = stored.count("stored_total")
        kept.append(stored.put(bytes(10_000)))
        wait_until(lambda before=before: stored.count("stored_total") > before or stored.dropped("disk_full"))
    lost = kept.pop()
    assert all(stored.store.read(file_id) == bytes(10_000) for file_id in kept)
    assert stored.store.read(lost) is None
    assert not [path for path in stored.store.directory.iterdir() if path.name.endswith(".part")]
    free()
    wait_until(lambda: time.monotonic() > stored.store._try_again_at)
    after = stored.put(b"there is room again")
    stored.wait_for_stored(len(kept) + 1)
    assert stored.store.read(after) == b"there is room again"
