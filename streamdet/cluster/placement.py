"""Decides which node watches which stream; pure functions of what is wanted, what is there, and the time.

Streams are placed in groups of up to 8. A group is the unit that is granted and moved. What runs stays where it is:
only the groups of nodes that are gone, draining or too full move, and to even out the load one group in 30 s at most.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

GROUP_STREAMS = 8
REBALANCE_SECONDS = 30.0
IMBALANCE = 0.2
"""Difference between the shares of capacity in use of two nodes, from which on a group moves."""

# Sums of frames per second are compared with this tolerance.
_EPSILON = 1e-6

MoveReason = Literal["node_lost", "drain", "over_capacity", "rebalance"]


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is there.

    Attributes:
        name: of the node.
        capacity_fps: frames per second that its daemon can detect.
        is_draining: whether it is to be emptied.
    """

    name: str
    capacity_fps: float
    is_draining: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Streams that are watched by the same node.

    Attributes:
        group_id: names the group, and the claim that it is granted by.
        node: where it is.
        streams: names, in the order in which they came.
    """

    group_id: str
    node: str
    streams: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """A group that changes its node, or a part of one."""

    streams: tuple[str, ...]
    from_node: str
    to_node: str
    reason: MoveReason


@dataclass(frozen=True, slots=True)
class Placement:
    """Who watches what.

    Attributes:
        groups: all that are placed.
        unplaced: streams that no node watches, each with the reason.
        waiting: streams that run where they should not, on a node that drains or is too full, each with the reason.
        moves: what has changed its node.
        rebalanced_at: monotonic seconds of the last move that evened out the load.
    """

    groups: tuple[Group, ...] = ()
    unplaced: Mapping[str, str] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()
    rebalanced_at: float = float("-inf")


def place(wanted: Mapping[str, float], nodes: Iterable[Node], before: Placement, now: float) -> Placement:
    """Places every stream that fits.

    Args:
        wanted: frames per second of each stream, by its name.
        nodes: that are there.
        before: the result of the last call, or what nodes report that they watch.
        now: monotonic seconds.
    """
    return _Placing(wanted, nodes, before).place(now)


def load_of(groups: Iterable[Group], wanted: Mapping[str, float]) -> dict[str, float]:
    """Frames per second that each node watches."""
    load: dict[str, float] = defaultdict(float)
    for group in groups:
        load[group.node] += sum(wanted.get(stream, 0.0) for stream in group.streams)
    return dict(load)


def _grouped(streams: Sequence[str]) -> list[tuple[str, ...]]:
    """Streams in groups, by name, because cameras with similar names are often one site."""
    return [tuple(streams[at : at + GROUP_STREAMS]) for at in range(0, len(streams), GROUP_STREAMS)]


class _Placing:
    """One call of `place`."""

    def __init__(self, wanted: Mapping[str, float], nodes: Iterable[Node], before: Placement) -> None:
        self._wanted = wanted
        self._nodes = {node.name: node for node in nodes}
        self._before = before
        self._ids = {group.group_id for group in before.groups}
        self._number = 0
        self._groups: dict[str, Group] = {}
        self._load = dict.fromkeys(self._nodes, 0.0)
        self._moves: list[Move] = []
        self._unplaced: dict[str, str] = {}
        self._waiting: dict[str, str] = {}
        # So much was found to fit nowhere, and no node was relieved since.
        self._too_much_fps = float("inf")
        # The nodes that take streams, the one with the most room, relative to its capacity, first; entries grow stale.
        self._heap: list[tuple[float, str]] = []

    def place(self, now: float) -> Placement:
        homeless = self._keep()
        for name in self._nodes:
            self._offer(name)
        homeless += [("node_lost", streams, None) for streams in _grouped(self._new_streams())]
        moving = self._leaving()
        has_placed = False
        for reason, streams, from_node in sorted(homeless, key=lambda one: -self._fps(one[1])):
            left_over = tuple(self._put(streams, from_node, reason))
            has_placed |= len(left_over) < len(streams)
            for left in left_over:
                self._unplaced[left] = self._why_not(left)
        for reason, group in moving:
            self._move(group, reason)
        rebalanced_at = self._before.rebalanced_at
        if not self._moves and not has_placed and now - rebalanced_at >= REBALANCE_SECONDS and self._rebalance():
            rebalanced_at = now
        groups = tuple(sorted(self._groups.values(), key=lambda group: group.group_id))
        return Placement(groups, self._unplaced, self._waiting, tuple(self._moves), rebalanced_at)

    def _keep(self) -> list[tuple[MoveReason, tuple[str, ...], str | None]]:
        """Keeps what runs and is wanted; returns the streams of nodes that are gone."""
        lost: list[tuple[MoveReason, tuple[str, ...], str | None]] = []
        seen: set[str] = set()
        for group in self._before.groups:
            streams = tuple(stream for stream in group.streams if stream in self._wanted and stream not in seen)
            seen.update(streams)
            if not streams:
                continue
            if group.node in self._nodes:
                self._groups[group.group_id] = replace(group, streams=streams)
                self._load[group.node] += self._fps(streams)
            else:
                lost.append(("node_lost", streams, group.node))
        return lost

    def _new_streams(self) -> list[str]:
        known = {stream for group in self._before.groups for stream in group.streams}
        return sorted(stream for stream in self._wanted if stream not in known)

    def _leaving(self) -> list[tuple[MoveReason, Group]]:
        """The groups that must leave their nodes: of a draining node all, of one that is too full the smallest ones."""
        of_node: dict[str, list[Group]] = defaultdict(list)
        for group in self._groups.values():
            of_node[group.node].append(group)
        leaving: list[tuple[MoveReason, Group]] = []
        for name, groups in sorted(of_node.items()):
            node, load = self._nodes[name], self._load[name]
            if node.is_draining:
                leaving += [("drain", group) for group in groups]
                continue
            for group in sorted(groups, key=lambda one: (self._fps(one.streams), one.group_id)):
                if load <= node.capacity_fps + _EPSILON:
                    break
                load -= self._fps(group.streams)
                leaving.append(("over_capacity", group))
        return sorted(leaving, key=lambda one: -self._fps(one[1].streams))

    def _move(self, group: Group, reason: MoveReason) -> None:
        """Moves a group, or the part of it that fits elsewhere.

        What does not fit stays on a node that drains. On one that is too full it cannot stay.
        """
        del self._groups[group.group_id]
        self._load[group.node] -= self._fps(group.streams)
        self._too_much_fps = float("inf")
        if not self._nodes[group.node].is_draining:
            self._offer(group.node)
        left = self._put(group.streams, group.node, reason)
        if not left:
            return
        if reason == "drain":
            self._groups[group.group_id] = replace(group, streams=tuple(left))
            self._load[group.node] += self._fps(left)
            self._waiting.update({stream: f"{group.node} drains; {self._why_not(stream)}" for stream in left})
        else:
            self._unplaced.update({stream: self._why_not(stream) for stream in left})

    def _put(self, streams: tuple[str, ...], from_node: str | None, reason: MoveReason) -> list[str]:
        """Puts streams onto the node with the most room, as one group or in halves; returns those that fit nowhere."""
        name = self._roomiest(self._fps(streams))
        if name is None:
            if len(streams) == 1:
                return [streams[0]]
            middle = len(streams) // 2
            return [
                *self._put(streams[:middle], from_node, reason),
                *self._put(streams[middle:], from_node, reason),
            ]  # fmt: skip
        group = self._joined(name, streams) if from_node is None else None
        group = group or Group(self._new_id(), name, streams)
        self._groups[group.group_id] = group
        self._load[name] += self._fps(streams)
        self._offer(name)
        if from_node is not None and from_node != name:
            self._moves.append(Move(streams, from_node, name, reason))
        return []

    def _joined(self, node: str, streams: tuple[str, ...]) -> Group | None:
        """A group of a node with new streams in it; None where each has too many."""
        for group in self._groups.values():
            if group.node == node and len(group.streams) + len(streams) <= GROUP_STREAMS:
                return replace(group, streams=(*group.streams, *streams))
        return None

    def _roomiest(self, fps: float) -> str | None:
        """The node that is the least full, relative to its capacity, of those where so much fits."""
        if fps >= self._too_much_fps:
            return None
        passed: list[tuple[float, str]] = []
        found = None
        while self._heap and found is None:
            share, name = heapq.heappop(self._heap)
            if share != self._share(name):
                continue  # stale
            passed.append((share, name))
            if self._load[name] + fps <= self._nodes[name].capacity_fps + _EPSILON:
                found = name
        for entry in passed:
            heapq.heappush(self._heap, entry)
        if found is None:
            self._too_much_fps = fps
        return found

    def _offer(self, name: str) -> None:
        if not self._nodes[name].is_draining:
            heapq.heappush(self._heap, (self._share(name), name))

    def _rebalance(self) -> bool:
        """Moves one group from the fullest node to the emptiest, if that brings them closer."""
        open_nodes = [name for name, node in self._nodes.items() if not node.is_draining]
        if len(open_nodes) < 2:
            return False
        fullest = max(open_nodes, key=lambda name: (self._share(name), name))
        emptiest = min(open_nodes, key=lambda name: (self._share(name), name))
        if self._share(fullest) - self._share(emptiest) <= IMBALANCE:
            return False
        best, best_share = None, self._share(fullest) - _EPSILON
        for group in self._groups.values():
            fps = self._fps(group.streams)
            if group.node != fullest or fps == 0:
                continue
            if self._load[emptiest] + fps > self._nodes[emptiest].capacity_fps + _EPSILON:
                continue
            share = max(self._share(fullest, -fps), self._share(emptiest, fps))
            if share < best_share:
                best, best_share = group, share
        if best is None:
            return False
        self._groups[best.group_id] = replace(best, node=emptiest)
        self._moves.append(Move(best.streams, fullest, emptiest, "rebalance"))
        return True

    def _share(self, name: str, more_fps: float = 0.0) -> float:
        """The part of a node's capacity that is in use."""
        capacity = self._nodes[name].capacity_fps
        return (self._load[name] + more_fps) / capacity if capacity > 0 else float("inf")

    def _why_not(self, stream: str) -> str:
        fps = self._wanted[stream]
        if not self._nodes:
            return "no node is there"
        open_nodes = [node for node in self._nodes.values() if not node.is_draining]
        if not open_nodes:
            return "every node drains"
        largest = max(node.capacity_fps for node in open_nodes)
        if fps > largest + _EPSILON:
            return f"needs {fps:g} frames per second, and the largest node can do {largest:g}"
        room = max(node.capacity_fps - self._load[node.name] for node in open_nodes)
        return f"needs {fps:g} frames per second, and no node has more than {max(room, 0.0):.3g} left"

    def _fps(self, streams: Iterable[str]) -> float:
        return sum(self._wanted[stream] for stream in streams)

    def _new_id(self) -> str:
        while True:
            self._number += 1
            group_id = f"group-{self._number}"
            if group_id not in self._ids:
                self._ids.add(group_id)
                return group_id
