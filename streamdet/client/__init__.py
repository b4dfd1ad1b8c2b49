"""Subscribes to the events of a running daemon: typed, in order, and with every loss reported."""

from __future__ import annotations

from streamdet.client.subscription import (
    AsyncSubscription,
    Gap,
    Restart,
    Subscription,
    subscribe,
    subscribe_async,
)

__all__ = ["AsyncSubscription", "Gap", "Restart", "Subscription", "subscribe", "subscribe_async"]
