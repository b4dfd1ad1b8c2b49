"""The sockets of the publisher, one for events and one for replay: bound, read, written and closed here.

`Sockets` belongs to the publisher's thread, except that its `wakeup` may be rung by any. `Subscriptions` remembers
which connection is subscribed to which prefix: ZeroMQ passes on that a connection unsubscribes from a prefix even
where it never subscribed to it, so that one subscriber could switch off what others look at. Here it can only take
back its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import zmq

from streamdet.config import PublisherConfig
from streamdet.delivery.connections import ConnectionGuard, descriptor_of
from streamdet.errors import EndpointError
from streamdet.monitoring.metrics import DeliveryMetrics
from streamdet.security.endpoints import beside, remove_file
from streamdet.security.limits import Share
from streamdet.wire.replay import MAX_REQUEST_BYTES
from streamdet.worker import Wakeup, Worker

AUTO, OFF = "auto", "off"
SUBSCRIBE, UNSUBSCRIBE = b"\x01", b"\x00"
_LINGER_MILLISECONDS = 2000
# A dead line is noticed after four such times, and a client whose socket accepts nothing after a little longer.
_KEEPALIVE_SECONDS, _LOST_KEEPALIVES = 5, 3
_ACCEPTS_NOTHING_MILLISECONDS = 25_000
# The longest topic has about 530 bytes.
_MAX_SUBSCRIPTION_BYTES = 4096
_MAX_SUBSCRIPTIONS_PER_TURN = 1000
# All subscriptions of all connections that are remembered; more are not counted, and cannot be taken back.
_MAX_SUBSCRIPTIONS = 100_000
# Looking for connections that have ended takes some microseconds for each: at most this often,
_PAUSE_SECONDS = 0.1
# and this often without a sign that one has ended: its descriptor may have become that of another, and hidden the end.
_LOOK_AGAIN_SECONDS = 5.0
# Answers that wait for a slow client, at most 1 MiB each, and requests that wait of a fast one. ZeroMQ notices only
# after half of them that the client has taken some: all requests that a client has pending must fit into the other
# half.
_ANSWERS_PER_CLIENT = 16
_REQUESTS_PER_CLIENT = 16
_MAX_PARTS = 16
# Requests take at most this long in one turn, and a twentieth of a core in all: events come first.
_MAX_TURN_SECONDS = 0.002
_SHARE_OF_REQUESTS = 0.05

_log = logging.getLogger(__name__)

Route = tuple[bytes, ...]
"""Where an answer goes: the parts of the message before it; the first is the client's."""
# Plain numbers: combining the library's flags again for every part costs as much as sending it.
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


class Sockets:
    """Both sockets, bound as soon as it is made; the caller closes it.

    Args:
        config: where events go, and how many may wait for a slow subscriber.
        replay_endpoint: where requests come in: "off" for nowhere, "auto" for beside the events, if that is free.
        metrics: counts subscriptions.
        on_error: called when the thread that guards the connections ends with an error.

    Attributes:
        endpoint: the bound endpoint; with the real port where port 0 was configured.
        replay_endpoint: the same for requests; empty where they are not answered.
        wakeup: ends a wait; any thread may ring it.

    Raises:
        EndpointError: an endpoint cannot be bound.
        KeyFileError: the daemon's key cannot be used.
    """

    def __init__(
        self,
        config: PublisherConfig,
        replay_endpoint: str,
        metrics: DeliveryMetrics,
        on_error: Callable[[Worker], None] | None = None,
    ) -> None:
        self.endpoint = ""
        self.replay_endpoint = ""
        self._metrics = metrics
        self._request_time = Share(_SHARE_OF_REQUESTS, _MAX_TURN_SECONDS)
        self._parts: list[zmq.Frame] = []
        self._ready: set[Any] = set()
        self.wakeup = Wakeup()
        # One of ZeroMQ's threads for each socket: requests that come in do not delay events that leave.
        self._context = zmq.Context(io_threads=2)
        try:
            self._guard = ConnectionGuard(config, self._context, metrics, on_error)
        except BaseException:
            # Raised again, whatever it is: an object that was never made cannot be closed by its caller, as below.
            self.wakeup.close()
            self._context.destroy(linger=0)
            raise
        self._subscriptions = Subscriptions(self._guard.is_open)
        self._poller = zmq.Poller()
        self._poller.register(self.wakeup, zmq.POLLIN)
        self._replay: zmq.Socket[bytes] | None = None
        try:
            self._events = self._event_socket(config)
            self.endpoint = self._bind(self._events, "events", config.endpoint)
            self._bind_replay(replay_endpoint)
            self._guard.start()
        except BaseException:
            # Raised again, whatever it is: an object that was never made cannot be closed by its caller.
            self.close()
            raise

    def watch(self, other: zmq.Socket[bytes]) -> None:
        """Has `wait` end also when this socket can be read."""
        self._poller.register(other, zmq.POLLIN)

    def wait(self, seconds: float) -> None:
        """Waits until something comes in or `wakeup` is rung, but at most for this time."""
        if self._replay is not None:
            pause = self._request_time.wait_seconds()
            # Requests that may not be answered yet must not end the wait, or a flood would keep this thread busy.
            self._poller.register(self._replay, 0 if pause > 0 else zmq.POLLIN)
            seconds = min(seconds, pause) if pause > 0 else seconds
        self._ready = {ready for ready, _ in self._poller.poll(int(seconds * 1000) + 1 if seconds > 0 else 0)}
        self.wakeup.clear()

    def send(self, parts: Sequence[bytes]) -> None:
        """Sends an event; never blocks: ZeroMQ drops it for a subscriber whose queue is full."""
        *first, last = parts
        for part in first:
            self._events.send(part, _MORE)
        self._events.send(last, _NOBLOCK)

    def subscriptions(self) -> Iterator[bytes]:
        """Changes of what is subscribed to: 1 (a subscription) or 0 (the last one has ended), then the prefix."""
        for _ in range(_MAX_SUBSCRIPTIONS_PER_TURN if self._events in self._ready else 0):
            try:
                frame = self._events.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            message = frame.bytes
            # A subscriber may send any message; one that begins with neither byte means nothing.
            if message[:1] in (SUBSCRIBE, UNSUBSCRIBE) and self._guard.admits(frame):
                news = self._subscriptions.note(message, descriptor_of(frame))
                if news is not None:
                    yield news
        yield from self._subscriptions.ended()
        self._metrics.subscriptions(len(self._subscriptions))

    def requests(self) -> Iterator[tuple[Route, bytes]]:
        """Requests for replay, each with the route of its answer, as many as there is time for."""
        if self._replay is None or self._replay not in self._ready:
            return
        began, worked = time.monotonic(), time.thread_time()
        try:
            while time.monotonic() - began < _MAX_TURN_SECONDS:
                request = self._next_request(self._replay)
                if request is not None:
                    yield request
        except zmq.Again:
            pass
        finally:
            self._request_time.worked(time.thread_time() - worked)

    def _next_request(self, replay: zmq.Socket[bytes]) -> tuple[Route, bytes] | None:
        """Reads one part; the request that it completes, or None.

        A message may have any number of parts, so it is not read at once, and no more of it kept than a request has.

        Raises:
            zmq.Again: nothing is left to read.
        """
        frame: zmq.Frame = replay.recv(zmq.NOBLOCK, copy=False)
        if len(self._parts) <= _MAX_PARTS:
            self._parts.append(frame)
        if frame.more:
            return None
        parts, self._parts = self._parts, []
        # The first parts are the route; a REQ socket and every proxy between adds one.
        if not 2 <= len(parts) <= _MAX_PARTS or not self._guard.admits(frame):
            return None
        *route, request = (part.bytes for part in parts)
        return tuple(route), request

    def answer(self, route: Route, parts: Sequence[bytes]) -> bool:
        """Sends an answer; False where the client is gone, or has not taken the answers before."""
        if self._replay is None:
            return False
        began = time.thread_time()
        try:
            self._replay.send_multipart([*route, *parts], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        finally:
            self._request_time.worked(time.thread_time() - began)
        return True

    def close(self) -> None:
        """Sends events that still wait, for two seconds at most, and frees the endpoints; may be called again."""
        self.wakeup.close()
        if self._context.closed:
            return
        self._guard.close()
        # Before the sockets close: later the files may be those of the next daemon.
        for endpoint in (self.endpoint, self.replay_endpoint):
            if endpoint:
                remove_file(endpoint)
        if self._replay is not None:
            # A client that does not take its answers must not delay the end.
            self._replay.close(linger=0)
        self._context.destroy(linger=_LINGER_MILLISECONDS)

    def _event_socket(self, config: PublisherConfig) -> zmq.Socket[bytes]:
        events = self._context.socket(zmq.XPUB)
        events.affinity = 1
        events.xpub_verboser = 1
        events.sndhwm = config.high_water_mark_events
        events.maxmsgsize = _MAX_SUBSCRIPTION_BYTES
        return events

    def _bind_replay(self, endpoint: str) -> None:
        if endpoint == OFF:
            return
        replay = self._replay_socket()
        try:
            where = beside(self.endpoint) if endpoint == AUTO else endpoint
            self.replay_endpoint = self._bind(replay, "replay", where)
        except EndpointError as error:
            if endpoint != AUTO:
                raise
            replay.close(linger=0)
            # It was not configured: detection goes on without.
            _log.warning("%s; subscribers cannot request lost events", error)
            return
        self._replay = replay

    def _replay_socket(self) -> zmq.Socket[bytes]:
        replay = self._context.socket(zmq.ROUTER)
        replay.affinity = 2
        replay.sndhwm, replay.rcvhwm = _ANSWERS_PER_CLIENT, _REQUESTS_PER_CLIENT
        replay.maxmsgsize = MAX_REQUEST_BYTES
        # Otherwise an answer that a client cannot take would be dropped silently.
        replay.router_mandatory = 1
        return replay

    def _bind(self, bound: zmq.Socket[bytes], name: str, endpoint: str) -> str:
        # Not ZeroMQ's heartbeats: libzmq 4.3.5 ends the process when one is due on a connection that has ended while
        # its input was held back.
        bound.tcp_keepalive, bound.tcp_keepalive_cnt = 1, _LOST_KEEPALIVES
        bound.tcp_keepalive_idle = bound.tcp_keepalive_intvl = _KEEPALIVE_SECONDS
        bound.setsockopt(zmq.TCP_MAXRT, _ACCEPTS_NOTHING_MILLISECONDS)
        where = self._guard.bind(bound, name, endpoint)
        self._poller.register(bound, zmq.POLLIN)
        return where


class Subscriptions:
    """Which connections are subscribed to which prefix.

    Args:
        is_open: whether a connection, by its descriptor, has not ended.
        clock: monotonic seconds.
    """

    def __init__(self, is_open: Callable[[int], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._is_open = is_open
        self._clock = clock
        self._by_connection: dict[int, set[bytes]] = {}
        # The number of connections that are subscribed to each prefix.
        self._readers: dict[bytes, int] = {}
        self._count = 0
        self._some_ended = False
        self._looked_at = clock()

    def __len__(self) -> int:
        """How many prefixes there are."""
        return len(self._readers)

    def note(self, message: bytes, descriptor: int | None) -> bytes | None:
        """Takes a message of an XPUB socket that passes on every subscription.

        Args:
            message: 1 (subscribe) or 0 (unsubscribe), then the prefix.
            descriptor: of the connection that sent it; None where ZeroMQ reports the end of a subscribed connection.

        Returns:
            The message where it is news: a connection subscribes, or the last one unsubscribes from the prefix.
        """
        prefix = message[1:]
        if descriptor is None:
            self._some_ended = True
            return None
        own = self._by_connection.get(descriptor, set())
        if message[:1] == SUBSCRIBE:
            if prefix not in own and self._count < _MAX_SUBSCRIPTIONS:
                own.add(prefix)
                self._by_connection[descriptor] = own
                self._readers[prefix] = self._readers.get(prefix, 0) + 1
                self._count += 1
            return message
        if prefix not in own:
            return None
        own.remove(prefix)
        if not own:
            del self._by_connection[descriptor]
        return message if self._is_last(prefix) else None

    def ended(self) -> Iterator[bytes]:
        """Messages about prefixes whose last connection has ended, to be called from time to time."""
        now = self._clock()
        if now - self._looked_at < (_PAUSE_SECONDS if self._some_ended else _LOOK_AGAIN_SECONDS):
            return
        self._some_ended, self._looked_at = False, now
        for descriptor in list(self._by_connection):
            if self._is_open(descriptor):
                continue
            for prefix in self._by_connection.pop(descriptor):
                if self._is_last(prefix):
                    yield UNSUBSCRIBE + prefix

    def _is_last(self, prefix: bytes) -> bool:
        """Counts one subscription less; whether it was the last of the prefix."""
        self._count -= 1
        self._readers[prefix] -= 1
        if self._readers[prefix]:
            return False
        del self._readers[prefix]
        return True
