"""`streamdet watch --cluster`: real publishers as nodes, and a real server as the head."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from streamdet import __version__
from streamdet.cli.watch import command
from streamdet.cluster.agent import Report
from streamdet.cluster.reconciler import Reconciler
from streamdet.config import StreamConfig
from streamdet.delivery.publisher import Publisher
from streamdet.types import Owner
from support.cluster_head import HeadServer
from support.publishing import PERSON, frame_of, metrics_of, publisher_at
from support.waiting import join


class Nodes(threading.Thread):
    """Two nodes, of which the second takes a stream over once it has been seen often enough on the first."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first, self.second = (publisher_at(epoch=name, metrics=metrics_of("gate")) for name in ("one", "other"))
        self.reconciler = Reconciler()
        for name, publisher in (("one", self.first), ("other", self.second)):
            report = Report(name, __version__, addresses={"events": publisher.endpoint})
            self.reconciler.report(report, name, 10.0)
        self.ending = threading.Event()

    def run(self) -> None:
        _own(self.first, "one", 5)
        seq = 0
        while not self.ending.wait(0.02):
            seq += 1
            self.first.put_detections(frame_of("gate", seq), [PERSON])
            if seq == 100:
                _own(self.second, "other", 9)
            if seq >= 100:
                self.second.put_detections(frame_of("gate", seq), [PERSON])


def _own(publisher: Publisher, node: str, generation: int) -> None:
    publisher.set_stream(StreamConfig(name="gate", url="rtsp://192.0.2.5/x"), Owner(node, generation))


@pytest.fixture
def head() -> Iterator[HeadServer]:
    nodes = Nodes()
    with nodes.first, nodes.second, HeadServer(nodes.reconciler.status) as server:
        nodes.start()
        yield server
        nodes.ending.set()
        join(nodes)


def watch(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), env={"COLUMNS": "200"})


def test_each_stream_is_shown_from_its_owner_and_a_move_is_shown(head: HeadServer) -> None:
    done = watch("--cluster", head.address, "--kind", "detections", "--json", "--count", "200")
    assert done.exit_code == 0, done.output
    shown = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    owners = [one["node"] for one in shown if one["type"] == "detections"]
    (move,) = [one for one in shown if one["type"] == "moved"]
    at = shown.index(move)
    assert (move["before"]["node"], move["owner"]) == ("one", {"node": "other", "generation": 9})
    assert {one["node"] for one in shown[:at]} == {"one"}
    assert owners[-1] == "other"
    assert {one["node"] for one in shown[at + 1 :] if not one.get("late")} == {"other"}


def test_a_line_says_which_nodes_a_stream_moved_between(head: HeadServer) -> None:
    done = watch("--cluster", head.address, "--kind", "detections", "--count", "200")
    assert done.exit_code == 0, done.output
    assert "gate" in done.output
    assert "moved from one to other, " in done.output
    assert f"of the cluster of {head.address}" in done.output
    assert "the daemon was started again" not in done.output


def test_without_a_head_it_says_so() -> None:
    done = watch("--cluster", "127.0.0.1:9", "--seconds", "0.3")
    assert done.exit_code == 1
    assert "the head http://127.0.0.1:9 cannot be asked: Connection refused" in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["tcp://127.0.0.1:5", "--cluster", "head"], "the head names the endpoints"),
        (["--cluster", "head", "--replay", "tcp://127.0.0.1:6"], "the head names the endpoints"),
        (["--head-token", "x"], "belong to --cluster HEAD"),
        (["--cluster", "udp://head"], "is no head of a cluster"),
    ],
)
def test_wrong_options_are_one_clear_line(arguments: list[str], complaint: str) -> None:
    done = watch(*arguments)
    assert done.exit_code != 0
    assert complaint in done.output + str(done.exception)
