"""Answers ZeroMQ's question whose key is allowed (ZAP, RFC 27), and knows which connection has shown which key."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils import z85

from streamdet.allowed_clients import AllowedClients
from streamdet.keys import KeyPair

_MAX_QUESTIONS_PER_TURN = 1000
_ENDPOINT = "inproc://zeromq.zap.01"
_DOMAIN = b"streamdet"
_OK = b"200"
# "Temporary failure": the connection is dropped without a word, and the client tries again by itself, so that a key
# that is allowed later works without a restart of the client. After 400 ZeroMQ would never try again.
_NOT_NOW = b"300"


class Zap:
    """The keys of all guarded sockets of one ZeroMQ context; for one thread, but for `heed`.

    Args:
        context: of the sockets; it must live longer.
        keys: of the daemon.
        clients: whose keys are allowed.
        on_refused: told the address of each connection whose key is not.

    Attributes:
        socket: where questions come in, to wait for.
    """

    def __init__(
        self, context: zmq.Context[Any], keys: KeyPair, clients: AllowedClients, on_refused: Callable[[str], None]
    ) -> None:
        self._keys = keys
        self._clients = clients
        self._on_refused = on_refused
        # By file descriptor; written by the thread that reads the socket.
        self._key_of: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.bind(_ENDPOINT)

    def protect(self, guarded: zmq.Socket[bytes]) -> None:
        """Has a socket, which is not bound yet, speak only with who has a key."""
        guarded.curve_server = 1
        guarded.curve_publickey = self._keys.public
        guarded.curve_secretkey = self._keys.secret
        guarded.zap_domain = _DOMAIN
        guarded.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def heed(self, message: zmq.Frame) -> None:
        """Notes who a message is from."""
        try:
            key, descriptor = str(message.get("User-Id")).encode(), int(message.get(zmq.SRCFD))
        except zmq.ZMQError:
            return  # from nobody: when a connection ends, ZeroMQ itself takes back what it was subscribed to
        with self._lock:
            self._key_of[descriptor] = key

    def answer(self) -> None:
        """Answers the questions that have come in: whether the key of a connection that is being made is allowed."""
        for _ in range(_MAX_QUESTIONS_PER_TURN):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            at = parts.index(b"") + 1
            version, request, _, address, _, mechanism, *credentials = parts[at:]
            key = z85.encode(credentials[0]) if mechanism == b"CURVE" and len(credentials) == 1 else b""
            name = self._clients.names().get(key)
            status, user = (_NOT_NOW, b"") if name is None else (_OK, key)
            if name is None:
                self._on_refused(address.decode(errors="replace"))
            self.socket.send_multipart([*parts[:at], version, request, status, b"", user, b""])

    def revoked(self) -> list[int]:
        """The descriptors of connections whose key is not allowed any more; each is told once."""
        names = self._clients.names()
        with self._lock:
            revoked = [descriptor for descriptor, key in self._key_of.items() if key not in names]
            for descriptor in revoked:
                del self._key_of[descriptor]
        return revoked
