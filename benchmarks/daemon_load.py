# ruff: noqa: INP001 - a program, not a module
"""Measures the whole daemon with a stand-in detector: many RTSP streams in, events out, memory over time.

    .venv/bin/python benchmarks/daemon_load.py rtsp://127.0.0.1:8554/video --streams 30 --seconds 600

Prints one JSON object. Memory is sampled every ten seconds; the first minute counts as warm-up.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from typing import Any

from streamdet.bench.machine import cpu_seconds, resident_bytes
from streamdet.bench.stand_in import StandIn
from streamdet.config import Config, DetectorConfig, LogConfig, MetricsConfig, PublisherConfig, StreamConfig
from streamdet.detector.pool import DetectorPool
from streamdet.monitoring.log import configure_logging
from streamdet.service.daemon import Daemon

_WARM_UP_SECONDS = 60.0
_SAMPLE_SECONDS = 10.0


def watch(daemon: Daemon, seconds: float, result: dict[str, Any]) -> None:
    """Samples until the time is over, then stops the daemon."""
    time.sleep(_WARM_UP_SECONDS)
    before, cpu, began = daemon.ledger.snapshot(), cpu_seconds(), time.monotonic()
    memory = [resident_bytes() / 1e6]
    while time.monotonic() - began < seconds:
        time.sleep(_SAMPLE_SECONDS)
        memory.append(resident_bytes() / 1e6)
    after, took = daemon.ledger.snapshot(), time.monotonic() - began
    captured = sum(after[name].captured - before[name].captured for name in after)
    published = sum(after[name].published - before[name].published for name in after)
    result.update(
        seconds=round(took, 1),
        fps_captured=round(captured / took, 1),
        fps_published=round(published / took, 1),
        slowest_stream_fps=round(min(after[n].captured - before[n].captured for n in after) / took, 2),
        cpu_ms_per_frame=round(1000 * (cpu_seconds() - cpu) / max(captured, 1), 3),
        threads=threading.active_count(),
        resident_megabytes_by_minute=[round(m, 1) for m in memory[:: round(60 / _SAMPLE_SECONDS)]],
        grown_megabytes=round(memory[-1] - memory[0], 2),
    )
    daemon.stop()


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="an RTSP stream")
    parser.add_argument("--streams", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    config = Config(
        detector=DetectorConfig(max_batch_size=32),
        publisher=PublisherConfig(endpoint="tcp://127.0.0.1:0"),
        metrics=MetricsConfig(endpoint="127.0.0.1:0"),
        log=LogConfig(level="warning"),
        streams=tuple(StreamConfig(name=f"s{n}", url=arguments.url) for n in range(arguments.streams)),
    )
    configure_logging(config.log)
    result: dict[str, Any] = {"streams": arguments.streams}
    daemon = Daemon(config, load=lambda *_: DetectorPool([StandIn()]))
    watcher = threading.Thread(target=watch, args=(daemon, arguments.seconds, result))
    with daemon.signals():
        daemon.run(watcher.start)
    watcher.join()
    ledgers = daemon.ledger.snapshot().values()
    result["ledger_balances"] = all(x.captured == x.published + sum(x.dropped.values()) for x in ledgers)
    result["dropped"] = sum(sum(x.dropped.values()) for x in ledgers)
    print(json.dumps(result, indent=2))  # noqa: T201 - its result


main()
