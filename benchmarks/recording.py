# ruff: noqa: INP001 - a program, not a module
"""Measures `streamdet bridge files`: detections recorded a second, memory, and how long a query of the files takes.

    .venv/bin/python benchmarks/recording.py --detections 10000000
    .venv/bin/python benchmarks/recording.py --detections 2000000 --over-zeromq
    .venv/bin/python benchmarks/recording.py --detections 2000000 --streams 500 --per-frame 3

Events are made before they are counted, unless they come over ZeroMQ: then the daemon's own publisher sends them, in a
process of its own, as fast as the bridge takes them. Prints one JSON object. The query counts by label and hour, in
DuckDB with two threads, three times; the best counts. On a machine that has other work, compare the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from streamdet.bench.machine import resident_bytes
from streamdet.bridges.files import FilesThread, _Session
from streamdet.bridges.files.recording import Recording
from streamdet.bridges.files.retention import Retention
from streamdet.bridges.process import Source
from streamdet.client.recovery import Position
from streamdet.config import PublisherConfig, ReplayConfig
from streamdet.config.files import FilesConfig
from streamdet.delivery.publisher import Publisher
from streamdet.monitoring.bridge_metrics import BridgeMetrics
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Detection, DetectionEvent, Frame, FrameInfo, State, StreamStatus

_LABELS = ("person", "car", "bicycle", "truck", "bus", "motorcycle")
_WEIGHTS = (60, 25, 8, 3, 2, 2)
_DAY_SECONDS = 86400
_BEGIN = 1_795_910_400.0  # 2026-11-29
_EPOCH = "6b0f6c1e9a3d4c55"
_KINDS_OF_FRAMES = 1000
_AHEAD = 10_000


def detections_of_frames(per_frame: int) -> list[tuple[Detection, ...]]:
    """The detections of many frames, with boxes and scores as they are published."""
    chance = random.Random(1)  # noqa: S311 - to be repeatable
    frames = []
    for number in range(_KINDS_OF_FRAMES):
        found = []
        for place in range(per_frame):
            x, y = round(chance.uniform(0, 1700), 2), round(chance.uniform(0, 700), 2)
            box = (x, y, round(x + chance.uniform(20, 200), 2), round(y + chance.uniform(40, 350), 2))
            label = chance.choices(_LABELS, _WEIGHTS)[0]
            zones = ("bay",) if chance.random() < 0.2 else ()
            found.append(Detection(label, round(chance.uniform(0.5, 1), 4), box, number + place, zones))
        frames.append(tuple(found))
    return frames


class MadeEvents:
    """Events that were decoded already, in the place of a subscription.

    Args:
        streams: how many; they take turns.
        per_frame: detections of each frame.
        detections: all together; they are spread over one day.
    """

    waiting_items = 0

    def __init__(self, streams: int, per_frame: int, detections: int) -> None:
        frame = FrameInfo(1, 0.04, _BEGIN, "daemon", 1920, 1080)
        self._frames = detections_of_frames(per_frame)
        self._names = [f"stream-{number}" for number in range(streams)]
        self._count = detections // per_frame
        self._event = DetectionEvent("", _EPOCH, 1, _BEGIN, frame, ())
        self._made: list[DetectionEvent] = []
        self._at = 0
        self.seconds_of_making = self.cpu_seconds_of_making = 0.0

    def receive(self, _timeout_seconds: float | None = None) -> DetectionEvent | None:
        """The next event; None after the last."""
        if not self._made:
            self._make()
        return self._made.pop() if self._made else None

    def position(self) -> Position:
        """How far it has come."""
        return {f"detections/{name}/": (_EPOCH, self._at // len(self._names)) for name in self._names}

    def _make(self) -> None:
        began, cpu_began = time.perf_counter(), time.thread_time()
        step, streams = _DAY_SECONDS / self._count, len(self._names)
        for number in range(self._at, min(self._at + 1000, self._count)):
            seq, at = 1 + number // streams, _BEGIN + number * step
            frame = FrameInfo(seq, seq / 25, at, "daemon", 1920, 1080)
            found = self._frames[number % len(self._frames)]
            self._made.append(DetectionEvent(self._names[number % streams], _EPOCH, seq, at + 0.1, frame, found))
        self._at += len(self._made)
        self._made.reverse()
        self.seconds_of_making += time.perf_counter() - began
        self.cpu_seconds_of_making += time.thread_time() - cpu_began


def record_made(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Records events that are decoded already."""
    config, metrics = FilesConfig(rotate_seconds=arguments.rotate_seconds), BridgeMetrics("files").of("directory")
    recording = Recording(folder, config.formats, config.compression, Retention(folder, 2**50, 1e9))
    recording.open()
    events: Any = MadeEvents(arguments.streams, arguments.per_frame, arguments.detections)
    peak = before = resident_bytes()
    began, cpu_began = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(1) as pool:
        session = _Session(events, recording, pool, metrics, {"detections", "state"}, config)
        while events._at < events._count or events._made:  # noqa: SLF001 - of this file
            session.turn()
            peak = max(peak, resident_bytes())
        session.finish()
    seconds = time.perf_counter() - began - events.seconds_of_making
    cpu_seconds = time.process_time() - cpu_began - events.cpu_seconds_of_making
    recording.close()
    return _rates(arguments.detections, seconds, cpu_seconds, before, peak)


def publish(arguments: argparse.Namespace, pipe: Connection, taken: Synchronized[int]) -> None:
    """Publishes detections as fast as they are taken, in a process of its own."""
    replay = ReplayConfig(endpoint="tcp://127.0.0.1:0", max_events=100_000, max_bytes=256 << 20)
    config = PublisherConfig(endpoint="tcp://127.0.0.1:0", high_water_mark_events=100_000)
    frames, picture = detections_of_frames(arguments.per_frame), _Blank()
    names = [f"stream-{number}" for number in range(arguments.streams)]
    metrics = Metrics(Ledger())
    for name in names:
        metrics.set_stream(name, _LABELS)
    with Publisher(config, _EPOCH, metrics, replay=replay) as publisher:
        for name in names:
            publisher.put_status(StreamStatus(name, State.UP, None, "", time.time()))
        pipe.send((publisher.endpoint, publisher.replay_endpoint))
        pipe.recv()
        for number in range(arguments.detections // arguments.per_frame):
            while number - taken.value > _AHEAD:
                time.sleep(0.001)
            now = time.time()
            frame = Frame(names[number % len(names)], 1 + number // len(names), None, now, "daemon", now, picture)
            publisher.put_detections(frame, frames[number % len(frames)])
        pipe.recv()


class _Blank:
    width, height = 1920, 1080

    def to_rgb(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """No one asks for it."""
        raise NotImplementedError


def record_over_zeromq(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Records events that a publisher sends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    taken = context.Value("q", 0)
    publisher = context.Process(target=publish, args=(arguments, theirs, taken))
    publisher.start()
    config, bridge = FilesConfig(rotate_seconds=arguments.rotate_seconds), BridgeMetrics("files")
    thread = FilesThread(config, folder, Source(*ours.recv()), bridge.of("directory"))

    def count(name: str) -> int:
        value = bridge.registry.get_sample_value(f"streamdet_bridge_{name}", {"bridge": "files", "target": "directory"})
        return int(value or 0)

    thread.join_timeout_seconds = 600.0
    events = arguments.detections // arguments.per_frame
    peak = before = resident_bytes()
    with thread:
        while not thread._recording.position:  # noqa: SLF001 - until it is connected
            time.sleep(0.01)
        time.sleep(1.0)
        ours.send("go")
        began, cpu_began = time.perf_counter(), time.process_time() - time.thread_time()
        while (done := count("events_total") + count("queue_events")) < events:
            taken.value = done
            peak = max(peak, resident_bytes())
            time.sleep(0.05)
            if thread.error is not None:
                raise thread.error
        seconds = time.perf_counter() - began
        cpu_seconds = time.process_time() - time.thread_time() - cpu_began  # without this thread
    ours.send("end")
    publisher.join()
    return {
        **_rates(arguments.detections, seconds, cpu_seconds, before, peak),
        "lost_events": count("lost_events_total"),
    }


def _rates(detections: int, seconds: float, cpu_seconds: float, before: int, peak: int) -> dict[str, Any]:
    return {
        "detections": detections,
        "seconds": round(seconds, 2),
        "detections_per_second": round(detections / seconds),
        "cpu_seconds": round(cpu_seconds, 2),
        "detections_per_cpu_second": round(detections / cpu_seconds),
        "resident_megabytes_before": round(before / 1e6),
        "resident_megabytes_at_most": round(peak / 1e6),
    }


def query(folder: Path) -> dict[str, Any]:
    """Counts by label and hour."""
    source = f"read_parquet('{folder}/detections/*/*/*.parquet')"
    text = f"SELECT label, time_bucket(INTERVAL 1 HOUR, captured_at) AS hour, count(*) FROM {source} GROUP BY ALL"  # noqa: S608
    seconds, cpu_seconds = [], []
    with duckdb.connect(config={"threads": 2}) as database:
        for _ in range(3):
            began, cpu_began = time.perf_counter(), time.process_time()
            rows = database.execute(text).fetchall()
            seconds.append(time.perf_counter() - began)
            cpu_seconds.append(time.process_time() - cpu_began)
    files = [path.stat().st_size for path in folder.glob("*/*/*/*.parquet")]
    return {
        "files": len(files),
        "megabytes": round(sum(files) / 1e6, 1),
        "query_rows": len(rows),
        "query_counted": sum(row[2] for row in rows),
        "query_seconds": round(min(seconds), 3),
        "query_cpu_seconds": round(min(cpu_seconds), 3),
    }


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detections", type=int, default=10_000_000)
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--per-frame", type=int, default=5)
    parser.add_argument("--rotate-seconds", type=float, default=600.0)
    parser.add_argument("--over-zeromq", action="store_true")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="recording-"))
    try:
        result = (record_over_zeromq if arguments.over_zeromq else record_made)(folder, arguments)
        print(json.dumps({**result, **query(folder)}))  # noqa: T201 - its output
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
