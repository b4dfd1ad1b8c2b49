"""Hides passwords that a user has typed into the command line of this process."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from streamdet.security.redact import redact

# In /proc/PID/stat, counted behind the name of the program: where the arguments begin and end.
_BEGIN, _END = 45, 46


def hide_secrets() -> None:
    """Overwrites the logins of URLs, and other secrets, in what `ps` and /proc show of this process's arguments.

    Linux shows the memory in which the arguments were passed, and Python has its own copy of them: what a user has
    typed is used, but no longer seen. It was seen until now, and the shell's history has it. Where the memory does not
    hold what is shown, nothing is done.
    """
    if not any(redact(argument) != argument for argument in sys.orig_argv):
        return
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        begin, end = int(fields[_BEGIN]), int(fields[_END])
        shown = Path("/proc/self/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return
    if not 0 < begin < end or len(shown) != end - begin or ctypes.string_at(begin, len(shown)) != shown:
        return
    hidden = b"\0".join(map(_hidden, shown.split(b"\0")))
    ctypes.memmove(begin, hidden, len(shown))


def _hidden(argument: bytes) -> bytes:
    """The argument without secrets, of the same length."""
    text = redact(argument.decode(errors="replace"))
    if text == argument.decode(errors="replace"):
        return argument
    return text.encode()[: len(argument)].ljust(len(argument))
