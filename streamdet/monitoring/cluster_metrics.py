"""What Prometheus gets of a cluster: the metrics of its head, and where to find the metrics of its nodes.

Both are made from what the head says of the cluster (`Reconciler.status`, also `GET /v1/cluster`); all names begin with
`streamdet_cluster_`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamdet.types import State

STREAM_STATES = (*(state.value for state in State), "unplaced")
NODE_STATES = ("up", "draining", "lost")
MOVE_REASONS = ("node_lost", "drain", "over_capacity", "rebalance")

Json = Mapping[str, Any]


def cluster_registry(status: Callable[[], Json]) -> CollectorRegistry:
    """A registry for the page of the head.

    Args:
        status: what is said of the cluster now; called for each scrape, in its thread.
    """
    registry = CollectorRegistry()
    registry.register(_ClusterCollector(status))
    return registry


def scrape_targets(status: Json) -> list[dict[str, Any]]:
    """The metrics pages of all nodes, as Prometheus reads them with `http_sd_configs`; those that are lost, too."""
    found = []
    for node in status["nodes"]:
        url = urlsplit(node["addresses"].get("metrics") or "")
        if url.netloc:
            labels = {"__scheme__": url.scheme, "__metrics_path__": url.path or "/metrics", "node": node["name"]}
            found.append({"targets": [url.netloc], "labels": labels})
    return found


class _ClusterCollector(Collector):
    def __init__(self, status: Callable[[], Json]) -> None:
        self._status = status

    def describe(self) -> Iterator[Metric]:
        """Nothing: to register must not ask for a status, which may not be there yet."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        streams, nodes = status["streams"], status["nodes"]
        yield _counted("streams", "Streams of the cluster by state.", STREAM_STATES, streams)
        yield GaugeMetricFamily(
            "streamdet_cluster_unplaced",
            "Streams that no node watches.",
            value=sum(stream["node"] is None for stream in streams),
        )
        yield _counted(
            "nodes", "Nodes by state; a node that was drained before it went is none.", NODE_STATES, nodes
        )  # fmt: skip
        yield GaugeMetricFamily(
            "streamdet_cluster_refused_grants",
            "Groups of streams that the daemon of a node refuses.",
            value=sum(len(node["refused"]) for node in nodes),
        )
        moves = CounterMetricFamily(
            "streamdet_cluster_moves", "Groups of streams that got another node, by reason.", labels=["reason"]
        )
        for reason in MOVE_REASONS:
            moves.add_metric([reason], status["moves"].get(reason, 0))
        yield moves
        blind = CounterMetricFamily(
            "streamdet_cluster_blind_seconds",
            "Time in which a stream should have been watched, and was not up on a node.",
            labels=["stream"],
        )
        for stream in streams:
            blind.add_metric([stream["name"]], stream["blind_seconds"])
        yield blind
        for name, text, keys in (
            (
                "lease_age_seconds",
                "Time since a node last renewed its claims and reported.",
                ("reported_seconds_ago", "slow_seconds"),
            ),
            ("node_load_fps", "Frames per second of the streams of a node, at most.", ("load_fps",)),
            ("node_capacity_fps", "Frames per second that a node can detect.", ("capacity_fps",)),
        ):
            of_nodes = GaugeMetricFamily(f"streamdet_cluster_{name}", text, labels=["node"])
            for node in nodes:
                of_nodes.add_metric([node["name"]], sum(node[key] for key in keys))
            yield of_nodes


def _counted(name: str, text: str, states: tuple[str, ...], things: list[Json]) -> Metric:
    family = GaugeMetricFamily(f"streamdet_cluster_{name}", text, labels=["state"])
    counts = Counter(thing["state"] for thing in things)
    for state in states:
        family.add_metric([state], counts[state])
    return family
