"""Readers of a cluster of three real daemons, while nodes are cut off, drained and killed, and the head is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from streamdet.assets import sample_clip
from streamdet.cluster.cameras import read_cameras
from support.cluster_head import Head, HeadServer
from support.cluster_reader import Reader
from support.control_api import Api
from support.waiting import wait_until

NAMES = ("n0", "n1", "n2")
STREAMS = 9


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    cameras = tmp_path / "cameras.toml"
    stream = '[[streams]]\nname = "s{}"\nurl = "' + str(sample_clip()) + '"\n'
    text = "[stream_defaults]\nmax_fps = 5\nloop = true\n" + "".join(stream.format(each) for each in range(STREAMS))
    cameras.write_text(text)
    with ExitStack() as stack:
        sockets = {}
        for name in NAMES:
            folder = tmp_path / name
            folder.mkdir()
            sockets[name] = stack.enter_context(Api(folder, more=f'[node]\nname = "{name}"\n')).socket
        yield Head(sockets, read_cameras(cameras))


@pytest.mark.slow
def test_readers_see_one_owner_whatever_happens(head: Head) -> None:
    with HeadServer(head.status) as server:
        head.turn_until(lambda: len(head.owners()) == STREAMS)
        reader = Reader(server.address)
        reader.start()
        try:
            follow(head, reader)
            victim = head.owners()["s0"]
            lost = {stream for stream, node in head.owners().items() if node == victim}

            # A node is cut off from the head, and watches on; readers see the next owner alone.
            head.cut_off.add(victim)
            head.turn_until(lambda: lost.isdisjoint(streams_of(head, victim)) and len(head.owners()) == STREAMS)
            follow(head, reader)
            assert {move.stream for move in reader.moves} == lost
            wait_until(lambda: reader.events.superseded > 0)

            # It is back.
            head.cut_off.clear()
            head.turn_until(lambda: len(head.owners()) == STREAMS)
            follow(head, reader)

            # The head is replaced; then a node is drained.
            owners = head.owners()
            head.replace()
            head.turn_until(lambda: head.owners() == owners)
            follow(head, reader)
            victim = head.owners()["s1"]
            head.reconciler.drain(victim)
            head.turn_until(lambda: victim not in head.owners().values() and len(head.owners()) == STREAMS)
            follow(head, reader)

            # The head goes; events come on.
            server.close()
            before = reader.counts["DetectionEvent"]
            wait_until(lambda: reader.counts["DetectionEvent"] > before + 20)
            wait_until(lambda: "cannot be asked" in reader.events.problem)
        finally:
            reader.end()
        assert reader.wrong == []
        assert reader.counts["Gap"] == 0


def streams_of(head: Head, node: str) -> set[str]:
    return {stream for stream, owner in head.owners().items() if owner == node}


def follow(head: Head, reader: Reader) -> None:
    """Waits until the reader gets each stream from its owner, as the head sees it."""
    head.turn_until(lambda: reader.owners == head.owners() and len(reader.owners) == STREAMS)
