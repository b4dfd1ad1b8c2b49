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
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import zmq

from streamdet.client.gaps import MAX_TOPICS, Gap, Item, Restart
from streamdet.client.subscription import Subscription
from streamdet.types import Owner

__all__ = ["Moved", "NodesSubscription", "subscribe_nodes"]


@dataclass(frozen=True, slots=True)
class Moved:
    """Another node owns a stream from now on. Events between the last one of the node before and the next may be lost.

    Attributes:
        stream: its name.
        before: the owner before.
        owner: the owner of the events that follow.
    """

    stream: str
    before: Owner
    owner: Owner


@dataclass(slots=True)
class _Source:
    """Where the events of a stream come from.

    Attributes:
        owner: in its newest event.
        endpoint: of the node.
    """

    owner: Owner
    endpoint: str


class NodesSubscription:
    """Events of several nodes; a context manager and an iterator, for one thread at a time.

    Yields what `Subscription` yields for each node, and a `Moved` where a stream has another owner. Each stream comes
    from its owner alone. Streams that belong to no cluster come from every node that has them.

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
        self.superseded = 0
        self._timeout_seconds = timeout_seconds
        self._arguments = arguments
        self._nodes: dict[str, Subscription] = {}
        self._sources: dict[str, _Source] = {}
        self._waiting: list[Item] = []
        self._is_closed = False
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
        wanted = list(dict.fromkeys(endpoints))
        if not wanted:
            message = "nothing to subscribe to: endpoints must not be empty"
            raise ValueError(message)
        new: dict[str, Subscription] = {}
        try:
            for endpoint in wanted:
                if endpoint not in self._nodes:
                    new[endpoint] = Subscription(endpoint, **self._arguments)
        except BaseException:
            # Raised again: nothing has changed.
            for subscription in new.values():
                subscription.close()
            raise
        for endpoint in self._nodes.keys() - set(wanted):
            self._nodes.pop(endpoint).close()
        self._nodes.update(new)

    @property
    def connected(self) -> list[str]:
        """The endpoints of the nodes to which the connection is open."""
        return [endpoint for endpoint, node in self._nodes.items() if node.is_connected]

    def receive(self, timeout_seconds: float | None = None) -> Item | Moved | None:
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

    def close(self) -> None:
        """Ends the subscription; may be called again."""
        self._is_closed = True
        for node in self._nodes.values():
            node.close()

    def _next(self) -> Item | Moved | None:
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

    def _accepted(self, item: Item, endpoint: str) -> Item | Moved | None:
        """The item if its node owns the stream, or the move that precedes it; else None."""
        source = self._sources.get(item.stream)
        if isinstance(item, Gap | Restart):
            return item if source is None or source.endpoint == endpoint else None
        owner = item.owner
        if owner is None:
            return item
        if source is not None:
            is_older = owner.generation < source.owner.generation
            if is_older or (owner.generation == source.owner.generation and endpoint != source.endpoint):
                self.superseded += 1
                return None
            del self._sources[item.stream]
        self._sources[item.stream] = _Source(owner, endpoint)
        if len(self._sources) > MAX_TOPICS:
            del self._sources[next(iter(self._sources))]
        if source is not None and source.owner.node != owner.node:
            self._waiting.append(item)
            return Moved(item.stream, source.owner, owner)
        return item

    def _wait(self, deadline: float) -> None:
        poller = zmq.Poller()
        waits = [node._prepare(poller, deadline) for node in self._nodes.values()]  # noqa: SLF001 - one wait for all
        limits = [milliseconds for milliseconds in waits if milliseconds is not None]
        poller.poll(min(limits) if limits else None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item | Moved:
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


subscribe_nodes = NodesSubscription
"""Subscribes: `with subscribe_nodes(endpoints) as events`. The arguments are those of `NodesSubscription`."""
