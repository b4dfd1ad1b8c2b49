"""Keeps clips of a film one after the other: DIRECTORY FILM COUNT; prints how many were stored and were not."""

from __future__ import annotations

import sys
from pathlib import Path

from streamdet.config import ClipsConfig, RuleConfig
from streamdet.delivery.clips import Clips
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from support.clips import Packets, read_into
from support.waiting import wait_until


def main(directory: Path, film: str, count: int) -> None:
    sink = Packets()
    read_into(sink, film, pace="fastest")
    metrics = Metrics(Ledger())

    def value(name: str) -> int:
        return int(metrics.registry.get_sample_value(f"streamdet_clips_{name}") or 0)

    def dropped(reason: str) -> int:
        return int(metrics.registry.get_sample_value("streamdet_clips_dropped_total", {"reason": reason}) or 0)

    with Clips(ClipsConfig(directory=str(directory)), metrics) as clips:
        clips.set_rules([RuleConfig(name="any", clip_seconds=(2, 0))])
        ring = clips.ring("yard")
        for packet in sink.packets:
            ring.put(packet)
        for number in range(count):
            clips.want("yard", None, sink.packets[40].arrived_monotonic_seconds, (30, 0))
            wait_until(
                lambda done=number + 1: value("stored_total") + dropped("disk_full") + dropped("disk_error") >= done
            )
    halves = sum(path.suffix != ".mp4" for path in directory.iterdir())
    counts = value("stored_total"), dropped("disk_full"), dropped("disk_error") + dropped("error"), halves
    sys.stdout.write(" ".join(map(str, counts)) + "\n")


main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
