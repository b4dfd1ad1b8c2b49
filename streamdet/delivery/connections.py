"""Guards the connections to the publisher's sockets: decides who may connect, and ends connections that must not go on.

ZeroMQ asks about a key only while a connection is made (ZAP, RFC 27), and bounds neither the number of connections
nor what they send: it keeps all subscriptions, and each message in many parts until it is whole, with 32 bytes of
memory for each byte sent. So `ConnectionGuard` answers ZeroMQ's questions (`CurveAuthenticator`), watches the
connections from outside, and cuts those whose key was revoked, that are too many, or that send far more than any
subscriber needs. A client that is cut may connect again at once; only one with an allowed key receives anything.

ZeroMQ's own sockets belong to other threads. What the guard sees of a connection is its file descriptor.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from streamdet.config import PublisherConfig
from streamdet.monitoring.log import LogThrottle
from streamdet.monitoring.metrics import DeliveryMetrics
from streamdet.security.curve import AllowedClients, KeyPair, read_pair
from streamdet.security.endpoints import bind, parse_endpoint
from streamdet.worker import Wakeup, Worker

_TURN_MILLISECONDS = 50
_IDLE_TURN_MILLISECONDS = 500
# Bytes that the kernel keeps of a connection while this process is busy.
_RECEIVE_BUFFER_BYTES = 64 << 10
_MAX_EVENTS_PER_TURN = 1000
_MAX_QUESTIONS_PER_TURN = 1000
_MONITORED = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_PROTOCOL_REASONS: dict[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "wrong_server_key",
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "no_key",
}

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_DOMAIN = b"streamdet"
_SEPARATOR = b"|"  # in no key
_OK = b"200"
# "Temporary failure": the connection is dropped without an answer, and the client tries again, so that a key
# that is allowed later works without a restart of the client. After 400 ZeroMQ would never try again.
_NOT_NOW = b"300"

# linux/tcp.h: tcpi_bytes_received is the 64-bit number at this offset of struct tcp_info.
_TCP_INFO_RECEIVED_OFFSET = 128

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What clients of the sockets may use.

    Attributes:
        connections: open at the same time.
        bytes_at_once: what a connection may send at first: ten thousand subscriptions. A subscriber of all streams
            needs some hundred.
        bytes_per_second: what it may send on average from then on.
        unread_bytes: the most that all connections together may have sent without it making a whole message.
        heartbeat_bytes_per_second: not counted among these. Heartbeats make no message either; a client that sends one
            each second over CURVE needs about 70.
        silent_seconds: until a connection that has sent nothing has to make room for others; one that is made and
            subscribes needs less.
        handshake_seconds: for the encryption to begin.
    """

    connections: int = 1000
    bytes_at_once: int = 1 << 20
    bytes_per_second: int = 16 << 10
    unread_bytes: int = 4 << 20
    heartbeat_bytes_per_second: int = 128
    silent_seconds: float = 2.0
    handshake_seconds: float = 5.0


class ConnectionGuard(Worker):
    """Guards all bound sockets of one ZeroMQ context.

    Bind the sockets, then start it; stop it before the context ends.

    Args:
        config: the keys, and who may use an ipc endpoint.
        context: of the sockets.
        metrics: counts connections and refusals.
        on_error: called when the thread ends with an error.
        limits: for clients.

    Attributes:
        limits: as given.

    Raises:
        KeyFileError: the daemon's key cannot be used.
    """

    def __init__(
        self,
        config: PublisherConfig,
        context: zmq.Context[Any],
        metrics: DeliveryMetrics,
        on_error: Callable[[Worker], None] | None = None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        super().__init__("connections", on_error)
        self.limits = limits or ConnectionLimits()
        self._group = config.group
        self._metrics = metrics
        self._sockets: list[_GuardedSocket] = []
        self._bound: set[int | str] = set()
        # Descriptors over which whole messages have come since the last turn; a set that is replaced as a whole.
        self._heard: set[int] = set()
        self._max_connections = min(self.limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._counted_at = time.monotonic()
        self._throttle = LogThrottle(quiet_seconds=1.0)
        self._poller = zmq.Poller()
        self._authenticator: CurveAuthenticator | None = None
        if config.curve_server_key_file is not None and config.curve_allowed_clients_directory is not None:
            keys = read_pair(Path(config.curve_server_key_file), "server")
            clients = AllowedClients(Path(config.curve_allowed_clients_directory))
            self._authenticator = CurveAuthenticator(context, keys, clients)
            self._poller.register(self._authenticator.socket, zmq.POLLIN)
        self._wakeup = Wakeup()
        self._poller.register(self._wakeup, zmq.POLLIN)

    def bind(self, guarded: zmq.Socket[bytes], name: str, endpoint: str) -> str:
        """Binds a socket, which from then on lets in only clients that may connect.

        Args:
            guarded: the socket; not bound yet.
            name: for metrics.
            endpoint: where to bind.

        Returns:
            The bound endpoint, with the real port where port 0 was configured.

        Raises:
            EndpointError: it cannot be bound, or other machines could reach it and no keys are configured.
        """
        guarded.handshake_ivl = round(1000 * self.limits.handshake_seconds)
        guarded.rcvbuf = _RECEIVE_BUFFER_BYTES
        if self._authenticator is not None:
            self._authenticator.protect(guarded)
        monitor = guarded.get_monitor_socket(_MONITORED)
        try:
            what = "publish" if name == "events" else f"offer {name}"
            encrypted = self._authenticator is not None
            bound = bind(guarded, endpoint, encrypted=encrypted, group=self._group, what=what)
        except BaseException:
            # Raised again, whatever it is: a monitor of a socket that is not used must not stay.
            guarded.disable_monitor()
            raise
        self._poller.register(monitor, zmq.POLLIN)
        self._sockets.append(_GuardedSocket(name, monitor))
        self._metrics.add_socket(name)
        parsed = parse_endpoint(bound)
        self._bound.add(parsed.port if parsed.path is None else str(parsed.path))
        return bound

    def admits(self, message: zmq.Frame) -> bool:
        """Whether a message comes from a client that is still allowed; if so, notes that it was a whole one.

        Called for every message that a guarded socket receives and that makes sense, by the thread that reads it.
        """
        descriptor = descriptor_of(message)
        if descriptor is None:
            return True  # from ZeroMQ: it unsubscribes a connection that has ended
        if self._authenticator is not None and not self._authenticator.note(message, descriptor):
            self.wake()
            return False
        self._heard.add(descriptor)
        return True

    def is_open(self, descriptor: int) -> bool:
        """Whether a descriptor is that of a connection to a guarded socket; from any thread."""
        with borrowed(descriptor) as connection:
            return connection is not None and self._is_ours(connection)

    def run(self) -> None:
        """Answers and watches until asked to stop."""
        while not self.stopping:
            is_used = any(guarded.connections for guarded in self._sockets)
            self._poller.poll(_TURN_MILLISECONDS if is_used else _IDLE_TURN_MILLISECONDS)
            self._wakeup.clear()
            if self._authenticator is not None:
                self._authenticator.receive()
            are_all_known = True
            for guarded in self._sockets:
                are_all_known &= self._note_events(guarded)
            if self._authenticator is not None:
                if are_all_known:
                    # Every connection that a question is about was accepted before it was asked.
                    self._answer(self._authenticator)
                self._cut_revoked(self._authenticator)
            self._count_bytes()
            self._cut_floods()
            for guarded in self._sockets:
                self._metrics.connections(guarded.name, len(guarded.connections))
            self.beat()

    def wake(self) -> None:
        """Ends the wait of `run`."""
        self._wakeup.wake()

    def close(self) -> None:
        """Stops the thread, if it was started; may be called again."""
        self.stop()
        self.join()
        self._wakeup.close()

    def _note_events(self, guarded: _GuardedSocket) -> bool:
        """Takes what ZeroMQ reports of a socket's connections; whether that was all."""
        for _ in range(_MAX_EVENTS_PER_TURN):
            try:
                event = parse_monitor_message(guarded.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return True
            kind, value = event["event"], event["value"]
            if kind == zmq.EVENT_ACCEPTED:
                self._accepted(guarded, value)
            elif kind == zmq.EVENT_DISCONNECTED:
                gone = guarded.connections.pop(value, None)
                if guarded.failure:
                    self._refused(guarded, guarded.failure, gone.address if gone else "an unknown address")
                    guarded.failure = ""
            else:
                # The next event names the connection.
                guarded.failure = _reason_of(kind, value)
        return False

    def _accepted(self, guarded: _GuardedSocket, descriptor: int) -> None:
        with borrowed(descriptor) as connection:
            host, address = address_of(connection if connection is not None and self._is_ours(connection) else None)
        accepted = _Connection(host, address, time.monotonic())
        if self._authenticator is not None:
            accepted.answered_before = self._authenticator.answered
            accepted.removals_before = self._authenticator.removals()
        guarded.connections[descriptor] = accepted
        self._metrics.connected(guarded.name)
        self._make_room(guarded, descriptor, accepted)

    def _make_room(self, guarded: _GuardedSocket, descriptor: int, accepted: _Connection) -> None:
        """Cuts one where there are too many: the oldest that has sent nothing, or else the one that has just come."""
        if sum(len(other.connections) for other in self._sockets) <= self._max_connections // 2:
            return
        open_ones = self._open_ones()
        of_host = [one for one in open_ones if one[2].host == accepted.host]
        if len(open_ones) > self._max_connections:
            crowd, why = open_ones, f"there are {self._max_connections} connections already"
        elif len(of_host) > max(self._max_connections // 2, 1):
            crowd, why = of_host, f"its address has {len(of_host) - 1} connections already"
        else:
            return
        old = accepted.accepted_monotonic_seconds - self.limits.silent_seconds
        silent = [one for one in crowd if not one[2].is_heard and one[2].accepted_monotonic_seconds < old]
        if silent:
            oldest, number, _ = min(silent, key=lambda one: one[2].accepted_monotonic_seconds)
            self._cut(oldest, number, "too_many", f"it has sent nothing, and {why}")
        else:
            self._cut(guarded, descriptor, "too_many", why)

    def _answer(self, authenticator: CurveAuthenticator) -> None:
        for address in authenticator.answer():
            # ZeroMQ does not say which socket it asks for.
            self._refused(self._sockets[0], "unknown_key", address)

    def _cut_revoked(self, authenticator: CurveAuthenticator) -> None:
        """Cuts connections that have shown a key that is no longer allowed, or may have been let in by one."""
        removals = authenticator.removals()
        for guarded, descriptor, connection in self._open_ones():
            revoked = authenticator.is_revoked(descriptor, connection.answered_before)
            if revoked:
                self._cut(guarded, descriptor, "revoked", "its key is not allowed any more")
            elif revoked is None and connection.removals_before != removals:
                # It has sent nothing yet, so it loses nothing: it connects again, if it is still allowed.
                self._cut(guarded, descriptor, "revoked", "a key is not allowed any more, and it may be its own")

    def _count_bytes(self) -> None:
        """Counts what each connection has sent since its last whole message, without its heartbeats."""
        heard, self._heard = self._heard, set()
        now = time.monotonic()
        heartbeat_bytes = (now - self._counted_at) * self.limits.heartbeat_bytes_per_second
        self._counted_at = now
        for _, descriptor, connection in self._open_ones():
            before, connection.received_bytes = connection.received_bytes, self._received_bytes(descriptor)
            connection.unread_bytes += connection.received_bytes - before - heartbeat_bytes
            connection.unread_bytes = max(connection.unread_bytes, 0.0)
            if descriptor in heard:
                connection.is_heard, connection.unread_bytes = True, 0.0

    def _cut_floods(self) -> None:
        """Cuts connections that have sent too much, and those that have sent most of what makes no message."""
        now = time.monotonic()
        for guarded, descriptor, connection in self._open_ones():
            received, seconds = connection.received_bytes, now - connection.accepted_monotonic_seconds
            if received > self.limits.bytes_at_once + seconds * self.limits.bytes_per_second:
                self._cut(guarded, descriptor, "flood", f"it has sent {received} bytes, and subscribers need few")
        left = sorted(self._open_ones(), key=lambda one: one[2].unread_bytes, reverse=True)
        total = sum(connection.unread_bytes for _, _, connection in left)
        for guarded, descriptor, connection in left:
            if total <= self.limits.unread_bytes:
                return
            why = f"it has sent {connection.unread_bytes:.0f} bytes that make no message"
            self._cut(guarded, descriptor, "flood", why)
            total -= connection.unread_bytes

    def _open_ones(self) -> list[tuple[_GuardedSocket, int, _Connection]]:
        """Each connection that was not cut, with its socket and descriptor."""
        return [
            (guarded, descriptor, connection)
            for guarded in self._sockets
            for descriptor, connection in guarded.connections.items()
            if not connection.is_cut
        ]

    def _cut(self, guarded: _GuardedSocket, descriptor: int, reason: str, why: str) -> None:
        """Ends a connection; ZeroMQ finds it closed, and frees what it holds of it."""
        if guarded.connections[descriptor].is_cut:
            return
        with borrowed(descriptor) as connection:
            if connection is None or not self._is_ours(connection):
                return
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # the client has just closed it
        guarded.connections[descriptor].is_cut = True
        self._metrics.cut(guarded.name, reason)
        address = guarded.connections[descriptor].address
        self._throttle.log(_log, logging.WARNING, "cut the connection of %s: %s", address, why)

    def _received_bytes(self, descriptor: int) -> int:
        with borrowed(descriptor) as connection:
            return received_bytes(connection) if connection is not None and self._is_ours(connection) else 0

    def _is_ours(self, connection: socket.socket) -> bool:
        """Whether a descriptor still is a connection to a guarded socket, and not something that came after it."""
        try:
            name = connection.getsockname()
        except OSError:
            return False
        return (name[1] if isinstance(name, tuple) else name) in self._bound

    def _refused(self, guarded: _GuardedSocket, reason: str, address: str) -> None:
        self._metrics.handshake_failed(guarded.name, reason)
        self._throttle.log(_log, logging.WARNING, "refused a connection of %s: %s", address, reason)


@dataclass(slots=True)
class _Connection:
    """A connection that was accepted.

    Attributes:
        host: address it comes from; "" for ipc.
        address: the same with the port, for people.
        accepted_monotonic_seconds: when.
        answered_before: how many questions about keys had been answered by then.
        removals_before: and how often keys had been removed from those that are allowed.
        received_bytes: all bytes that have come over it.
        unread_bytes: those that have come since its last whole message, without its heartbeats.
        is_heard: whether a whole message has come over it.
        is_cut: it has been cut, and ZeroMQ is about to notice.
    """

    host: str
    address: str
    accepted_monotonic_seconds: float
    answered_before: int = 0
    removals_before: int = 0
    received_bytes: int = 0
    unread_bytes: float = 0.0
    is_heard: bool = False
    is_cut: bool = False


@dataclass(slots=True)
class _GuardedSocket:
    """A bound socket.

    Attributes:
        name: in metrics.
        monitor: where ZeroMQ reports what happens to its connections.
        connections: those that are open, by file descriptor.
        failure: why a handshake failed whose connection ZeroMQ is about to name.
    """

    name: str
    monitor: zmq.Socket[Any]
    connections: dict[int, _Connection] = field(default_factory=dict)
    failure: str = ""


class _Shown(NamedTuple):
    """The key that a connection has shown, and the number of the answer that let it in."""

    number: int
    key: bytes


class CurveAuthenticator:
    """Answers ZeroMQ's questions about keys, for all guarded sockets of one context; for one thread, except `note`.

    Args:
        context: of the sockets; it must live longer.
        keys: the daemon's.
        clients: the keys that are allowed.

    Attributes:
        socket: where questions come in, for a poller.
        answered: how many were answered so far.
    """

    def __init__(self, context: zmq.Context[Any], keys: KeyPair, clients: AllowedClients) -> None:
        self._keys = keys
        self._clients = clients
        # By file descriptor; written by the thread that reads the socket.
        self._shown: dict[int, _Shown] = {}
        self._lock = threading.Lock()
        self._questions: list[list[bytes]] = []
        self.answered = 0
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.bind(_ZAP_ENDPOINT)

    def protect(self, guarded: zmq.Socket[bytes]) -> None:
        """Makes a socket, which is not bound yet, ask for keys."""
        guarded.curve_server = 1
        guarded.curve_publickey = self._keys.public
        guarded.curve_secretkey = self._keys.secret
        guarded.zap_domain = _ZAP_DOMAIN
        guarded.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def note(self, message: zmq.Frame, descriptor: int) -> bool:
        """Notes whose connection a message came over; False when its key is no longer allowed."""
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

    def answer(self) -> list[str]:
        """Answers the questions that were received; all connections that they are about must be known by then.

        Returns:
            The addresses of the connections whose key is not allowed.
        """
        questions, self._questions = self._questions, []
        refused: list[str] = []
        for parts in questions:
            at = parts.index(b"") + 1
            version, request, _, address, _, mechanism, *credentials = parts[at:]
            key = z85.encode(credentials[0]) if mechanism == b"CURVE" and len(credentials) == 1 else b""
            if key in self._clients.names():
                self.answered += 1
                status, user = _OK, key + _SEPARATOR + str(self.answered).encode()
            else:
                status, user = _NOT_NOW, b""
                refused.append(address.decode(errors="replace"))
            self.socket.send_multipart([*parts[:at], version, request, status, b"", user, b""])
        return refused

    def removals(self) -> int:
        """How often keys were removed from those that are allowed; reads them again when it is time."""
        self._clients.names()
        return self._clients.removals

    def is_revoked(self, descriptor: int, answered_before: int) -> bool | None:
        """Whether the key of a connection is no longer allowed; None where it has sent nothing yet.

        Args:
            descriptor: of the connection.
            answered_before: how many questions had been answered when it was accepted.
        """
        with self._lock:
            shown = self._shown.get(descriptor)
        if shown is None or shown.number <= answered_before:
            return None
        return shown.key not in self._clients.newest


def descriptor_of(message: zmq.Frame) -> int | None:
    """The descriptor of the connection that a message came over; None for one that ZeroMQ itself has made."""
    try:
        return int(message.get(zmq.SRCFD))
    except zmq.ZMQError:
        return None


@contextmanager
def borrowed(descriptor: int) -> Iterator[socket.socket | None]:
    """One of ZeroMQ's connections by its descriptor; None where it is not one.

    A duplicate, so that whatever ZeroMQ does meanwhile, the descriptor cannot come to mean another connection.
    """
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        yield None
        return
    try:
        connection = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        yield None
        return
    with connection:
        yield connection


def address_of(connection: socket.socket | None) -> tuple[str, str]:
    """Host, and host with port for people, of the other end; the host is empty where it has none."""
    try:
        peer = connection.getpeername() if connection is not None else ()
    except OSError:
        peer = ()
    if isinstance(peer, tuple) and len(peer) >= 2:
        host = str(peer[0])
        return host, f"[{host}]:{peer[1]}" if ":" in host else f"{host}:{peer[1]}"
    return "", "an unknown address" if peer == () else "a program on this machine"


def received_bytes(connection: socket.socket) -> int:
    """All bytes that have come in over a TCP connection; 0 for a Unix socket, where the kernel does not count."""
    if connection.family == socket.AF_UNIX:
        return 0
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_RECEIVED_OFFSET + 8)
    return int(struct.unpack_from("=Q", information, _TCP_INFO_RECEIVED_OFFSET)[0])


def _reason_of(kind: int, value: int) -> str:
    """Why a handshake failed, in a word."""
    if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return _PROTOCOL_REASONS.get(value) or "protocol"
    # A client without a key sees that one is asked for, and disconnects.
    return "timeout" if value in (zmq.EAGAIN, zmq.ETIMEDOUT) else "broken_off"
