"""The daemon with a detector that takes no time, to measure the daemon's own cost.

python -m streamdet.bench.stand_in CONFIG
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from streamdet.config import load_config
from streamdet.detector.pool import DetectorPool
from streamdet.monitoring.log import configure_logging
from streamdet.service.daemon import Daemon
from streamdet.types import Detection, DetectionSettings, Picture


class StandIn:
    """Detects one object in every picture, without computing anything."""

    labels = ("person",)

    def warm_up(self) -> None:
        """Needs none."""

    def detect(self, pictures: Sequence[Picture], _settings: Sequence[DetectionSettings]) -> list[list[Detection]]:
        """One box each."""
        return [[Detection("person", 0.9, (1.0, 1.0, 20.0, 40.0))] for _ in pictures]


def main(path: Path) -> int:
    """Runs until SIGTERM; the exit code."""
    config = load_config(path)
    configure_logging(config.log)
    daemon = Daemon(config, path, load=lambda *_: DetectorPool([StandIn()]))
    with daemon.signals():
        return daemon.run()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
