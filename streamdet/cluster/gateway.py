"""Passes on the events of all nodes at one endpoint, for readers in languages that have no client of ours.

Of each stream only the events of its owner leave: of two nodes that publish it, the one with the higher generation.
What is lost on the way is not asked for again; the numbers of a topic show it, as everywhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import zmq
from prometheus_client import CollectorRegistry

from streamdet import wire
from streamdet.client.cluster import FORGET_SECONDS, key_of_node
from streamdet.client.gaps import MAX_TOPICS
from streamdet.client.head import HeadAddress, HeadWatch, NodeAddress
from streamdet.config import PublisherConfig
from streamdet.delivery.sockets import Sockets
from streamdet.errors import StreamdetError
from streamdet.monitoring.metrics import DeliveryMetrics
from streamdet.security.curve import client_keys
from streamdet.security.endpoints import parse_endpoint
from streamdet.worker import Worker

_WAIT_SECONDS = 1.0
_MAX_EVENTS_PER_TURN = 1000
_KEEPALIVE_SECONDS, _LOST_KEEPALIVES = 5, 3

_log = logging.getLogger(__name__)


class Gateway(Worker):
    """Subscribes to all nodes for what its own subscribers want, and passes it on.

    Args:
        head: that is asked for the nodes.
        config: the endpoint, the keys, and how many events may wait for one slow subscriber.
        server_key: the file with the public key that all daemons have, or a folder with a file NODE.key for each.
        client_key_file: the file with the keys by which the nodes let the gateway in.
        on_error: called when one of its threads ends with an error.

    Attributes:
        endpoint: the bound endpoint.
        passed: how many events have left.
        superseded: how many were left out because another node owned their stream.
        unreadable: how many messages were no events.

    Raises:
        EndpointError: the endpoint cannot be bound.
        KeyFileError: a key cannot be used.
    """

    def __init__(
        self,
        head: HeadAddress,
        config: PublisherConfig,
        server_key: Path | None = None,
        client_key_file: Path | None = None,
        on_error: Callable[[Worker], None] | None = None,
    ) -> None:
        super().__init__("gateway", on_error)
        self.passed = self.superseded = self.unreadable = 0
        self._server_key, self._client_key_file = server_key, client_key_file
        if server_key is None or not server_key.is_dir():
            client_keys(server_key, client_key_file)
        self._generations: dict[str, int] = {}
        self._connected: dict[str, NodeAddress] = {}
        self._listed_at: dict[str, float] = {}
        self._problem = ""
        self._sockets = Sockets(config, "off", DeliveryMetrics(CollectorRegistry()), on_error)
        self.endpoint = self._sockets.endpoint
        self._context: zmq.Context[Any] = zmq.Context()
        self._nodes = self._context.socket(zmq.XSUB)
        self._nodes.linger = 0
        self._nodes.maxmsgsize = wire.MAX_MESSAGE_BYTES
        self._nodes.tcp_keepalive, self._nodes.tcp_keepalive_cnt = 1, _LOST_KEEPALIVES
        self._nodes.tcp_keepalive_idle = self._nodes.tcp_keepalive_intvl = _KEEPALIVE_SECONDS
        self._sockets.watch(self._nodes)
        self._watch = HeadWatch(head, self._sockets.wakeup.wake)

    def wake(self) -> None:
        """Ends a wait."""
        self._sockets.wakeup.wake()

    def close(self) -> None:
        """Frees the endpoint; after the thread has ended."""
        self._sockets.close()
        self._context.destroy(linger=0)

    def run(self) -> None:
        """Passes events on until asked to stop."""
        with self._watch:
            while not self.stopping:
                self._sockets.wait(_WAIT_SECONDS)
                self._follow(time.monotonic())
                for change in self._sockets.subscriptions():
                    self._nodes.send(change)
                self._pass_on()

    def _pass_on(self) -> None:
        for _ in range(_MAX_EVENTS_PER_TURN):
            try:
                parts = self._nodes.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if self._is_owners(parts):
                self._sockets.send(parts)
                self.passed += 1

    def _is_owners(self, parts: list[bytes]) -> bool:
        """Whether a message is an event of the owner of its stream."""
        try:
            event = orjson.loads(parts[1])
            stream, generation = event["stream"], event.get("generation", 0)
            if generation < self._generations.get(stream, 0):
                self.superseded += 1
                return False
        except (IndexError, KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
            self.unreadable += 1
            return False
        if generation:
            self._generations.pop(stream, None)
            self._generations[stream] = generation
            if len(self._generations) > MAX_TOPICS:
                del self._generations[next(iter(self._generations))]
        return True

    def _follow(self, now: float) -> None:
        """Connects to the nodes that the head lists; those that it no longer lists stay for an hour."""
        problems = [self._watch.problem] if self._watch.problem else []
        for node in self._watch.nodes:
            self._listed_at[node.node] = now
            before = self._connected.get(node.node)
            if before is not None and before.events == node.events:
                continue
            try:
                self._connect(node)
            except (StreamdetError, zmq.ZMQError) as error:
                problems.append(f"cannot connect to node {node.node}: {error}")
                continue
            if before is not None:
                self._nodes.disconnect(before.events)
            self._connected[node.node] = node
        for name in [name for name, at in self._listed_at.items() if now - at > FORGET_SECONDS]:
            del self._listed_at[name]
            if name in self._connected:
                self._nodes.disconnect(self._connected.pop(name).events)
        problem = "; ".join(problems)
        if problem != self._problem:
            _log.log(logging.WARNING if problem else logging.INFO, "%s", problem or "all nodes are connected")
        self._problem = problem

    def _connect(self, node: NodeAddress) -> None:
        keys = client_keys(key_of_node(self._server_key, node.node), self._client_key_file)
        if keys is not None:
            keys.apply_to(self._nodes)
        self._nodes.ipv6 = parse_endpoint(node.events).is_ipv6
        self._nodes.connect(node.events)
