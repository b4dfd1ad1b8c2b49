# ruff: noqa: INP001 - a program, not a module
"""Measures capture alone: many RTSP streams, frames only counted.

    .venv/bin/python benchmarks/capture_load.py rtsp://127.0.0.1:8554/video --streams 30 --seconds 60

Prints one JSON object: frames per second delivered, CPU time per frame of the whole process, how much of it is
decoding (measured by reading the same stream with PyAV alone, without streamdet), the rest, threads, and memory.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any

import av

from streamdet.bench.machine import cpu_seconds, resident_bytes
from streamdet.capture.thread import Capture
from streamdet.config import StreamConfig
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Frame, State, StreamStatus


def measure_capture(url: str, streams: int, seconds: float) -> dict[str, Any]:
    """Runs captures and counts what they deliver."""
    counts: Counter[str] = Counter()
    up: set[str] = set()
    metrics = Metrics(Ledger())

    def put(frame: Frame) -> None:
        counts[frame.stream] += 1

    def on_status(status: StreamStatus) -> None:
        if status.state is State.UP:
            up.add(status.stream)

    with ExitStack() as stack:
        started = time.monotonic()
        for number in range(streams):
            config = StreamConfig(name=f"s{number}", url=url)
            metrics.set_stream(config.name, ())
            stack.enter_context(Capture(config, put, on_status, metrics))
        while len(up) < streams and time.monotonic() - started < 120:
            time.sleep(0.05)
        all_up_seconds = time.monotonic() - started
        time.sleep(2)
        frames, cpu, memory, begin = counts.total(), cpu_seconds(), resident_bytes() / 1e6, time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - begin
        frames, cpu = counts.total() - frames, cpu_seconds() - cpu
        return {
            "streams_up": len(up),
            "all_up_seconds": round(all_up_seconds, 2),
            "fps": round(frames / took, 1),
            "cpu_ms_per_frame": round(1000 * cpu / max(1, frames), 3),
            "cpu_cores": round(cpu / took, 3),
            "threads": threading.active_count(),
            "resident_megabytes": round(resident_bytes() / 1e6, 1),
            "grown_megabytes": round(resident_bytes() / 1e6 - memory, 1),
        }


def measure_decoding(url: str, streams: int, seconds: float) -> dict[str, Any]:
    """The same with the least that can be done in Python: PyAV's own loop, one thread per stream."""
    counts: Counter[int] = Counter()
    ending = threading.Event()

    def read(number: int) -> None:
        options = {"rtsp_transport": "tcp", "analyzeduration": "100000", "probesize": "32000"}
        with av.open(url, options=options, timeout=(20, 20)) as container:
            container.streams.video[0].thread_count = 1
            for _ in container.decode(video=0):
                counts[number] += 1
                if ending.is_set():
                    return

    threads = [threading.Thread(target=read, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    while len(counts) < streams:
        time.sleep(0.05)
    time.sleep(2)
    frames, cpu, begin = counts.total(), cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begin
    frames, cpu = counts.total() - frames, cpu_seconds() - cpu
    ending.set()
    for thread in threads:
        thread.join()
    return {"fps": round(frames / took, 1), "cpu_ms_per_frame": round(1000 * cpu / max(1, frames), 3)}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="an RTSP stream")
    parser.add_argument("--streams", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    alone = measure_decoding(arguments.url, arguments.streams, arguments.seconds / 3)
    capture = measure_capture(arguments.url, arguments.streams, arguments.seconds)
    own = round(capture["cpu_ms_per_frame"] - alone["cpu_ms_per_frame"], 3)
    print(json.dumps({"decoding_alone": alone, "capture": capture, "own_cpu_ms_per_frame": own}, indent=2))  # noqa: T201 - its result


main()
