"""What the page knows of a cluster: rows from events of owners and from what the head says."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from streamdet.client.head import HeadAddress, HeadWatch, NodeAddress
from streamdet.client.nodes import Moved
from streamdet.client.subscription import Gap
from streamdet.errors import WireError
from streamdet.types import DetectionEvent, FrameInfo, Owner, PreviewEvent, Reason, State, StateEvent
from streamdet.web.cluster_board import ClusterBoard
from streamdet.web.daemon_metrics import StagesOfNodes
from streamdet.web.journal import Filter
from support.occurring import object_event

ONE, OTHER = Owner("one", 5), Owner("other", 9)


class Watch(HeadWatch):
    """A watch with answers that a test gives it."""

    def __init__(self) -> None:
        super().__init__(HeadAddress.parse("127.0.0.1"))
        self.says({}, answered=False)

    def says(
        self, streams: dict[str, str | None], states: dict[str, str] | None = None, *, answered: bool = True
    ) -> None:
        states = states or {"one": "up", "other": "up"}
        self.status = {
            "nodes": [
                {"name": name, "state": state, "version": "1", "capacity_fps": 40.0, "load_fps": 5.0, "streams": 1,
                 "reported_seconds_ago": 0.5, "refused": {}, "addresses": {"metrics": "http://127.0.0.1:9/metrics"}}
                for name, state in states.items()
            ],
            "streams": [
                {"name": name, "node": node, "reason": "" if node else "needs 5 frames per second, and none is free"}
                for name, node in streams.items()
            ],
            "problems": ["old runs streamdet 0, and the head 1; upgrade one of them"],
        }  # fmt: skip
        self.answered_at = time.monotonic() if answered else None
        self.nodes = tuple(NodeAddress(name, "tcp://127.0.0.1:1", None) for name in states)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def board(watch: Watch) -> ClusterBoard:
    board = ClusterBoard(watch)
    watch.says({"gate": "one"})
    board.note_nodes(frozenset({"one", "other"}), "")
    return board


def seen(owner: Owner | None, seq: int = 1, stream: str = "gate") -> DetectionEvent:
    info = FrameInfo(seq, None, 1000.0, "daemon", 640, 360)
    epoch = f"epoch of {owner.node}" if owner else "own"
    return DetectionEvent(stream, epoch, seq, 1000.1, frame=info, detections=(), owner=owner)


def state(owner: Owner, state: State = State.UP, reason: Reason | None = None) -> StateEvent:
    epoch = f"epoch of {owner.node}"
    return StateEvent("gate", epoch, 1, 1000.0, state=state, reason=reason, detail="", since=1.0, owner=owner)


def overview(board: ClusterBoard) -> dict[str, Any]:
    board._overviews.clear()
    found: dict[str, Any] = json.loads(board.overview(0))
    return found


def row(board: ClusterBoard, name: str = "gate") -> dict[str, Any]:
    return next(row for row in overview(board)["streams"] if row["name"] == name)


def said(board: ClusterBoard) -> list[tuple[str, str]]:
    return [(entry["kind"], entry.get("node", "")) for entry in board.events(0, Filter(), 100)[1]]


def test_a_stream_that_moves_keeps_its_row_and_names_its_node(board: ClusterBoard) -> None:
    board.note(state(ONE), 1.0)
    board.note(seen(ONE), 1.0)
    assert (row(board)["node"], row(board)["is_heard"]) == ("one", True)
    board.note_move(Moved("gate", ONE, OTHER, 7.04))
    board.note(state(OTHER, State.CONNECTING), 8.0)
    (only,) = overview(board)["streams"]
    assert (only["node"], only["moved_from"], only["state"]) == ("other", "one", "connecting")
    assert ("moved", "other") in said(board)
    assert not [entry for entry in said(board) if entry[0] == "restart"]
    (move,) = overview(board)["cluster"]["moves"]
    assert (move["stream"], move["before"], move["node"], move["gap_seconds"]) == ("gate", "one", "other", 7.0)


def test_streams_of_a_node_that_is_gone_are_not_heard_until_the_next_owner_is(
    board: ClusterBoard, watch: Watch
) -> None:
    board.note(state(ONE), 1.0)
    board.note(seen(ONE), 1.0)
    board.note_nodes(frozenset({"other"}), "")
    assert (row(board)["state"], row(board)["node"], row(board)["is_heard"]) == ("up", "one", False)
    assert said(board)[0] == ("disconnected", "one")

    # The head has placed it elsewhere, from where nothing has come yet.
    watch.says({"gate": "other"}, {"one": "lost", "other": "up"})
    board.note_nodes(frozenset({"other"}), "")
    assert (row(board)["state"], row(board)["node"], row(board)["is_heard"]) == ("up", "other", False)

    # Or nowhere.
    watch.says({"gate": None}, {"one": "lost", "other": "up"})
    board.note_nodes(frozenset({"other"}), "")
    assert (row(board)["state"], row(board)["is_heard"]) == ("unplaced", True)
    assert row(board)["detail"].startswith("needs 5 frames")

    board.note_move(Moved("gate", ONE, OTHER, 7.0))
    board.note(state(OTHER), 8.0)
    assert (row(board)["state"], row(board)["node"], row(board)["is_heard"]) == ("up", "other", True)
    board.note_nodes(frozenset({"one", "other"}), "")
    assert said(board)[0] == ("connected", "one")


def test_a_node_that_gives_a_stream_up_does_not_take_its_row_away(board: ClusterBoard, watch: Watch) -> None:
    board.note(state(ONE), 1.0)
    board.note(state(ONE, State.DOWN, Reason.REMOVED), 2.0)
    board.tick(60.0)
    assert row(board)["is_heard"] is False

    # The end of an object may come after that, and the head may be away then.
    board.note(object_event("gate", phase="end", owner=ONE), 2.1)
    assert row(board)["is_heard"] is False

    # It is gone once the head does not list it.
    watch.says({})
    board.note_nodes(frozenset({"one", "other"}), "")
    board.tick(time.monotonic())
    assert overview(board)["streams"] == []
    assert said(board)[0][0] == "gone"


def test_streams_go_on_while_the_head_is_away_or_has_no_file_yet(board: ClusterBoard, watch: Watch) -> None:
    now = time.monotonic()
    board.note(state(ONE), now)
    watch.says({})
    board.note_nodes(frozenset({"one"}), "")
    board.tick(now + 1)
    assert row(board)["is_heard"] is True

    watch.answered_at = now - 60
    board.note_nodes(frozenset({"one"}), "the head cannot be asked")
    board.tick(now + 60)
    assert row(board)["node"] == "one"
    assert overview(board)["cluster"]["problem"] == "the head cannot be asked"
    assert overview(board)["cluster"]["is_fresh"] is False


def test_streams_of_a_nodes_own_file_are_left_out(board: ClusterBoard) -> None:
    board.note(seen(None, stream="own"), 1.0)
    board.note(Gap("own", "detections/own/", 1, 3), 1.0)
    assert [row["name"] for row in overview(board)["streams"]] == ["gate"]
    assert said(board) == []


def test_a_stream_that_was_never_heard_says_which_node_is_to_watch_it(board: ClusterBoard) -> None:
    assert (row(board)["state"], row(board)["node"]) == ("unheard", "one")


def test_pictures_of_another_node_than_the_owner_are_left_out(board: ClusterBoard) -> None:
    frame = FrameInfo(1, None, 1000.0, "daemon", 640, 360)
    pictures = [
        PreviewEvent("gate", "e", 1, 1000.0, frame=frame, detections=(), jpeg=b"", owner=owner)
        for owner in (ONE, OTHER, None)
    ]
    board.note(state(ONE), 1.0)
    assert [board.is_of_owner(picture) for picture in pictures] == [True, False, False]
    board.note_move(Moved("gate", ONE, OTHER, 7.0))
    assert [board.is_of_owner(picture) for picture in pictures] == [False, True, False]


def test_each_node_starts_again_by_itself(board: ClusterBoard) -> None:
    board.note(seen(ONE), 1.0)
    board.note(seen(OTHER, stream="yard"), 1.0)
    assert said(board) == []
    board.note(seen(Owner("one", 6), 2), 2.0)
    board.note(
        DetectionEvent("gate", "new", 1, 1000.1, frame=seen(ONE).frame, detections=(), owner=Owner("one", 7)), 3.0
    )
    assert said(board) == [("restart", "one")]


def test_a_head_that_makes_no_sense_changes_nothing(board: ClusterBoard, watch: Watch) -> None:
    watch.status = {"nodes": [{"name": "one"}], "streams": []}
    with pytest.raises(WireError, match="makes no sense"):
        board.note_nodes(frozenset({"one"}), "")
    assert [node["name"] for node in overview(board)["cluster"]["nodes"]] == ["one", "other"]


@pytest.mark.parametrize(
    ("metrics", "events", "page"),
    [
        ("http://127.0.0.1:9095/metrics", "tcp://127.0.0.1:5555", "127.0.0.1:9095"),
        ("http://192.0.2.1:9095/metrics", "tcp://192.0.2.1:5555", "192.0.2.1:9095"),
        ("http://127.0.0.1:9095/metrics", "tcp://192.0.2.1:5555", ""),
        ("http://0.0.0.0:9095/metrics", "tcp://192.0.2.1:5555", ""),
        ("", "tcp://192.0.2.1:5555", ""),
    ],
)
def test_a_metrics_page_on_the_loopback_of_another_machine_is_not_read(
    board: ClusterBoard, watch: Watch, metrics: str, events: str, page: str
) -> None:
    watch.says({"gate": "one"})
    watch.status["nodes"][0]["addresses"]["metrics"] = metrics
    watch.nodes = (NodeAddress("one", events, None),)
    board.note_nodes(frozenset({"one"}), "")
    assert board.metrics_of("one") == page
    problem = StagesOfNodes(board).summary("gate")["problem"]
    assert problem == ("" if page else "the metrics page of one is not open to this machine")
