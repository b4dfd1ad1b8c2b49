"""The state of the page of a cluster: of each stream what its owner says, and what the head says of all nodes.

The head's list of streams decides which are shown, also while no node watches one of them. Where a stream is watched
is known from its own events, so that all goes on while the head is away.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from streamdet.client.head import UNSPECIFIED, HeadWatch
from streamdet.client.nodes import Moved
from streamdet.client.subscription import Gap
from streamdet.errors import WireError
from streamdet.security.endpoints import is_loopback, parse_endpoint
from streamdet.types import AlertEvent, DetectionEvent, ObjectEvent, PreviewEvent, StateEvent
from streamdet.web.board import Board, StreamNow, row_of

MAX_MOVES = 50
# What the head has said counts as of now for so long; it is asked every two seconds.
_FRESH_SECONDS = 10.0
# A stream that the head does not list, as before its first file, is gone after so long without an event.
_UNLISTED_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the head has placed a stream.

    Attributes:
        node: that it is granted to; None for none.
        reason: why it is granted to none.
    """

    node: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """What the head says.

    Attributes:
        nodes: of each node, by name, what the page shows of it.
        metrics: the URLs of their metrics pages, by name.
        streams: all streams, by name.
        problems: about machines that get nothing, in sentences.
    """

    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    streams: Mapping[str, Placed] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> ClusterStatus:
        """Reads an answer to `GET /v1/cluster`.

        Raises:
            WireError: it makes no sense.
        """
        try:
            nodes = {
                str(node["name"]): {
                    "name": str(node["name"]),
                    "state": str(node["state"]),
                    "version": str(node["version"]),
                    "capacity_fps": float(node["capacity_fps"]),
                    "load_fps": float(node["load_fps"]),
                    "streams": int(node["streams"]),
                    "reported_seconds": float(node["reported_seconds_ago"]),
                    "refused": [str(why) for why in node["refused"].values()],
                }
                for node in answer["nodes"]
            }
            metrics = {str(node["name"]): str(node["addresses"].get("metrics") or "") for node in answer["nodes"]}
            streams = {
                str(stream["name"]): Placed(None if stream["node"] is None else str(stream["node"]), stream["reason"])
                for stream in answer["streams"]
            }
            return cls(nodes, metrics, streams, tuple(str(problem) for problem in answer["problems"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            message = "the head says what makes no sense"
            raise WireError(message) from None


@dataclass(slots=True)
class _Watched:
    """Where a stream is watched, by its newest event.

    Attributes:
        node: that sent it.
        is_released: whether the node has given the stream up.
        moved_from: the node before; empty where it has not moved.
        moved_at: Unix time of the move.
    """

    node: str
    is_released: bool = False
    moved_from: str = ""
    moved_at: float = 0.0


class ClusterBoard(Board):
    """Takes the events that `ClusterSubscription` yields, and returns JSON.

    Args:
        watch: asks the head.

    Attributes:
        watch: the same.
    """

    def __init__(self, watch: HeadWatch) -> None:
        super().__init__(str(watch.address))
        self.watch = watch
        self._problem = ""
        self._read = watch.status
        self._status = ClusterStatus()
        self._connected: frozenset[str] = frozenset()
        self._were_connected: set[str] = set()
        # Monotonic seconds since when there is no connection to a node that the head lists.
        self._away_since: dict[str, float] = {}
        self._epochs: dict[str, str] = {}
        self._watched: dict[str, _Watched] = {}
        self._moves: deque[dict[str, Any]] = deque(maxlen=MAX_MOVES)

    @property
    def status(self) -> ClusterStatus:
        """What the head has said last."""
        return self._status

    @property
    def connected_nodes(self) -> frozenset[str]:
        """The nodes to which the connection is open, by name."""
        return self._connected

    def node_of(self, stream: str) -> str | None:
        """The node that watches a stream; the last one that was heard of, or else where the head has placed it."""
        with self._lock:
            watched, placed = self._watched.get(stream), self._status.streams.get(stream)
            return watched.node if watched is not None else placed.node if placed is not None else None

    def metrics_of(self, node: str) -> str:
        """HOST:PORT of the metrics page of a node; empty where this machine cannot read it."""
        page = urlsplit(self._status.metrics.get(node, ""))
        events = next((each.events for each in self.watch.nodes if each.node == node), None)
        is_open = page.scheme == "http" and page.hostname not in (None, *UNSPECIFIED)
        if not is_open or events is None:
            return ""
        # A page on the loopback of another machine is not that on the loopback of this one.
        is_elsewhere = is_loopback(page.hostname or "") and not parse_endpoint(events).is_local
        return "" if is_elsewhere else page.netloc

    def is_of_owner(self, event: PreviewEvent) -> bool:
        """Whether a picture is from the node that owns its stream, as far as its other events say."""
        watched = self._watched.get(event.stream)
        return event.owner is not None and (watched is None or watched.node == event.owner.node)

    def note_nodes(self, connected: frozenset[str], problem: str) -> None:
        """Notes how the nodes and the head are reached now.

        Args:
            connected: names of the nodes to which the connection is open.
            problem: with the head or a node; empty while all is well.

        Raises:
            WireError: the newest answer of the head makes no sense.
        """
        with self._lock:
            if connected != self._connected:
                for node in sorted(connected & self._were_connected):
                    if node not in self._connected:
                        self._journal.note("connected", "", time.time(), node=node)
                for node in sorted(self._connected - connected):
                    self._journal.note("disconnected", "", time.time(), node=node)
                self._connected = connected
                self._were_connected |= connected
                self._disconnected_at = None if connected else time.monotonic()
                self._revise()
            if problem != self._problem:
                self._problem = problem
                self._revise()
            if self.watch.status is not self._read:
                self._read = self.watch.status
                self._status = ClusterStatus.read(self._read)
                self._revise()
            now = time.monotonic()
            self._away_since = {
                node: self._away_since.get(node, now) for node in self._status.nodes if node not in connected
            }

    def note(self, event: DetectionEvent | StateEvent | ObjectEvent | AlertEvent | Gap, now: float) -> None:
        """An event came; those of streams that belong to no cluster are left out: two nodes may name theirs alike."""
        if event.stream in self._streams if isinstance(event, Gap) else event.owner is not None:
            super().note(event, now)

    def note_move(self, move: Moved) -> None:
        """Another node owns a stream from now on."""
        with self._lock:
            at, before, node = time.time(), move.before.node, move.owner.node
            self._watched[move.stream] = _Watched(node, moved_from=before, moved_at=at)
            said = {"before": before, "node": node, "gap_seconds": round(move.gap_seconds, 1)}
            self._journal.note("moved", move.stream, at, **said)
            self._moves.appendleft({"at": at, "stream": move.stream, **said})
            self._revise()

    def _note_origin(self, event: DetectionEvent | StateEvent | ObjectEvent | AlertEvent, now: float) -> None:  # noqa: ARG002
        owner = event.owner
        if owner is None:
            return
        before = self._epochs.get(owner.node)
        if before != event.epoch:
            if before is not None:
                self._journal.note("restart", "", event.published_at, epoch=event.epoch, node=owner.node)
            self._epochs[owner.node] = event.epoch
            self._revise()

    def _note_stream(self, stream: StreamNow, event: DetectionEvent | StateEvent, now: float) -> None:
        super()._note_stream(stream, event, now)
        if event.owner is not None:
            watched = self._watched.setdefault(event.stream, _Watched(event.owner.node))
            watched.node, watched.is_released = event.owner.node, False

    def _note_removed(self, event: StateEvent) -> None:
        """The owner has given a stream up: it may move."""
        if event.stream in self._streams:
            self._watched[event.stream].is_released = True
            self._revise()

    def _forget(self, name: str, at: float) -> None:
        self._watched.pop(name, None)
        super()._forget(name, at)

    def _is_gone(self, name: str, stream: StreamNow, now: float) -> bool:
        """Whether the head no longer lists it, and no node watches it either."""
        if not self._is_fresh(now) or name in self._status.streams:
            return False
        return self._watched[name].is_released or now - stream.heard_at > _UNLISTED_SECONDS

    def _is_fresh(self, now: float) -> bool:
        at = self.watch.answered_at
        return at is not None and now - at < _FRESH_SECONDS

    def _rows(self, behind: int, now: float) -> list[dict[str, Any]]:
        names = sorted(self._streams.keys() | self._status.streams)
        return [self._row(name, behind, now) for name in names]

    def _row(self, name: str, behind: int, now: float) -> dict[str, Any]:
        stream, watched, placed = self._streams.get(name), self._watched.get(name), self._status.streams.get(name)
        row = row_of(name, stream or StreamNow(), behind, now)
        is_heard = watched is not None and not watched.is_released and watched.node in self._connected
        row |= {"is_heard": is_heard, "node": watched.node if watched is not None else None}
        if watched is not None and watched.moved_from:
            row |= {"moved_from": watched.moved_from, "moved_at": watched.moved_at}
        if is_heard or placed is None:
            return row
        row["node"] = placed.node
        if placed.node is None or stream is None:
            # The head is the one who says so.
            row |= {"reason": None, "since": None, "is_heard": self._is_fresh(now)}
            row["state"] = "unplaced" if placed.node is None else "unheard"
            row["detail"] = placed.reason
        return row

    def _cluster(self, now: float) -> dict[str, Any]:
        answered_at = self.watch.answered_at
        return {
            "head": self.endpoint,
            "problem": self._problem,
            "answered_seconds": None if answered_at is None else round(now - answered_at, 1),
            "is_fresh": self._is_fresh(now),
            "nodes": [
                {**node, "away_seconds": round(now - since, 1) if (since := self._away_since.get(name)) else None}
                for name, node in sorted(self._status.nodes.items())
            ],
            "problems": self._status.problems,
            "moves": list(self._moves),
        }

    def _overview(self, behind: int) -> dict[str, Any]:
        overview = super()._overview(behind)
        now = time.monotonic()
        is_fresh = self._is_fresh(now)
        if is_fresh:
            overview["disconnected_seconds"] = None
        return {**overview, "is_silent": False, "has_none": is_fresh and not overview["streams"]}
