"""Subscribes to the events of many nodes of a cluster, each stream from the node that owns it.

    from streamdet import DetectionEvent, Moved, subscribe_nodes

    with subscribe_nodes(["tcp://192.0.2.1:5555", "tcp://192.0.2.2:5555"]) as events:
        for event in events:
            match event:
                case DetectionEvent():
                    print(event.stream, event.owner, len(event.detections))
                case Moved():
                    print(f"{event.stream} moved to {event.owner.node}")

A node that cannot be reached by the others may go on with streams that were granted to another node meanwhile. Of two
nodes that publish one stream, the one with the higher generation owns it; what the other sends is left out.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import zmq

from streamdet import wire
from streamdet.client.gaps import MAX_TOPICS, Gap, Item, Restart
from streamdet.client.subscription import Subscription
from streamdet.types import Owner
from streamdet.wire import Event

__all__ = ["Late", "Moved", "NodesSubscription", "subscribe_nodes"]

_MOVES_REMEMBERED = 8


@dataclass(frozen=True, slots=True)
class Moved:
    """Another node owns a stream from now on. Events between the last one of the node before and the next may be lost.

    Attributes:
        stream: its name.
        before: the owner before.
        owner: the owner of the events that follow.
        gap_seconds: time between the arrivals of the last event of the owner before and the first of this one; of the
            kinds that are subscribed to.
    """

    stream: str
    before: Owner
    owner: Owner
    gap_seconds: float


@dataclass(frozen=True, slots=True)
class Late:
    """An event of an owner before, from the time before a stream moved, that arrives only now.

    With `replay=True` these are the events that the owner before could no longer deliver, as soon as it is back.

    Attributes:
        stream: its name.
        event: belongs before the `Moved` to the next owner.
    """

    stream: str
    event: Event


@dataclass(slots=True)
class _Source:
    """Where the events of a stream come from.

    Attributes:
        owner: in its newest event.
        first_generation: of the grants that the node has had in a row.
        endpoint: of the node.
        heard_at: monotonic seconds of its newest event.
    """

    owner: Owner
    first_generation: int
    endpoint: str
    heard_at: float


@dataclass(slots=True)
class _Former:
    """Where the events of a stream came from before it moved.

    Attributes:
        source: as it was.
        next_generation: of the first event of the next owner.
        until: Unix time at which that event was published, by the next owner's clock.
        ended: topics on which an event from after that time has arrived.
    """

    source: _Source
    next_generation: int
    until: float
    ended: set[str] = field(default_factory=set)


class SubscriptionOfNodes:
    """What `subscribe_nodes` and `subscribe(cluster=...)` have in common: all but where the list of nodes comes from.

    Args:
        timeout_seconds: iteration raises `TimeoutError` after this time without an event; None for no limit.
        arguments: of each `Subscription`, by name.

    Attributes:
        superseded: how many events were left out because another node owned their stream.
    """

    def __init__(self, timeout_seconds: float | None, arguments: Mapping[str, Any]) -> None:
        self.superseded = 0
        self._timeout_seconds = timeout_seconds
        self._arguments = dict(arguments)
        self._nodes: dict[str, Subscription] = {}
        self._sources: dict[str, _Source] = {}
        self._formers: dict[str, deque[_Former]] = {}
        self._waiting: list[Item] = []
        self._is_closed = False

    def _connect(self, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        """Connects to these endpoints and no others; the values are more arguments of new subscriptions."""
        new: dict[str, Subscription] = {}
        try:
            for endpoint, more in wanted.items():
                if endpoint not in self._nodes:
                    new[endpoint] = Subscription(endpoint, **{**self._arguments, **more})
        except BaseException:
            # Raised again: nothing has changed.
            for subscription in new.values():
                subscription.close()
            raise
        for endpoint in self._nodes.keys() - wanted.keys():
            self._nodes.pop(endpoint).close()
        self._nodes.update(new)

    @property
    def connected(self) -> list[str]:
        """The endpoints of the nodes to which the connection is open."""
        return [endpoint for endpoint, node in self._nodes.items() if node.is_connected]

    def receive(self, timeout_seconds: float | None = None) -> Item | Moved | Late | None:
        """Waits for the next event of any node.

        Args:
            timeout_seconds: longest time to wait; None for no limit, 0 to return at once.

        Returns:
            The event, or the gap or the move before it, or None when the time is over.

        Raises:
            As `Subscription.receive`.
        """
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            item = self._next()
            if item is not None:
                return item
            if time.monotonic() >= deadline:
                return None
            self._wait(deadline)

    def set_streams(self, streams: Iterable[str]) -> None:
        """Changes the streams that are subscribed to, over the same connections; as `Subscription.set_streams`."""
        self._arguments["streams"] = names = list(streams)
        for node in self._nodes.values():
            node.set_streams(names)

    def close(self) -> None:
        """Ends the subscription; may be called again."""
        self._is_closed = True
        for node in self._nodes.values():
            node.close()

    def _next(self) -> Item | Moved | Late | None:
        """What is ready, without waiting; nodes take turns."""
        if self._waiting:
            return self._waiting.pop()
        for endpoint in list(self._nodes):
            node = self._nodes.pop(endpoint)
            self._nodes[endpoint] = node  # last in turn
            while (item := node.receive(0)) is not None:
                taken = self._accepted(item, endpoint)
                if taken is not None:
                    return taken
        return None

    def _accepted(self, item: Item, endpoint: str) -> Item | Moved | Late | None:
        """What to hand out of an item: it, the move that precedes it, nothing, or it as a late one."""
        source = self._sources.get(item.stream)
        if isinstance(item, Gap | Restart):
            is_owners = source is None or source.endpoint == endpoint
            return item if is_owners or (isinstance(item, Gap) and self._may_precede_move(item, endpoint)) else None
        owner = item.owner
        if owner is None:
            return item
        now = time.monotonic()
        if source is not None:
            is_same_node = owner.node == source.owner.node
            if is_same_node and owner.generation >= source.first_generation:
                # Topics of one node may be behind one another: the newest of them says what was granted last.
                if owner.generation > source.owner.generation:
                    source.owner = owner
                source.endpoint, source.heard_at = endpoint, now
                return item
            if owner.generation <= source.owner.generation:
                return self._late(item, owner)
            del self._sources[item.stream]
        self._sources[item.stream] = _Source(owner, owner.generation, endpoint, now)
        if len(self._sources) > MAX_TOPICS:
            forgotten = next(iter(self._sources))
            del self._sources[forgotten]
            self._formers.pop(forgotten, None)
        if source is None:
            return item
        formers = self._formers.setdefault(item.stream, deque(maxlen=_MOVES_REMEMBERED))
        formers.append(_Former(source, owner.generation, item.published_at))
        self._waiting.append(item)
        return Moved(item.stream, source.owner, owner, now - source.heard_at)

    def _late(self, event: Event, owner: Owner) -> Late | None:
        """An event of an owner before; None where another owned the stream already when it was published."""
        topic = wire.topic_of(event)
        for former in self._formers.get(event.stream, ()):
            is_its = former.source.first_generation <= owner.generation < former.next_generation
            if is_its and owner.node == former.source.owner.node and topic not in former.ended:
                if event.published_at < former.until:
                    return Late(event.stream, event)
                former.ended.add(topic)
        self.superseded += 1
        return None

    def _rename(self, before: str, endpoint: str) -> None:
        """Notes that a node has another endpoint."""
        formers = [former.source for of_stream in self._formers.values() for former in of_stream]
        for source in (*self._sources.values(), *formers):
            if source.endpoint == before:
                source.endpoint = endpoint

    def _may_precede_move(self, gap: Gap, endpoint: str) -> bool:
        """Whether events that a node has lost may be from the time when it owned the stream."""
        formers = self._formers.get(gap.stream, ())
        return any(former.source.endpoint == endpoint and gap.topic not in former.ended for former in formers)

    def _wait(self, deadline: float) -> None:
        self._poll(zmq.Poller(), deadline)

    def _poll(self, poller: zmq.Poller, deadline: float) -> None:
        waits = [node._prepare(poller, deadline) for node in self._nodes.values()]  # noqa: SLF001 - one wait for all
        limits = [milliseconds for milliseconds in waits if milliseconds is not None]
        if deadline < math.inf:
            limits.append(max(0, math.ceil((deadline - time.monotonic()) * 1000)))
        poller.poll(min(limits) if limits else None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item | Moved | Late:
        if self._is_closed:
            raise StopIteration
        item = self.receive(self._timeout_seconds)
        if item is None:
            message = f"no event within {self._timeout_seconds:g} seconds"
            raise TimeoutError(message)
        return item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class NodesSubscription(SubscriptionOfNodes):
    """Events of several nodes; a context manager and an iterator, for one thread at a time.

    Yields what `Subscription` yields for each node, a `Moved` where a stream has another owner, and a `Late` for an
    event from before such a move that arrives after it. Each stream comes from its owner alone, and no event comes
    twice. Streams that belong to no cluster come from every node that has them.

    Args:
        endpoints: of the nodes' events, such as "tcp://192.0.2.1:5555"; a node may start later.
        timeout_seconds: iteration raises `TimeoutError` after this time without an event; None for no limit.
        arguments: of each `Subscription`, by name, such as `streams`, `kinds` and `replay`.

    Attributes:
        superseded: how many events were left out because another node owns their stream.

    Raises:
        As `Subscription`; ValueError: there are no endpoints.
    """

    def __init__(self, endpoints: Iterable[str], *, timeout_seconds: float | None = None, **arguments: Any) -> None:  # noqa: ANN401 - those of Subscription
        super().__init__(timeout_seconds, arguments)
        try:
            self.set_nodes(endpoints)
        except BaseException:
            # Whatever it is, it is raised again: this only closes what no caller can reach.
            self.close()
            raise

    def set_nodes(self, endpoints: Iterable[str]) -> None:
        """Changes the nodes; connections to those that stay are kept.

        Raises:
            As the constructor; the nodes are as before then.
        """
        if isinstance(endpoints, str):
            message = "endpoints is a list of endpoints, not one endpoint"
            raise TypeError(message)
        wanted: dict[str, dict[str, Any]] = {endpoint: {} for endpoint in endpoints}
        if not wanted:
            message = "nothing to subscribe to: endpoints must not be empty"
            raise ValueError(message)
        self._connect(wanted)


subscribe_nodes = NodesSubscription
"""Subscribes: `with subscribe_nodes(endpoints) as events`. The arguments are those of `NodesSubscription`."""
