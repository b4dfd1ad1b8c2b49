"""The daemon with a detector that sees a person walk through every stream, again and again: walker_daemon.py CONFIG.

For 16 frames the person walks from the left to the right, then no one is there for 12 frames.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from streamdet.bench.stand_in import StandIn
from streamdet.cli.standard_streams import open_standard_streams
from streamdet.config import load_config
from streamdet.detector.pool import DetectorPool
from streamdet.monitoring.log import configure_logging
from streamdet.service.daemon import Daemon
from streamdet.types import Detection, Picture

SEEN_FRAMES, HIDDEN_FRAMES = 16, 12


class Walker(StandIn):
    def __init__(self) -> None:
        self._frames = 0

    def detect(self, pictures: Sequence[Picture], *_settings: object) -> list[list[Detection]]:
        return [self._next(picture) for picture in pictures]

    def _next(self, picture: Picture) -> list[Detection]:
        step = self._frames % (SEEN_FRAMES + HIDDEN_FRAMES)
        self._frames += 1
        if step >= SEEN_FRAMES:
            return []
        left = (0.1 + 0.7 * step / SEEN_FRAMES) * picture.width
        return [Detection("person", 0.9, (left, 100.0, left + 80, 300.0))]


def main() -> int:
    open_standard_streams()
    config = load_config(Path(sys.argv[1]))
    configure_logging(config.log)
    daemon = Daemon(config, Path(sys.argv[1]), load=lambda *_: DetectorPool([Walker()]))
    with daemon.signals():
        return daemon.run()


sys.exit(main())
