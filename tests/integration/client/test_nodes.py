"""Subscribes to several real publishers, as nodes of a cluster have them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamdet import DetectionEvent, Gap, Moved, subscribe_nodes
from streamdet.client.nodes import NodesSubscription
from streamdet.config import StreamConfig
from streamdet.delivery.publisher import Publisher
from streamdet.errors import EndpointError
from streamdet.types import Owner
from support.publishing import PERSON, frame_of, metrics_of, publisher_at
from support.waiting import wait_until


class Node:
    """A publisher that watches streams by grants."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.publisher: Publisher = publisher_at(epoch=f"epoch-of-{name}", metrics=metrics_of("gate", "yard"))
        self._seq = 0

    def owns(self, stream: str, generation: int | None) -> None:
        config = StreamConfig(name=stream, url="rtsp://192.0.2.5/x")
        self.publisher.set_stream(config, None if generation is None else Owner(self.name, generation))

    def sees(self, stream: str, count: int = 1) -> None:
        for _ in range(count):
            self._seq += 1
            self.publisher.put_detections(frame_of(stream, self._seq), [PERSON])


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    one, other = Node("one"), Node("other")
    with one.publisher, other.publisher:
        yield one, other


def reader(*nodes: Node, **arguments: Any) -> NodesSubscription:
    events = subscribe_nodes([node.publisher.endpoint for node in nodes], kinds=["detections"], **arguments)
    wait_until(lambda: len(events.connected) == len(nodes))
    for node in nodes:  # the subscription arrives a little after the connection
        wait_until(lambda node=node: subscribed(events, node))
    return events


def subscribed(events: NodesSubscription, node: Node) -> bool:
    node.sees("probe")
    item = events.receive(0.1)
    return item is not None and item.stream == "probe"


def received(events: NodesSubscription, count: int) -> list[tuple[str, str]]:
    """What comes next, in words, without what was left of the probes."""
    found: list[tuple[str, str]] = []
    deadline = time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        item = events.receive(1.0)
        if item is None or item.stream == "probe":
            continue
        match item:
            case DetectionEvent():
                found.append((item.stream, item.owner.node if item.owner else "-"))
            case Moved():
                found.append((item.stream, f"from {item.before.node} to {item.owner.node}"))
            case Gap():
                found.append((item.stream, f"lost {item.count}"))
    return found


def settled(condition: Callable[[], bool], events: NodesSubscription) -> None:
    """Waits for a condition while nothing that is handed out may come."""

    def is_met() -> bool:
        item = events.receive(0.05)
        assert item is None or item.stream == "probe"
        return condition()

    wait_until(is_met)


def test_each_stream_comes_from_its_owner(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    one.owns("gate", 5)
    other.owns("yard", 5)
    with reader(one, other) as events:
        one.sees("gate")
        assert received(events, 1) == [("gate", "one")]
        other.sees("yard")
        assert received(events, 1) == [("yard", "other")]
        assert events.superseded == 0


def test_a_move_is_reported_and_the_node_before_is_not_heard_any_more(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    one.owns("gate", 5)
    with reader(one, other) as events:
        one.sees("gate")
        assert received(events, 1) == [("gate", "one")]
        other.owns("gate", 9)
        other.sees("gate", 2)
        assert received(events, 3) == [("gate", "from one to other"), ("gate", "other"), ("gate", "other")]
        one.sees("gate", 3)  # it cannot be reached by the head, and does not know
        settled(lambda: events.superseded == 3, events)
        one.owns("gate", 12)
        one.sees("gate")
        assert received(events, 2) == [("gate", "from other to one"), ("gate", "one")]


def test_the_same_node_with_a_newer_grant_is_no_move(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    one.owns("gate", 5)
    with reader(one, other) as events:
        one.sees("gate")
        assert received(events, 1) == [("gate", "one")]
        one.owns("gate", 6)
        one.sees("gate")
        assert received(events, 1) == [("gate", "one")]
        other.owns("gate", 6)  # which no head does: the first one counts
        other.sees("gate")
        settled(lambda: events.superseded == 1, events)


def test_a_gap_of_a_node_that_lost_the_stream_is_not_reported(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    one.owns("gate", 5)
    other.owns("gate", 9)
    with reader(one, other) as events:
        other.sees("gate")
        assert received(events, 1) == [("gate", "other")]
        assert events._accepted(Gap("gate", "detections/gate/", 3, 2), one.publisher.endpoint) is None
        gap = Gap("gate", "detections/gate/", 3, 2)
        assert events._accepted(gap, other.publisher.endpoint) is gap


def test_streams_of_no_cluster_come_from_every_node(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    one.owns("gate", None)
    other.owns("gate", None)
    with reader(one, other) as events:
        one.sees("gate")
        assert received(events, 1) == [("gate", "-")]
        other.sees("gate")
        assert received(events, 1) == [("gate", "-")]


def test_nodes_come_and_go_while_others_stay_connected(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    one.owns("gate", 5)
    other.owns("gate", 9)
    with reader(one) as events:
        kept = events._nodes[one.publisher.endpoint]
        events.set_nodes([one.publisher.endpoint, other.publisher.endpoint])
        wait_until(lambda: subscribed(events, other))
        assert events._nodes[one.publisher.endpoint] is kept
        events.set_nodes([other.publisher.endpoint])
        assert kept._context.closed
        other.sees("gate")
        assert received(events, 1) == [("gate", "other")]


def test_a_busy_node_leaves_others_their_turn(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    one.owns("gate", 5)
    other.owns("yard", 5)
    with reader(one, other) as events:
        one.sees("gate", 200)
        other.sees("yard")
        assert ("yard", "other") in received(events, 150)


def test_without_an_event_it_says_so(nodes: tuple[Node, Node]) -> None:
    with subscribe_nodes([node.publisher.endpoint for node in nodes], timeout_seconds=0.05) as events:
        assert events.receive(0) is None
        with pytest.raises(TimeoutError, match=r"no event within 0\.05 seconds"):
            next(events)
    with pytest.raises(StopIteration):
        next(events)


def test_wrong_endpoints_change_nothing(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    with pytest.raises(ValueError, match="must not be empty"):
        subscribe_nodes([])
    with pytest.raises(TypeError, match="a list of endpoints"):
        subscribe_nodes("tcp://127.0.0.1:5555")
    with reader(one) as events:
        with pytest.raises(EndpointError):
            events.set_nodes([one.publisher.endpoint, "udp://127.0.0.1:1"])
        assert len(events.connected) == 1
