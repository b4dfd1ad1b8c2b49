"""A reader of a cluster that checks what must hold of each item, whatever happens to the nodes."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from streamdet import ClusterSubscription, DetectionEvent, Gap, Late, Moved, Restart, subscribe, wire
from support.waiting import join


class Reader(threading.Thread):
    """Reads the detections of a cluster until it is ended.

    Args:
        head: that says where the nodes are.
        enter: called in the thread first, such as `Machine.enter`.
        arguments: of `subscribe`.

    Attributes:
        owners: the node of the newest event of each stream.
        heard: when events came, in monotonic seconds, by node and stream.
        moves: that were reported.
        counts: how many items of each kind came.
        wrong: what did not hold, in words.
    """

    events: ClusterSubscription

    def __init__(self, head: str, enter: Callable[[], None] = lambda: None, **arguments: Any) -> None:
        super().__init__(daemon=True)
        self._subscribe = lambda: subscribe(cluster=head, kinds=["detections"], replay=True, **arguments)
        self._enter = enter
        self.owners: dict[str, str] = {}
        self.heard: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.moves: list[Moved] = []
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.wrong: list[str] = []
        self._generations: dict[str, int] = {}
        self._reached: dict[tuple[str, str, str], int] = {}
        self._unbroken: set[str] = set()
        self._is_subscribed = threading.Event()
        self._ending = threading.Event()

    def start(self) -> None:
        super().start()
        assert self._is_subscribed.wait(60)

    def run(self) -> None:
        self._enter()
        with self._subscribe() as self.events:
            self._is_subscribed.set()
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
                self.heard[owner.node, item.stream].append(time.monotonic())
                self._generations[item.stream] = max(owner.generation, self._generations.get(item.stream, 0))
            case Gap() | Restart():
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
