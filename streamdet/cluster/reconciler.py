"""Compares what a cluster is to watch with what its nodes report, and says what each node is granted.

Its state is no more than the file of the streams and what the nodes report: a new one takes over what runs.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from streamdet import __version__
from streamdet.cluster.agent import RENEW_SECONDS, Granted, Report
from streamdet.cluster.cameras import Camera
from streamdet.cluster.placement import Group, Node, Placement, load_of, place

LOST_SECONDS = 5.0
"""A node that has reported nothing for so long, or whose daemon has not answered, is lost."""

SETTLE_SECONDS = 15.0
"""For so long after the first report, a reconciler places nothing that no node reports: others may be about to."""

COME_BACK_SECONDS = 60.0
"""For so long after the first report, nothing is placed either while a node that was there before has not come back."""

Json = dict[str, Any]


@dataclass(slots=True)
class _Known:
    """A node that has reported.

    Attributes:
        report: the newest in which its daemon answered.
        source: what sent it.
        capacity_fps: frames per second that it can detect.
        seen: monotonic seconds of it.
    """

    report: Report
    source: str
    capacity_fps: float
    seen: float


class Reconciler:
    """Decides for a whole cluster; for one thread.

    Args:
        clock: monotonic seconds.
        wall_clock: Unix time in seconds, for generations.
        settle_seconds: how long nothing is placed after the first report.
        version: of streamdet that nodes must have.
        expected: the nodes that the head before this one has known; once they have reported, no others are waited for.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        settle_seconds: float = SETTLE_SECONDS,
        version: str = __version__,
        expected: Iterable[str] = (),
    ) -> None:
        self._clock, self._wall_clock = clock, wall_clock
        self._settle_seconds = settle_seconds
        self._settled_at = float("inf")
        self._expected = set(expected)
        self._version = version
        self._cameras: Mapping[str, Camera] | None = None
        self._nodes: dict[str, _Known] = {}
        self._joining: set[str] = set()
        self._refused: dict[str, str] = {}
        self._draining: set[str] = set()
        self._placement = Placement()
        self._granted: dict[str, tuple[str, Granted]] = {}
        self._newest_generation = 0
        self._stepped_at = clock()
        self.moves: Counter[str] = Counter()
        self.blind_seconds: defaultdict[str, float] = defaultdict(float)

    def apply(self, cameras: Mapping[str, Camera]) -> None:
        """Makes these the streams of the cluster, from the next step on."""
        self._cameras = dict(cameras)
        for gone in self.blind_seconds.keys() - cameras.keys():
            del self.blind_seconds[gone]

    def plan(self, cameras: Mapping[str, Camera]) -> Placement:
        """What `apply` would lead to, if nothing else changed."""
        wanted = {name: camera.fps for name, camera in cameras.items()}
        return place(wanted, self._placed_nodes(), replace(self._placement, rebalanced_at=self._clock()), self._clock())

    def drain(self, node: str, *, is_draining: bool = True) -> None:
        """Empties a node, or lets it take streams again."""
        (self._draining.add if is_draining else self._draining.discard)(node)

    @property
    def nodes(self) -> list[str]:
        """The nodes that are there, by name."""
        return sorted(node.name for node in self._placed_nodes())

    def report(self, report: Report, source: str, capacity_fps: float) -> bool:
        """Takes in what a node says.

        Args:
            report: of the node.
            source: identifies what sends it, such as the id of a machine.
            capacity_fps: frames per second that the node can detect.

        Returns:
            Whether the node is one of the cluster; `status` says why it is not.
        """
        problem, now = report.problem, self._clock()
        before = self._nodes.get(report.node)
        is_here = before is not None and now - before.seen < LOST_SECONDS
        if not problem and report.version != self._version:
            problem = (
                f"{report.node} runs streamdet {report.version}, and the head {self._version}; upgrade one of them"
            )
        if not problem and before is not None and is_here and before.source != source:
            problem = f"another machine calls itself {report.node}, too; give it another [node] name"
        if problem:
            self._refused[source] = problem
            return False
        self._refused.pop(source, None)
        if not is_here:
            self._joining.add(report.node)
        wait_seconds = COME_BACK_SECONDS if self._expected else self._settle_seconds
        self._settled_at = min(self._settled_at, now + wait_seconds)
        if report.node in self._expected:
            self._expected.remove(report.node)
            self._settled_at = self._settled_at if self._expected else now
        self._nodes[report.node] = _Known(report, source, capacity_fps, now)
        self._newest_generation = max(self._newest_generation, report.newest_generation)
        for claim_id in report.stale:
            # The next grant of it is newer than all that the node has seen.
            node, granted = self._granted.get(claim_id, ("", None))
            if node == report.node and granted is not None and granted.generation <= report.newest_generation:
                del self._granted[claim_id]
        return True

    def step(self) -> dict[str, tuple[Granted, ...]]:
        """What each node that is there is granted from now on; nothing for any before there are streams."""
        if self._cameras is None:
            return {}
        now = self._clock()
        stood_still = now - self._stepped_at - RENEW_SECONDS
        if stood_still > RENEW_SECONDS / 2:
            # This process, or its machine: nodes that have reported meanwhile were not heard.
            for known in self._nodes.values():
                known.seen = min(known.seen + stood_still, now)
        nodes = self._placed_nodes()
        self._adopt(nodes, self._cameras)
        wanted = {name: camera.fps for name, camera in self._cameras.items()}
        if now < self._settled_at:
            reported = {stream for group in self._placement.groups for stream in group.streams}
            wanted = {name: fps for name, fps in wanted.items() if name in reported}
        self._placement = place(wanted, nodes, self._placement, now)
        self.moves.update(move.reason for move in self._placement.moves)
        self._count_blind(now - self._stepped_at)
        self._stepped_at = now
        grants: dict[str, list[Granted]] = {node.name: [] for node in nodes}
        for group in self._placement.groups:
            grants[group.node].append(self._grant(group))
        self._forget_drained(grants.keys())
        here = {group.group_id for group in self._placement.groups}
        self._granted = {group_id: granted for group_id, granted in self._granted.items() if group_id in here}
        return {node: tuple(of_node) for node, of_node in grants.items()}

    def _forget_drained(self, here: Collection[str]) -> None:
        """Forgets nodes that were drained and have gone: they are not lost."""
        for name in (self._draining & self._nodes.keys()).difference(here):
            del self._nodes[name]

    def _placed_nodes(self) -> list[Node]:
        now = self._clock()
        return [
            Node(name, known.capacity_fps, name in self._draining)
            for name, known in sorted(self._nodes.items())
            if now - known.seen < LOST_SECONDS
        ]

    def _adopt(self, nodes: Iterable[Node], cameras: Mapping[str, Camera]) -> None:
        """Takes over what nodes that have come watch of the streams that are not placed; of two owners, the newest."""
        placed = {stream for group in self._placement.groups for stream in group.streams}
        ids = {group.group_id for group in self._placement.groups}
        joined = [node.name for node in nodes if node.name in self._joining]
        self._joining.difference_update(joined)
        claims = [(claim, name) for name in joined for claim in self._nodes[name].report.claims]
        adopted: list[Group] = []
        for claim, node in sorted(claims, key=lambda one: -one[0]["generation"]):
            streams = tuple(name for name in claim["streams"] if name in cameras and name not in placed)
            if not streams:
                continue
            # A former head may have given the same id on another node.
            ids_like_it = itertools.chain([claim["id"]], (f"{claim['id'][:50]}-{n}" for n in itertools.count(2)))
            group_id = next(one for one in ids_like_it if one not in ids)
            adopted.append(Group(group_id, node, streams))
            ids.add(group_id)
            placed.update(streams)
        if adopted:
            self._placement = replace(self._placement, groups=(*self._placement.groups, *adopted))

    def _grant(self, group: Group) -> Granted:
        cameras = self._cameras or {}
        streams = tuple(dict(cameras[name].values) for name in group.streams)
        node, before = self._granted.get(group.group_id, ("", None))
        if before is not None and (node, before.streams) == (group.node, streams):
            return before
        self._newest_generation = max(round(self._wall_clock() * 1000), self._newest_generation + 1)
        granted = Granted(group.group_id, self._newest_generation, streams)
        self._granted[group.group_id] = group.node, granted
        return granted

    def _count_blind(self, seconds: float) -> None:
        owners = {stream: group.node for group in self._placement.groups for stream in group.streams}
        here = set(self.nodes)
        for name in self._cameras or {}:
            node = owners.get(name, "")
            known = self._nodes.get(node) if node in here else None
            if known is None or known.report.states.get(name) != "up":
                self.blind_seconds[name] += seconds

    def status(self) -> Json:
        """Nodes, streams and problems, for people and programs."""
        wanted = {name: camera.fps for name, camera in (self._cameras or {}).items()}
        load = load_of(self._placement.groups, wanted)
        here, now = set(self.nodes), self._clock()
        owners = {stream: group for group in self._placement.groups for stream in group.streams}
        streams = Counter(group.node for group in owners.values())
        settling = "waits until other nodes have reported"
        return {
            "nodes": [
                {
                    "name": name,
                    "state": "lost" if name not in here else "draining" if name in self._draining else "up",
                    "version": known.report.version,
                    "capacity_fps": known.capacity_fps,
                    "load_fps": round(load.get(name, 0.0), 3),
                    "streams": streams[name],
                    "reported_seconds_ago": round(now - known.seen, 3),
                    "slow_seconds": known.report.slow_seconds,
                    "addresses": known.report.addresses,
                    "refused": known.report.refused,
                }
                for name, known in sorted(self._nodes.items())
            ],
            "streams": [
                {
                    "name": name,
                    "node": owners[name].node if name in owners else None,
                    "claim": owners[name].group_id if name in owners else None,
                    "generation": self._generation_of(owners.get(name)),
                    "state": self._state_of(name, owners.get(name)),
                    "fps": fps,
                    "reason": self._placement.unplaced.get(name)
                    or self._placement.waiting.get(name)
                    or ("" if name in owners else settling),
                    "blind_seconds": round(self.blind_seconds[name], 3),
                }
                for name, fps in sorted(wanted.items())
            ],
            "problems": sorted(self._refused.values()),
            "moves": dict(self.moves),
        }

    def _generation_of(self, group: Group | None) -> int | None:
        granted = None if group is None else self._granted.get(group.group_id)
        return None if granted is None else granted[1].generation

    def _state_of(self, name: str, group: Group | None) -> str:
        if group is None:
            return "unplaced"
        known = self._nodes.get(group.node)
        return "connecting" if known is None else known.report.states.get(name, "connecting")
