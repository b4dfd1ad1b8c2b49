"""The daemon with a detector that takes its time: slow_daemon.py CONFIG WARM_UP_SECONDS BATCH_SECONDS [come-and-go].

It detects one object in every picture, or, with the last word, people who come and go at six places.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from streamdet.bench.stand_in import StandIn
from streamdet.cli.standard_streams import open_standard_streams
from streamdet.config import load_config
from streamdet.detector.pool import DetectorPool
from streamdet.monitoring.log import configure_logging
from streamdet.service.daemon import Daemon
from streamdet.types import Detection, Picture


class Slow(StandIn):
    def warm_up(self) -> None:
        sys.stdout.write("warming up\n")
        sys.stdout.flush()
        ends_at = time.monotonic() + float(sys.argv[2])
        while time.monotonic() < ends_at:
            time.sleep(0.01)

    def detect(self, pictures: Sequence[Picture], *settings: object) -> list[list[Detection]]:
        time.sleep(float(sys.argv[3]))
        if sys.argv[4:] != ["come-and-go"]:
            return super().detect(pictures, *settings)
        # Each is there for the first half of its 1.5 s.
        there = [place for place in range(6) if (time.monotonic() + place / 4) % 1.5 < 0.75]
        found = [Detection("person", 0.9, (60.0 * place, 20.0, 60.0 * place + 20, 80.0)) for place in there]
        return [list(found) for _ in pictures]


def main() -> int:
    open_standard_streams()
    config = load_config(Path(sys.argv[1]))
    configure_logging(config.log)
    daemon = Daemon(config, Path(sys.argv[1]), load=lambda *_: DetectorPool([Slow()]))
    with daemon.signals():
        return daemon.run()


sys.exit(main())
