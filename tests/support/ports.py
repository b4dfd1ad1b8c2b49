"""Ports for programs that cannot take port 0; the kernel gives none of them to a connection meanwhile."""

from __future__ import annotations

import itertools
import os
import socket

# Another place for each process of a test run.
_ports = itertools.cycle(range(10_000 + os.getpid() * 300 % 20_000, 32_000))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port of 127.0.0.1."""
    return next(filter(_is_free, _ports))


def free_ports() -> tuple[int, int]:
    """One for events, after which comes another free one, and one for the pages."""
    while True:
        three = [next(_ports) for _ in range(3)]
        if three[2] == three[0] + 2 and all(map(_is_free, three)):
            return three[0], three[2]
