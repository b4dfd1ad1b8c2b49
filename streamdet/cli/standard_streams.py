"""Standard input, output and error: keeps them open, and exits without delay if their reader has stopped reading."""

from __future__ import annotations

import codecs
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How long output after a signal to stop may take; a daemon must be gone 5 s after the signal.
_LAST_OUTPUT_SECONDS = 1.0


def open_standard_streams() -> None:
    """Opens /dev/null for those that were closed when the process started, and lets output hold any character.

    Otherwise the next file or socket to be opened would get their descriptor, and the output meant for a terminal.
    What the encoding of the output has no character for, such as a name on a terminal without UTF-8, is escaped.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # Open for the life of the process, as Python's own are.
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115

    codecs.register_error("streamdet.escape", _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="streamdet.escape")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Characters as JSON escapes them, so that JSON stays what it is; an error handler for `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)), error.end


@contextmanager
def ending_in_time(code: int) -> Iterator[None]:
    """Exits with this code if the output of the block is not read within a second.

    For output after a signal to stop; before it, a program waits for the reader of its output, as any other does.
    """
    patience = threading.Timer(_LAST_OUTPUT_SECONDS, os._exit, (code,))
    patience.daemon = True
    patience.start()
    try:
        yield
    finally:
        patience.cancel()
