"""The metrics of bridges, which have pages of their own; all names begin with `streamdet_bridge_`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

# As on the page of the daemon.
disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no types here

_LABELS = ("bridge", "target")


class BridgeMetrics:
    """The metrics of one bridge, in a registry of their own; labels `bridge` and `target`, the receiver.

    Args:
        bridge: its name.

    Attributes:
        registry: what the metrics page shows.
    """

    def __init__(self, bridge: str) -> None:
        self.registry = CollectorRegistry()
        self._bridge = bridge

        def counter(name: str, text: str) -> Counter:
            return Counter(f"streamdet_bridge_{name}", text, _LABELS, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"streamdet_bridge_{name}", text, _LABELS, registry=self.registry)

        self._events = counter("events", "Events that were handed on.")
        self._lost = counter("lost_events", "Events that the daemon no longer kept when the bridge asked for them.")
        self._dead_letters = counter(
            "dead_letters", "Events that were given up: the receiver refuses them, or they are too old."
        )
        self._retries = counter("retries", "Tries to hand on an event that failed and were repeated.")
        self._lag = gauge("lag_seconds", "Age of the event that waits for its receiver; 0 while none does.")
        self._queue = gauge("queue_events", "Events that were received and wait to be handed on.")
        self._last_success = gauge(
            "last_success_timestamp_seconds", "Unix time at which an event was last handed on; 0 before the first."
        )
        self._receiver_up = gauge(
            "receiver_up", "0 from a try that failed to the next that does not; 1 before the first."
        )
        self._daemon_connected = gauge("daemon_connected", "1 while the connection to the daemon's events is open.")
        started = Gauge(
            "streamdet_bridge_start_timestamp_seconds",
            "Unix time at which the bridge was started.",
            ["bridge"],
            registry=self.registry,
        )
        started.labels(bridge).set_to_current_time()

    def of(self, target: str) -> TargetMetrics:
        """The metrics of one receiver, which begin at 0."""
        names = (self._bridge, target)
        metrics = TargetMetrics(
            events=self._events.labels(*names),
            lost=self._lost.labels(*names),
            dead_letters=self._dead_letters.labels(*names),
            retries=self._retries.labels(*names),
            lag_seconds=self._lag.labels(*names),
            queue_events=self._queue.labels(*names),
            last_success=self._last_success.labels(*names),
            receiver_up=self._receiver_up.labels(*names),
            daemon_connected=self._daemon_connected.labels(*names),
        )
        metrics.receiver_up.set(1)
        return metrics


@dataclass(frozen=True, slots=True)
class TargetMetrics:
    """The metrics of one receiver: see `BridgeMetrics`."""

    events: Counter
    lost: Counter
    dead_letters: Counter
    retries: Counter
    lag_seconds: Gauge
    queue_events: Gauge
    last_success: Gauge
    receiver_up: Gauge
    daemon_connected: Gauge

    def handed_on(self, count: int = 1) -> None:
        """The receiver has taken events."""
        self.events.inc(count)
        self.last_success.set(time.time())
        self.receiver_up.set(1)

    def failed(self) -> None:
        """A try has failed, and is repeated."""
        self.retries.inc()
        self.receiver_up.set(0)
