"""The log of Ray's actors, in the output of the command that runs Ray: lines of JSON through a named pipe.

Ray keeps what its actors print in files of its own, which end with the command.
"""

from __future__ import annotations

import json
import logging
import os
import select
from pathlib import Path

from streamdet.config import LogConfig
from streamdet.monitoring.log import configure_logging
from streamdet.worker import Wakeup, Worker

LOG_VARIABLE = "STREAMDET_CLUSTER_LOG"
"""In the environment of Ray: the named pipe."""
_READ_BYTES = 65536
# A line with a traceback is shorter.
_MAX_LINE_BYTES = 1024 * 1024


class ActorLog(Worker):
    """Makes a named pipe, and logs in this process what actors write there, from entering until leaving.

    Args:
        path: of the pipe.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("actor-log")
        os.mkfifo(path, 0o600)
        # For writing, too: without that it would be at its end whenever no actor runs.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._wakeup = Wakeup()

    def run(self) -> None:
        """Logs until asked to stop, and then what is there still."""
        left = b""
        while True:
            is_last = self.stopping
            try:
                left += os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:
                if is_last:
                    return
                select.select([self._descriptor, self._wakeup.fileno()], [], [])
                continue
            *lines, left = left.split(b"\n")
            for line in lines:
                _log_again(line)
            left = b"" if len(left) > _MAX_LINE_BYTES else left

    def wake(self) -> None:
        """Ends the wait for lines."""
        self._wakeup.wake()

    def __exit__(self, *error: object) -> None:
        """Ends the thread, and closes the pipe."""
        self.stop()
        if self.join():
            os.close(self._descriptor)
            self._wakeup.close()


def _log_again(line: bytes) -> None:
    try:
        found = json.loads(line)
        name, message = str(found["logger"]), str(found["message"])
        level = logging.getLevelNamesMapping()[str(found["level"]).upper()]
        exception = str(found.get("exception", ""))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        name, message, level, exception = __name__, line.decode("utf-8", "replace"), logging.WARNING, ""
    logging.getLogger(name).log(level, "%s%s", message, f"\n{exception}" if exception else "")


def log_to_command() -> None:
    """Sends the log of this process, an actor's, to the command that runs Ray."""
    try:
        # Without waiting: where the command has ended, no one reads.
        descriptor = os.open(os.environ[LOG_VARIABLE], os.O_WRONLY | os.O_NONBLOCK)
    except (KeyError, OSError):
        configure_logging(LogConfig())
        return
    with os.fdopen(descriptor, "w") as stream:  # the log has a copy of the descriptor
        configure_logging(LogConfig(format="json"), stream)
