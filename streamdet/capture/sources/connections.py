"""TCP and TLS connections that wait in short steps, so that an interrupt or a deadline ends every wait."""

from __future__ import annotations

import errno
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, cast

from streamdet.capture.sources.dns import resolve
from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.errors import SourceError
from streamdet.security.limits import Rate
from streamdet.types import Reason

_STEP_SECONDS = 0.1

if TYPE_CHECKING:
    _Base = socket.socket
else:
    _Base = object


class ConnectionBudget:
    """How long the connections of one thread may wait, and how many of them there may be.

    Args:
        give_up_at: on the clock of `time.monotonic`.
        burst: connections that may begin at once.
        per_second: and how many more each second, on average.

    Attributes:
        give_up_at: may be moved at any time by the thread that waits.
    """

    def __init__(self, give_up_at: float, burst: int, per_second: float) -> None:
        self.give_up_at = give_up_at
        self._rate = Rate(per_second, burst=burst)

    def check(self) -> None:
        """Raises TimeoutError when there is no more time."""
        if current_interrupt().is_set() or time.monotonic() > self.give_up_at:
            raise TimeoutError

    def take_turn(self) -> None:
        """Waits until another connection may begin; TimeoutError when that is too late."""
        self.check()
        while not self._rate.passes():
            current_interrupt().wait(_STEP_SECONDS)
            self.check()

    def connect(self, address: tuple[str, int]) -> socket.socket:
        """A connection with whichever of the addresses of a name answers first, one after the other.

        Raises:
            OSError: none does.
            SourceError: the name is not known.
        """
        self.take_turn()
        problem: OSError = ConnectionRefusedError()
        for family, kind, protocol, _, place in resolve(*address, self.give_up_at - time.monotonic()):
            connection = _WaitingSocket(family, kind, protocol)
            connection.budget = self
            try:
                connection.settimeout(0)
                self._finish(connection, connection.connect_ex(place))
            except OSError as error:
                connection.close()
                problem = error
            else:
                connection.settimeout(_STEP_SECONDS)
                return connection
        raise problem

    def encrypt(self, connection: socket.socket, context: ssl.SSLContext, host: str) -> socket.socket:
        """The same connection, encrypted; `context` is this caller's alone from now on.

        Raises:
            OSError: it cannot be; the connection is closed then.
        """
        context.sslsocket_class = _WaitingTls
        secured: socket.socket = connection
        try:
            secured = context.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False)
            tls = cast("_WaitingTls", secured)
            tls.budget = self
            tls.do_handshake()
        except BaseException:
            # Raised again, whatever it is: the caller has given its connection away and cannot close it.
            secured.close()
            raise
        return secured

    def _finish(self, connection: socket.socket, state: int) -> None:
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        while state == errno.EINPROGRESS:
            self.check()
            if poll.poll(int(_STEP_SECONDS * 1000)):
                state = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if state:
            raise OSError(state, errno.errorcode.get(state, ""))


class _Waiting(_Base):
    """A socket with a short time-out, which tries again until its budget of time is spent."""

    budget: ConnectionBudget

    def recv_into(self, *args: Any, **kwargs: Any) -> int:  # noqa: ANN401 - handed on as they are
        while True:
            # Also when data comes: it may come drop by drop.
            self.budget.check()
            try:
                return super().recv_into(*args, **kwargs)
            except TimeoutError:
                continue


class _WaitingSocket(_Waiting, socket.socket):
    pass


class _WaitingTls(_Waiting, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT002 - the base class's
        while True:
            self.budget.check()
            try:
                return super().do_handshake(block)
            except TimeoutError:
                continue


def timed_out(seconds: float, waited_for: str) -> SourceError:
    """The error of a wait that was too long."""
    return SourceError(Reason.TIMEOUT, f"no {waited_for} within {seconds:g} s")
