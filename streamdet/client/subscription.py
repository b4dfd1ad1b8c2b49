"""Subscribes to the events of a running daemon: typed, and with every loss reported.

    from streamdet import DetectionEvent, Gap, subscribe

    with subscribe("tcp://127.0.0.1:5555", streams=["front-door"]) as events:
        for event in events:
            match event:
                case DetectionEvent():
                    print(event.stream, [found.label for found in event.detections])
                case Gap():
                    print(f"lost {event.count} events of {event.topic}")

With `replay=True` it begins with the newest event of every topic and asks the daemon for events that were lost; a
`Gap` then reports only events that the daemon no longer keeps. A broken connection is made again, without a limit. The
client needs neither torch nor a video library.

`gaps.py` makes items of messages, with `replay` `recovery.py` does, and `picture.py` asks for pictures. Here are the
sockets, and the two ways to wait for them: `Subscription` for threads and `AsyncSubscription` for asyncio.
"""

from __future__ import annotations

import asyncio
import math
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from streamdet import wire
from streamdet.client.gaps import Gap, GapDetector, Item, Restart
from streamdet.client.picture import Pictured, PictureFetch, picture_info
from streamdet.client.recovery import OrderedRecovery, Position, RecoveryTimes
from streamdet.security.curve import ClientKeys, client_keys
from streamdet.security.endpoints import beside, parse_endpoint
from streamdet.wire import KINDS, Kind

__all__ = ["DEFAULT_KINDS", "AsyncSubscription", "Gap", "Restart", "Subscription", "subscribe_async", "topics_of"]

HEAL_IS_REPLAY = "heal= is now replay=; heal= goes with the next version"
DEFAULT_KINDS: tuple[Kind, ...] = ("detections", "state")
"""The kinds that `subscribe` yields by default."""

_RECONNECT_MILLISECONDS = 100
_MAX_RECONNECT_MILLISECONDS = 2000
_CONNECT_TIMEOUT_MILLISECONDS = 5000
_HEARTBEATS_UNTIL_TIMEOUT = 4
_LOST_KEEPALIVES = 3
# Requests that are queued while the daemon is away; others are sent later.
_MAX_WAITING_REQUESTS = 16
_MAX_ANSWERS_PER_TURN = 16
_MAX_EVENTS_PER_TURN = 100


class _Connection:
    """The sockets of a subscription and the items received over them; its two subclasses wait for more.

    A message that cannot be read raises `WireError`; the subscription can be used after that.

    Args:
        endpoint: `tcp://HOST:PORT` or `ipc://PATH`, as in the daemon's `[publisher]` table. The daemon may start later.
        streams: names of the streams; None for all of them, also those that are added later.
        kinds: any of "detections", "objects", "alerts", "state" and "preview". The daemon makes pictures only while a
            client subscribes to previews. Use a subscription of their own for them: all that waits for a slow reader
            waits in one queue, so pictures could take the place of detections.
        labels: only detections with these labels stay in the events; events without any come as well. Objects of other
            labels do not come, nor do alerts about one; alerts about several objects or none have no label and come.
            The label of an object may change while it is seen.
        replay: begin with the newest event of each topic, and ask the daemon for events that are lost later: events
            come in order and exactly once per topic, a `Gap` stands only for what the daemon no longer keeps, and a
            `Restart` for a new epoch. An event may have to wait for those before it. Previews are not replayed.
        resume: with `replay`, the `position` of an earlier subscription: go on after exactly the last item that it
            yielded, in the same epoch and those after it, from the daemon's memory or its spool. A `Gap` stands for
            what is no longer kept, a `Restart` for each new epoch. None to begin with the newest events, an empty one
            to begin with what is published once the daemon has answered.
        replay_endpoint: where to ask, as in the daemon's `[replay]` table; by default the port after that of
            `endpoint`, or its path with `-replay` appended, as in the daemon.
        server_key: the file with the daemon's public key, where the daemon asks for keys (`[publisher] curve_...`).
        client_key_file: the file with both keys of this client, as `streamdet keys generate` makes it. A key that the
            daemon does not allow is no error: nothing comes until the daemon allows it.
        timeout_seconds: iteration raises `TimeoutError` after this time without an event; None for no limit.
        high_water_mark_events: how many events may wait on either side for a slow reader; events beyond it are
            lost, and reported as a `Gap` or replayed.
        heartbeat_seconds: how often it is tested whether the daemon answers, over a second connection. A daemon that
            hangs, or a dead line, is noticed after four times as long; a line that is dead is made again.
        recovery_times: with `replay`, how long to wait for what may be lost.
        heal: the former name of `replay`; goes with the next version.

    Raises:
        EndpointError: an endpoint is malformed. A daemon that does not answer is not an error.
        KeyFileError: a key file cannot be used.
        ValueError: `streams` or `kinds` is empty, or `resume` is given without `replay`.
    """

    def __init__(
        self,
        endpoint: str,
        streams: Iterable[str] | None = None,
        kinds: Iterable[Kind] = DEFAULT_KINDS,
        labels: Iterable[str] | None = None,
        *,
        replay: bool = False,
        resume: Position | None = None,
        replay_endpoint: str | None = None,
        server_key: Path | str | None = None,
        client_key_file: Path | str | None = None,
        timeout_seconds: float | None = None,
        high_water_mark_events: int = 1000,
        heartbeat_seconds: float = 5.0,
        recovery_times: RecoveryTimes | None = None,
        heal: bool | None = None,
    ) -> None:
        if heal is not None:
            warnings.warn(HEAL_IS_REPLAY, DeprecationWarning, stacklevel=2)
            replay = replay or heal
        if resume is not None and not replay:
            message = "resume= needs replay=True: what has come since is asked for"
            raise ValueError(message)
        self._timeout_seconds = timeout_seconds
        self._endpoint = endpoint
        self._replay_endpoint = replay_endpoint
        self._heartbeat_milliseconds = max(1, round(heartbeat_seconds * 1000))
        self._kinds = _checked_kinds(kinds)
        self._topics = topics_of(streams, self._kinds)
        self._order: GapDetector | OrderedRecovery = GapDetector(labels)
        self._keys = keys = client_keys(server_key, client_key_file)
        self._pictures: zmq.Socket[bytes] | None = None  # made for the first picture
        if replay:
            replay_endpoint = replay_endpoint or beside(endpoint)
            self._order = OrderedRecovery(self._topics, labels, replay_endpoint, recovery_times, resume)
        self._context: zmq.Context[Any] = zmq.Context()
        try:
            self._events = self._context.socket(zmq.SUB)
            self._events.rcvhwm = high_water_mark_events
            for topic in self._topics:
                self._events.subscribe(topic)
            # A connection over which nothing ever comes: only there can heartbeats tell whether the daemon hangs. Where
            # messages wait for a slow reader, none is read, and libzmq aborts the process if it makes the connection
            # again while its queue is full (https://github.com/zeromq/libzmq/issues/3596).
            self._pulse = self._context.socket(zmq.SUB)
            # Before connecting: on the same machine the handshake may be over at once.
            changes = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
            self._open = {socket.get_monitor_socket(changes): False for socket in (self._events, self._pulse)}
            self._connect(self._events, endpoint, keys, heartbeats=False)
            self._connect(self._pulse, endpoint, keys)
            self._requests: zmq.Socket[bytes] | None = None
            if replay and replay_endpoint:
                self._requests = self._context.socket(zmq.DEALER)
                self._requests.sndhwm = _MAX_WAITING_REQUESTS
                self._connect(self._requests, replay_endpoint, keys)
        except BaseException:
            # Whatever it is, it is raised again: this only closes the context, which no caller can reach.
            self._context.destroy(linger=0)
            raise

    @property
    def is_connected(self) -> bool:
        """Whether the connection to the daemon's events is open; false after `close`."""
        if self._context.closed:
            return False
        self._note_connection()
        return all(self._open.values())

    @property
    def waiting_items(self) -> int:
        """How many items have been received, and wait to be handed out or for those before them."""
        return len(self._order.ready) + self._order.held

    def position(self) -> dict[str, tuple[str, int]]:
        """How far the items that were yielded reach, by topic: what a later subscription takes as `resume`.

        Read and kept after an item has been handled, and before the next one is received, it says what was handled.
        JSON can hold it. A removed stream leaves it as soon as the daemon no longer knows its numbers. After an empty
        `resume` it is empty until the daemon has answered.

        Raises:
            ValueError: the subscription was made without `replay`.
        """
        if not isinstance(self._order, OrderedRecovery):
            message = "a subscription without replay has no position"
            raise ValueError(message)  # noqa: TRY004 - the type is right, the subscription is not
        return self._order.position()

    def set_streams(self, streams: Iterable[str]) -> None:
        """Changes the streams that are subscribed to, over the same connection; only without `replay`.

        Raises:
            ValueError: there are no streams, or the subscription was made with `replay`.
        """
        if self._requests is not None:
            message = "the streams of a subscription with replay cannot be changed"
            raise ValueError(message)
        before, self._topics = self._topics, topics_of(streams, self._kinds)
        for topic in set(self._topics).difference(before):
            self._events.subscribe(topic)
        for topic in set(before).difference(self._topics):
            self._events.unsubscribe(topic)

    def close(self) -> None:
        """Ends the subscription; may be called again."""
        self._context.destroy(linger=0)

    def _connect(
        self, socket: zmq.Socket[bytes], text: str, keys: ClientKeys | None, *, heartbeats: bool = True
    ) -> None:
        socket.ipv6 = parse_endpoint(text).is_ipv6
        socket.linger = 0
        socket.maxmsgsize = wire.MAX_MESSAGE_BYTES
        socket.reconnect_ivl = _RECONNECT_MILLISECONDS
        socket.reconnect_ivl_max = _MAX_RECONNECT_MILLISECONDS
        socket.connect_timeout = _CONNECT_TIMEOUT_MILLISECONDS
        socket.heartbeat_ivl = self._heartbeat_milliseconds if heartbeats else 0
        socket.heartbeat_timeout = _HEARTBEATS_UNTIL_TIMEOUT * self._heartbeat_milliseconds
        # The kernel of the other side answers these, whatever waits here.
        socket.tcp_keepalive, socket.tcp_keepalive_cnt = 1, _LOST_KEEPALIVES
        socket.tcp_keepalive_idle = socket.tcp_keepalive_intvl = math.ceil(self._heartbeat_milliseconds / 1000)
        if keys is not None:
            keys.apply_to(socket)
        socket.connect(text)

    def _take(self) -> bool:
        """Reads what has arrived and sends the requests that are due, without waiting; whether an item is ready."""
        order, now = self._order, time.monotonic()
        if order.ready:
            return True
        if self._requests is not None:
            with suppress(zmq.Again):
                for _ in range(_MAX_ANSWERS_PER_TURN):
                    order.answer(self._requests.recv_multipart(zmq.NOBLOCK), now)
        with suppress(zmq.Again):
            for _ in range(_MAX_EVENTS_PER_TURN):
                # One at a time, so that a message that cannot be read is reported in its place.
                if order.ready or order.is_full:
                    break
                order.message(self._events.recv_multipart(zmq.NOBLOCK), now)
        if self._requests is not None:
            with suppress(zmq.Again):  # those that cannot be sent now are due again later
                for request in order.requests(now):
                    self._requests.send(request, zmq.NOBLOCK)
        if not order.ready:
            self._note_connection()
        return bool(order.ready)

    def _fetch(self, pictured: Pictured, timeout_seconds: float) -> PictureFetch:
        """Begins to fetch a picture, over a socket of its own, so that events need not wait for it."""
        if self._pictures is None:
            self._pictures = self._context.socket(zmq.DEALER)
            self._pictures.sndhwm = _MAX_WAITING_REQUESTS
            self._connect(self._pictures, self._replay_endpoint or beside(self._endpoint), self._keys)
        return PictureFetch(picture_info(pictured), time.monotonic(), timeout_seconds)

    def _take_picture(self, fetch: PictureFetch) -> bool:
        """Takes the answers that have come, without waiting, and sends what is due; whether the picture is fetched."""
        socket = self._pictures
        if socket is None:
            return True
        now = time.monotonic()
        with suppress(zmq.Again):
            while not fetch.is_done:
                fetch.answer(socket.recv_multipart(zmq.NOBLOCK), now)
        request = fetch.request(now)
        if request is not None:
            with suppress(zmq.Again):  # the daemon is away; it is sent again later
                socket.send(request, zmq.NOBLOCK)
        return fetch.is_done

    def _note_connection(self) -> None:
        for monitor in self._open:
            with suppress(zmq.Again):
                while True:
                    event = recv_monitor_message(monitor, zmq.NOBLOCK)
                    self._open[monitor] = event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED

    def _prepare(self, poller: zmq.Poller, deadline: float) -> int | None:
        """Registers the sockets with a poller; returns the milliseconds to wait, None for no limit."""
        poller.register(self._events, 0 if self._order.is_full else zmq.POLLIN)
        if self._requests is not None:
            poller.register(self._requests, zmq.POLLIN)
        seconds = min(deadline, self._order.due()) - time.monotonic()
        # Rounded up, so that it does not wake too early.
        return None if seconds == math.inf else max(0, math.ceil(seconds * 1000))

    def _timed_out(self) -> TimeoutError:
        return TimeoutError(f"no event within {self._timeout_seconds:g} seconds")


class Subscription(_Connection):
    """Events of a daemon, in the order in which they arrive.

    A context manager, and an iterator of the events of the chosen kinds (`DetectionEvent`, `ObjectEvent`, `AlertEvent`,
    `StateEvent`, `PreviewEvent`), of `Gap` and of `Restart`, for one thread at a time. Without a timeout, iteration
    waits without a limit, also while the daemon is down. After a restart of the daemon events have a new `epoch` and
    `seq` begins at 1 again; that is not a `Gap`.
    """

    def receive(self, timeout_seconds: float | None = None) -> Item | None:
        """Waits for the next event.

        Args:
            timeout_seconds: longest time to wait; None for no limit, 0 to return at once.

        Returns:
            The event, or the gap before it, or None when the time is over.

        Raises:
            WireError: a message came that is not an event.
            EndpointError: with `replay`, when events come but the replay endpoint does not answer.
        """
        deadline = _deadline(timeout_seconds)
        poller = zmq.Poller()
        while not self._take():
            if time.monotonic() >= deadline:
                return None
            poller.poll(self._prepare(poller, deadline))
        return self._order.take()

    def picture(self, event: Pictured, timeout_seconds: float = 10.0) -> bytes | None:
        """Fetches the picture that an event names, in JPEG.

        Events that come meanwhile wait. The picture comes over the replay endpoint, with or without `replay`.

        Args:
            event: an `ObjectEvent` or `AlertEvent`, its `PictureInfo`, or the id of the picture.
            timeout_seconds: longest time to wait, while the daemon is away or busy.

        Returns:
            The picture; None where the event names none, or it is not kept (any longer).

        Raises:
            TimeoutError: the daemon has not answered.
            EndpointError: the daemon cannot answer, such as one of an earlier version.
        """
        fetch = self._fetch(event, timeout_seconds)
        poller = zmq.Poller()
        while not fetch.is_done and not self._take_picture(fetch):
            poller.register(self._pictures, zmq.POLLIN)
            poller.poll(fetch.wait_milliseconds(time.monotonic()))
        return fetch.jpeg

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        if self._context.closed:
            raise StopIteration
        item = self.receive(self._timeout_seconds)
        if item is None:
            raise self._timed_out()
        return item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncSubscription(_Connection):
    """`Subscription` for asyncio; belongs to one event loop.

    Iterate with `async for`, within `async with`.
    """

    async def receive(self, timeout_seconds: float | None = None) -> Item | None:
        """Waits for the next event, as `Subscription.receive` does."""
        deadline = _deadline(timeout_seconds)
        poller = zmq.asyncio.Poller()
        # Other tasks run as well, even if there is always an event to read.
        await asyncio.sleep(0)
        while not self._take():
            if time.monotonic() >= deadline:
                return None
            await poller.poll(self._prepare(poller, deadline))
        return self._order.take()

    async def picture(self, event: Pictured, timeout_seconds: float = 10.0) -> bytes | None:
        """Fetches the picture that an event names, as `Subscription.picture` does."""
        fetch = self._fetch(event, timeout_seconds)
        poller = zmq.asyncio.Poller()
        while not fetch.is_done and not self._take_picture(fetch):
            poller.register(self._pictures, zmq.POLLIN)
            await poller.poll(fetch.wait_milliseconds(time.monotonic()))
        return fetch.jpeg

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if self._context.closed:
            raise StopAsyncIteration
        item = await self.receive(self._timeout_seconds)
        if item is None:
            raise self._timed_out()
        return item

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


subscribe_async = AsyncSubscription
"""Subscribes, for asyncio: `async with subscribe_async(endpoint) as events`. The arguments are the same."""


def _checked_kinds(kinds: Iterable[Kind]) -> tuple[Kind, ...]:
    if isinstance(kinds, str):
        message = "kinds is a list of words, not one word"
        raise TypeError(message)
    chosen = tuple(kinds)
    for kind in chosen:
        if kind not in KINDS:
            message = f"unknown kind {kind!r}; expected one of {', '.join(KINDS)}"
            raise ValueError(message)
    return chosen


def topics_of(streams: Iterable[str] | None, kinds: Iterable[Kind]) -> list[str]:
    """The prefixes of the topics of some streams; None for all of them.

    Raises:
        ValueError: there are none, or a kind is unknown.
        TypeError: a word was given for a list.
    """
    kinds = _checked_kinds(kinds)
    if isinstance(streams, str):
        message = "streams is a list of words, not one word"
        raise TypeError(message)
    names = None if streams is None else list(streams)
    topics = [f"{kind}/" for kind in kinds] if names is None else [wire.topic(k, s) for k in kinds for s in names]
    if not topics:
        message = "nothing to subscribe to: streams and kinds must not be empty"
        raise ValueError(message)
    return topics


def _deadline(timeout_seconds: float | None) -> float:
    return math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
