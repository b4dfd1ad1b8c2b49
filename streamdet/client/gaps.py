"""Counts the events of each topic and tells what is missing; what `subscribe` does without `heal`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from streamdet import wire
from streamdet.types import StateEvent
from streamdet.wire import Event

MAX_TOPICS = 10_000
"""Of so many topics a subscriber knows how far they came; of more, not of those that have been silent longest."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Events were lost on their way to this subscriber, because it was too slow or the connection broke.

    Attributes:
        stream: whose events.
        topic: what was lost of it, for example `detections/front-door/`.
        first: `seq` of the first lost event.
        count: how many were lost; the next event on the topic has `seq` first + count.
    """

    stream: str
    topic: str
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Restart:
    """The daemon was started again: what follows on this topic is counted from 1 again. Told only with `heal=True`.

    Attributes:
        stream: whose events.
        topic: on which this one comes.
        before: the epoch that is over.
        epoch: that of the events that follow.
        is_complete: whether all events of the epoch before were delivered, or told as a `Gap`; False where no one
            knows how many it had, because nothing was kept of it on disk, or it ended in a crash.
    """

    stream: str
    topic: str
    before: str
    epoch: str
    is_complete: bool


Item = Event | Gap | Restart


class Labels:
    """Which labels a subscriber wants; all when there are none."""

    def __init__(self, labels: Iterable[str] | None) -> None:
        self._labels = None if labels is None else frozenset(labels)

    def apply(self, event: Event) -> Event:
        """The event without the detections of other labels."""
        if self._labels is None or isinstance(event, StateEvent):
            return event
        return replace(event, detections=tuple(d for d in event.detections if d.label in self._labels))


class GapDetector:
    """Makes events and gaps of messages.

    The first event of a topic says where counting begins, and so does the first of a new epoch.

    Args:
        labels: of the detections that are wanted; None for all.

    Attributes:
        ready: what can be handed out.
    """

    is_full = False

    def __init__(self, labels: Iterable[str] | None) -> None:
        self.ready: deque[Item] = deque()
        self._labels = Labels(labels)
        self._last: dict[str, tuple[str, int]] = {}

    def message(self, parts: Sequence[bytes], now: float) -> None:  # noqa: ARG002 - who heals needs it
        """Takes a message that was published.

        Raises:
            WireError: it is no event.
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
        self.ready.append(self._labels.apply(event))

    def answer(self, parts: Sequence[bytes], now: float) -> None:
        """Takes an answer; nothing was asked."""

    def requests(self, now: float) -> list[bytes]:  # noqa: ARG002 - who heals needs it
        """What is to be asked now: nothing."""
        return []

    def due(self) -> float:
        """When to call `requests` again, in monotonic seconds: never."""
        return math.inf
