"""Files of this machine: how they begin, and named pipes, on which FFmpeg alone would wait without limit."""

from __future__ import annotations

import os
import select
import stat
import time
from pathlib import Path

from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.errors import SourceError
from streamdet.types import Reason

_POLL_MILLISECONDS = 100


class Fifo:
    """A named pipe as a file for FFmpeg; for the one thread that opens it.

    Args:
        path: of the named pipe.
        longest_wait_seconds: for the next bytes.
    """

    def __init__(self, path: str, longest_wait_seconds: float) -> None:
        self.name = path
        self._longest_wait_seconds = longest_wait_seconds
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._ready = select.poll()
        self._ready.register(self._descriptor, select.POLLIN)

    def read(self, size: int) -> bytes:
        """Returns the next bytes, at most `size`; none at the end.

        Raises:
            SourceError: nothing was written in time, or the wait was interrupted.
        """
        give_up_at = time.monotonic() + self._longest_wait_seconds
        while not self._ready.poll(_POLL_MILLISECONDS):
            if current_interrupt().is_set() or time.monotonic() > give_up_at:
                detail = f"nothing was written into the pipe within {self._longest_wait_seconds:g} s"
                raise SourceError(Reason.TIMEOUT, detail)
        return os.read(self._descriptor, size)

    def close(self) -> None:
        """Closes the pipe."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def begins_with(path: str, beginning: bytes) -> bool:
    """Whether a regular file begins so."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(beginning)) == beginning
    except OSError:
        return False


def is_fifo(path: str) -> bool:
    """Whether it is a named pipe."""
    try:
        return stat.S_ISFIFO(Path(path).stat().st_mode)
    except OSError:
        return False
