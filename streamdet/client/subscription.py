"""Subscribes to the events of a running daemon: typed, and honest about what was lost.

    from streamdet import DetectionEvent, Gap, subscribe

    with subscribe("tcp://127.0.0.1:5555", streams=["front-door"]) as events:
        for event in events:
            match event:
                case DetectionEvent():
                    print(event.stream, [found.label for found in event.detections])
                case Gap():
                    print(f"lost {event.count} events of {event.topic}")

With `heal=True` it begins with the newest event of every topic and gets what was lost by asking for it, so that a
`Gap` is only what no one has any more. A connection that breaks is made again by itself, for ever. Needs neither
torch nor a video library.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import zmq
import zmq.asyncio

from streamdet import wire
from streamdet.client.gaps import Gap, GapDetector, Item, Restart
from streamdet.client.recovery import OrderedRecovery
from streamdet.security.curve import ClientKeys, client_keys
from streamdet.security.endpoints import beside, parse_endpoint
from streamdet.wire import KINDS, Kind

_RECONNECT_MILLISECONDS = 100
_MAX_RECONNECT_MILLISECONDS = 5000
_CONNECT_TIMEOUT_MILLISECONDS = 5000
_HEARTBEAT_MILLISECONDS = 5000
_HEARTBEAT_TIMEOUT_MILLISECONDS = 20000
# What is asked while the daemon is away waits here; more is not sent, and asked again later.
_MAX_WAITING_REQUESTS = 16

# What its methods return depends on the kind of context: values, or what can be awaited.
Socket = Any


class Endpoints(NamedTuple):
    """Where a subscription connects.

    Attributes:
        events: where they are published.
        replay: where to ask for what was lost; None for nowhere.
        keys: of the daemon and of this client, where it asks for them.
    """

    events: str
    replay: str | None
    keys: ClientKeys | None


@contextmanager
def ending_on_error(context: zmq.Context[Any]) -> Iterator[None]:
    """Ends the context when what is done meanwhile fails."""
    try:
        yield
    except BaseException:
        # Raised again, whatever it is: only the context, which no one else would end, is ended here.
        context.destroy(linger=0)
        raise


def subscriber(
    context: zmq.Context[Any], endpoints: Endpoints, topics: Iterable[str], high_water_mark_events: int
) -> Socket:
    """One that is on its way to the events of these topics."""
    socket = context.socket(zmq.SUB)
    socket.rcvhwm = high_water_mark_events
    for topic in topics:
        socket.subscribe(topic)
    _connect(socket, endpoints.events, endpoints.keys)
    return socket


def asker(context: zmq.Context[Any], endpoints: Endpoints) -> Socket:
    """One that is on its way to where lost events are asked for."""
    socket = context.socket(zmq.DEALER)
    socket.sndhwm = _MAX_WAITING_REQUESTS
    _connect(socket, str(endpoints.replay), endpoints.keys)
    return socket


def _connect(socket: Socket, text: str, keys: ClientKeys | None) -> None:
    endpoint = parse_endpoint(text)
    socket.ipv6 = endpoint.is_ipv6
    socket.linger = 0
    socket.maxmsgsize = wire.MAX_MESSAGE_BYTES
    socket.reconnect_ivl = _RECONNECT_MILLISECONDS
    socket.reconnect_ivl_max = _MAX_RECONNECT_MILLISECONDS
    socket.connect_timeout = _CONNECT_TIMEOUT_MILLISECONDS
    socket.heartbeat_ivl = _HEARTBEAT_MILLISECONDS
    socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MILLISECONDS
    if keys is not None:
        keys.apply_to(socket)
    socket.connect(text)


def milliseconds_until(deadline: float) -> int | None:
    """For `poll`: rounded up, so that it does not wake before the time; None for ever."""
    return None if deadline == math.inf else max(0, math.ceil((deadline - time.monotonic()) * 1000))


__all__ = ["DEFAULT_KINDS", "AsyncSubscription", "Gap", "Restart", "Subscription", "subscribe", "subscribe_async"]

DEFAULT_KINDS: tuple[Kind, ...] = ("detections", "state")
"""What comes unless something else is asked for; pictures do not."""

_MAX_ANSWERS_PER_TURN = 16

_Order = GapDetector | OrderedRecovery


class Subscription:
    """Events of a daemon, in the order they arrive; made by `subscribe`.

    An iterator and a context manager. It belongs to one thread at a time. Without a time-out, iteration waits
    for ever, also while the daemon is away. A message that is no event raises `WireError`; the subscription
    can be used on after that.
    """

    def __init__(
        self, endpoints: Endpoints, topics: Iterable[str], order: _Order, timeout_seconds: float | None, events: int
    ) -> None:
        self._order = order
        self._timeout_seconds = timeout_seconds
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        with ending_on_error(self._context):
            self._events: Socket = subscriber(self._context, endpoints, topics, events)
            self._replay: Socket | None = asker(self._context, endpoints) if endpoints.replay else None
        for socket in filter(None, (self._events, self._replay)):
            self._poller.register(socket, zmq.POLLIN)

    def receive(self, timeout_seconds: float | None = None) -> Item | None:
        """Waits for the next event.

        Args:
            timeout_seconds: how long to wait at the most; None for ever, 0 not at all.

        Returns:
            The event, or the gap before it, or None when the time is over.

        Raises:
            WireError: a message came that is not an event.
            EndpointError: with `heal`, when events come but no one answers at the replay endpoint.
        """
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        order, replay = self._order, self._replay
        while not order.ready:
            self._poller.register(self._events, 0 if order.is_full else zmq.POLLIN)
            readable = dict(self._poller.poll(milliseconds_until(min(deadline, order.due()))))
            now = time.monotonic()
            if replay is not None and replay in readable:
                for _ in range(_MAX_ANSWERS_PER_TURN):
                    if not replay.poll(0):
                        break
                    order.answer(replay.recv_multipart(), now)
            if self._events in readable:
                order.message(self._events.recv_multipart(), now)
            for request in order.requests(now):
                if replay is not None:
                    with suppress(zmq.Again):  # it will be asked again
                        replay.send(request, zmq.NOBLOCK)
            if not order.ready and now >= deadline:
                return None
        return order.ready.popleft()

    def close(self) -> None:
        """Ends the subscription; may be called again."""
        self._context.destroy(linger=0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        if self._context.closed:
            raise StopIteration
        event = self.receive(self._timeout_seconds)
        if event is None:
            raise _timed_out(self._timeout_seconds)
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncSubscription:
    """`Subscription` for asyncio; made by `subscribe_async`, inside a running event loop."""

    def __init__(
        self, endpoints: Endpoints, topics: Iterable[str], order: _Order, timeout_seconds: float | None, events: int
    ) -> None:
        self._order = order
        self._timeout_seconds = timeout_seconds
        self._context = zmq.asyncio.Context()
        self._poller = zmq.asyncio.Poller()
        with ending_on_error(self._context):
            self._events: Socket = subscriber(self._context, endpoints, topics, events)
            self._replay: Socket | None = asker(self._context, endpoints) if endpoints.replay else None
        for socket in filter(None, (self._events, self._replay)):
            self._poller.register(socket, zmq.POLLIN)

    async def receive(self, timeout_seconds: float | None = None) -> Item | None:
        """Waits for the next event, as `Subscription.receive` does."""
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        order, replay = self._order, self._replay
        while not order.ready:
            self._poller.register(self._events, 0 if order.is_full else zmq.POLLIN)
            readable = dict(await self._poller.poll(milliseconds_until(min(deadline, order.due()))))
            now = time.monotonic()
            if replay is not None and replay in readable:
                for _ in range(_MAX_ANSWERS_PER_TURN):
                    if not await replay.poll(0):
                        break
                    order.answer(await replay.recv_multipart(), now)
            if self._events in readable:
                order.message(await self._events.recv_multipart(), now)
            for request in order.requests(now):
                if replay is not None:
                    with suppress(zmq.Again):  # it will be asked again
                        await replay.send(request, zmq.NOBLOCK)
            if not order.ready and now >= deadline:
                return None
        return order.ready.popleft()

    def close(self) -> None:
        """Ends the subscription; may be called again."""
        self._context.destroy(linger=0)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if self._context.closed:
            raise StopAsyncIteration
        event = await self.receive(self._timeout_seconds)
        if event is None:
            raise _timed_out(self._timeout_seconds)
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def subscribe(
    endpoint: str,
    streams: Iterable[str] | None = None,
    kinds: Iterable[Kind] = DEFAULT_KINDS,
    labels: Iterable[str] | None = None,
    *,
    heal: bool = False,
    replay_endpoint: str | None = None,
    server_key: Path | str | None = None,
    client_key_file: Path | str | None = None,
    timeout_seconds: float | None = None,
    high_water_mark_events: int = 1000,
) -> Subscription:
    """Subscribes to the events of a running daemon, or of one that will run later.

    Args:
        endpoint: `tcp://HOST:PORT` or `ipc://PATH`, as in the daemon's `[publisher]` table.
        streams: names of the streams; None for all of them, also those that are added later.
        kinds: any of "detections", "state" and "preview". The daemon makes pictures only while someone asks for
            previews. Ask for them in a subscription of their own: what waits for a slow reader waits in one line
            with all else that it subscribed to, so pictures could take the place of detections.
        labels: only detections with these labels stay in the events; events without any come all the same.
        heal: begin with the newest event of each topic that there is, and ask the daemon for what is lost later: events
            come in order and exactly once per topic, a `Gap` tells only of what the daemon has no more, and a
            `Restart` that it was started again. An event may have to wait for those before it. Previews are not healed.
        replay_endpoint: where to ask, as in the daemon's `[replay]` table; unless given, the port after that of
            `endpoint`, or its path with `-replay` behind it, as the daemon does.
        server_key: the file with the daemon's public key, where the daemon asks for keys (`[publisher] curve_...`).
        client_key_file: the file with both keys of this client, as `streamdet keys generate` makes it. A key that the
            daemon does not let in is no error: nothing comes until it does.
        timeout_seconds: iteration raises `TimeoutError` when nothing came for so long; None to wait for ever.
        high_water_mark_events: how many events may wait on either side for a slow reader; what exceeds it is
            lost, and told as a `Gap` or healed.

    Returns:
        An iterator of `DetectionEvent`, `StateEvent`, `PreviewEvent`, `Gap` and `Restart`; best used in a `with`
        statement. After a restart of the daemon events have a new `epoch` and `seq` begins again; that is not a `Gap`.

    Raises:
        EndpointError: an endpoint is malformed. That no one answers there is not an error.
        KeyFileError: a file of keys cannot be used.
        ValueError: nothing is left to subscribe to.
    """
    topics = _topics(streams, kinds)
    keys = client_keys(server_key, client_key_file)
    order, endpoints = _order(endpoint, topics, labels, replay_endpoint, keys, heal=heal)
    return Subscription(endpoints, topics, order, timeout_seconds, high_water_mark_events)


def subscribe_async(
    endpoint: str,
    streams: Iterable[str] | None = None,
    kinds: Iterable[Kind] = DEFAULT_KINDS,
    labels: Iterable[str] | None = None,
    *,
    heal: bool = False,
    replay_endpoint: str | None = None,
    server_key: Path | str | None = None,
    client_key_file: Path | str | None = None,
    timeout_seconds: float | None = None,
    high_water_mark_events: int = 1000,
) -> AsyncSubscription:
    """Does what `subscribe` does, for asyncio; arguments and errors are the same.

    Iterate with `async for`, within `async with`.
    """
    topics = _topics(streams, kinds)
    keys = client_keys(server_key, client_key_file)
    order, endpoints = _order(endpoint, topics, labels, replay_endpoint, keys, heal=heal)
    return AsyncSubscription(endpoints, topics, order, timeout_seconds, high_water_mark_events)


def _order(
    endpoint: str,
    topics: list[str],
    labels: Iterable[str] | None,
    replay_endpoint: str | None,
    keys: ClientKeys | None,
    *,
    heal: bool,
) -> tuple[_Order, Endpoints]:
    if not heal:
        return GapDetector(labels), Endpoints(endpoint, None, keys)
    replay = beside(endpoint) if replay_endpoint is None else replay_endpoint
    return OrderedRecovery(topics, labels, replay), Endpoints(endpoint, replay, keys)


def _topics(streams: Iterable[str] | None, kinds: Iterable[Kind]) -> list[str]:
    if isinstance(streams, str) or isinstance(kinds, str):
        message = "streams and kinds are lists of words, not one word"
        raise TypeError(message)
    chosen = list(kinds)
    for kind in chosen:
        if kind not in KINDS:
            message = f"unknown kind {kind!r}; there are {', '.join(KINDS)}"
            raise ValueError(message)
    names = None if streams is None else list(streams)
    topics = [f"{kind}/" for kind in chosen] if names is None else [wire.topic(k, s) for k in chosen for s in names]
    if not topics:
        message = "nothing to subscribe to: streams and kinds must not be empty"
        raise ValueError(message)
    return topics


def _timed_out(seconds: float | None) -> TimeoutError:
    return TimeoutError(f"no event within {seconds:g} seconds")
