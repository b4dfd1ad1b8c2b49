"""Readers of a cluster of three real daemons, while nodes are cut off, drained and killed, and the head is replaced."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from streamdet import ClusterSubscription, DetectionEvent, Gap, Late, Moved, Restart, subscribe, wire
from streamdet.assets import sample_clip
from streamdet.cluster.cameras import read_cameras
from support.cluster_head import Head, HeadServer
from support.control_api import Api
from support.waiting import join, wait_until

NAMES = ("n0", "n1", "n2")
STREAMS = 9


class Reader(threading.Thread):
    """Reads a cluster, and checks what must hold of each item.

    Attributes:
        owners: the node of the newest event of each stream.
        wrong: what did not hold, in words.
    """

    def __init__(self, head: str) -> None:
        super().__init__(daemon=True)
        self.events: ClusterSubscription = subscribe(cluster=head, kinds=["detections"], replay=True)
        self.owners: dict[str, str] = {}
        self.moves: list[Moved] = []
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.wrong: list[str] = []
        self._generations: dict[str, int] = {}
        self._reached: dict[tuple[str, str, str], int] = {}
        self._unbroken: set[str] = set()
        self._ending = threading.Event()

    def run(self) -> None:
        with self.events:
            while not self._ending.is_set():
                item = self.events.receive(0.1)
                if item is not None:
                    self._take(item)

    def end(self) -> None:
        self._ending.set()
        join(self)

    def _take(self, item: wire.Event | Gap | Restart | Moved | Late) -> None:
        self.counts[type(item).__name__] += 1
        match item:
            case Moved():
                self.moves.append(item)
                self._unbroken.discard(item.stream)
                if item.owner.generation <= self._generations.get(item.stream, 0):
                    self.wrong.append(f"{item.stream} moved to an older owner")
            case Late(event=DetectionEvent() as event):
                self._count(event)
                if event.owner is None or event.owner.generation >= self._generations[item.stream]:
                    self.wrong.append(f"{item.stream}: an event of the owner was called late")
            case DetectionEvent(owner=owner) if owner is not None:
                last = self._count(item)
                if item.stream in self._unbroken and item.seq != last + 1:
                    self.wrong.append(f"{item.stream}: {item.seq} after {last} without a gap")
                self._unbroken.add(item.stream)
                before = self.owners.get(item.stream)
                if before not in (None, owner.node) and not (self.moves and self.moves[-1].stream == item.stream):
                    self.wrong.append(f"{item.stream}: {owner.node} after {before} without a move")
                self.owners[item.stream] = owner.node
                self._generations[item.stream] = max(owner.generation, self._generations.get(item.stream, 0))
            case Gap():
                self._unbroken.discard(item.stream)

    def _count(self, event: DetectionEvent) -> int:
        """Notes that an event came; returns the number of the one before it from the same node."""
        assert event.owner is not None
        key = (event.owner.node, wire.topic_of(event), event.epoch)
        last = self._reached.get(key, 0)
        if event.seq <= last:
            self.wrong.append(f"{key} came twice, or out of order: {event.seq} after {last}")
        self._reached[key] = event.seq
        return last


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
