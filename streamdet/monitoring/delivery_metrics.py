"""What the metrics page says of those who read events: connections, replay, and what the spool keeps."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

HANDSHAKE_FAILURES = ("unknown_key", "wrong_server_key", "no_key", "broken_off", "protocol", "timeout")
"""Why someone did not get in; a client without a key mostly hangs up when it hears that it needs one."""

CUT_REASONS = ("revoked", "flood", "too_many")
"""Why a connection was ended."""

NOT_KEPT_REASONS = ("queue_full", "disk_full", "error")
"""Why the spool did not keep an event: it came too fast, there was no room, or the disk failed."""


class DeliveryMetrics:
    """Any thread may report.

    Args:
        registry: what the metrics page shows.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._connections = Gauge(
            "streamdet_subscriber_connections", "Connections that are open.", ["socket"], registry=registry
        )
        self._accepted = Counter(
            "streamdet_subscriber_accepted", "Connections that were accepted.", ["socket"], registry=registry
        )
        self._handshake_failures = Counter(
            "streamdet_subscriber_handshake_failures",
            "Connections that had no allowed key, spoke no ZeroMQ, or broke before they said so.",
            ["socket", "reason"],
            registry=registry,
        )
        self._cuts = Counter(
            "streamdet_subscriber_cuts",
            "Connections that were ended because their key was revoked, or they asked for far too much.",
            ["socket", "reason"],
            registry=registry,
        )
        self._subscriptions = Gauge(
            "streamdet_subscriber_subscriptions", "Different prefixes that are subscribed to.", registry=registry
        )
        self._replay_requests = Counter(
            "streamdet_replay_requests", "Requests for replay, by what became of them.", ["outcome"], registry=registry
        )
        for outcome in ("done", "refused", "dropped"):
            self._replay_requests.labels(outcome)
        self._kept = Counter("streamdet_spool_events_kept", "Events that were written to disk.", registry=registry)
        self._not_kept = Counter(
            "streamdet_spool_events_not_kept", "Events that were not, by reason.", ["reason"], registry=registry
        )
        for reason in NOT_KEPT_REASONS:
            self._not_kept.labels(reason)
        self._spool_bytes = Gauge("streamdet_spool_used_bytes", "What the spool takes on disk.", registry=registry)
        self._replay_bytes = Gauge("streamdet_replay_used_bytes", "Events kept in memory.", registry=registry)

    def add_socket(self, name: str) -> None:
        """Makes the series of a socket, at zero."""
        self._connections.labels(name)
        self._accepted.labels(name)
        for reason in HANDSHAKE_FAILURES:
            self._handshake_failures.labels(name, reason)
        for reason in CUT_REASONS:
            self._cuts.labels(name, reason)

    def connections(self, name: str, count: int) -> None:
        """So many are open at this socket."""
        self._connections.labels(name).set(count)

    def connected(self, name: str) -> None:
        """A connection was accepted at this socket."""
        self._accepted.labels(name).inc()

    def handshake_failed(self, name: str, reason: str) -> None:
        """A connection to this socket came to nothing, for one of `HANDSHAKE_FAILURES`."""
        self._handshake_failures.labels(name, reason).inc()

    def cut(self, name: str, reason: str) -> None:
        """A connection to this socket was ended, for one of `CUT_REASONS`."""
        self._cuts.labels(name, reason).inc()

    def subscriptions(self, count: int) -> None:
        """So many different prefixes are subscribed to."""
        self._subscriptions.set(count)

    def replay_request(self, outcome: str) -> None:
        """A request was answered ("done"), "refused", or its answer "dropped" because the client does not take it."""
        self._replay_requests.labels(outcome).inc()

    def follow_replay(self, read_bytes: Callable[[], int]) -> None:
        """Shows what is kept in memory, read at each scrape."""
        self._replay_bytes.set_function(read_bytes)

    def kept(self, count: int) -> None:
        """So many events were written to disk."""
        self._kept.inc(count)

    def not_kept(self, reason: str, count: int) -> None:
        """So many events were not, for one of `NOT_KEPT_REASONS`."""
        self._not_kept.labels(reason).inc(count)

    def spool_used(self, used_bytes: int) -> None:
        """So much the spool takes on disk."""
        self._spool_bytes.set(used_bytes)
