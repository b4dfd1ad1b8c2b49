"""A small HTTP server for pages that a program or a person reads now and then; bounded in every way.

A few threads wait for connections, answer one GET or HEAD each, and close. Every connection has a deadline and a
largest request, so that no client can hold a thread, and there are never more threads than at the start.
"""

from __future__ import annotations

import errno
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from streamdet.errors import EndpointError
from streamdet.page_request import RefusedError, Request, Response, linger, read_request
from streamdet.worker import Worker

MAX_CONNECTIONS = 8
REQUEST_TIMEOUT_SECONDS = 2.0
_RESPONSE_TIMEOUT_SECONDS = 5.0
_BACKLOG = 64
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_NO_DESCRIPTOR_SECONDS = 0.5
# How a connection ends whose client has lost its network.
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)

_log = logging.getLogger(__name__)

_ENDPOINT = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")


class PageServer:
    """Serves pages while it is entered as a context manager.

    The port is bound at once, so that one that is taken is known before anything else starts.

    Args:
        name: of the pages, for threads and errors; the table of the configuration that has the endpoint.
        endpoint: `HOST:PORT` or `[IPV6]:PORT`; port 0 chooses a free one.
        answer: gives the response to a request; called by several threads.
        on_error: told of a thread that ended by an error: one that `answer` raised.
        tls: how to speak TLS; None to serve in the clear.

    Attributes:
        url: where the pages are, ending without a slash.

    Raises:
        EndpointError: the endpoint is no endpoint, or cannot be bound.
    """

    def __init__(
        self,
        name: str,
        endpoint: str,
        answer: Callable[[Request], Response],
        on_error: Callable[[Worker], None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = _bind(name, endpoint)
        host, port = self._listener.getsockname()[:2]
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        self._workers = [_Server(f"{name}-{n}", self._listener, answer, on_error, tls) for n in range(MAX_CONNECTIONS)]

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cuts open connections, ends the threads and frees the port; may be called twice, or without entering."""
        for worker in self._workers:
            worker.stop()
        # Wakes every thread that waits in `accept`.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for worker in self._workers:
            worker.join()
        self._listener.close()


class _Server(Worker):
    """One thread: accepts a connection, answers it, and again."""

    def __init__(
        self,
        name: str,
        listener: socket.socket,
        answer: Callable[[Request], Response],
        on_error: Callable[[Worker], None] | None,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(name, on_error)
        self._listener = listener
        self._tls = tls
        self._answer = answer
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None

    def run(self) -> None:
        while (accepted := self._accept()) is not None:
            connection, client = accepted
            with connection:
                self._set_connection(connection)
                # A client that is slow, gone, or speaks no TLS is its own problem: there is nobody to tell.
                try:
                    self._serve(connection, client)
                except OSError as error:
                    if not _is_of_client(error):
                        raise
                self._set_connection(None)
            self.beat()

    def wake(self) -> None:
        with self._lock:
            if self._connection is not None:
                with suppress(OSError):
                    # Not the method of an encrypted connection, whose state belongs to the other thread.
                    socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def _accept(self) -> tuple[socket.socket, str] | None:
        """The next connection, and the address that it comes from; None at the end."""
        while True:
            try:
                connection, address = self._listener.accept()
            except ConnectionError:
                # The client went away before it was its turn.
                continue
            except OSError as error:
                if self.stopping:
                    return None
                if error.errno not in _NO_DESCRIPTOR:
                    raise
                # What uses them up is not known here; whoever asks waits until there is one again.
                _log.warning("no file descriptor is left for the pages at %s", self._listener.getsockname())
                self.sleep(_NO_DESCRIPTOR_SECONDS)
                continue
            return connection, str(address[0])

    def _set_connection(self, connection: socket.socket | None) -> None:
        with self._lock:
            self._connection = connection

    def _serve(self, connection: socket.socket, client: str) -> None:
        # One deadline for the handshake and the request: who dawdles in either holds this thread no longer.
        deadline = time.monotonic() + REQUEST_TIMEOUT_SECONDS
        if self._tls is None:
            self._answer_one(connection, client, deadline)
            return
        connection.settimeout(REQUEST_TIMEOUT_SECONDS)
        with self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as encrypted:
            self._set_connection(encrypted)
            encrypted.do_handshake()
            self._answer_one(encrypted, client, deadline)

    def _answer_one(self, connection: socket.socket, client: str, deadline: float) -> None:
        with_body = True
        refused = False
        try:
            method, request = read_request(connection, client, deadline)
            with_body = method == "GET"
            response = self._answer(request)
        except RefusedError as error:
            response, refused = error.response, True
        connection.settimeout(_RESPONSE_TIMEOUT_SECONDS)
        connection.sendall(response.to_bytes(with_body=with_body))
        if refused:
            linger(connection)


def _is_of_client(error: OSError) -> bool:
    return isinstance(error, TimeoutError | ConnectionError | ssl.SSLError) or error.errno in _UNREACHABLE


def _bind(name: str, endpoint: str) -> socket.socket:
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or int(match["port"]) > 65535:
        message = f"{name}: {endpoint[:200]!r} is not an endpoint; expected something like 127.0.0.1:9095"
        raise EndpointError(message)
    host: str = match["host"] or match["six"]
    try:
        family, _, _, _, address = socket.getaddrinfo(host, int(match["port"]), type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), int(address[1])), family=family, backlog=_BACKLOG)
    except OSError as error:
        advice = {
            errno.EADDRINUSE: "another process uses it; stop that one or choose another endpoint",
            errno.EACCES: "ports below 1024 need a privilege; choose a higher one",
            errno.EADDRNOTAVAIL: "this machine has no such address",
        }.get(error.errno or 0, error.strerror or str(error))
        message = f"{name}: cannot listen on {endpoint}: {advice}"
        raise EndpointError(message) from error
    except UnicodeError as error:
        message = f"{name}: {host[:200]!r} is not the name of a machine"
        raise EndpointError(message) from error
