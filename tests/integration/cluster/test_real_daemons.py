"""Three real daemons as nodes: real captures, events and control APIs; the reconciler's calls need no network here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from streamdet import DetectionEvent, Moved, NodesSubscription, subscribe_nodes
from streamdet.assets import sample_clip
from streamdet.client.control import ask
from streamdet.cluster.agent import RENEW_SECONDS, Agent
from streamdet.cluster.cameras import read_cameras
from streamdet.cluster.reconciler import LOST_SECONDS, Reconciler
from support.control_api import Api
from support.waiting import wait_until

NAMES = ("n0", "n1", "n2")
CAMERAS = "[stream_defaults]\nmax_fps = 5\nloop = true\n"


class Head:
    """A reconciler that calls the agents; its clock is faster than the real one, so that tests need not wait."""

    def __init__(self, apis: dict[str, Api], cameras: Path) -> None:
        self.apis = apis
        self.cameras = cameras
        self.agents = {name: Agent(partial(ask, api.socket)) for name, api in apis.items()}
        self.cut_off: set[str] = set()
        self.now = 1000.0
        self.replace()

    def replace(self) -> None:
        self.reconciler = Reconciler(lambda: self.now, settle_seconds=LOST_SECONDS)
        self.reconciler.apply(read_cameras(self.cameras))

    def turn(self) -> None:
        self.now += RENEW_SECONDS
        for name, agent in self.agents.items():
            if name not in self.cut_off:
                self.reconciler.report(agent.turn(), name, 45.0)
        for name, grants in self.reconciler.step().items():
            if name not in self.cut_off:
                self.agents[name].hold(grants)

    def turn_until(self, condition: Callable[[], object]) -> None:
        def is_met() -> object:
            self.turn()
            return condition()

        wait_until(is_met)

    def owners(self) -> dict[str, str]:
        """The nodes by their streams, as the head sees it."""
        streams = self.reconciler.status()["streams"]
        return {stream["name"]: stream["node"] for stream in streams if stream["state"] == "up"}

    def watched(self, node: str) -> set[str]:
        """The claimed streams that a node watches."""
        return {name for name, stream in self.apis[node].streams().items() if stream["claim"] is not None}

    def is_each_stream_watched_once(self) -> bool:
        """Whether what nodes watch is what the head has granted them, and all of it is up."""
        owners = self.owners()
        watched = [(stream, node) for node in self.apis for stream in self.watched(node)]
        return len(owners) == 18 and sorted(watched) == sorted(owners.items())

    def captures(self) -> dict[str, object]:
        """The capture of each claimed stream, by node and stream."""
        found: dict[str, object] = {}
        for node, api in self.apis.items():
            streams = api.daemon._streams
            assert streams is not None
            of_node = dict(streams._captures)
            found |= {f"{node}/{name}": of_node[name] for name in of_node.keys() - {"east", "west"}}
        return found

    def endpoints(self) -> list[str]:
        addresses = [api.daemon.addresses for api in self.apis.values()]
        return [address.events for address in addresses if address is not None]


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    cameras = tmp_path / "cameras.toml"
    # Two groups of 8 and one of 2: two nodes of 45 frames per second can take them all.
    cameras.write_text(CAMERAS + "".join(camera(number) for number in range(18)))
    with ExitStack() as stack:
        apis = {}
        for name in NAMES:
            folder = tmp_path / name
            folder.mkdir()
            apis[name] = stack.enter_context(Api(folder, more=f'[node]\nname = "{name}"\n'))
        yield Head(apis, cameras)


def camera(number: int) -> str:
    return f'[[streams]]\nname = "s{number:02}"\nurl = "{sample_clip()}"\n'


def seen(events: NodesSubscription, stream: str, node: str) -> bool:
    """Whether the reader has just got an event of a stream from a node; what claims to own it must be that node."""
    for _ in range(50):
        event = events.receive(0.2)
        if isinstance(event, DetectionEvent) and event.stream == stream and event.owner is not None:
            return event.owner.node == node
    return False


def assert_ledgers_are_exact(head: Head) -> None:
    for api in head.apis.values():
        for name, counts in api.daemon.ledger.snapshot().items():
            assert counts.captured == counts.published + sum(counts.dropped.values()) + counts.in_flight, name


@pytest.mark.slow
def test_streams_follow_nodes_that_are_cut_off_and_come_back(head: Head) -> None:
    head.turn_until(lambda: len(head.owners()) == 18)
    owners = head.owners()
    assert set(owners.values()) == set(NAMES)
    victim = owners["s00"]
    before = head.captures()
    with subscribe_nodes(head.endpoints(), kinds=["detections"], streams=["s00"]) as events:
        wait_until(lambda: seen(events, "s00", victim))

        # A node is cut off: its streams are watched elsewhere, and those of others keep their connections.
        head.cut_off.add(victim)
        head.turn_until(lambda: head.owners().get("s00") not in (None, victim))
        wait_until(lambda: seen(events, "s00", head.owners()["s00"]))
        after = head.captures()
        assert {place: after[place] for place in before} == before  # also the one that is cut off watches on
        assert "s00" in head.watched(victim)
        wait_until(lambda: events.receive(0.1) is not None and events.superseded > 0)

        # It is back: it gives up what is watched elsewhere, unless it was granted it again.
        head.cut_off.clear()
        head.turn_until(head.is_each_stream_watched_once)
        wait_until(lambda: seen(events, "s00", head.owners()["s00"]))
    assert_ledgers_are_exact(head)


@pytest.mark.slow
def test_a_new_head_moves_nothing_an_edit_what_it_is_about_and_a_drain_all(head: Head) -> None:
    head.turn_until(lambda: len(head.owners()) == 18)
    before, owners = head.captures(), head.owners()
    head.replace()
    for _ in range(10):
        head.turn()
    assert head.owners() == owners
    assert head.captures() == before

    node = owners["s01"]
    text = head.cameras.read_text().replace(camera(1), camera(1) + "stall_seconds = 7\n").replace(camera(2), "")
    head.cameras.write_text(text + camera(30))
    head.reconciler.apply(read_cameras(head.cameras))
    head.turn_until(lambda: "s30" in head.owners() and "s02" not in head.watched(owners["s02"]))
    after = head.captures()
    changed = {place for place in before if after.get(place) is not before[place]}
    assert changed == {f"{node}/s01", f"{owners['s02']}/s02"}

    victim = owners["s00"]
    with subscribe_nodes(head.endpoints(), kinds=["detections"], streams=["s00"]) as events:
        wait_until(lambda: seen(events, "s00", victim))
        head.reconciler.drain(victim)
        head.turn_until(lambda: not head.watched(victim))
        moves = []
        wait_until(lambda: moves.append(events.receive(0.1)) or isinstance(moves[-1], Moved))  # type: ignore[func-returns-value]
    moved = moves[-1]
    assert isinstance(moved, Moved)
    head.turn_until(lambda: "s00" in head.owners())
    assert (moved.before.node, moved.owner.node) == (victim, head.owners()["s00"])
    assert moved.owner.generation > moved.before.generation
    assert_ledgers_are_exact(head)
