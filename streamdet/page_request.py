"""One HTTP request and its response: read within bounds, or refused in HTTP's own words."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

MAX_REQUEST_BYTES = 8192
# A client that was refused may still be sending; unread bytes would turn the answer into a reset connection.
_LINGER_SECONDS = 0.2
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


class RefusedError(Exception):
    """The request is not worth an answer of the pages.

    Attributes:
        response: what the client gets instead.
    """

    def __init__(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        super().__init__(status.phrase)
        self.response = Response(status, f"{status.phrase.lower()}\n".encode(), (*_TEXT, *headers))


def read_request(connection: socket.socket, client: str, deadline: float) -> tuple[str, Request]:
    """The method, GET or HEAD, and what is asked for.

    Args:
        connection: to be read.
        client: address that it comes from.
        deadline: monotonic seconds for all of it.

    Raises:
        RefusedError: it is too large, too slow, or no request of these pages.
        OSError: the client went away.
    """
    return _parse(_read_head(connection, deadline), client)


def _read_head(connection: socket.socket, deadline: float) -> bytes:
    """The request up to the empty line, until a monotonic time for all of it."""
    head = b""
    while b"\r\n\r\n" not in head:
        if len(head) > MAX_REQUEST_BYTES:
            raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT)
        connection.settimeout(left_seconds)
        try:
            received = connection.recv(4096)
        except TimeoutError:
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT) from None
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
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    method, target, _ = words
    if method not in {"GET", "HEAD"}:
        raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD"))
    path, _, query = target.partition("?")
    headers = {}
    for line in fields:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise RefusedError(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip()
    return method, Request(path, query, headers, client)


def linger(connection: socket.socket) -> None:
    """Reads away, for a moment, what a refused client is still sending, so that it gets to see the answer."""
    deadline = time.monotonic() + _LINGER_SECONDS
    # The client may be gone already, or go on sending; neither matters any more.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (left_seconds := deadline - time.monotonic()) > 0:
            connection.settimeout(left_seconds)
            if not connection.recv(65536):
                return
