"""What Prometheus gets of a cluster, from what a real reconciler says of it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from streamdet import __version__
from streamdet.cluster.agent import Report
from streamdet.cluster.cameras import Camera
from streamdet.cluster.placement import MoveReason
from streamdet.cluster.reconciler import LOST_SECONDS, Reconciler
from streamdet.monitoring.cluster_metrics import MOVE_REASONS, cluster_registry, scrape_targets


class Cluster:
    """Two nodes and four streams, of which one is too large."""

    def __init__(self) -> None:
        self.now = 100.0
        self.head = Reconciler(lambda: self.now, lambda: self.now, settle_seconds=0.0)
        wanted = {"a": 5.0, "b": 5.0, "c": 5.0, "huge": 50.0}
        self.head.apply({name: Camera(fps, {"name": name}) for name, fps in wanted.items()})
        self.registry: CollectorRegistry = cluster_registry(self.head.status)

    def report(self, *names: str, **states: str) -> None:
        for name in names:
            addresses = {"metrics": f"https://{name}.example:9095/metrics"}
            report = Report(name, __version__, states=states, refused={"group-9": "no"}, addresses=addresses)
            self.head.report(report, name, 20.0)
        self.head.step()

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"streamdet_cluster_{name}", labels)


def test_streams_are_counted_by_state() -> None:
    cluster = Cluster()
    cluster.report("n0", "n1", a="up", b="up", c="down")
    assert [cluster.value("streams", state=state) for state in ("up", "connecting", "stalled", "down", "unplaced")] == [
        2, 0, 0, 1, 1,
    ]  # fmt: skip
    assert cluster.value("unplaced") == 1
    assert cluster.value("refused_grants") == 2
    assert cluster.value("node_capacity_fps", node="n1") == 20
    loads = [cluster.value("node_load_fps", node=node) for node in ("n0", "n1")]
    assert sum(load or 0 for load in loads) == 15


def test_claims_that_a_slow_daemon_does_not_renew_grow_old() -> None:
    cluster = Cluster()
    cluster.head.report(Report("n0", __version__, slow_seconds=12.5), "n0", 20.0)
    cluster.now += 1
    assert cluster.value("lease_age_seconds", node="n0") == 13.5


def test_a_lost_node_shows_in_every_metric() -> None:
    cluster = Cluster()
    cluster.report("n0", "n1", a="up", b="up", c="up")
    streams = cluster.head.status()["streams"]
    victim = streams[0]["node"]
    other = "n1" if victim == "n0" else "n0"
    for _ in range(2):
        cluster.now += (LOST_SECONDS - 1) / 2
        cluster.report(other, a="up", b="up", c="up")
    cluster.now += 2
    cluster.report(other)
    assert cluster.value("nodes", state="lost") == 1
    assert cluster.value("nodes", state="up") == 1
    assert cluster.value("lease_age_seconds", node=victim) == LOST_SECONDS + 1
    assert cluster.value("lease_age_seconds", node=other) == 0
    assert (cluster.value("moves_total", reason="node_lost") or 0) >= 1
    assert cluster.value("moves_total", reason="drain") == 0
    assert cluster.value("blind_seconds_total", stream="huge") == LOST_SECONDS + 1
    assert (cluster.value("blind_seconds_total", stream="a") or 0) > 0


def test_a_node_that_was_drained_before_it_went_is_forgotten() -> None:
    cluster = Cluster()
    cluster.report("n0", "n1")
    cluster.head.drain("n1")
    cluster.report("n0", "n1")
    for _ in range(4):
        cluster.now += LOST_SECONDS / 4 + 1
        cluster.report("n0")
    assert [node["name"] for node in cluster.head.status()["nodes"]] == ["n0"]
    assert cluster.value("nodes", state="lost") == 0
    cluster.report("n1")
    assert cluster.value("nodes", state="draining") == 1  # it is back, and still to be empty


def test_every_reason_of_a_move_has_a_series_from_the_start() -> None:
    assert set(MOVE_REASONS) == set(MoveReason.__args__)  # type: ignore[attr-defined]


def test_prometheus_learns_where_nodes_have_their_pages() -> None:
    cluster = Cluster()
    cluster.report("n0")
    assert scrape_targets(cluster.head.status()) == [
        {
            "targets": ["n0.example:9095"],
            "labels": {"__scheme__": "https", "__metrics_path__": "/metrics", "node": "n0"},
        }
    ]
    without = {"nodes": [{"name": "old", "addresses": {}}]}
    assert scrape_targets(without) == []
