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
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

from streamdet.errors import EndpointError
from streamdet.worker import Worker

MAX_CONNECTIONS = 8
MAX_REQUEST_BYTES = 8192
REQUEST_TIMEOUT_SECONDS = 2.0
_RESPONSE_TIMEOUT_SECONDS = 5.0
_BACKLOG = 64
# A client that was refused may still be sending; unread bytes would turn the answer into a reset connection.
_LINGER_SECONDS = 0.2
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_NO_DESCRIPTOR_SECONDS = 0.5
# How a connection ends whose client has lost its network.
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)

_log = logging.getLogger(__name__)

_ENDPOINT = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")
_TEXT = (("Content-Type", "text/plain; charset=utf-8"),)


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for.

    Attributes:
        path: as sent, without the query.
        query: what follows the question mark; empty without one.
        headers: by lower-case name.
        client: address that it comes from, without the port.
    """

    path: str
    query: str
    headers: Mapping[str, str]
    client: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """What a client gets; the length and what follows from closing are added.

    Attributes:
        status: of HTTP.
        body: left out for HEAD.
        headers: names and values.
    """

    status: HTTPStatus
    body: bytes
    headers: tuple[tuple[str, str], ...] = _TEXT

    def to_bytes(self, *, with_body: bool) -> bytes:
        """The response as it is sent."""
        fixed = (
            ("Content-Length", str(len(self.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
        )
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}"]
        lines += [f"{name}: {value}" for name, value in (*self.headers, *fixed)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (self.body if with_body else b"")


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
            method, request = _parse(_read_head(connection, deadline), client)
            with_body = method == "GET"
            response = self._answer(request)
        except _RefusedError as error:
            response, refused = error.response, True
        connection.settimeout(_RESPONSE_TIMEOUT_SECONDS)
        connection.sendall(response.to_bytes(with_body=with_body))
        if refused:
            _linger(connection)


def _is_of_client(error: OSError) -> bool:
    return isinstance(error, TimeoutError | ConnectionError | ssl.SSLError) or error.errno in _UNREACHABLE


class _RefusedError(Exception):
    """The request is not worth an answer of the pages; never leaves this module."""

    def __init__(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        super().__init__(status.phrase)
        self.response = Response(status, f"{status.phrase.lower()}\n".encode(), (*_TEXT, *headers))


def _read_head(connection: socket.socket, deadline: float) -> bytes:
    """The request up to the empty line, until a monotonic time for all of it."""
    head = b""
    while b"\r\n\r\n" not in head:
        if len(head) > MAX_REQUEST_BYTES:
            raise _RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            raise _RefusedError(HTTPStatus.REQUEST_TIMEOUT)
        connection.settimeout(left_seconds)
        try:
            received = connection.recv(4096)
        except TimeoutError:
            raise _RefusedError(HTTPStatus.REQUEST_TIMEOUT) from None
        if not received:
            message = "the client went away within its request"
            raise ConnectionAbortedError(message)
        head += received
    return head.partition(b"\r\n\r\n")[0]


def _parse(head: bytes, client: str) -> tuple[str, Request]:
    """The method and the rest."""
    request_line, *fields = head.decode("latin-1").split("\r\n")
    words = request_line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _RefusedError(HTTPStatus.BAD_REQUEST)
    method, target, _ = words
    if method not in {"GET", "HEAD"}:
        raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD"))
    path, _, query = target.partition("?")
    headers = {}
    for line in fields:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise _RefusedError(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip()
    return method, Request(path, query, headers, client)


def _linger(connection: socket.socket) -> None:
    """Reads away, for a moment, what a refused client is still sending, so that it gets to see the answer."""
    deadline = time.monotonic() + _LINGER_SECONDS
    # The client may be gone already, or go on sending; neither matters any more.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (left_seconds := deadline - time.monotonic()) > 0:
            connection.settimeout(left_seconds)
            if not connection.recv(65536):
                return


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
