"""Standard input, output and error: they are open, and who does not read them holds up no end."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What is printed after a signal to end; a daemon must be gone 5 s after it.
_LAST_OUTPUT_SECONDS = 1.0


def open_standard_streams() -> None:
    """Opens /dev/null for those that were closed before the start of the process.

    The next file or socket that is opened would otherwise take the free place, and get what is meant for a terminal.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest place that is free
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # Open as long as the process lives, as Python's own are.
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


@contextmanager
def ending_in_time(code: int) -> Iterator[None]:
    """Ends the process with this code when what is printed within is not taken in time.

    For what is printed after a signal to end: before it, a program waits for who reads its output, as any other does.
    """
    patience = threading.Timer(_LAST_OUTPUT_SECONDS, os._exit, (code,))
    patience.daemon = True
    patience.start()
    try:
        yield
    finally:
        patience.cancel()
