"""Delays a start that follows failures: by 1 s, 2 s, 4 s, up to a minute.

systemd restarts after a constant delay up to version 253; this works with every version. The count lives in the
service's runtime directory, which systemd keeps over restarts and removes when the service is stopped.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from streamdet.monitoring import systemd

MAX_DELAY_SECONDS = 60.0
# Of so many failures in a row, the delay is the longest; a power of very many more is no number any more.
_MOST_DOUBLINGS = 10
# A process that has run for this long did not fail to start: the failures before it say nothing about the next one.
FORGET_AFTER_SECONDS = 600.0

_log = logging.getLogger(__name__)


class RestartDelay:
    """Counts the starts since the last orderly end; does nothing without a runtime directory, so outside of systemd.

    Args:
        environ: its RUNTIME_DIRECTORY is where the count is kept.
        sleep: waits for a number of seconds; SIGTERM ends the process meanwhile, as it would any other.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, sleep: Callable[[float], None] = time.sleep) -> None:
        folder = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        self._path = Path(folder, "starts") if folder else None
        self._sleep = sleep

    def wait(self) -> None:
        """Waits, longer with each failure in a row, and counts this start."""
        if self._path is None:
            return
        failures = _recent_starts(self._path)
        # systemd itself has already waited for RestartSec=1s.
        doublings = min(max(failures - 1, 0), _MOST_DOUBLINGS)
        delay_seconds = min(2.0**doublings, MAX_DELAY_SECONDS) - 1.0
        if delay_seconds > 0:
            text = f"{failures} failures in a row: starting in {delay_seconds:.0f} s"
            systemd.status(text)
            _log.warning("%s", text)
            self._sleep(delay_seconds)
        try:
            self._path.write_text(f"{failures + 1}\n", encoding="ascii")
        except OSError as error:
            _log.warning("the next start after a failure will not be delayed: %s", error)

    def forget(self) -> None:
        """Forgets all failures; called at an orderly end."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _recent_starts(path: Path) -> int:
    try:
        age_seconds = time.time() - path.stat().st_mtime
        count = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        # The first start, or a file that was cut short by a power failure.
        return 0
    return count if age_seconds < FORGET_AFTER_SECONDS else 0
