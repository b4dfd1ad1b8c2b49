"""The past of a cluster: real publishers as nodes, each with a spool that has kept a part of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import orjson
import pytest
import zmq

from streamdet.client.head import HeadAddress, HeadWatch, NodeAddress
from streamdet.client.past import AsyncPast, StreamSums, Timeline
from streamdet.config import PublisherConfig, ReplayConfig
from streamdet.delivery.event_store import EventStore, Record
from streamdet.delivery.history import History
from streamdet.delivery.publisher import Publisher
from streamdet.errors import EndpointError, NotKeptError
from streamdet.types import FrameInfo, Owner
from streamdet.web.cluster_board import ClusterBoard
from streamdet.web.cluster_past import ClusterPast, merged
from streamdet.wire import to_message
from streamdet.wire.replay import HistoryPage, HistoryRequest
from support.occurring import FRAME, alert_event, object_event
from support.publishing import metrics_of

_AT = 1760000000.0
_REPLAY = ReplayConfig(endpoint="tcp://127.0.0.1:0")
_Result = TypeVar("_Result")


def _frame(number: int) -> FrameInfo:
    return replace(FRAME, captured_at=_AT + number)


def fill(directory: Path, node: str, numbers: range) -> Path:
    """A spool with an object of a stream of the cluster for each number, at that second, and one of the node's own."""
    store = EventStore(directory, 2**30, "e0", {})
    owner = Owner(node, 5)
    events = [object_event("own", object_id=f"own-{node}", phase="end", frame=_frame(0))]
    events += [
        object_event("gate", object_id=f"{node}-{number}", phase="end", frame=_frame(number), owner=owner)
        for number in numbers
    ]
    records = []
    for seq, event in enumerate(events, 1):
        topic, payload = to_message(event)
        records.append(Record("e0", topic.decode(), seq, _AT + seq, payload))
    topic, payload = to_message(
        alert_event("gate", alert_id=f"alert-{node}", frame=_frame(1000), raised_at=_AT + 1000, owner=owner)
    )
    records.append(Record("e0", topic.decode(), 1, _AT + 1000, payload))
    store.append(records)
    store.close()
    return store.path


class Nodes:
    """Two nodes that have kept a part each, one that keeps nothing, one that never answers, and one that is away."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.watch = HeadWatch(HeadAddress.parse("127.0.0.1"))
        self.board = ClusterBoard(self.watch)
        parts = {"one": range(1, 300, 2), "other": range(2, 300, 2), "forgetful": None}
        addresses: dict[str, str | None] = {}
        for node, numbers in parts.items():
            history = None
            if numbers is not None:
                history = stack.enter_context(History(fill(folder / node, node, numbers)))
            config = PublisherConfig(endpoint="tcp://127.0.0.1:0")
            publisher = Publisher(config, f"epoch of {node}", metrics_of(), replay=_REPLAY, history=history)
            addresses[node] = stack.enter_context(publisher).replay_endpoint
        context = stack.enter_context(zmq.Context())
        silent = stack.enter_context(context.socket(zmq.ROUTER))
        addresses["silent"] = f"tcp://127.0.0.1:{silent.bind_to_random_port('tcp://127.0.0.1')}"
        addresses["away"] = "tcp://127.0.0.1:1"
        self.all = {name: NodeAddress(name, "tcp://127.0.0.1:1", replay) for name, replay in addresses.items()}

    def ask(self, wanted: Callable[[ClusterPast], Awaitable[_Result]], *names: str) -> _Result:
        """Asks a cluster of these nodes."""
        self.watch.nodes = tuple(self.all[name] for name in names)
        self.board.note_nodes(frozenset(names) - {"away"}, "")

        def connect(node: NodeAddress) -> AsyncPast:
            if node.node == "reading":
                return Reading(node.events)
            return AsyncPast(
                node.events, replay_endpoint=node.replay, timeout_seconds=60 if node.node != "silent" else 0.2
            )

        async def run() -> _Result:
            async with ClusterPast(self.board, connect) as past:
                return await wanted(past)

        return asyncio.run(run())


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(tmp_path, stack)


async def all_of(past: ClusterPast, limit: int = 60) -> list[str]:
    """The ids of all pages."""
    ids: list[str] = []
    request = HistoryRequest(0, limit=limit)
    while True:
        page = await past.page(request)
        assert len(page.events) <= limit
        events = map(orjson.loads, page.events)
        ids += [event["object"]["object_id"] if "object" in event else event["alert"]["alert_id"] for event in events]
        if page.next is None:
            return ids
        # The same page again has the same events.
        again = HistoryRequest(0, limit=limit, after=page.next)
        assert (await past.page(again)).events == (await past.page(again)).events
        request = again


EXPECTED = [f"{'one' if number % 2 else 'other'}-{number}" for number in range(299, 0, -1)]


@pytest.mark.parametrize("limit", [60, 7, 256])
def test_what_all_nodes_have_kept_is_one_list_in_the_order_of_time(nodes: Nodes, limit: int) -> None:
    ids = nodes.ask(lambda past: all_of(past, limit), "one", "other")
    assert set(ids[:2]) == {"alert-one", "alert-other"}
    assert ids[2:] == EXPECTED


def test_nodes_without_an_answer_are_named_and_the_others_have_their_say(nodes: Nodes) -> None:
    async def ask(past: ClusterPast) -> tuple[list[str], str, str]:
        ids, missing = await all_of(past), past.missing
        nodes.board.note_nodes(frozenset({"one", "forgetful"}), "")
        return ids, missing, past.missing

    ids, missing, later = nodes.ask(ask, "one", "away", "silent", "forgetful")
    assert ids[1:] == [name for name in EXPECTED if name.startswith("one")]
    assert missing == "away is away; forgetful keeps no events on disk; silent does not answer"
    assert later == "away is away; forgetful keeps no events on disk; silent is away"


def test_where_no_node_answers_the_reason_is_that_of_one_daemon(nodes: Nodes) -> None:
    with pytest.raises(NotKeptError):
        nodes.ask(all_of, "forgetful")
    with pytest.raises(EndpointError, match="silent does not answer"):
        nodes.ask(all_of, "silent")
    with pytest.raises(EndpointError, match="away is away"):
        nodes.ask(all_of, "away")
    with pytest.raises(EndpointError, match="load it again"):
        nodes.ask(lambda past: past.page(HistoryRequest(0, after="5")), "one")


def test_what_one_node_keeps_is_asked_of_that_node(nodes: Nodes) -> None:
    async def ask(past: ClusterPast) -> None:
        assert (await (await past.of("one")).page()).events
        with pytest.raises(EndpointError, match="away is away"):
            await past.of("away")

    nodes.ask(ask, "one", "away")


class Reading(AsyncPast):
    """A node that takes three pages to find its newest event, which is newer than those of others."""

    async def page(self, request: HistoryRequest | None = None, **wanted: object) -> HistoryPage:
        assert request is not None
        if request.after != "2":
            return HistoryPage(0, str(int(request.after or 0) + 1), [])
        event = object_event("gate", object_id="rare", phase="end", frame=_frame(5000), owner=Owner("reading", 7))
        return HistoryPage(0, None, [to_message(event)[1]])


def test_what_is_older_waits_for_a_node_that_looks_on_for_something_rare(nodes: Nodes) -> None:
    nodes.all["reading"] = NodeAddress("reading", "tcp://127.0.0.1:1", "tcp://127.0.0.1:1")
    ids = nodes.ask(all_of, "one", "reading")
    assert ids[:3] == ["rare", "alert-one", "one-299"]
    assert len(ids) == len(set(ids)) == 152


def test_sums_are_those_of_all_nodes() -> None:
    one = StreamSums("gate", {"person": {0: 1, 1: 2}}, {0: 1}, {0: 20.0}, {})
    other = StreamSums("gate", {"person": {1: 3}, "car": {2: 1}}, {}, {0: 20.0, 3: 5.0}, {4: 1.0})
    yard = StreamSums("yard", {}, {}, {}, {})
    together = merged(
        [Timeline(50.0, ((10.0, 20.0), (30.0, 40.0)), (one,)), Timeline(40.0, ((15.0, 35.0),), (other, yard))], 30.0
    )
    assert together.kept_since == 40.0
    assert together.gaps == ((15.0, 20.0), (30.0, 35.0))
    assert [sums.stream for sums in together.streams] == ["gate", "yard"]
    gate = together.streams[0]
    assert {label: dict(counts) for label, counts in gate.presence.items()} == {
        "person": {0: 1, 1: 5}, "car": {2: 1},
    }  # fmt: skip
    assert (dict(gate.alerts), gate.down_seconds, gate.resting_seconds) == ({0: 1}, {0: 30.0, 3: 5.0}, {4: 1.0})
    assert merged([], 30.0) == Timeline(None, (), ())
