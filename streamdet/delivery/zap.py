"""Answers ZeroMQ's question whose key is allowed (ZAP, RFC 27), and knows which connection has shown which key.

ZeroMQ asks without saying for which connection. So each answer has a number, which ZeroMQ hands on with every message
of that connection, together with its descriptor. Descriptors are used again and again; numbers are not: what has a
smaller number than a connection can have is about an older one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import zmq
from zmq.utils import z85

from streamdet.security.allowed_clients import AllowedClients
from streamdet.security.curve import KeyPair

_MAX_QUESTIONS_PER_TURN = 1000
_ENDPOINT = "inproc://zeromq.zap.01"
_DOMAIN = b"streamdet"
_SEPARATOR = b"|"  # in no key
_OK = b"200"
# "Temporary failure": the connection is dropped without a word, and the client tries again by itself, so that a key
# that is allowed later works without a restart of the client. After 400 ZeroMQ would never try again.
_NOT_NOW = b"300"


class _Shown(NamedTuple):
    """The key that a connection has shown, and the number of the answer that let it in."""

    number: int
    key: bytes


class CurveAuthenticator:
    """The keys of all guarded sockets of one ZeroMQ context; for one thread, but for `note`.

    Args:
        context: of the sockets; it must live longer.
        keys: of the daemon.
        clients: whose keys are allowed.
        on_refused: told the address of each connection whose key is not.

    Attributes:
        socket: where questions come in, to wait for.
        answered: how many were answered so far.
    """

    def __init__(
        self, context: zmq.Context[Any], keys: KeyPair, clients: AllowedClients, on_refused: Callable[[str], None]
    ) -> None:
        self._keys = keys
        self._clients = clients
        self._on_refused = on_refused
        # By file descriptor; written by the thread that reads the socket.
        self._shown: dict[int, _Shown] = {}
        self._lock = threading.Lock()
        self._questions: list[list[bytes]] = []
        self.answered = 0
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.bind(_ENDPOINT)

    def protect(self, guarded: zmq.Socket[bytes]) -> None:
        """Has a socket, which is not bound yet, speak only with who has a key."""
        guarded.curve_server = 1
        guarded.curve_publickey = self._keys.public
        guarded.curve_secretkey = self._keys.secret
        guarded.zap_domain = _DOMAIN
        guarded.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def note(self, message: zmq.Frame, descriptor: int) -> bool:
        """Notes whose connection a message came over; False when its key is not allowed any more."""
        key, _, number = str(message.get("User-Id")).encode().rpartition(_SEPARATOR)
        shown = _Shown(int(number), key)
        with self._lock:
            # A message may have waited for longer than its connection lived.
            if shown.number >= self._shown.get(descriptor, shown).number:
                self._shown[descriptor] = shown
        return key in self._clients.newest

    def receive(self) -> None:
        """Takes the questions that have come in: whether the key of a connection that is being made is allowed."""
        while len(self._questions) < _MAX_QUESTIONS_PER_TURN:
            try:
                self._questions.append(self.socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return

    def answer(self) -> None:
        """Answers what was received; all connections that it is about must be known by then."""
        questions, self._questions = self._questions, []
        for parts in questions:
            at = parts.index(b"") + 1
            version, request, _, address, _, mechanism, *credentials = parts[at:]
            key = z85.encode(credentials[0]) if mechanism == b"CURVE" and len(credentials) == 1 else b""
            if key in self._clients.names():
                self.answered += 1
                status, user = _OK, key + _SEPARATOR + str(self.answered).encode()
            else:
                status, user = _NOT_NOW, b""
                self._on_refused(address.decode(errors="replace"))
            self.socket.send_multipart([*parts[:at], version, request, status, b"", user, b""])

    def removals(self) -> int:
        """How often keys were taken out of those that are allowed; reads them again when it is time."""
        self._clients.names()
        return self._clients.removals

    def is_revoked(self, descriptor: int, answered_before: int) -> bool | None:
        """Whether the key of a connection is not allowed any more; None where it has not said anything yet.

        Args:
            descriptor: of the connection.
            answered_before: how many questions had been answered when it was accepted.
        """
        with self._lock:
            shown = self._shown.get(descriptor)
        if shown is None or shown.number <= answered_before:
            return None
        return shown.key not in self._clients.newest
