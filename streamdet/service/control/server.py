"""Reads requests at the control socket and hands them on; one thread, bounded in size, time, number and rate.

It carries out nothing itself: each request goes to the daemon's main thread, which owns the configuration and the
streams, and its answer comes back from there.
"""

from __future__ import annotations

import errno
import grp
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from streamdet.errors import ControlError, EndpointError, Refusal, accept_may_work_later
from streamdet.monitoring.log import FailureLog
from streamdet.monitoring.unexpected import UnexpectedErrors, describe
from streamdet.security.limits import Rate
from streamdet.service.control.protocol import MAX_REQUEST_BYTES, Request, decode_request, encode_error
from streamdet.worker import Worker

_BACKLOG = 16
# linux/socket.h; Python names it from 3.14 on.
_SO_PEERGROUPS = 59
# The most that Python reads at once: 256 groups.
_MAX_GROUPS_BYTES = 1024


class Peer(NamedTuple):
    """The process at the other end, as the kernel knows it since it connected."""

    pid: int
    uid: int
    gid: int


def listen_at(path: Path, group: str | None, gid: int | None) -> socket.socket:
    """Binds the socket, for the daemon's own user and root alone, or also for the members of a group.

    The file of a dead process is replaced. A folder that is missing is made, for the daemon's user alone.

    Raises:
        EndpointError: in use, or not permitted.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _remove_stale(path)
        # Linux gives the file the mode of the unbound socket, so there is no moment with another one.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        if gid is not None:
            os.chown(path, -1, gid)
            path.chmod(0o660)
        listener.listen(_BACKLOG)
        listener.setblocking(False)  # noqa: FBT003 - the library's own signature
    except OSError as error:
        listener.close()
        raise _cannot(path, _explain(error, path, group)) from None
    except EndpointError:
        listener.close()
        raise
    return listener


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end."""
    return Peer(*struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


def may_use(connection: socket.socket, gid: int | None) -> bool:
    """Whether the process at the other end is the daemon's user, root, or in the group.

    The mode of the file says the same; but a file can be passed on, or its mode be changed.
    """
    peer = peer_of(connection)
    if peer.uid in (0, os.geteuid()):
        return True
    return gid is not None and gid in _groups_of(connection, peer)


def _groups_of(connection: socket.socket, peer: Peer) -> set[int]:
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
    except OSError:
        data = b""  # a kernel before 4.13, or more groups than that: the main group still counts
    return {peer.gid, *struct.unpack(f"{len(data) // 4}I", data)}


def gid_of(group: str) -> int:
    """The number of a group.

    Raises:
        EndpointError: there is none of this name.
    """
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        message = f"[control] group: there is no group {group!r} on this machine; make it, or leave the key out"
        raise EndpointError(message) from None


def _remove_stale(path: Path) -> None:
    """Removes the file of a dead process; that of a living one is an error."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise _cannot(path, "it exists and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except TimeoutError:
            pass  # someone listens, and is busy
    raise OSError(errno.EADDRINUSE, "")


def _explain(error: OSError, path: Path, group: str | None) -> str:
    return {
        errno.EADDRINUSE: "another daemon uses it; stop that one or choose another path",
        errno.EACCES: f"no permission; let this user write to {path.parent}",
        errno.EPERM: f"this user is not in group {group}; add it, or start as root" if group else "not permitted",
        errno.EROFS: f"{path.parent} is read-only; choose a path that can be written",
        errno.ENOENT: f"there is no folder {path.parent.parent}",
        errno.ENOTDIR: f"{path.parent} is not a folder",
    }.get(error.errno or 0, error.strerror or str(error))


def _cannot(path: Path, why: str) -> EndpointError:
    return EndpointError(f"[control] path: cannot listen at {path}: {why}")


MAX_CLIENTS = 8
MAX_REQUESTS_PER_SECOND = 100
REQUEST_TIMEOUT_SECONDS = 5.0
"""From the first byte of a request to its last, and for a client to take its answer."""
IDLE_TIMEOUT_SECONDS = 60.0
_TICK_SECONDS = 0.5
_RECEIVE_BYTES = 16384

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that waits for its answer.

    Attributes:
        request: what is asked for.
        answer: takes the line of the answer; from any thread, once.
        peer: the process that asks; None where it is not known.
    """

    request: Request
    answer: Callable[[bytes], None]
    peer: Peer | None = None


@dataclass(slots=True, eq=False)
class _Client:
    """One connection.

    Attributes:
        connection: non-blocking.
        peer: the process at the other end.
        received: bytes of requests that have not been handed on.
        unsent: bytes of answers that have not been taken.
        waits: for an answer from the main thread; further requests stay in `received` meanwhile.
        ended: sends no more; what it asked for is still answered.
        deadline: when it is closed unless something happens, monotonic seconds; None while we are the ones to act.
    """

    connection: socket.socket
    peer: Peer
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    waits: bool = False
    ended: bool = False
    deadline: float | None = None


class ControlServer(Worker):
    """Listens at the control socket.

    The socket is bound at once, so that one that is in use is known before anything else starts.

    Args:
        path: of the socket.
        group: whose members may use it, too; None for the daemon's user and root alone.
        on_request: gets each request, from the server's thread; must not block.
        on_error: told when the thread ends by an error.
        unexpected: told of errors that end a single connection.

    Raises:
        EndpointError: the socket cannot be had.
    """

    def __init__(
        self,
        path: Path,
        group: str | None,
        on_request: Callable[[Pending], None],
        on_error: Callable[[Worker], None] | None = None,
        unexpected: UnexpectedErrors | None = None,
    ) -> None:
        super().__init__("control", on_error)
        self._unexpected = unexpected or UnexpectedErrors(CollectorRegistry())
        self.path = path
        self._gid = None if group is None else gid_of(group)
        self._on_request = on_request
        self._listener = listen_at(path, group, self._gid)
        self._inode = path.stat().st_ino
        self._clients: set[_Client] = set()
        self._answers: deque[tuple[_Client, bytes]] = deque()
        self._lock = threading.Lock()
        self._closed = False
        self._rate = Rate(MAX_REQUESTS_PER_SECOND)
        self._accept_failures = FailureLog(_log, "{} tries to accept a connection failed")
        self._awake, self._waker = socket.socketpair()
        self._awake.setblocking(False)  # noqa: FBT003 - the library's own signature
        self._waker.setblocking(False)  # noqa: FBT003 - the library's own signature
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._awake, selectors.EVENT_READ)

    def wake(self) -> None:
        """Ends the wait of `run`."""
        with self._lock:
            if not self._closed:
                with suppress(BlockingIOError):
                    self._waker.send(b"\0")

    def close(self) -> None:
        """Frees the socket and its file; called by the thread at its end, or for a server that was never started."""
        if self.is_alive() and threading.current_thread() is not self._thread:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for client in list(self._clients):
            self._drop(client)
        # The file may be that of the next daemon by now.
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        self._selector.close()
        for each in (self._listener, self._awake, self._waker):
            each.close()

    def run(self) -> None:
        """Serves until asked to stop; answers that are there by then are still sent."""
        try:
            while not self.stopping:
                for key, events in self._selector.select(_TICK_SECONDS):
                    self._turn(key, events)
                self._deliver()
                self._expire()
                self.beat()
            self._deliver()
        finally:
            self.close()

    def _turn(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj is self._listener:
            self._accept()
        elif key.fileobj is self._awake:
            self._awake.recv(4096)
        elif key.data in self._clients:
            with self._guarded(key.data):
                if events & selectors.EVENT_WRITE:
                    self._send(key.data)
                    self._advance(key.data)
                if events & selectors.EVENT_READ and key.data in self._clients:
                    self._receive(key.data)

    @contextmanager
    def _guarded(self, client: _Client) -> Iterator[None]:
        """What goes wrong with a client ends its connection and no other; it gets that as its answer."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is: others have asked, too
            self._unexpected.report("control", error, "a connection to the control socket is closed")
            self._refuse(client, ControlError(Refusal.FAILED, f"unexpected error: {describe(error)}"))

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client went away before it was its turn
        except OSError as error:
            if not accept_may_work_later(error):
                raise
            self._accept_failures.failed(f"the control socket: {error.strerror}")
            self.sleep(_TICK_SECONDS)
            return
        self._accept_failures.works("the control socket: connections are accepted again")
        try:
            self._let_in(connection)
        except Exception as error:  # noqa: BLE001 - whatever it is: others connect, too
            self._unexpected.report("control", error, "a connection to the control socket is closed")
            connection.close()

    def _let_in(self, connection: socket.socket) -> None:
        """Makes a connection a client, or says why not and ends it."""
        connection.setblocking(False)  # noqa: FBT003 - the library's own signature
        refusal = self._refusal(connection)
        if refusal is not None:
            with connection, suppress(OSError):
                connection.send(encode_error(None, refusal))
            return
        client = _Client(connection, peer_of(connection), deadline=time.monotonic() + IDLE_TIMEOUT_SECONDS)
        self._selector.register(connection, selectors.EVENT_READ, client)
        self._clients.add(client)

    def _refusal(self, connection: socket.socket) -> ControlError | None:
        if not may_use(connection, self._gid):
            _log.warning("refused a process of user %d at the control socket", peer_of(connection).uid)
            return ControlError(Refusal.NOT_ALLOWED, "only the daemon's user, root and the group of [control] may ask")
        if len(self._clients) >= MAX_CLIENTS:
            return ControlError(Refusal.TOO_MANY, f"{MAX_CLIENTS} programs are connected already; try again")
        return None

    def _receive(self, client: _Client) -> None:
        try:
            received = client.connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        client.ended = not received
        if not client.received and received and not client.waits:
            client.deadline = time.monotonic() + REQUEST_TIMEOUT_SECONDS
        client.received += received
        self._advance(client)

    def _advance(self, client: _Client) -> None:
        """Hands on the next request, unless the one before is not answered yet, or its answer not taken."""
        while client in self._clients and not client.waits and not client.unsent:
            line, end, rest = client.received.partition(b"\n")
            if len(line) > MAX_REQUEST_BYTES:
                problem = f"the message is larger than {MAX_REQUEST_BYTES} bytes"
                self._refuse(client, ControlError(Refusal.BAD_REQUEST, problem))
            elif end:
                client.received = rest
                self._hand_on(client, bytes(line))
            elif client.ended:
                self._drop(client)
            else:
                break
        self._watch(client)

    def _hand_on(self, client: _Client, line: bytes) -> None:
        if not self._rate.passes():
            problem = f"more than {MAX_REQUESTS_PER_SECOND} requests per second; wait a little"
            self._refuse(client, ControlError(Refusal.TOO_MANY, problem))
            return
        try:
            request = decode_request(line)
        except ControlError as error:
            self._put(client, encode_error(None, error))
            return
        client.waits, client.deadline = True, None

        def answer(reply: bytes) -> None:
            with self._lock:
                self._answers.append((client, reply))
            self.wake()

        self._on_request(Pending(request, answer, client.peer))

    def _deliver(self) -> None:
        while True:
            with self._lock:
                if not self._answers:
                    return
                client, reply = self._answers.popleft()
            if client in self._clients:
                with self._guarded(client):
                    client.waits = False
                    self._put(client, reply)
                    self._advance(client)

    def _put(self, client: _Client, reply: bytes) -> None:
        client.unsent += reply
        client.deadline = time.monotonic() + REQUEST_TIMEOUT_SECONDS
        self._send(client)

    def _send(self, client: _Client) -> None:
        try:
            sent = client.connection.send(client.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        del client.unsent[:sent]
        seconds = REQUEST_TIMEOUT_SECONDS if client.unsent else IDLE_TIMEOUT_SECONDS
        client.deadline = time.monotonic() + seconds

    def _refuse(self, client: _Client, error: ControlError) -> None:
        """Says why, as far as the client listens, and ends the connection."""
        with suppress(OSError):
            client.connection.send(encode_error(None, error))
        self._drop(client)

    def _watch(self, client: _Client) -> None:
        """Waits for what the client may do next."""
        if client not in self._clients:
            return
        # A client that sends on without waiting for answers is not read any more for a while.
        reads = not client.ended and len(client.received) <= MAX_REQUEST_BYTES
        events = selectors.EVENT_READ if reads else 0
        events |= selectors.EVENT_WRITE if client.unsent else 0
        known = client.connection in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(client.connection)
        elif known:
            self._selector.modify(client.connection, events, client)
        else:
            self._selector.register(client.connection, events, client)

    def _expire(self) -> None:
        now = time.monotonic()
        for client in [c for c in self._clients if c.deadline is not None and c.deadline < now]:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        if client.connection in self._selector.get_map():
            self._selector.unregister(client.connection)
        client.connection.close()
