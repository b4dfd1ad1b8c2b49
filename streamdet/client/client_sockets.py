"""The sockets of a subscription: how they connect, and go on connecting."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import zmq

from streamdet import wire
from streamdet.security.curve import ClientKeys
from streamdet.security.endpoints import parse_endpoint

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
        # Raised again, whatever it is: only the context, which nobody else would end, is ended here.
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
