"""Subscribes to the events of a daemon or a cluster: typed, in order, every loss reported; or asks for the past."""

from __future__ import annotations

from streamdet.client.cluster import ClusterSubscription, subscribe
from streamdet.client.nodes import Late, Moved, NodesSubscription, subscribe_nodes
from streamdet.client.past import AsyncPast, Past
from streamdet.client.subscription import (
    AsyncSubscription,
    Gap,
    Restart,
    Subscription,
    subscribe_async,
)

__all__ = [
    "AsyncPast",
    "AsyncSubscription",
    "ClusterSubscription",
    "Gap",
    "Late",
    "Moved",
    "NodesSubscription",
    "Past",
    "Restart",
    "Subscription",
    "subscribe",
    "subscribe_async",
    "subscribe_nodes",
]
