"""Subscribes to the events of a whole cluster, wherever its head has placed the streams.

    from streamdet import DetectionEvent, Moved, subscribe

    with subscribe(cluster="head.example") as events:
        for event in events:
            match event:
                case DetectionEvent():
                    print(event.stream, event.owner, len(event.detections))
                case Moved():
                    print(f"{event.stream} moved to {event.owner.node}")

The head is asked for the nodes alone: events come from the nodes, also while the head is away.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, ParamSpec, overload

import zmq

from streamdet.client.gaps import Item
from streamdet.client.head import HeadAddress, HeadWatch, NodeAddress
from streamdet.client.nodes import Late, Moved, SubscriptionOfNodes
from streamdet.client.recovery import RecoveryTimes
from streamdet.client.subscription import DEFAULT_KINDS, HEAL_IS_REPLAY, Subscription, topics_of
from streamdet.errors import StreamdetError
from streamdet.security.curve import client_keys
from streamdet.wire import Kind
from streamdet.worker import Wakeup

__all__ = ["ClusterSubscription", "subscribe"]

FORGET_SECONDS = 3600.0
"""A node that the head no longer lists, and that is not connected, is given up after this time."""

_REVIEW_SECONDS = 10.0


class ClusterSubscription(SubscriptionOfNodes):
    """Events of all nodes of a cluster; a context manager and an iterator, for one thread at a time.

    Yields what `Subscription` yields for each node, a `Moved` where a stream has another owner, and a `Late` for an
    event from before such a move that arrives after it. Each stream comes from its owner alone, and no event comes
    twice.

    Nodes that join are connected to. Those that the head no longer lists, because it was replaced or they are lost,
    stay connected for an hour: they may go on, or come back with what they could not deliver. With `replay` a node that
    comes back at another address goes on where it had stopped.

    Args:
        cluster: the head, as `HOST`, `HOST:PORT` or a URL. It may start later. Or a watch of it that runs, for several
            subscriptions together.
        head_ca_file: the `ca.pem` of the cluster, by which a head on another machine proves who it is.
        head_token_file: its `reader.token`, which such a head wants to see.
        server_key: the file with the public key that all daemons have, or a folder with a file NODE.key for each.
        streams: as for `Subscription`; so are all that follow, but `timeout_seconds` is for all nodes together.
        kinds: as above.
        labels: as above.
        replay: as above.
        client_key_file: as above.
        timeout_seconds: iteration raises `TimeoutError` after this time without an event; None for no limit.
        high_water_mark_events: as above.
        heartbeat_seconds: as above.
        recovery_times: as above.

    Raises:
        EndpointError: `cluster` is malformed, or a file cannot be used. A head that does not answer is not an error.
        KeyFileError: a key file cannot be used.
        ValueError: `streams` or `kinds` is empty.
    """

    def __init__(
        self,
        *,
        cluster: str | HeadWatch,
        head_ca_file: Path | str | None = None,
        head_token_file: Path | str | None = None,
        server_key: Path | str | None = None,
        streams: Iterable[str] | None = None,
        kinds: Iterable[Kind] = DEFAULT_KINDS,
        labels: Iterable[str] | None = None,
        replay: bool = False,
        client_key_file: Path | str | None = None,
        timeout_seconds: float | None = None,
        high_water_mark_events: int = 1000,
        heartbeat_seconds: float = 5.0,
        recovery_times: RecoveryTimes | None = None,
    ) -> None:
        self._is_shared = isinstance(cluster, HeadWatch)
        if isinstance(cluster, str):
            cluster = HeadWatch(HeadAddress.parse(cluster, head_ca_file, head_token_file))
        topics_of(streams, kinds)
        arguments = {
            "streams": streams if streams is None or isinstance(streams, str) else list(streams),
            "kinds": tuple(kinds), "labels": None if labels is None else list(labels), "replay": replay,
            "client_key_file": client_key_file, "high_water_mark_events": high_water_mark_events,
            "heartbeat_seconds": heartbeat_seconds, "recovery_times": recovery_times,
        }  # fmt: skip
        super().__init__(timeout_seconds, arguments)
        self._replay = replay
        self._server_key = None if server_key is None else Path(server_key)
        if self._server_key is None or not self._server_key.is_dir():
            client_keys(server_key, client_key_file)
        self._known: dict[str, NodeAddress] = {}
        self._needed_at: dict[str, float] = {}
        self._problems: dict[str, str] = {}
        self._listed: tuple[NodeAddress, ...] = ()
        self._review_at = 0.0
        self._wakeup = Wakeup()
        self._watch = cluster
        self._watch.listen(self._wakeup.wake)
        if not self._is_shared:
            self._watch.start()

    @property
    def problem(self) -> str:
        """Why the head cannot be asked, or a node not be connected to; empty if all is well."""
        return "; ".join(filter(None, (self._watch.problem, *self._problems.values())))

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes that are subscribed to."""
        return sorted(self._known)

    @property
    def connected_nodes(self) -> frozenset[str]:
        """The names of those to which the connection is open."""
        return frozenset(name for name, node in self._known.items() if self._nodes[node.events].is_connected)

    def close(self) -> None:
        """Ends the subscription; may be called again."""
        if not self._is_closed:
            self._watch.forget(self._wakeup.wake)
            if not self._is_shared:
                self._watch.stop()
                self._watch.join()
            self._wakeup.close()
        super().close()

    def _next(self) -> Item | Moved | Late | None:
        if not self._is_closed:
            self._follow(time.monotonic())
        return super()._next()

    def _wait(self, deadline: float) -> None:
        poller = zmq.Poller()
        poller.register(self._wakeup, zmq.POLLIN)
        self._poll(poller, min(deadline, self._review_at))
        # Whether the list has changed is looked at before each wait.
        self._wakeup.clear()

    def _follow(self, now: float) -> None:
        """Connects to the nodes of the newest list, and closes connections that are no longer needed."""
        if self._watch.nodes is self._listed and now < self._review_at:
            return
        self._listed = self._watch.nodes
        self._review_at = now + _REVIEW_SECONDS
        listed = {node.node: node for node in self._listed}
        for name, node in self._known.items():
            if name in listed or self._nodes[node.events].is_connected:
                self._needed_at[name] = now
        for name in [name for name, at in self._needed_at.items() if now - at >= FORGET_SECONDS]:
            self._nodes.pop(self._known.pop(name).events).close()
            del self._needed_at[name]
        for node in listed.values():
            if self._known.get(node.node) != node:
                self._connect_to(node, now)

    def _connect_to(self, node: NodeAddress, now: float) -> None:
        """Connects to a node that is new, or has another address than before."""
        before = self._known.get(node.node)
        more: dict[str, Any] = {"server_key": key_of_node(self._server_key, node.node)}
        if self._replay:
            position = {} if before is None else self._nodes[before.events].position()
            more |= {"replay_endpoint": node.replay, "resume": position or None}
        try:
            subscription = Subscription(node.events, **{**self._arguments, **more})
        except (StreamdetError, zmq.ZMQError) as error:
            # It is tried again with the next review; others must not wait for it.
            self._problems[node.node] = f"cannot subscribe to node {node.node}: {error}"
            return
        self._problems.pop(node.node, None)
        if before is not None:
            self._nodes.pop(before.events).close()
            self._rename(before.events, node.events)
        taken = self._nodes.pop(node.events, None)
        if taken is not None:  # another node has had this address
            taken.close()
            self._known = {name: one for name, one in self._known.items() if one.events != node.events}
        self._nodes[node.events] = subscription
        self._known[node.node], self._needed_at[node.node] = node, now


def key_of_node(server_key: Path | None, node: str) -> Path | None:
    """The file with the public key of a node.

    Args:
        server_key: such a file for all nodes, or a folder with a file NODE.key for each; None where there are no keys.
        node: its name.
    """
    return server_key / f"{node}.key" if server_key is not None and server_key.is_dir() else server_key


P = ParamSpec("P")
Q = ParamSpec("Q")


class _Subscribe(Generic[P, Q]):
    """Makes either kind of subscription; a function whose arguments are those of the two classes."""

    def __init__(
        self, of_daemon: Callable[P, Subscription], of_cluster: Callable[Q, ClusterSubscription]
    ) -> None:  # fmt: skip
        self._of_daemon, self._of_cluster = of_daemon, of_cluster

    @overload
    def __call__(self, *args: P.args, **named: P.kwargs) -> Subscription: ...

    @overload
    def __call__(self, *args: Q.args, **named: Q.kwargs) -> ClusterSubscription: ...

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Subscribes to one daemon, or with `cluster=` to all nodes of a cluster."""
        heal = named.pop("heal", None)
        if heal is not None:
            warnings.warn(HEAL_IS_REPLAY, DeprecationWarning, stacklevel=2)
            named["replay"] = named.get("replay") or heal
        return (self._of_cluster if "cluster" in named else self._of_daemon)(*args, **named)


subscribe = _Subscribe(Subscription, ClusterSubscription)
"""Subscribes: `with subscribe(endpoint) as events` to a daemon, with the arguments of `Subscription`; or
`with subscribe(cluster=head) as events` to a cluster, with those of `ClusterSubscription`."""
