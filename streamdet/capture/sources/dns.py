"""Looks up names in threads of their own: the system's resolver cannot be interrupted.

A name server that does not answer blocks the caller for as long as /etc/resolv.conf allows, ten seconds and more. Here
the wait ends at the deadline, and the error states that the lookup of the name failed.
"""

from __future__ import annotations

import socket
import threading
import time

from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.errors import SourceError
from streamdet.types import Reason

Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]

_POLL_SECONDS = 0.05
# Each look-up is a thread, which ends only when the resolver gives up.
_MAX_LOOK_UPS = 256


class _LookUp:
    """One look-up, shared by all callers that ask for the same name meanwhile."""

    def __init__(self, host: str, port: int) -> None:
        self.done = threading.Event()
        self.addresses: list[Address] = []
        self._question = host, port
        # A daemon: the end of the process must not wait for a name server.
        threading.Thread(target=self._run, name=f"resolve-{host}", daemon=True).start()

    def _run(self) -> None:
        host, port = self._question
        try:
            self.addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[assignment]
        except (OSError, UnicodeError):
            self.addresses = []
        with _lock:
            del _open[self._question]
        self.done.set()


_lock = threading.Lock()
_open: dict[tuple[str, int], _LookUp] = {}


def resolve(host: str, port: int, wait_seconds: float) -> list[Address]:
    """The addresses of a name.

    Args:
        host: a name, or an address already.
        port: to connect to.
        wait_seconds: for the name server.

    Raises:
        SourceError: dns: the name is not known, or no one says so in time; timeout: the wait was interrupted.
    """
    deadline = time.monotonic() + wait_seconds
    try:
        flags = socket.AI_NUMERICHOST
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)  # type: ignore[return-value]
    except (OSError, UnicodeError):
        pass  # a name, then
    look_up = _asked(host, port)
    while not look_up.done.wait(_POLL_SECONDS):
        if current_interrupt().is_set():
            raise SourceError(Reason.TIMEOUT, "interrupted")
        if time.monotonic() > deadline:
            raise SourceError(Reason.DNS, f"no name server answers within {wait_seconds:g} s for {host}")
    if not look_up.addresses:
        raise SourceError(Reason.DNS, f"the name {host} is not known")
    return look_up.addresses


def _asked(host: str, port: int) -> _LookUp:
    with _lock:
        look_up = _open.get((host, port))
        if look_up is None:
            if len(_open) >= _MAX_LOOK_UPS:
                raise SourceError(Reason.DNS, f"no name server answers for {host}, nor for {_MAX_LOOK_UPS} other names")
            look_up = _open[host, port] = _LookUp(host, port)
        return look_up
