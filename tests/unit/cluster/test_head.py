"""The head without Ray and HTTP: what it plans, refuses and keeps."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from streamdet import __version__
from streamdet.cluster.agent import Report
from streamdet.cluster.head import Head, nodes_before, settle_seconds
from streamdet.cluster.reconciler import COME_BACK_SECONDS, LOST_SECONDS, SETTLE_SECONDS, Reconciler
from streamdet.errors import ConfigError, ControlError


def file(*names: str, fps: float = 5) -> str:
    return "".join(
        f'[[streams]]\nname = "{name}"\nurl = "rtsp://192.0.2.9/{name}"\nmax_fps = {fps}\n' for name in names
    )


def report(node: str) -> tuple[Report, str, float]:
    return Report(node, __version__), f"machine of {node}", 10.0


def started(folder: Path) -> Head:
    head = Head(folder, Reconciler(settle_seconds=0))
    assert head.take([report("n1"), report("n2")]) == [True, True]
    return head


def names(grants: dict[str, tuple[object, ...]]) -> list[str]:
    return sorted(stream["name"] for of_node in grants.values() for one in of_node for stream in one.streams)  # type: ignore[attr-defined]


def test_a_plan_says_what_changes_and_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    head = started(tmp_path)
    assert head.apply(file("a", "b"))["added"] == ["a", "b"]
    plan = head.apply(file("b", "c") + file("a", fps=4), dry_run=True)
    assert (plan["added"], plan["changed"], plan["removed"], plan["same"]) == (["c"], ["a"], [], 1)
    assert names(head.step()) == ["a", "b"]
    assert head.apply(file("b"))["removed"] == ["a"]
    assert names(head.step()) == ["b"]


def test_what_has_no_room_waits_and_says_why(tmp_path: Path) -> None:
    head = started(tmp_path)
    plan = head.apply(file("a", "b", "c", fps=8))
    assert list(plan["unplaced"].values()) == ["needs 8 frames per second, and no node has more than 2 left"]
    assert len(names(head.step())) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (file("a", "big", fps=11), r"streams\[a\].max_fps: 11 frames per second are more than any node can do; the"),
        (file("a", "a"), "has this name already"),
        (file("a").replace("max_fps = 5\n", ""), "max_fps: must be given"),
        ("[detector]\n" + file("a"), "does not belong here"),
        ("x", "cameras.toml"),
    ],
    ids=["too large", "twice", "no fps", "not a stream", "no toml"],
)
def test_a_wrong_file_changes_nothing(tmp_path: Path, text: str, complaint: str) -> None:
    head = started(tmp_path)
    head.apply(file("a"))
    before = (tmp_path / "cameras.toml").read_text(), head.step()
    with pytest.raises(ConfigError, match=complaint):
        head.apply(text)
    assert ((tmp_path / "cameras.toml").read_text(), head.step()) == before


def test_a_new_head_knows_the_streams_and_what_is_drained(tmp_path: Path) -> None:
    head = started(tmp_path)
    head.apply(file("a", "b"))
    head.drain("n1")
    head.drain("n2")
    assert head.drain("n2", is_draining=False) == {"node": "n2", "draining": False}
    again = started(tmp_path)
    assert list(again.step()) == ["n1", "n2"]
    assert [node["state"] for node in again.status()["nodes"]] == ["draining", "up"]
    assert {stream["node"] for stream in again.status()["streams"]} == {"n2"}


def test_a_new_head_waits_for_the_nodes_of_the_one_before_it(tmp_path: Path) -> None:
    head = started(tmp_path)
    head.apply(file("a", "b"))
    head.step()
    assert nodes_before(tmp_path) == {"n1", "n2"}
    now = [0.0]

    def replaced() -> Head:
        now[0] = 0.0
        return Head(tmp_path, Reconciler(lambda: now[0], expected=nodes_before(tmp_path)))

    again = replaced()
    again.take([report("n2")])
    now[0] = SETTLE_SECONDS + 1
    again.take([report("n2")])
    assert names(again.step()) == []  # n1 may watch them
    again.take([report("n1")])
    assert names(again.step()) == ["a", "b"]

    (tmp_path / "nodes.json").write_text('["n1", "n2"]')
    again = replaced()
    again.take([report("n2")])
    now[0] = COME_BACK_SECONDS
    again.take([report("n2")])
    assert names(again.step()) == ["a", "b"]  # n1 does not come back
    assert nodes_before(tmp_path) == {"n2"}
    (tmp_path / "nodes.json").write_text("x")
    assert nodes_before(tmp_path) == set()


def test_nodes_that_join_and_are_lost_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    head = Head(tmp_path, Reconciler(lambda: now[0]))
    head.take([report("n1"), report("n2")])
    head.step()
    head.step()
    assert caplog.messages == ["node n1 has joined", "node n2 has joined"]
    now[0] = LOST_SECONDS
    head.take([report("n2")])
    head.step()
    head.step()
    assert caplog.messages[2:] == ["node n1 is lost: neither it nor its daemon has answered for 5 s"]


def test_a_head_that_has_the_file_alone_waits_as_long_as_for_nodes_that_it_knows(tmp_path: Path) -> None:
    assert settle_seconds(tmp_path) == SETTLE_SECONDS  # the first head of a cluster
    head = started(tmp_path)
    head.apply(file("a", "b"))
    assert settle_seconds(tmp_path) == COME_BACK_SECONDS
    head.step()
    assert settle_seconds(tmp_path) == SETTLE_SECONDS  # it knows which nodes it waits for


def test_what_changes_grants_is_due_at_once(tmp_path: Path) -> None:
    now = [100.0]
    head = Head(tmp_path, Reconciler(lambda: now[0], settle_seconds=0))
    assert not head.is_due
    head.take([report("n1"), report("n2")])
    assert head.is_due  # they have joined
    head.step()
    assert not head.is_due
    head.apply(file("a", "b"), dry_run=True)
    assert not head.is_due
    head.apply(file("a", "b"))
    assert head.is_due
    head.step()
    head.drain("n1")
    assert head.is_due
    head.step()
    assert not head.is_due
    now[0] += LOST_SECONDS - 0.1
    head.take([report("n2")])
    assert not head.is_due
    now[0] += 0.1
    assert head.is_due  # n1 is lost
    assert names(head.step()) == ["a", "b"]
    assert not head.is_due


def test_an_unknown_node_is_not_drained(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="the cluster has no node 'n3'; there are n1, n2"):
        started(tmp_path).drain("n3")
    with pytest.raises(ControlError, match="there is none"):
        Head(tmp_path, Reconciler()).drain("n3")
    assert not (tmp_path / "draining.json").exists()


@pytest.mark.parametrize("content", ["x", "{}", "[5]"])
def test_a_broken_file_of_what_is_drained_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "draining.json").write_text(content)
    with pytest.raises(ConfigError, match=r"draining\.json: .*delete it, and drain again"):
        Head(tmp_path, Reconciler())
