# ruff: noqa: INP001 - part of a program, not a module
"""Lets the real daemon run among faults, and says whether it held.

    PYTHONPATH=tests .venv/bin/python benchmarks/soak --seconds 1200 --picture soak.png --json soak.json

Cameras (real RTSP servers) are killed, frozen and damaged, streams added, paused and removed, configurations loaded,
good and bad; subscribers stall, flood and vanish. A healthy subscriber reads all the time. Every second is sampled.
The faults rest twice, after the warm-up and at the end: there threads and descriptors are compared.

Exit code 1, with the reasons: the ledger is not exact, a healthy subscriber lost events, an object or alert did not
begin and end once, memory grows by more than 1 % an hour after the warm-up, or threads or descriptors have become more.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chaos import Chaos
from draw import draw
from sample import Sample, Sampler
from scene import Scene
from verdict import memory_slope
from witness import Witness

_START_SECONDS = 120.0
_FAULT_EVERY_SECONDS = 1.5
_TICK_SECONDS = 0.02
_SETTLE_SECONDS = 90.0
_QUIET_SECONDS = 10
_STOP_SECONDS = 10.0


class Soak:
    """One run; `samples` grows by one every second."""

    def __init__(self, scene: Scene, witness: Witness, seed: int) -> None:
        self._scene = scene
        self._witness = witness
        self._sampler = Sampler(scene, witness)
        self._next_sample_at = time.monotonic()
        self.chaos = Chaos(scene, seed)
        self.samples: list[Sample] = []
        self.quiet: list[tuple[float, float]] = []

    def rage(self, seconds: float) -> None:
        """Faults, for so long; then all are undone."""
        ends_at, next_fault_at = time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < ends_at:
            if now >= next_fault_at:
                self.chaos.begin_one()
                next_fault_at = now + _FAULT_EVERY_SECONDS
            self.chaos.tick()
            self._wait()
        self.chaos.end()

    def rest(self) -> list[Sample]:
        """Waits until every stream is up, and then a while; the samples of that while."""
        begun_at, began = time.monotonic(), len(self.samples)
        calm_since = time.monotonic()
        while time.monotonic() - calm_since < _QUIET_SECONDS:
            streams = self._scene.ask("GET", "/v1/streams")["streams"]
            if any(stream["state"] != "up" for stream in streams):
                calm_since = time.monotonic()
            if time.monotonic() - begun_at > _SETTLE_SECONDS:
                message = f"not all up after {_SETTLE_SECONDS:g} s: {streams}"
                raise AssertionError(message)
            for _ in range(10):
                self._wait()
        rest = self.samples[-_QUIET_SECONDS + 1 :]
        self.quiet.append((self.samples[began].at_seconds, rest[-1].at_seconds))
        return rest

    def _wait(self) -> None:
        time.sleep(_TICK_SECONDS)
        if time.monotonic() >= self._next_sample_at:
            self._next_sample_at += 1
            if self._scene.process.poll() is not None:
                message = f"the daemon ended with {self._scene.process.returncode}"
                raise AssertionError(message)
            self.samples.append(self._sampler.take())


def run(folder: Path, seconds: float, seed: int) -> tuple[dict[str, Any], Soak]:
    """One whole run: warm-up, rest, the time that is measured, rest, the end."""
    with Scene(folder) as scene, Witness(scene.endpoint) as witness:
        deadline = time.monotonic() + _START_SECONDS
        while set(scene.cameras) - set(witness.events):
            if time.monotonic() > deadline:
                message = (folder / "daemon.log").read_text("utf-8")
                raise AssertionError(message)
            time.sleep(0.1)
        soak = Soak(scene, witness, seed)
        soak.rage(min(300.0, seconds / 4))
        before = soak.rest()
        soak.rage(seconds - soak.samples[-1].at_seconds)
        after = soak.rest()
        stopped_at = time.monotonic()
        scene.process.send_signal(signal.SIGTERM)
        code = scene.process.wait(_STOP_SECONDS)
        stop_seconds = time.monotonic() - stopped_at
    ledger = json.loads(scene.result_path.read_text("utf-8"))["streams"]
    result = summary(soak, before, after)
    result.update(exit_code=code, stop_seconds=round(stop_seconds, 2), ledger=ledger, faults=dict(soak.chaos.happened))
    result.update(witness={"events": witness.events, "lost": witness.lost, "restarts": witness.restarts})
    result.update(occurrences={"ended": witness.ended, "unended": len(witness.unended), "confused": witness.confused})
    return result, soak


def summary(soak: Soak, before: list[Sample], after: list[Sample]) -> dict[str, Any]:
    """The figures of a run."""
    measured = [sample for sample in soak.samples if sample.at_seconds > before[-1].at_seconds]
    latencies = [s.latency_p50_seconds for s in measured if s.latency_p50_seconds is not None]
    slowest = [s.latency_p99_seconds for s in measured if s.latency_p99_seconds is not None]
    at_seconds = [s.at_seconds for s in measured]
    slope = memory_slope(at_seconds, [float(s.resident_bytes) for s in measured])
    allocated = memory_slope(at_seconds, [float(s.allocated_bytes) for s in measured])
    return {
        "seconds": round(soak.samples[-1].at_seconds),
        "measured_seconds": round(measured[-1].at_seconds - measured[0].at_seconds),
        "fps_captured_median": statistics.median(s.fps_captured for s in measured),
        "fps_published_median": statistics.median(s.fps_published for s in measured),
        "latency_p50_seconds": statistics.median(latencies),
        "latency_p99_seconds_worst": max(slowest),
        "resident_megabytes": [round(statistics.median(s.resident_bytes for s in q) / 1e6, 1) for q in (before, after)],
        "resident_percent_per_hour": {**asdict(slope), "grows": slope.grows},
        "allocated_megabytes": [
            round(statistics.median(s.allocated_bytes for s in q) / 1e6, 1) for q in (before, after)
        ],
        "allocated_percent_per_hour": asdict(allocated),
        "threads": [min(s.threads for s in q) for q in (before, after)],
        "descriptors": [min(s.descriptors for s in q) for q in (before, after)],
        "cpu_cores": round((measured[-1].cpu_seconds - measured[0].cpu_seconds) / len(measured), 2),
        "inexact_samples": sum(bool(s.inexact) for s in soak.samples),
    }


def problems(result: dict[str, Any]) -> list[str]:
    """Why the daemon did not hold; empty when it did."""
    found = []
    for name, frames in result["ledger"].items():
        if frames["in_flight"] or frames["captured"] != frames["published"] + frames["dropped"]:
            found.append(f"the ledger of {name} is not exact: {frames}")
    if result["inexact_samples"]:
        found.append(f"{result['inexact_samples']} samples of the metrics page do not add up")
    if result["witness"]["lost"] or result["witness"]["restarts"]:
        found.append(f"a healthy subscriber noticed: {result['witness']}")
    if result["occurrences"]["unended"] or result["occurrences"]["confused"] or not result["occurrences"]["ended"]:
        found.append(f"objects or alerts did not begin and end once each: {result['occurrences']}")
    if result["exit_code"]:
        found.append(f"the daemon ended with {result['exit_code']}")
    if result["resident_percent_per_hour"]["grows"]:
        found.append(f"memory grows: {result['resident_percent_per_hour']}")
    for what in ("threads", "descriptors"):
        before, after = result[what]
        if after > before:
            found.append(f"more {what}: {before} became {after}")
    return found


def main() -> int:
    """Runs, draws, writes, judges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=Path("soak.png"))
    parser.add_argument("--json", type=Path, default=Path("soak.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result, soak = run(Path(folder), arguments.seconds, arguments.seed)
        log = (Path(folder) / "daemon.log").read_text("utf-8", "replace")
    result["tracebacks_in_log"] = log.count("Traceback")
    result["problems"] = problems(result)
    arguments.json.write_text(json.dumps({**result, "samples": [asdict(s) for s in soak.samples]}), encoding="utf-8")
    title = f"{result['seconds'] / 60:.0f} minutes, {sum(soak.chaos.happened.values())} faults"
    draw(arguments.picture, soak.samples, soak.quiet, title)
    print(json.dumps(result, indent=2))  # noqa: T201 - its result
    return 1 if result["problems"] else 0


sys.exit(main())
