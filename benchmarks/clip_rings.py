# ruff: noqa: INP001 - a program, not a module
"""Measures what rings for clips cost, and what a clip costs.

    .venv/bin/python benchmarks/clip_rings.py FILM --streams 16 --ring-seconds 15 --seconds 20

Prints one JSON object: CPU time of the whole process per second with rings that are closed, and open; the bytes in the
rings, and by how much the process has grown; and the CPU time of one clip as it came, and of one with a mask.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from contextlib import ExitStack

from streamdet.bench.machine import cpu_seconds, resident_bytes
from streamdet.capture.thread import Capture
from streamdet.config import ClipsConfig, RuleConfig, StreamConfig
from streamdet.delivery.clips import Clips
from streamdet.delivery.masked_mp4 import masked_mp4
from streamdet.delivery.mp4 import write_mp4
from streamdet.delivery.packet_ring import Cut, PacketRing
from streamdet.delivery.privacy import Hidden
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Frame

_LEFT = Hidden((((0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (0.0, 1.0)),))
_ROUNDS = 3


def measure_rings(film: str, streams: int, ring_seconds: float, seconds: float) -> dict[str, float]:
    """Runs captures of a film; closed and open rings take turns, so that other load counts for both."""
    metrics = Metrics(Ledger())
    rule = RuleConfig(name="any", clip_seconds=(ring_seconds, 0.0))
    used: dict[bool, float] = {False: 0.0, True: 0.0}
    grown = kept = 0
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        clips = stack.enter_context(Clips(ClipsConfig(directory=directory, ring_seconds=ring_seconds), metrics))
        rings: list[PacketRing] = []
        for number in range(streams):
            config = StreamConfig(name=f"s{number}", url=film, loop=True)
            rings.append(clips.ring(config.name))
            stack.enter_context(Capture(config, lambda _frame: None, lambda _status: None, metrics, packets=rings[-1]))
        time.sleep(3)
        for number in range(2 * _ROUNDS):
            is_open = number % 2 == 1
            memory = resident_bytes()
            clips.set_rules([rule] if is_open else [])
            began = cpu_seconds()
            time.sleep(seconds)
            used[is_open] += cpu_seconds() - began
            if is_open:
                grown, kept = max(grown, resident_bytes() - memory), max(kept, sum(ring.size_bytes for ring in rings))
    return {
        "cpu_closed_ratio": round(used[False] / seconds / _ROUNDS, 3),
        "cpu_open_ratio": round(used[True] / seconds / _ROUNDS, 3),
        "ring_megabytes": round(kept / 1e6, 1),
        "process_grown_megabytes": round(grown / 1e6, 1),
    }


def measure_clip(film: str, seconds: float) -> dict[str, float]:
    """Makes a clip of a film, as it came and with a mask."""
    cuts: list[Cut] = []
    ring = PacketRing("film", seconds, 1 << 30, cuts.append)
    ring.open(is_open=True)
    newest: list[Frame] = []
    config = StreamConfig(name="film", url=film, pace="fastest")
    metrics = Metrics(Ledger())
    with Capture(
        config, lambda frame: newest.__setitem__(slice(None), [frame]), lambda _status: None, metrics, packets=ring
    ):
        time.sleep(1)
        while not newest or time.monotonic() - newest[0].captured_monotonic_seconds < 1:
            time.sleep(0.1)
    ring.want(lambda: "clip", newest[0].packet_pts, newest[0].captured_monotonic_seconds, (seconds, 0.0))
    ring.expire(time.monotonic(), all_of_them=True)
    packets = cuts[0].packets
    began = time.process_time()
    write_mp4(packets, io.BytesIO())
    plain_seconds, began = time.process_time() - began, time.process_time()
    masked_mp4(packets, cuts[0].begin, _LEFT, lambda: False)
    return {
        "clip_frames": len(packets),
        "clip_cpu_seconds": round(plain_seconds, 3),
        "masked_clip_cpu_seconds": round(time.process_time() - began, 2),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--ring-seconds", type=float, default=15.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    asked = parser.parse_args()
    rings = measure_rings(asked.film, asked.streams, asked.ring_seconds, asked.seconds)
    print(json.dumps({**rings, **measure_clip(asked.film, asked.ring_seconds)}))  # noqa: T201 - its result


if __name__ == "__main__":
    main()
