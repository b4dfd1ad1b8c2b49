"""Every metric as a table, for `streamdet schema metrics` and `docs/monitoring.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry

from streamdet.monitoring.bridge_metrics import BridgeMetrics
from streamdet.monitoring.cluster_metrics import cluster_registry
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Reason, State, StreamStatus

# One stream that no node watches, and a node.
_CLUSTER: dict[str, Any] = {
    "nodes": [
        {
            "name": "",
            "state": "up",
            "load_fps": 0,
            "capacity_fps": 0,
            "reported_seconds_ago": 0,
            "slow_seconds": 0,
            "refused": {},
        }
    ],
    "streams": [{"name": "", "node": None, "state": "unplaced", "blind_seconds": 0}],
    "moves": {},
}
_ENDINGS = {"counter": "_total", "info": "_info"}


def metrics_reference() -> list[dict[str, Any]]:
    """Name, kind, labels and meaning of each metric of the daemon, the bridges and the head of a cluster, by name."""
    metrics = Metrics(Ledger())
    # Series exist from their first stream, device or reason on.
    metrics.set_stream("front-door", ["person"], ["door"], ["gate"])
    metrics.set_rules([("loading bay at night", "front-door")])
    metrics.status(StreamStatus("front-door", State.DOWN, Reason.REFUSED, "", 0.0))
    metrics.decoder("front-door", "cpu")
    metrics.delivery.add_socket("events")
    metrics.engine(dict.fromkeys(("device", "engine", "precision", "max_batch_size", "workers", "weights"), ""))
    metrics.add_device("cuda:0", lambda: (0, 0), lambda: 0.0)
    bridge = BridgeMetrics("webhook")
    bridge.of("pager")
    head = cluster_registry(lambda: _CLUSTER)
    found = (*_described(metrics.registry), *_described(bridge.registry), *_described(head))
    return sorted(found, key=lambda entry: str(entry["name"]))


def markdown_table() -> str:
    """The reference as a table in Markdown."""
    lines = ["| Metric | Kind | Labels | Meaning |", "|---|---|---|---|"]
    for entry in metrics_reference():
        labels = ", ".join(f"`{label}`" for label in entry["labels"])
        lines.append(f"| `{entry['name']}` | {entry['kind']} | {labels} | {entry['meaning']} |")
    return "\n".join(lines) + "\n"


def _described(registry: CollectorRegistry) -> Iterator[dict[str, Any]]:
    for family in registry.collect():
        if family.name.startswith("streamdet_"):
            labels = sorted({label for sample in family.samples for label in sample.labels if label != "le"})
            name = family.name + _ENDINGS.get(family.type, "")
            yield {"name": name, "kind": family.type, "labels": labels, "meaning": family.documentation}
