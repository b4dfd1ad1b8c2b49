# ruff: noqa: INP001 - part of a program, not a module
"""One look per second at the daemon from outside: what it does, and what it uses."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from scene import Scene
from witness import Witness

from streamdet.bench.machine import cpu_seconds, resident_bytes


@dataclass(frozen=True)
class Sample:
    """One second.

    Attributes:
        at_seconds: since the beginning.
        fps_captured: of all streams together.
        fps_published: the same for what left the daemon.
        latency_p50_seconds: from capture to publication; None when nothing came.
        latency_p99_seconds: the same for the slowest in a hundred.
        resident_bytes: memory.
        allocated_bytes: the part of it that is in use, as far as glibc gave it out.
        threads: of the process.
        descriptors: open files and sockets.
        cpu_seconds: CPU time since the start of the process.
        inexact: streams whose frames do not add up at this moment.
    """

    at_seconds: float
    fps_captured: float
    fps_published: float
    latency_p50_seconds: float | None
    latency_p99_seconds: float | None
    resident_bytes: int
    allocated_bytes: int
    threads: int
    descriptors: int
    cpu_seconds: float
    inexact: tuple[str, ...]


class Sampler:
    """Takes samples; begins with its construction."""

    def __init__(self, scene: Scene, witness: Witness) -> None:
        self._scene = scene
        self._witness = witness
        self._began = self._before_at = time.monotonic()
        self._before: dict[str, dict[str, float]] = {}

    def take(self) -> Sample:
        """What happened since the sample before."""
        now, page = time.monotonic(), self._scene.metrics()
        counts = _counts(page)
        took = max(now - self._before_at, 0.001)
        latencies = self._witness.take_latencies()
        pid = self._scene.process.pid
        sample = Sample(
            at_seconds=round(now - self._began, 2),
            fps_captured=round(self._more(counts, "captured") / took, 2),
            fps_published=round(self._more(counts, "published") / took, 2),
            latency_p50_seconds=round(statistics.median(latencies), 4) if latencies else None,
            latency_p99_seconds=round(sorted(latencies)[int(len(latencies) * 0.99)], 4) if latencies else None,
            resident_bytes=resident_bytes(pid),
            allocated_bytes=int(float(page.partition("\nsoak_allocated_bytes ")[2].split()[0])),
            threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
            descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            cpu_seconds=round(cpu_seconds(pid), 2),
            inexact=tuple(name for name, frames in counts.items() if not _adds_up(frames)),
        )
        self._before, self._before_at = counts, now
        return sample

    def _more(self, counts: dict[str, dict[str, float]], what: str) -> float:
        """Frames since the sample before, of the streams that were there then."""
        return sum(frames[what] - self._before[name][what] for name, frames in counts.items() if name in self._before)


def _counts(page: str) -> dict[str, dict[str, float]]:
    """Frames of each stream as on the metrics page."""
    counts: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(page):
        what = family.name.removeprefix("streamdet_frames_")
        if what not in {"captured", "published", "dropped", "in_flight"}:
            continue
        for name, labels, value, *_ in family.samples:
            if name.endswith("_created"):
                continue
            frames = counts.setdefault(labels["stream"], dict.fromkeys(("captured", "published", "dropped"), 0.0))
            frames[what] = frames.get(what, 0.0) + value
    return counts


def _adds_up(frames: dict[str, float]) -> bool:
    in_flight = frames.get("in_flight", 0.0)
    return in_flight >= 0 and frames["captured"] == frames["published"] + frames["dropped"] + in_flight
