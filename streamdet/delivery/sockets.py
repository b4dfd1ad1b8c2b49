"""The sockets of the publisher, one for events and one for replay: bound, waited for and closed here.

All but `wake` belongs to one thread.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import zmq

from streamdet.config import PublisherConfig
from streamdet.delivery.connections import ConnectionGuard, descriptor_of
from streamdet.delivery.subscriptions import SUBSCRIBE, UNSUBSCRIBE, Subscriptions
from streamdet.errors import EndpointError
from streamdet.monitoring.delivery_metrics import DeliveryMetrics
from streamdet.security.curve import KeyFileError
from streamdet.security.endpoints import beside, remove_file
from streamdet.security.limits import Share
from streamdet.wire.replay import MAX_REQUEST_BYTES
from streamdet.worker import Worker

AUTO, OFF = "auto", "off"
_LINGER_MILLISECONDS = 2000
_HEARTBEAT_MILLISECONDS = 5000
_HEARTBEAT_TIMEOUT_MILLISECONDS = 20000
# The longest topic has about 530 bytes.
_MAX_SUBSCRIPTION_BYTES = 4096
_MAX_SUBSCRIPTIONS_PER_TURN = 1000
# Answers that wait for a slow client, at most 1 MiB each; and requests that wait of a fast one. ZeroMQ notices only
# after half of them that the client has taken some: all that it may ask at once must fit into the other half.
_ANSWERS_PER_CLIENT = 16
_REQUESTS_PER_CLIENT = 16
_MAX_PARTS = 16
# Requests take at most so long in one turn, and a twentieth of a core in all: events come first.
_MAX_TURN_SECONDS = 0.002
_SHARE_OF_REQUESTS = 0.05

_log = logging.getLogger(__name__)

Route = tuple[bytes, ...]
"""Where an answer goes: the parts that stand before it."""
# Plain numbers: combining the library's flags again for every part costs as much as sending it.
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


class Sockets:
    """Binds when it is made; its maker closes it.

    Args:
        config: where events go, and how many may wait for a slow subscriber.
        replay_endpoint: where requests come in: "off" for nowhere, "auto" for beside the events, if that can be had.
        metrics: counts subscriptions.

    Attributes:
        endpoint: what is bound; with the real port where port 0 was asked for.
        replay_endpoint: the same for requests; empty where they are not answered.

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
        self._asking = Share(_SHARE_OF_REQUESTS, _MAX_TURN_SECONDS)
        self._parts: list[zmq.Frame] = []
        self._ready: set[Any] = set()
        # A thread of ZeroMQ's for each socket: what comes in at one holds up nothing that leaves by the other.
        self._context = zmq.Context(io_threads=2)
        try:
            self._gate = ConnectionGuard(config, self._context, metrics, on_error)
        except KeyFileError:
            self._context.destroy()
            raise
        self._subscriptions = Subscriptions(self._gate.is_open)
        self._awake, self._waker = socket.socketpair()
        self._awake.settimeout(0)
        self._waker.settimeout(0)
        self._poller = zmq.Poller()
        self._poller.register(self._awake, zmq.POLLIN)
        self._replay: zmq.Socket[bytes] | None = None
        try:
            self._events = self._event_socket(config)
            self.endpoint = self._bind(self._events, "events", config.endpoint)
            self._bind_replay(replay_endpoint)
            self._gate.start()
        except BaseException:
            # Raised again, whatever it is: an object that was never made cannot be closed by its user.
            self.close()
            raise

    def wake(self) -> None:
        """Ends a wait; from any thread."""
        try:
            self._waker.send(b"\0")
        except BlockingIOError:
            return  # the thread has a thousand reasons to wake up already

    def wait(self, seconds: float) -> None:
        """Waits for whatever comes in, or for `wake`."""
        if self._replay is not None:
            pause = self._asking.wait_seconds()
            # What may not be answered yet must not wake us, or a flood would keep this thread busy.
            self._poller.register(self._replay, 0 if pause > 0 else zmq.POLLIN)
            seconds = min(seconds, pause) if pause > 0 else seconds
        self._ready = {ready for ready, _ in self._poller.poll(int(seconds * 1000) + 1 if seconds > 0 else 0)}
        try:
            self._awake.recv(4096)
        except BlockingIOError:
            return

    def send(self, parts: Sequence[bytes]) -> None:
        """Sends an event; never blocks: ZeroMQ drops it for the one subscriber whose queue is full."""
        *first, last = parts
        for part in first:
            self._events.send(part, _MORE)
        self._events.send(last, _NOBLOCK)

    def subscriptions(self) -> Iterator[bytes]:
        """What subscribers want: 1 (someone subscribes) or 0 (no one is subscribed any more), then the prefix."""
        for _ in range(_MAX_SUBSCRIPTIONS_PER_TURN if self._events in self._ready else 0):
            try:
                frame = self._events.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            message = frame.bytes
            # A subscriber may send anything; what is neither comes as it was sent, and is nothing.
            if message[:1] in (SUBSCRIBE, UNSUBSCRIBE) and self._gate.lets_in(frame):
                news = self._subscriptions.note(message, descriptor_of(frame))
                if news is not None:
                    yield news
        yield from self._subscriptions.ended()
        self._metrics.subscriptions(len(self._subscriptions))

    def requests(self) -> Iterator[tuple[Route, bytes]]:
        """Requests for replay, as many as there is time for."""
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
            self._asking.worked(time.thread_time() - worked)

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
        # Before the request stands who asks; a REQ socket and every proxy between adds a part.
        if not 2 <= len(parts) <= _MAX_PARTS or not self._gate.lets_in(frame):
            return None
        *route, request = (part.bytes for part in parts)
        return tuple(route), request

    def answer(self, route: Route, parts: Sequence[bytes]) -> bool:
        """Sends an answer; False when the client is gone, or has not taken those before."""
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
            self._asking.worked(time.thread_time() - began)
        return True

    def close(self) -> None:
        """Sends for two seconds at most what still waits, and frees the endpoints; may be called again."""
        self._awake.close()
        self._waker.close()
        if self._context.closed:
            return
        self._gate.close()
        # Before the sockets close: later the files may be those of the next daemon.
        for endpoint in (self.endpoint, self.replay_endpoint):
            if endpoint:
                remove_file(endpoint)
        if self._replay is not None:
            # A client that does not take its answers must not hold up the end.
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
            # No one asked for it: detection goes on without.
            _log.warning("%s; subscribers cannot ask for what they have lost", error)
            return
        self._replay = replay

    def _replay_socket(self) -> zmq.Socket[bytes]:
        replay = self._context.socket(zmq.ROUTER)
        replay.affinity = 2
        replay.sndhwm, replay.rcvhwm = _ANSWERS_PER_CLIENT, _REQUESTS_PER_CLIENT
        replay.maxmsgsize = MAX_REQUEST_BYTES
        # Otherwise what a client cannot take would be dropped without a word.
        replay.router_mandatory = 1
        return replay

    def _bind(self, bound: zmq.Socket[bytes], name: str, endpoint: str) -> str:
        bound.heartbeat_ivl = _HEARTBEAT_MILLISECONDS
        bound.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MILLISECONDS
        where = self._gate.bind(bound, name, endpoint)
        self._poller.register(bound, zmq.POLLIN)
        return where
