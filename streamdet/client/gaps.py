"""Finds gaps in the `seq` of each topic, for `subscribe` without `replay`; and the items that `subscribe` yields."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from streamdet import wire
from streamdet.types import AlertEvent, ObjectEvent, StateEvent
from streamdet.wire import Event

MAX_TOPICS = 10_000
"""How many topics are remembered with their newest `seq`; beyond that, the ones silent for longest are forgotten."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Events were lost on their way to this subscriber, because it was too slow or the connection broke.

    Attributes:
        stream: whose events.
        topic: the topic on which they were sent, for example `detections/front-door/`.
        first: `seq` of the first lost event.
        count: how many were lost; the next event on the topic has `seq` first + count.
    """

    stream: str
    topic: str
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Restart:
    """The daemon was started again: events of this topic are numbered from 1 again. Comes only with `replay=True`.

    Attributes:
        stream: whose events.
        topic: whose numbers begin again.
        before: the epoch that has ended.
        epoch: the epoch of the events that follow.
        is_complete: whether each event of the epoch before was delivered or reported in a `Gap`; False where its last
            number is unknown, because nothing was kept of it on disk, or it ended in a crash.
    """

    stream: str
    topic: str
    before: str
    epoch: str
    is_complete: bool


Item = Event | Gap | Restart


class Labels:
    """Filters events by label; None keeps all."""

    def __init__(self, labels: Iterable[str] | None) -> None:
        self._labels = None if labels is None else frozenset(labels)

    def apply(self, event: Event) -> Sequence[Event]:
        """The event without the detections of other labels; nothing if it is about an object of another label.

        An alert about several objects or none has no label and is kept.
        """
        if self._labels is None or isinstance(event, StateEvent):
            return (event,)
        if isinstance(event, ObjectEvent):
            return (event,) if event.object.label in self._labels else ()
        if isinstance(event, AlertEvent):
            return (event,) if event.alert.label is None or event.alert.label in self._labels else ()
        return (replace(event, detections=tuple(d for d in event.detections if d.label in self._labels)),)


class GapDetector:
    """Turns messages into events and gaps.

    Counting begins at the first event of each topic, and at the first of each new epoch.

    Args:
        labels: labels of the detections, objects and alerts to keep; None for all.

    Attributes:
        ready: items to hand out, in order.
        is_full: whether no more messages should be read; never here.
        held: how many events wait for those before them; none here.
    """

    is_full = False
    held = 0

    def __init__(self, labels: Iterable[str] | None) -> None:
        self.ready: deque[Item] = deque()
        self._labels = Labels(labels)
        self._last: dict[str, tuple[str, int]] = {}

    def message(self, parts: Sequence[bytes], now: float) -> None:  # noqa: ARG002 - `OrderedRecovery` needs it
        """Takes a message that was published.

        Raises:
            WireError: it is not an event.
        """
        self.event(wire.from_message(parts))

    def event(self, event: Event) -> None:
        """Takes an event."""
        topic = wire.topic_of(event)
        epoch, last_seq = self._last.pop(topic, (event.epoch, event.seq - 1))
        self._last[topic] = (event.epoch, event.seq)
        if len(self._last) > MAX_TOPICS:
            del self._last[next(iter(self._last))]
        missing = event.seq - last_seq - 1
        if event.epoch == epoch and missing > 0:
            self.ready.append(Gap(event.stream, topic, last_seq + 1, missing))
        self.ready.extend(self._labels.apply(event))

    def take(self) -> Item:
        """Hands out the next item of `ready`."""
        return self.ready.popleft()

    def answer(self, parts: Sequence[bytes], now: float) -> None:
        """Ignores an answer of the replay socket: nothing is requested here."""

    def requests(self, now: float) -> list[bytes]:  # noqa: ARG002 - `OrderedRecovery` needs it
        """Requests to send now: none."""
        return []

    def due(self) -> float:
        """When `requests` is to be called again, in monotonic seconds: never."""
        return math.inf
