"""Subscribes to the events of a running daemon: typed, in order, with every loss reported; or asks for the past."""

from __future__ import annotations

from streamdet.client.nodes import Moved, NodesSubscription, subscribe_nodes
from streamdet.client.past import AsyncPast, Past
from streamdet.client.subscription import (
    AsyncSubscription,
    Gap,
    Restart,
    Subscription,
    subscribe,
    subscribe_async,
)

__all__ = [
    "AsyncPast",
    "AsyncSubscription",
    "Gap",
    "Moved",
    "NodesSubscription",
    "Past",
    "Restart",
    "Subscription",
    "subscribe",
    "subscribe_async",
    "subscribe_nodes",
]
