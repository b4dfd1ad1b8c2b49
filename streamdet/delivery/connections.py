"""Decides who may connect to the publisher's sockets, and ends connections that must not go on.

ZeroMQ asks about a key only while a connection is made (ZAP, RFC 27), and bounds neither how many connections there
are nor what they send: subscriptions are kept for each of them, in memory, and so are messages that have begun and do
not end, with up to 32 bytes of memory for each byte sent. So this thread answers ZeroMQ's questions, watches the
connections from outside, and cuts those that have sent far more than any reader has to say, that are too many, or whose
key was revoked. A client that is cut may connect again at once; only one with a valid key gets anything.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from streamdet.worker import Worker

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


# linux/tcp.h: tcpi_bytes_received is the 64-bit number at this offset of struct tcp_info.
_TCP_INFO_RECEIVED_OFFSET = 128


@contextmanager
def borrowed(descriptor: int) -> Iterator[socket.socket | None]:
    """A connection of ZeroMQ's by its descriptor; None when there is none.

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
    """Host, and host with port for people, of the other end; the host is empty where there is none."""
    try:
        peer = connection.getpeername() if connection is not None else ()
    except OSError:
        peer = ()
    if isinstance(peer, tuple) and len(peer) >= 2:
        host = str(peer[0])
        return host, f"[{host}]:{peer[1]}" if ":" in host else f"{host}:{peer[1]}"
    return "", "an unknown address" if peer == () else "a program on this machine"


def received_bytes(connection: socket.socket) -> int:
    """What has come in over a TCP connection so far; 0 for a Unix socket, where the kernel does not count."""
    if connection.family == socket.AF_UNIX:
        return 0
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_RECEIVED_OFFSET + 8)
    return int(struct.unpack_from("=Q", information, _TCP_INFO_RECEIVED_OFFSET)[0])


MAX_CONNECTIONS = 1000
MAX_BYTES_AT_ONCE = 1 << 20
"""What a connection may send at first: ten thousand subscriptions. A reader of all streams sends some hundred bytes."""
MAX_BYTES_PER_SECOND = 16 << 10
MAX_BYTES_OF_A_REQUEST = 128 << 10
"""What a connection may send between two requests that make sense; one has 16 KiB at most."""
MAX_UNREAD_BYTES = 4 << 20
"""What all connections together may have sent without it making a whole message."""
_MAX_BYTES_AT_ONCE_AFTER_A_FLOOD = 16 << 10
_FLOOD_REMEMBERED_SECONDS = 60.0
_MAX_FLOODERS = 1000
_TURN_MILLISECONDS = 100
# While more comes in than that within a turn, the next one follows soon, but takes a fifth of the time at most.
_MUCH_BYTES = 64 << 10
# A connection that is made, and subscribes, needs no more; after it, it has to make room for others.
_MAY_BE_SILENT_SECONDS = 2.0
_SHORT_TURN_MILLISECONDS = 10
_PAUSE_PER_SECOND_OF_WORK = 4.0
_IDLE_TURN_MILLISECONDS = 500
_HANDSHAKE_MILLISECONDS = 5000
# What the kernel keeps of a connection while this process is busy.
_RECEIVE_BUFFER_BYTES = 64 << 10
_MAX_EVENTS_PER_TURN = 1000
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

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Connection:
    """One that was accepted.

    Attributes:
        host: address it comes from; "" for ipc.
        address: the same with the port, for people.
        accepted_monotonic_seconds: when.
        answered_before: how many questions about keys had been answered by then.
        removals_before: and how often keys had been taken out.
        received_bytes: what has come in over it.
        read_bytes: how much of that had come when the last whole message was read.
        is_heard: whether a whole message has come over it.
        is_cut: it has been ended, and ZeroMQ is about to notice.
    """

    host: str
    address: str
    accepted_monotonic_seconds: float
    answered_before: int = 0
    removals_before: int = 0
    received_bytes: int = 0
    read_bytes: int = 0
    is_heard: bool = False
    is_cut: bool = False

    @property
    def unread_bytes(self) -> int:
        """What has come and makes no whole message yet, or none that anyone can read."""
        return self.received_bytes - self.read_bytes


@dataclass(slots=True)
class _Watched:
    """One bound socket.

    Attributes:
        name: in metrics.
        takes_requests: whether clients go on sending; to another they subscribe, and are silent then.
        monitor: where ZeroMQ tells of its connections.
        connections: those that are open, by file descriptor.
        failure: why a handshake failed whose connection ZeroMQ is about to name.
    """

    name: str
    takes_requests: bool
    monitor: zmq.Socket[Any]
    connections: dict[int, _Connection]
    failure: str = ""


class ConnectionGuard(Worker):
    """Guards all bound sockets of one ZeroMQ context.

    Bind the sockets, then start it; stop it before the context ends.

    Args:
        config: the keys, and who may use an ipc endpoint.
        context: of the sockets.
        metrics: counts connections and refusals.
        on_error: told when the thread ends with an error.

    Raises:
        KeyFileError: the daemon's key cannot be used.
    """

    def __init__(
        self,
        config: PublisherConfig,
        context: zmq.Context[Any],
        metrics: DeliveryMetrics,
        on_error: Callable[[Worker], None] | None = None,
    ) -> None:
        super().__init__("gate", on_error)
        self._group = config.group
        self._metrics = metrics
        self._watched: list[_Watched] = []
        self._bound: set[int | str] = set()
        self._flooders: OrderedDict[str, float] = OrderedDict()
        # The descriptors over which whole messages have come lately; a set that is replaced as a whole.
        self._heard: set[int] = set()
        self._max_connections = min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._throttle = LogThrottle(quiet_seconds=1.0)
        self._poller = zmq.Poller()
        self._zap: CurveAuthenticator | None = None
        if config.curve_server_key_file is not None and config.curve_allowed_clients_directory is not None:
            keys = read_pair(Path(config.curve_server_key_file), "server")
            clients = AllowedClients(Path(config.curve_allowed_clients_directory))
            self._zap = CurveAuthenticator(context, keys, clients, self._key_refused)
            self._poller.register(self._zap.socket, zmq.POLLIN)
        self._wake_event = os.eventfd(0, os.EFD_NONBLOCK)
        self._poller.register(self._wake_event, zmq.POLLIN)

    def bind(self, guarded: zmq.Socket[bytes], name: str, endpoint: str) -> str:
        """Binds a socket, which from then on lets in only who may.

        Args:
            guarded: the socket; not bound yet.
            name: for metrics.
            endpoint: where.

        Returns:
            What was bound, with the real port where port 0 was asked for.

        Raises:
            EndpointError: it cannot be bound, or other machines could reach it and there are no keys.
        """
        guarded.handshake_ivl = _HANDSHAKE_MILLISECONDS
        guarded.rcvbuf = _RECEIVE_BUFFER_BYTES
        if self._zap is not None:
            self._zap.protect(guarded)
        monitor = guarded.get_monitor_socket(_MONITORED)
        try:
            what = "publish" if name == "events" else f"offer {name}"
            bound = bind(guarded, endpoint, encrypted=self._zap is not None, group=self._group, what=what)
        except BaseException:
            # Raised again, whatever it is: a monitor of a socket that no one uses must not stay.
            guarded.disable_monitor()
            raise
        self._poller.register(monitor, zmq.POLLIN)
        self._watched.append(_Watched(name, guarded.type == zmq.ROUTER, monitor, {}))
        self._metrics.add_socket(name)
        parsed = parse_endpoint(bound)
        self._bound.add(parsed.port if parsed.path is None else str(parsed.path))
        return bound

    def lets_in(self, message: zmq.Frame) -> bool:
        """Whether a message comes from a client that is still allowed; if so, notes that it has made sense.

        Called for every message that a guarded socket receives and that makes sense, by the thread that reads it.
        """
        descriptor = descriptor_of(message)
        if descriptor is None:
            return True  # from ZeroMQ: when a connection ends, it takes back what that was subscribed to
        if self._zap is not None and not self._zap.note(message, descriptor):
            self.wake()
            return False
        self._heard.add(descriptor)
        return True

    def is_open(self, descriptor: int) -> bool:
        """Whether a descriptor is that of a connection to a guarded socket; from any thread."""
        with borrowed(descriptor) as connection:
            return connection is not None and self._is_ours(connection)

    def run(self) -> None:
        """Answers and watches until told to stop."""
        wait_milliseconds = 0
        while not self.stopping:
            self._poller.poll(wait_milliseconds)
            began = time.monotonic()
            if self._zap is not None:
                self._zap.receive()
            is_all = True
            for watched in self._watched:
                is_all &= self._note_events(watched)
            if self._zap is not None and is_all:
                # Every connection that is asked for was accepted before, and so is known by now.
                self._zap.answer()
            if self._zap is not None:
                self._cut_revoked(self._zap)
            is_much = self._count_bytes() > _MUCH_BYTES
            for watched in self._watched:
                self._cut_floods(watched)
                self._metrics.connections(watched.name, len(watched.connections))
            self._cut_unread()
            self.beat()
            if is_much:
                took_milliseconds = (time.monotonic() - began) * 1000
                wait_milliseconds = max(_SHORT_TURN_MILLISECONDS, int(took_milliseconds * _PAUSE_PER_SECOND_OF_WORK))
            else:
                is_used = any(watched.connections for watched in self._watched)
                wait_milliseconds = _TURN_MILLISECONDS if is_used else _IDLE_TURN_MILLISECONDS

    def wake(self) -> None:
        """Ends the wait of `run`."""
        os.eventfd_write(self._wake_event, 1)

    def close(self) -> None:
        """Stops the thread, if it was started; may be called again."""
        if self._wake_event < 0:
            return
        self.stop()
        self.join()
        os.close(self._wake_event)
        self._wake_event = -1

    def _note_events(self, watched: _Watched) -> bool:
        """Takes what ZeroMQ says of its connections; whether that was all."""
        for _ in range(_MAX_EVENTS_PER_TURN):
            try:
                event = parse_monitor_message(watched.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return True
            kind, value = event["event"], event["value"]
            if kind == zmq.EVENT_ACCEPTED:
                self._accepted(watched, value)
            elif kind == zmq.EVENT_DISCONNECTED:
                gone = watched.connections.pop(value, None)
                if watched.failure:
                    self._refused(watched, watched.failure, gone.address if gone else "an unknown address")
                    watched.failure = ""
            else:
                # The next event names the connection.
                watched.failure = _reason_of(kind, value)
        return False

    def _accepted(self, watched: _Watched, descriptor: int) -> None:
        with borrowed(descriptor) as connection:
            host, address = address_of(connection if connection is not None and self._is_ours(connection) else None)
        accepted = _Connection(host, address, time.monotonic())
        if self._zap is not None:
            accepted.answered_before, accepted.removals_before = self._zap.answered, self._zap.removals()
        watched.connections[descriptor] = accepted
        self._metrics.connected(watched.name)
        self._make_room(watched, descriptor, accepted)

    def _make_room(self, watched: _Watched, descriptor: int, accepted: _Connection) -> None:
        """Cuts one, where there are too many: what has said nothing for longest, or else the one that has just come."""
        if sum(len(other.connections) for other in self._watched) <= self._max_connections // 2:
            return
        open_ones = [
            (other, number, connection)
            for other in self._watched
            for number, connection in other.connections.items()
            if not connection.is_cut
        ]
        of_host = [one for one in open_ones if one[2].host == accepted.host]
        if len(open_ones) > self._max_connections:
            crowd, why = open_ones, f"there are {self._max_connections} connections already"
        elif len(of_host) > max(self._max_connections // 2, 1):
            crowd, why = of_host, f"its address has {len(of_host) - 1} connections already"
        else:
            return
        old = accepted.accepted_monotonic_seconds - _MAY_BE_SILENT_SECONDS
        silent = [one for one in crowd if not one[2].is_heard and one[2].accepted_monotonic_seconds < old]
        if silent:
            oldest, number, _ = min(silent, key=lambda one: one[2].accepted_monotonic_seconds)
            self._cut(oldest, number, "too_many", f"it has said nothing, and {why}")
        else:
            self._cut(watched, descriptor, "too_many", why)

    def _count_bytes(self) -> int:
        """Looks at what each connection has sent; returns how much of all that is new."""
        heard, self._heard = self._heard, set()
        new_bytes = 0
        for watched in self._watched:
            for descriptor, connection in watched.connections.items():
                before, connection.received_bytes = connection.received_bytes, self._received_bytes(descriptor)
                new_bytes += max(connection.received_bytes - before, 0)
                if descriptor in heard:
                    connection.is_heard, connection.read_bytes = True, connection.received_bytes
        return new_bytes

    def _cut_floods(self, watched: _Watched) -> None:
        now = time.monotonic()
        for descriptor, connection in list(watched.connections.items()):
            age_seconds = now - connection.accepted_monotonic_seconds
            flooded_at = self._flooders.get(connection.host, float("-inf"))
            again = now - flooded_at < _FLOOD_REMEMBERED_SECONDS
            at_once = _MAX_BYTES_AT_ONCE_AFTER_A_FLOOD if again else MAX_BYTES_AT_ONCE
            received = connection.received_bytes
            if received > at_once + age_seconds * MAX_BYTES_PER_SECOND:
                why = f"it has sent {received} bytes, and readers have little to say"
            elif watched.takes_requests and connection.unread_bytes > min(at_once, MAX_BYTES_OF_A_REQUEST):
                why = f"it has sent {connection.unread_bytes} bytes that make no request"
            else:
                continue
            self._flooders[connection.host] = now
            if len(self._flooders) > _MAX_FLOODERS:
                self._flooders.popitem(last=False)
            self._cut(watched, descriptor, "flood", why)

    def _cut_unread(self) -> None:
        """Cuts those who have sent most that no one can read, until what is left is bearable."""
        of_all = [(c.unread_bytes, d, w) for w in self._watched for d, c in w.connections.items() if not c.is_cut]
        total = sum(unread for unread, _, _ in of_all)
        if total <= MAX_UNREAD_BYTES:
            return
        for unread, descriptor, watched in sorted(of_all, key=lambda one: one[0], reverse=True):
            if total <= MAX_UNREAD_BYTES:
                return
            self._cut(watched, descriptor, "flood", f"it has sent {unread} bytes that make no message")
            total -= unread

    def _cut_revoked(self, zap: CurveAuthenticator) -> None:
        """Ends what has shown a key that is not allowed any more, or may have been let in by one."""
        removals = zap.removals()
        for watched in self._watched:
            for descriptor, connection in list(watched.connections.items()):
                revoked = zap.is_revoked(descriptor, connection.answered_before)
                if revoked:
                    self._cut(watched, descriptor, "revoked", "its key is not allowed any more")
                elif revoked is None and connection.removals_before != removals:
                    # It has said nothing yet, so it loses nothing: it connects again, if it is still allowed.
                    self._cut(watched, descriptor, "revoked", "a key is not allowed any more, and it may be its own")

    def _cut(self, watched: _Watched, descriptor: int, reason: str, why: str) -> None:
        """Ends a connection; ZeroMQ finds it closed, and tidies up."""
        if watched.connections[descriptor].is_cut:
            return
        with borrowed(descriptor) as connection:
            if connection is None or not self._is_ours(connection):
                return
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it has just gone by itself
        watched.connections[descriptor].is_cut = True
        self._metrics.cut(watched.name, reason)
        self._say("cut the connection of %s: %s", watched.connections[descriptor].address, why)

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

    def _key_refused(self, address: str) -> None:
        # ZeroMQ does not say which socket it asks for.
        self._refused(self._watched[0], "unknown_key", address)

    def _refused(self, watched: _Watched, reason: str, address: str) -> None:
        self._metrics.handshake_failed(watched.name, reason)
        self._say("refused a connection of %s: %s", address, reason)

    def _say(self, text: str, *arguments: object) -> None:
        self._throttle.log(_log, logging.WARNING, text, *arguments)


def descriptor_of(message: zmq.Frame) -> int | None:
    """Of the connection that a message came over; None for one that ZeroMQ itself has made."""
    try:
        return int(message.get(zmq.SRCFD))
    except zmq.ZMQError:
        return None


def _reason_of(kind: int, value: int) -> str:
    """Why a handshake failed, in a word."""
    if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return _PROTOCOL_REASONS.get(value) or "protocol"
    # A client without a key sees what is asked for, and hangs up.
    return "timeout" if value in (zmq.EAGAIN, zmq.ETIMEDOUT) else "broken_off"
