"""Wakes a sleeping thread, from any thread or signal handler."""

from __future__ import annotations

import select
import socket


class Wakeup:
    """A pair of sockets: what is written into one ends the wait at the other."""

    def __init__(self) -> None:
        self._receive, self._send = socket.socketpair()
        self._receive.settimeout(0)
        self._send.settimeout(0)

    def wake(self) -> None:
        """Ends the wait that is under way, or else the next one."""
        try:
            self._send.send(b"\0")
        except (BlockingIOError, OSError):
            # Full: the wait is about to end anyway. Closed: there is none any more.
            return

    def wait(self, seconds: float) -> None:
        """Sleeps until woken, for so long at the most; one thread only."""
        readable, _, _ = select.select([self._receive], [], [], seconds)
        if readable:
            self._receive.recv(4096)

    def close(self) -> None:
        """Frees the sockets; waking does nothing afterwards."""
        self._receive.close()
        self._send.close()
