"""Subscribes to a cluster: real publishers as nodes, and a real server as the head, which a real reconciler fills."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamdet import (
    ClusterSubscription,
    DetectionEvent,
    EndpointError,
    Gap,
    Late,
    Moved,
    Restart,
    StateEvent,
    __version__,
    subscribe,
)
from streamdet.client.cluster import FORGET_SECONDS
from streamdet.client.head import DEFAULT_PORT, HeadAddress, HeadWatch
from streamdet.client.recovery import RecoveryTimes
from streamdet.cluster.agent import Report
from streamdet.cluster.reconciler import Reconciler
from streamdet.config import ReplayConfig, StreamConfig
from streamdet.security.curve import KeyFileError, generate
from streamdet.types import Owner
from support.certificates import make_certificate
from support.cluster_head import HeadServer
from support.losing import losing
from support.publishing import PERSON, frame_of, metrics_of, publisher_at
from support.waiting import wait_until

SOON = RecoveryTimes(check_seconds=0.3, on_its_way_seconds=0.2)


class Node:
    """A publisher that watches streams by grants."""

    def __init__(self, name: str, epoch: str = "") -> None:
        self.name = name
        self.publisher = publisher_at(
            epoch=epoch or f"epoch-of-{name}",
            metrics=metrics_of("gate", "yard"),
            replay=ReplayConfig(endpoint="tcp://127.0.0.1:0"),
        )
        self._seq = 0

    def owns(self, stream: str, generation: int) -> None:
        config = StreamConfig(name=stream, url="rtsp://192.0.2.5/x")
        self.publisher.set_stream(config, Owner(self.name, generation))

    def sees(self, stream: str, count: int = 1) -> None:
        for _ in range(count):
            self._seq += 1
            self.publisher.put_detections(frame_of(stream, self._seq), [PERSON])

    def report(self, events: str = "") -> Report:
        """What its agent would say; over another endpoint if there is a proxy."""
        addresses = {"events": events or self.publisher.endpoint, "replay": self.publisher.replay_endpoint}
        return Report(self.name, __version__, addresses=addresses)


class Cluster:
    """Reports of nodes, and the server of the head."""

    def __init__(self) -> None:
        self.reconciler = Reconciler()
        self.server = HeadServer(self.status)

    def status(self) -> dict[str, Any]:
        return self.reconciler.status()

    def has(self, *reports: Report) -> None:
        for report in reports:
            self.reconciler.report(report, report.node, 10.0)

    def subscribed(self, count: int, **arguments: Any) -> ClusterSubscription:
        arguments = {"kinds": ["detections"], "replay": True, "recovery_times": SOON, **arguments}
        events = subscribe(cluster=self.server.address, **arguments)
        wait_until(lambda: events.receive(0.01) is None and len(events.connected) == count)
        return events


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    with cluster.server:
        yield cluster


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    one, other = Node("one"), Node("other")
    with one.publisher, other.publisher:
        yield one, other


def received(events: ClusterSubscription, count: int) -> list[str]:
    """What comes next, in words."""
    found: list[str] = []
    deadline = time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        item = events.receive(1.0)
        match item:
            case DetectionEvent():
                found.append(f"{item.stream} {item.owner.node if item.owner else '-'} {item.frame.seq}")
            case Moved():
                found.append(f"{item.stream} moved from {item.before.node} to {item.owner.node}")
            case Late(event=DetectionEvent() as event):
                found.append(f"{item.stream} late {event.owner.node if event.owner else '-'} {event.frame.seq}")
            case Gap():
                found.append(f"{item.stream} lost {item.count}")
            case Restart() | StateEvent():
                found.append(f"{item.stream} {type(item).__name__}")
    return found


def test_nodes_that_join_are_heard(cluster: Cluster, nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    one.owns("gate", 5)
    other.owns("yard", 5)
    cluster.has(one.report())
    with cluster.subscribed(1) as events:
        one.sees("gate")
        assert received(events, 1) == ["gate one 1"]
        assert events.nodes == ["one"]
        cluster.has(other.report())
        other.sees("yard")
        assert received(events, 1) == ["yard other 1"]
        assert events.nodes == ["one", "other"]
        assert events.problem == ""


def test_without_the_head_events_go_on_and_a_new_head_at_its_place_is_followed(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    one, other = nodes
    one.owns("gate", 5)
    other.owns("yard", 5)
    cluster.has(one.report())
    with cluster.subscribed(1) as events:
        cluster.server.close()
        one.sees("gate")
        assert received(events, 1) == ["gate one 1"]
        wait_until(lambda: events.receive(0.05) is None and "cannot be asked" in events.problem)
        assert cluster.server.address in events.problem
        # The next head knows nothing of the first node yet, which stays connected.
        cluster.reconciler = Reconciler()
        cluster.has(other.report())
        with HeadServer(cluster.status, cluster.server.port):
            wait_until(lambda: events.receive(0.05) is None and len(events.connected) == 2)
            one.sees("gate")
            assert received(events, 1) == ["gate one 2"]
            assert events.problem == ""


def test_a_head_that_starts_late_is_no_error(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    one.owns("gate", 5)
    cluster = Cluster()
    cluster.has(one.report())
    port = cluster.server.port
    cluster.server._server.server_close()
    with subscribe(cluster=f"127.0.0.1:{port}", kinds=["detections"], replay=True) as events:
        wait_until(lambda: events.problem)
        assert events.receive(0.05) is None
        with HeadServer(cluster.status, port):
            one.sees("gate")
            assert received(events, 1) == ["gate one 1"]


def test_what_a_lost_owner_could_not_deliver_comes_late_once_and_in_order(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    one, other = nodes
    one.owns("gate", 5)
    is_cut = threading.Event()
    with losing(one.publisher.endpoint, lambda topic: is_cut.is_set() and topic != b"detections/end/") as proxy:
        cluster.has(one.report(proxy.endpoint), other.report())
        with cluster.subscribed(2, recovery_times=RecoveryTimes(check_seconds=1e6)) as events:
            one.sees("gate")
            assert received(events, 1) == ["gate one 1"]
            wait_until(lambda: len(one.publisher._sockets._subscriptions) == 1, "the proxy is subscribed")
            is_cut.set()
            one.sees("gate", 3)  # does not arrive
            wait_until(lambda: proxy.lost == 3)
            other.owns("gate", 9)
            other.sees("gate")
            assert received(events, 2) == ["gate moved from one to other", "gate other 1"]
            one.sees("gate", 2)  # it does not know that it has lost the stream, which must not be seen twice
            wait_until(lambda: proxy.lost == 5)
            is_cut.clear()
            one.sees("gate")
            assert received(events, 3) == ["gate late one 2", "gate late one 3", "gate late one 4"]
            wait_until(lambda: events.receive(0.05) is None and events.superseded == 3)
            other.sees("gate")
            assert received(events, 1) == ["gate other 2"]


def test_what_a_lost_owner_no_longer_keeps_is_a_gap(cluster: Cluster, nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    one.owns("gate", 5)
    is_cut = threading.Event()
    with losing(one.publisher.endpoint, lambda _: is_cut.is_set()) as proxy:
        cluster.has(one.report(proxy.endpoint), other.report())
        with cluster.subscribed(2, replay=False) as events:
            wait_until(lambda: len(one.publisher._sockets._subscriptions) == 1, "the proxy is subscribed")
            one.sees("gate")
            assert received(events, 1) == ["gate one 1"]
            is_cut.set()
            one.sees("gate", 3)
            wait_until(lambda: proxy.lost == 3)
            other.owns("gate", 9)
            other.sees("gate")
            assert received(events, 2) == ["gate moved from one to other", "gate other 1"]
            is_cut.clear()
            one.sees("gate")
            assert received(events, 1) == ["gate lost 3"]
            wait_until(lambda: events.receive(0.05) is None and events.superseded == 1)
            is_cut.set()
            one.sees("gate")
            wait_until(lambda: proxy.lost == 4)
            is_cut.clear()
            one.sees("gate")  # what is lost from now on is from after the move, and another's
            wait_until(lambda: events.receive(0.05) is None and events.superseded == 2)


def test_a_stream_that_goes_back_is_followed_and_grants_in_a_row_are_no_moves(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    one, other = nodes
    cluster.has(one.report(), other.report())
    with cluster.subscribed(2) as events:
        one.owns("gate", 5)
        one.sees("gate")
        assert received(events, 1) == ["gate one 1"]
        one.owns("gate", 6)
        one.sees("gate")
        assert received(events, 1) == ["gate one 2"]
        other.owns("gate", 9)
        other.sees("gate")
        assert received(events, 2) == ["gate moved from one to other", "gate other 1"]
        one.owns("gate", 12)
        one.sees("gate")
        assert received(events, 2) == ["gate moved from other to one", "gate one 3"]


def test_a_node_at_another_address_goes_on_where_it_had_stopped(cluster: Cluster, nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    one.owns("gate", 5)
    cluster.has(one.report())
    with cluster.subscribed(1) as events, losing(one.publisher.endpoint, lambda _: False) as proxy:
        one.sees("gate", 2)
        assert received(events, 2) == ["gate one 1", "gate one 2"]
        one.sees("gate")  # may arrive over either
        cluster.has(one.report(proxy.endpoint))
        assert received(events, 1) == ["gate one 3"]
        wait_until(lambda: events.receive(0.05) is None and list(events._nodes) == [proxy.endpoint])
        wait_until(lambda: events.connected == [proxy.endpoint])
        one.sees("gate", 2)
        assert received(events, 2) == ["gate one 4", "gate one 5"]
        assert events._sources["gate"].endpoint == proxy.endpoint


def test_a_node_that_is_gone_for_an_hour_is_given_up(cluster: Cluster, nodes: tuple[Node, Node]) -> None:
    _, other = nodes
    gone = Node("gone")
    with gone.publisher:
        cluster.has(gone.report(), other.report())
        events = cluster.subscribed(2)
        cluster.reconciler = Reconciler()
        cluster.has(other.report())
        wait_until(lambda: events.receive(0.01) is None and [node.node for node in events._listed] == ["other"])
        events._follow(time.monotonic() + FORGET_SECONDS * 2)
        assert events.nodes == ["gone", "other"]  # it is connected
    with events:
        wait_until(lambda: len(events.connected) == 1)
        events._follow(time.monotonic() + FORGET_SECONDS * 4)
        assert events.nodes == ["other"]
        assert len(events._nodes) == 1


def test_a_node_that_cannot_be_subscribed_to_is_named_and_others_are_heard(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    one, _ = nodes
    one.owns("gate", 5)
    everywhere = Report("wide", __version__, addresses={"events": "tcp://0.0.0.0:5555", "replay": None})
    cluster.has(one.report(), everywhere, Report("silent", __version__))
    with subscribe(cluster=cluster.server.address, kinds=["detections"], replay=True) as events:
        one.sees("gate")
        assert received(events, 1) == ["gate one 1"]
        assert events.nodes == ["one"]
        assert "node wide: listens at every address (tcp://0.0.0.0:5555)" in events.problem
        assert "node silent: the head has no address of it yet" in events.problem


def test_keys_may_differ_from_node_to_node(tmp_path: Path, cluster: Cluster, nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    cluster.has(one.report())
    _, mine = generate(tmp_path, "alice", "client")
    folder = tmp_path / "nodes"
    folder.mkdir()
    with subscribe(cluster=cluster.server.address, server_key=folder, client_key_file=mine) as events:
        wait_until(lambda: events.receive(0.05) is None and events.problem)
        assert "cannot subscribe to node one: cannot read the key file" in events.problem
        public, _ = generate(tmp_path, "one", "daemon")
        (folder / "one.key").write_bytes(public.read_bytes())
        events._review_at = 0.0
        wait_until(lambda: events.receive(0.05) is None and events.problem == "")
    with pytest.raises(KeyFileError):
        subscribe(cluster=cluster.server.address, server_key=tmp_path / "one.key")


def test_after_the_end_nothing_comes_and_no_thread_is_left(cluster: Cluster) -> None:
    events = subscribe(cluster=cluster.server.address, timeout_seconds=0.05)
    with pytest.raises(TimeoutError, match=r"no event within 0\.05 seconds"):
        next(events)
    events.close()
    events.close()
    assert not events._watch.is_alive()
    assert events.receive(0) is None
    with pytest.raises(StopIteration):
        next(events)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost", f"http://localhost:{DEFAULT_PORT}"),
        ("[::1]:80", "http://[::1]:80"),
        ("head.example", f"https://head.example:{DEFAULT_PORT}"),
        ("[2001:db8::1]:80", "https://[2001:db8::1]:80"),
        ("http://head.example/", f"http://head.example:{DEFAULT_PORT}"),
    ],
)
def test_a_head_is_named_by_its_host_or_url(text: str, url: str) -> None:
    assert str(HeadAddress.parse(text)) == url


@pytest.mark.parametrize("text", ["", "tcp://head:5", "head:0", "head:99999", "http://a/b", "a b"])
def test_what_is_no_head_is_one_clear_line(text: str) -> None:
    with pytest.raises(EndpointError, match="is no head of a cluster; expected something like") as caught:
        subscribe(cluster=text)
    assert "\n" not in str(caught.value)


def test_a_token_goes_to_a_head_that_proves_who_it_is(tmp_path: Path) -> None:
    token = tmp_path / "token"
    ca, _ = make_certificate(tmp_path)
    token.write_text('{"token": "abc"}\n')
    with pytest.raises(EndpointError, match="over HTTPS only"):
        HeadAddress.parse("http://head.example", None, token)
    address = HeadAddress.parse("head.example", ca, token)
    assert f"{address.token} {address}" == f"abc https://head.example:{DEFAULT_PORT}"
    token.write_text("xyz\n")
    assert f"{HeadAddress.parse('127.0.0.1', None, token).token}" == "xyz"
    token.write_text("two words")
    with pytest.raises(EndpointError, match="holds no token"):
        HeadAddress.parse("127.0.0.1", None, token)
    with pytest.raises(EndpointError, match="cannot read the token file"):
        HeadAddress.parse("127.0.0.1", None, tmp_path / "none")
    with pytest.raises(EndpointError, match="cannot use the certificates"):
        HeadAddress.parse("head.example", token)


def test_another_server_is_no_head() -> None:
    def status() -> dict[str, Any]:
        return {"nodes": 5}

    with HeadServer(status) as server, subscribe(cluster=server.address) as events:
        wait_until(lambda: "is no head of a cluster" in events.problem)
        assert events.receive(0.01) is None


def test_subscriptions_share_one_watch_of_the_head_and_change_their_streams(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    one, _ = nodes
    for stream in ("gate", "yard"):
        one.owns(stream, 5)
    cluster.has(one.report())
    with (
        HeadWatch(HeadAddress.parse(cluster.server.address)) as watch,
        subscribe(cluster=watch, kinds=["detections"], streams=["gate"]) as events,
        subscribe(cluster=watch, kinds=["detections"], streams=["gate"]) as others,
    ):
        wait_until(lambda: events.receive(0.01) is None and events.connected_nodes == {"one"})
        wait_until(lambda: others.receive(0.01) is None and others.connected_nodes == {"one"})
        assert watch.status["nodes"][0]["name"] == "one"
        # One that ends leaves the watch to the other.
        others.close()
        assert watch.is_alive()
        events.set_streams(["yard"])

        def sees_yard() -> bool:
            one.sees("yard")
            item = events.receive(0.05)
            return isinstance(item, DetectionEvent) and item.stream == "yard"

        wait_until(sees_yard)
