"""Asks all nodes of a cluster for what they keep, and puts it together as if one daemon had kept it.

Each node has the past of its streams from the time when it watched them. A node that is away is left out and named.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, TypeVar

import orjson

from streamdet.client.cluster import FORGET_SECONDS
from streamdet.client.head import NodeAddress
from streamdet.client.past import AsyncPast, StreamSums, Timeline
from streamdet.errors import EndpointError, NotKeptError, StreamdetError
from streamdet.web.cluster_board import ClusterBoard
from streamdet.wire.occurrence import occurrence_of
from streamdet.wire.replay import HistoryPage, HistoryRequest

# Of each node, at least; of few nodes, more.
_LEAST_EVENTS = 10
# Lists that browsers may go on with; each holds a page of events of each node at most.
_MAX_PLACES = 32
_NONE = "no node is connected"

_Result = TypeVar("_Result")


@dataclass(slots=True)
class _Place:
    """How far a list has come.

    Attributes:
        cursors: where the next page of each node begins; None for its first.
        ended: nodes that have no more.
        read: what nodes have answered, and has not been listed yet.
    """

    cursors: dict[str, str | None]
    ended: set[str] = field(default_factory=set)
    read: dict[str, deque[bytes]] = field(default_factory=lambda: defaultdict(deque))

    def copy(self) -> _Place:
        read = defaultdict(deque, {node: deque(events) for node, events in self.read.items()})
        return _Place(dict(self.cursors), set(self.ended), read)

    @property
    def hungry(self) -> list[str]:
        """Nodes that must answer before it is known what comes next."""
        return [node for node in self.cursors if node not in self.ended and not self.read[node]]

    def take(self) -> bytes | None:
        """The newest event of those that were read."""
        waiting = [events for events in self.read.values() if events]
        return max(waiting, key=lambda events: _at(events[0])).popleft() if waiting else None


class ClusterPast:
    """Asks the nodes that are connected; belongs to one event loop. It answers as `AsyncPast` does.

    Args:
        board: knows where the nodes are, which of them are connected, and which one watches a stream.
        connect: makes a connection to a node.
    """

    def __init__(self, board: ClusterBoard, connect: Callable[[NodeAddress], AsyncPast]) -> None:
        self._board = board
        self._connect = connect
        self._nodes: dict[str, tuple[NodeAddress, AsyncPast]] = {}
        self._listed_at: dict[str, float] = {}
        self._problems: dict[str, str] = {}
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._tokens = itertools.count(time.time_ns() // 1000)

    @property
    def missing(self) -> str:
        """Whose past is missing, and why; empty where all nodes have answered."""
        connected = self._board.connected_nodes
        why = self._problems | {node: "is away" for node in self._listed_at if node not in connected}
        return "; ".join(f"{node} {words}" for node, words in sorted(why.items()))

    async def of(self, node: str) -> AsyncPast:
        """What a node keeps.

        Raises:
            EndpointError: it is away.
        """
        nodes = await self._reachable()
        if node not in nodes:
            message = f"the node {node[:64]} is away"
            raise EndpointError(message)
        return nodes[node]

    async def page(self, request: HistoryRequest) -> HistoryPage:
        """A page of what all nodes have kept, the newest first."""
        place = await self._place(request.after)
        limit = max(_LEAST_EVENTS, min(request.limit, 2 * request.limit // max(len(place.cursors), 1)))
        events: list[bytes] = []
        while len(events) < request.limit:
            if hungry := place.hungry:
                await self._read(replace(request, limit=limit), place, hungry)
                if place.hungry:
                    break  # a node looks on for something rare; all that is older must wait for it
            event = place.take()
            if event is None:
                break
            if b'"node":' in event:  # of a stream of the cluster, not of the node's own file
                events.append(event)
        if len(place.ended) == len(place.cursors) and not any(place.read.values()):
            return HistoryPage(0, None, events)
        token = str(next(self._tokens))
        self._places[token] = place
        if len(self._places) > _MAX_PLACES:
            self._places.popitem(last=False)
        return HistoryPage(0, token, events)

    async def _place(self, after: str | None) -> _Place:
        """Where a page begins.

        Raises:
            EndpointError: no node is connected, or the place is not remembered any longer.
        """
        if after is not None and after not in self._places:
            message = "the list is too old to go on with; load it again"
            raise EndpointError(message)
        if after is not None:
            return self._places[after].copy()
        place = _Place(dict.fromkeys(await self._reachable()))
        if not place.cursors:
            raise EndpointError(self.missing or _NONE)
        return place

    async def timeline(self, since: float, until: float, steps: int) -> Timeline:
        """The sums of all nodes, of the streams that the cluster has now."""
        answers = await self._ask_all(lambda past: past.timeline(since, until, steps))
        sums = merged(answers.values(), (until - since) / steps)
        return replace(sums, streams=tuple(each for each in sums.streams if self._board.node_of(each.stream)))

    async def next_seq(self, topic: str) -> int | None:
        """As `AsyncPast.next_seq`, of the node that watches the stream."""
        return await (await self.of(self._owner(topic))).next_seq(topic)

    async def replay(self, topic: str, from_seq: int, to_seq: int) -> list[bytes]:
        """As `AsyncPast.replay`, of the node that watches the stream."""
        return await (await self.of(self._owner(topic))).replay(topic, from_seq, to_seq)

    def _owner(self, topic: str) -> str:
        return self._board.node_of(topic.split("/")[1]) or "that watches it"

    async def _read(self, request: HistoryRequest, place: _Place, nodes: Iterable[str]) -> None:
        async def ask(node: str, past: AsyncPast) -> HistoryPage:
            return await past.page(replace(request, after=place.cursors[node]))

        reachable = await self._reachable()
        answers = await self._ask({node: reachable[node] for node in nodes if node in reachable}, ask)
        for node in nodes:
            page = answers.get(node)
            if page is not None:
                place.read[node].extend(page.events)
                place.cursors[node] = page.next
            if page is None or page.next is None:
                place.ended.add(node)

    async def _ask_all(self, ask: Callable[[AsyncPast], Awaitable[_Result]]) -> dict[str, _Result]:
        return await self._ask(await self._reachable(), lambda _, past: ask(past))

    async def _ask(
        self, nodes: Mapping[str, AsyncPast], ask: Callable[[str, AsyncPast], Awaitable[_Result]]
    ) -> dict[str, _Result]:
        """The answers of those that answer; notes why others do not.

        Raises:
            NotKeptError, EndpointError: none does.
        """
        found = await asyncio.gather(*(ask(*node) for node in nodes.items()), return_exceptions=True)
        answers: dict[str, _Result] = {}
        for node, answer in zip(nodes, found, strict=True):
            self._problems.pop(node, None)
            if isinstance(answer, NotKeptError):
                self._problems[node] = "keeps no events on disk"
            elif isinstance(answer, StreamdetError | TimeoutError):
                self._problems[node] = "does not answer"
            elif isinstance(answer, BaseException):
                raise answer
            else:
                answers[node] = answer
        if not answers and found and all(isinstance(each, NotKeptError) for each in found):
            raise NotKeptError(str(found[0]))
        if not answers:
            raise EndpointError(self.missing or _NONE)
        return answers

    async def _reachable(self) -> dict[str, AsyncPast]:
        """The nodes that are connected, by name; connections are made and closed as the head lists nodes."""
        now = time.monotonic()
        for node in self._board.watch.nodes:
            self._listed_at[node.node] = now
            before = self._nodes.get(node.node)
            if before is None or before[0] != node:
                if before is not None:
                    await before[1].close()
                if node.replay is None:
                    self._problems[node.node] = "answers no questions about the past"
                else:
                    self._nodes[node.node] = node, self._connect(node)
        for name in [name for name, at in self._listed_at.items() if now - at > FORGET_SECONDS]:
            del self._listed_at[name]
            self._problems.pop(name, None)
            if name in self._nodes:
                await self._nodes.pop(name)[1].close()
        connected = self._board.connected_nodes
        return {name: past for name, (_, past) in self._nodes.items() if name in connected}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for _, past in self._nodes.values():
            await past.close()


def merged(timelines: Iterable[Timeline], step_seconds: float) -> Timeline:
    """The sums of several nodes as those of one daemon.

    Args:
        timelines: of the nodes, over the same span.
        step_seconds: length of a step; a stream is not down or at rest for longer in it.
    """
    timelines = list(timelines)
    presence: defaultdict[str, defaultdict[str, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
    alerts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    down: defaultdict[str, Counter[int]] = defaultdict(Counter)
    resting: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for sums in (sums for timeline in timelines for sums in timeline.streams):
        for label, counts in sums.presence.items():
            presence[sums.stream][label].update(counts)
        alerts[sums.stream].update(sums.alerts)
        down[sums.stream].update(sums.down_seconds)
        resting[sums.stream].update(sums.resting_seconds)
    streams = tuple(
        StreamSums(
            name, presence[name], alerts[name], _at_most(down[name], step_seconds),
            _at_most(resting[name], step_seconds),
        )
        for name in sorted(presence.keys() | alerts.keys())
    )  # fmt: skip
    kept_since = min((each.kept_since for each in timelines if each.kept_since is not None), default=None)
    # Times in which none of them ran.
    gaps = timelines[0].gaps if timelines else ()
    for timeline in timelines[1:]:
        gaps = tuple(
            (max(a, c), min(b, d)) for a, b in gaps for c, d in timeline.gaps if max(a, c) < min(b, d)
        )  # fmt: skip
    return Timeline(kept_since, gaps, streams)


def _at_most(seconds: Mapping[int, float], most: float) -> dict[int, float]:
    return {step: min(value, most) for step, value in seconds.items()}


def _at(payload: bytes) -> float:
    """When an object ended or an alert was raised, by which a list is ordered; what makes no sense comes first."""
    with suppress(orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        value: dict[str, Any] = orjson.loads(payload)
        of = occurrence_of(value)
        return of.began_at if of.rule is not None or of.ended_at is None else of.ended_at
    return math.inf
