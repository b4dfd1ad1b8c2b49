"""uvicorn with limits: on connections, on sizes, and on every wait for a client.

uvicorn alone waits for a request as long as a client likes, and when there are too many connections it refuses the
next one. Here every wait for a client has a deadline, and a new connection is always accepted: when there are too
many, the server closes the one that has waited longest, of the client that has most of those.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any, NamedTuple

import h11
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from streamdet.errors import EndpointError, StreamdetError, accept_may_work_later
from streamdet.monitoring.log import FailureLog
from streamdet.monitoring.unexpected import UnexpectedErrors
from streamdet.security.endpoints import bind_advice
from streamdet.security.limits import Rate
from streamdet.worker import Worker

HEALTH_PATHS = frozenset({"/healthz", "/readyz"})
_BACKLOG = 512
# A client that was answered before all of its request was read may still be sending; unread bytes would turn the
# answer into a reset connection.
_LINGER_SECONDS = 0.2
_SHUTDOWN_SECONDS = 1
_PIECE_BYTES = 4096
# linux/socket.h; Python names it from 3.14 on.
_SO_PEERGROUPS = 59
# The most that Python reads at once: 256 groups.
_MAX_GROUPS_BYTES = 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may use.

    Attributes:
        connections: open at the same time.
        waiting_per_address: connections of one client (see `network_of`) that have no complete request, or do not
            take their answer. Those of trusted clients do not count.
        answering: requests that are being answered; more get 503, except for health checks.
        connections_per_second: that are accepted; faster ones wait in the kernel's queue.
        request_seconds: for a TLS handshake, and from the first moment of a request to its last byte.
        idle_seconds: until a connection that was answered is closed.
        answer_seconds: for a client to take what was sent.
        head_bytes: of a request line and its headers.
        accept_retry_seconds: until the next connection is accepted after one could not be.
    """

    connections: int = 512
    waiting_per_address: int = 64
    answering: int = 256
    connections_per_second: int = 400
    request_seconds: float = 5.0
    idle_seconds: int = 15
    answer_seconds: float = 10.0
    head_bytes: int = 16384
    accept_retry_seconds: float = 0.5


class Peer(NamedTuple):
    """The process at the other end of a Unix socket, as the kernel has known it since it connected."""

    pid: int
    uid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        """Who is at the other end.

        Raises:
            OSError: the kernel does not know.
        """
        pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            others = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
        except OSError:
            others = b""  # a kernel before 4.13, or more groups than that: the main group still counts
        return cls(pid, uid, frozenset({gid, *struct.unpack(f"{len(others) // 4}I", others)}))


class Connection:
    """One connection, from the moment it is accepted.

    Attributes:
        network: what its client is counted by, see `network_of`; of a Unix socket the user.
        peer: the process at the other end of a Unix socket; None for TCP.
        trusted: whether its client has logged in, or needs no login; set by the application.
        closed: whether the client or the server has ended it.
        close: ends it at once; replaced when its transport is there.
    """

    __slots__ = ("close", "closed", "network", "peer", "trusted")

    def __init__(self, address: str, peer: Peer | None = None) -> None:
        self.network = network_of(address) if peer is None else f"user {peer.uid}"
        self.peer = peer
        self.trusted = False
        self.closed = False
        self.close: Callable[[], object] = lambda: None


def connection_of(scope: Scope) -> Connection:
    """The connection that a request came over; a new one for a request that came over none, as in tests."""
    connection = scope.get("streamdet.connection")
    return connection if isinstance(connection, Connection) else Connection(_client_of(scope))


def network_of(address: str) -> str:
    """What a client is counted by: its IPv4 address, or the /64 of its IPv6 address, which it has to itself."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Network((parsed, 64), strict=False))
    return str(parsed)


class BadRequestError(StreamdetError):
    """A client sent what the server does not understand."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        BadRequestError: it has more bytes than `limit`.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            message = f"the body has more than {limit} bytes"
            raise BadRequestError(message)
    return body


def listen(what: str, host: str, port: int, choose: str) -> socket.socket:
    """A listening socket.

    Args:
        what: listens, for the error.
        host: name or address.
        port: 0 for any free one.
        choose: what to choose another one of when the port is taken, such as "endpoint".

    Raises:
        EndpointError: the address cannot be bound.
    """
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((str(address[0]), int(address[1])), family=family, backlog=_BACKLOG)
    except OSError as error:
        message = f"{what} cannot listen on {place}: {bind_advice(error, choose)}"
        raise EndpointError(message) from error
    except UnicodeError as error:
        message = f"{what} cannot listen on {place[:200]!r}: that is not the name of a machine"
        raise EndpointError(message) from error
    listener.setblocking(False)  # noqa: FBT003 - the library's own signature
    return listener


def url_of(listener: socket.socket, tls: ssl.SSLContext | None) -> str:
    """Where a listening socket is reached, ending without a slash; of a Unix socket its path."""
    if listener.family == socket.AF_UNIX:
        return str(listener.getsockname())
    host, port = listener.getsockname()[:2]
    scheme = "http" if tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server needs to speak TLS.

    Raises:
        OSError: a file cannot be read, or the two do not belong together.
        ValueError: the key needs a password.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Without `password` OpenSSL would ask at the terminal for that of an encrypted key.
    context.load_cert_chain(certificate, key, password="")
    return context


class HttpServer(uvicorn.Server):
    """uvicorn's server, with limits.

    In the main thread SIGINT and SIGTERM end it, and are not raised again: an end that was asked for is no error.

    Args:
        app: answers the requests.
        listener: a listening TCP or Unix socket that does not block; closed at the end.
        limits: what clients may use.
        tls: how to speak TLS; None to serve in the clear.
        unexpected: counts and logs errors that end a single request or connection.

    Attributes:
        error: what ended it; None when it was asked to end.
        limits: what clients may use.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        limits: Limits,
        tls: ssl.SSLContext | None = None,
        unexpected: UnexpectedErrors | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=limits.idle_seconds,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
                h11_max_incomplete_event_size=limits.head_bytes,
            )
        )
        # It would log what each client does wrong.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.limits = limits
        self.error: BaseException | None = None
        self._listener = listener
        self._tls = tls
        self._open = _Connections(limits)
        self._accepting: asyncio.Task[None] | None = None
        self._arriving: set[asyncio.Task[None]] = set()
        self._unexpected = unexpected or UnexpectedErrors()
        self._accept_failures = FailureLog(_log, "{} tries to accept a connection failed")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - the listener is known
        """Begins to accept connections."""
        await self.lifespan.startup()
        asyncio.get_running_loop().set_exception_handler(self._loop_failed)
        self.servers = []
        self._accepting = asyncio.create_task(self._accept())
        self._accepting.add_done_callback(self._accept_ended)
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets requests that are being answered end, and cuts all others."""
        if self._accepting is not None:
            self._accepting.cancel()
        self._listener.close()
        self._open.close_waiting()
        await super().shutdown(sockets)
        self._open.close_all()
        await asyncio.gather(*self._arriving, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close in the loop's next turn

    def close(self) -> None:
        """Closes the listening socket of a server that does not run."""
        with contextlib.suppress(OSError):
            self._listener.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Has signals end the server, in the main thread."""
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        pace = Rate(self.limits.connections_per_second)
        while True:
            if not pace.passes():
                await asyncio.sleep(1 / self.limits.connections_per_second)
                continue
            try:
                accepted, address = await loop.sock_accept(self._listener)
            except ConnectionError:
                continue  # the client closed the connection before it was accepted
            except OSError as error:
                if not accept_may_work_later(error):
                    raise
                self._accept_failures.failed(f"{url_of(self._listener, self._tls)}: {error.strerror}")
                await asyncio.sleep(self.limits.accept_retry_seconds)
                continue
            self._accept_failures.works(f"{url_of(self._listener, self._tls)}: connections are accepted again")
            try:
                connection = self._connection_of(accepted, address)
            except OSError:
                accepted.close()  # its client is gone
                continue
            task = loop.create_task(self._arrive(accepted, connection))
            connection.close = task.cancel
            self._arriving.add(task)
            task.add_done_callback(functools.partial(self._arrived, accepted, connection))
            self._open.add(connection)
            # A request that has arrived already is read first: its connection does not count as waiting.
            await asyncio.sleep(0)

    @staticmethod
    def _connection_of(accepted: socket.socket, address: Any) -> Connection:  # noqa: ANN401 - differs by family
        if accepted.family == socket.AF_UNIX:
            return Connection("", Peer.of(accepted))
        return Connection(str(address[0]))

    def _loop_failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error that no coroutine waits for; those of a connection, as of TLS, are its client's own."""
        error = context.get("exception") or RuntimeError(context["message"])
        if not isinstance(error, OSError):
            self._unexpected.report("http", error, "a connection is closed")

    def _accept_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.error = task.exception()
            self.should_exit = True

    async def _arrive(self, accepted: socket.socket, connection: Connection) -> None:
        """Makes the connection ready to be read from: with TLS its handshake is over then."""
        loop = asyncio.get_running_loop()
        protocol = _Protocol(self.config, self.server_state, self.lifespan.state, loop)
        protocol.bind(connection, self._open, self._unexpected)
        async with asyncio.timeout(self.limits.request_seconds):
            await loop.connect_accepted_socket(lambda: protocol, accepted, ssl=self._tls)

    def _arrived(self, accepted: socket.socket, connection: Connection, task: asyncio.Task[None]) -> None:
        self._arriving.discard(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            accepted.close()
            self._open.discard(connection)
        # OSError, which TLS errors and timeouts are too: the client is slow, gone, or does not speak TLS.
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self._unexpected.report("http", error, "a connection is closed")


class HttpThread(Worker):
    """Runs servers in a thread of its own while it is entered as a context manager.

    Args:
        name: of the thread.
        servers: what to run; when one ends by an error, all end.
        on_error: called when the thread ends by an error.
    """

    def __init__(
        self, name: str, servers: Sequence[HttpServer], on_error: Callable[[Worker], None] | None = None
    ) -> None:
        super().__init__(name, on_error)
        self._servers = servers

    def run(self) -> None:
        """Serves until asked to stop."""
        if not self.stopping:
            asyncio.run(self._serve())
        for server in self._servers:
            if server.error is not None:
                raise server.error

    def wake(self) -> None:
        """Ends the servers."""
        for server in self._servers:
            server.should_exit = True

    def close(self) -> None:
        """Cuts open connections, ends the thread and closes the sockets; may be called twice, or without entering."""
        self.stop()
        self.join()
        for server in self._servers:
            server.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _serve(self) -> None:
        async def serve(server: HttpServer) -> None:
            await server.serve()
            self.wake()

        async with asyncio.TaskGroup() as group:
            for server in self._servers:
                group.create_task(serve(server))


class _Connections:
    """Which connections are open, and which one is closed when there are too many; belongs to the event loop.

    A connection waits while its client is the one to act: to send a request, or to take an answer.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: set[Connection] = set()
        self._answering: set[Connection] = set()
        # By network, the one that has waited longest first.
        self._waiting: dict[str, dict[Connection, None]] = {}
        self._trusted: dict[Connection, None] = {}

    @property
    def answering(self) -> int:
        """How many requests are being answered."""
        return len(self._answering)

    def add(self, connection: Connection) -> None:
        """Adds a new one, which waits."""
        self._open.add(connection)
        self.waits(connection)
        if len(self._open) > self.limits.connections:
            most = max(self._waiting.values(), key=len, default=self._trusted)
            if most:
                self._cut(next(iter(most)))

    def discard(self, connection: Connection) -> None:
        """Removes one that has ended."""
        connection.closed = True
        self._open.discard(connection)
        self._answering.discard(connection)
        self._stop_waiting(connection)

    def waits(self, connection: Connection) -> None:
        """Notes that its client is the one to act."""
        if connection.closed:
            return
        self._answering.discard(connection)
        self._stop_waiting(connection)
        if connection.trusted:
            self._trusted[connection] = None
            return
        same = self._waiting.setdefault(connection.network, {})
        same[connection] = None
        if len(same) > self.limits.waiting_per_address:
            self._cut(next(iter(same)))

    def answers(self, connection: Connection) -> None:
        """Notes that the server is the one to act."""
        if not connection.closed:
            self._stop_waiting(connection)
            self._answering.add(connection)

    def close_waiting(self) -> None:
        """Ends those that wait."""
        for connection in self._open - self._answering:
            self._cut(connection)

    def close_all(self) -> None:
        """Ends all."""
        for connection in list(self._open):
            self._cut(connection)

    def _cut(self, connection: Connection) -> None:
        self.discard(connection)
        connection.close()

    def _stop_waiting(self, connection: Connection) -> None:
        self._trusted.pop(connection, None)
        same = self._waiting.get(connection.network)
        if same is not None:
            same.pop(connection, None)
            if not same:
                del self._waiting[connection.network]


class _Protocol(H11Protocol):
    """uvicorn's protocol, with a deadline for every wait for the client."""

    connection: Connection
    _open: _Connections
    _timer: asyncio.TimerHandle | None = None

    def bind(self, connection: Connection, connections: _Connections, unexpected: UnexpectedErrors) -> None:
        """Sets what it belongs to; called before the connection is made."""
        self.connection = connection
        self._open = connections
        self._unexpected = unexpected
        self._inner_app = self.app
        self.app = self._answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is there, and waits for the first byte."""
        super().connection_made(transport)
        self.connection.close = transport.abort
        if self.connection.closed:
            transport.abort()
            return
        self._cut_in(self._open.limits.request_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._stop_timer()
        self._open.discard(self.connection)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads a part of a request."""
        if self._timer is None and self.conn.their_state is h11.IDLE:
            self._cut_in(self._open.limits.request_seconds)
        # In pieces: the library does not count the bytes of a head that arrives at once.
        for begin in range(0, len(data), _PIECE_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[begin : begin + _PIECE_BYTES])
        self._look()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP; if it arrives while a request is answered, the connection is closed."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        self.transport.close()

    def pause_writing(self) -> None:
        """The client does not take what was sent."""
        super().pause_writing()
        self._open.waits(self.connection)
        self._cut_in(self._open.limits.answer_seconds)

    def resume_writing(self) -> None:
        """The client has taken it."""
        super().resume_writing()
        if self.transport.is_closing():
            return
        self._stop_timer()
        if self.cycle is not None and not self.cycle.response_complete:
            self._open.answers(self.connection)

    def on_response_complete(self) -> None:
        """An answer was handed to the kernel, or waits for the client to take it."""
        if self.conn.their_state is h11.SEND_BODY:
            self._cut_in(_LINGER_SECONDS)
        elif self.transport.get_write_buffer_size() > 0:
            self._cut_in(self._open.limits.answer_seconds)
        self._open.waits(self.connection)
        if self.conn.their_state is h11.DONE and self.conn.trailing_data[0]:
            # Browsers and Prometheus wait for an answer before the next request. A client that does not would be
            # served before all others, with everything that it has sent.
            self.transport.close()
        super().on_response_complete()
        self._look()

    def _look(self) -> None:
        """Notes when a whole request has arrived: the server is the one to act."""
        if self.cycle is None or self.cycle.response_complete or self.flow.write_paused:
            return
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_timer()
            self._open.answers(self.connection)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._open.answering > self._open.limits.answering and scope["path"] not in HEALTH_PATHS:
            await PlainTextResponse("too many requests at the same time; try again\n", 503, {"Retry-After": "1"})(
                scope, receive, send
            )
            return
        try:
            await self._inner_app({**scope, "streamdet.connection": self.connection}, receive, send)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - a request that fails is this request's answer (500), and logged
            self._unexpected.report("http", error, "a request is answered by 500")

    def _cut_in(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._cut)

    def _cut(self) -> None:
        self._timer = None
        self.transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _client_of(scope: Scope) -> str:
    client: Any = scope.get("client")
    return str(client[0]) if client else ""
