"""Makes the events of a daemon: adds what the analytics of a stream know, numbers each event, and encodes it."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from streamdet import wire
from streamdet.analytics.stream_analytics import StreamAnalytics
from streamdet.config import StreamConfig
from streamdet.delivery.preview import Preview
from streamdet.monitoring.log import LogThrottle
from streamdet.monitoring.metrics import Metrics
from streamdet.security.redact import redact
from streamdet.types import (
    Crossing,
    Detection,
    DetectionEvent,
    FrameInfo,
    Picture,
    PreviewEvent,
    StateEvent,
    StreamStatus,
)

# A subscription has the state of its streams repeated at once, but not sooner than this after the last time; the pause
# doubles each time that another subscription follows soon. A client that subscribes all the time would flood the
# others.
_MIN_STATE_PAUSE_SECONDS = 0.1
_MAX_STATE_PAUSE_SECONDS = 10.0
_PAUSES_TO_CALM_DOWN = 10
_MAX_REPEATED_STATES_PER_SECOND = 1000

_STATES = b"state/"
# A stream that is removed and added again goes on counting, unless this many others were removed after it.
_MAX_REMOVED_STREAMS = 1000

_Event = TypeVar("_Event", DetectionEvent, StateEvent, PreviewEvent)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrameResult:
    """One frame's result on its way out; `picture` only where a preview is to be made of it."""

    stream: str
    frame: FrameInfo
    captured_monotonic_seconds: float
    detections: tuple[Detection, ...]
    picture: Picture | None


@dataclass(frozen=True, slots=True)
class Message(Generic[_Event]):
    """An event that is ready to be sent.

    Attributes:
        event: the event.
        topic: its topic.
        parts: the parts of the ZeroMQ message.
        is_kept: whether replay keeps it: pictures are too large, and a repeated state is kept already.
    """

    event: _Event
    topic: str
    parts: list[bytes]
    is_kept: bool


@dataclass(slots=True)
class _LastState:
    """The newest state of a stream.

    Attributes:
        status: the state.
        event: as it was published; None where it could not be encoded.
        sent_monotonic_seconds: when it was last published.
        due_monotonic_seconds: when it is repeated.
        pause_seconds: how long after the last time a subscription has it repeated.
        is_asked_for: whether a subscription has made it due.
    """

    status: StreamStatus
    event: StateEvent | None
    sent_monotonic_seconds: float
    due_monotonic_seconds: float
    pause_seconds: float = 0.0
    is_asked_for: bool = False


class EventWriter:
    """Makes all events of one daemon; for the one thread that publishes.

    An event that cannot be encoded is reported, and uses no number: its method returns None.

    Args:
        epoch: new at each start of the daemon.
        state_interval_seconds: how often the state of a stream is repeated.
        metrics: counts the objects in zones and across lines.

    Attributes:
        seqs: the newest number of each topic.
    """

    def __init__(self, epoch: str, state_interval_seconds: float, metrics: Metrics) -> None:
        self._epoch = epoch
        self._state_interval_seconds = state_interval_seconds
        self._metrics = metrics
        self._throttle = LogThrottle()
        self.seqs: Counter[str] = Counter()
        self._states: dict[str, _LastState] = {}
        self._analytics: dict[str, StreamAnalytics] = {}
        # The numbers of removed streams are kept for a while, and so are their track ids.
        self._removed: dict[str, None] = {}
        self._object_numbers, self._alert_numbers = itertools.count(1), itertools.count(1)
        self._track_ids: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))

    @property
    def streams(self) -> list[str]:
        """The streams whose state is repeated."""
        return list(self._states)

    def set_stream(self, config: StreamConfig) -> None:
        """Tracks the objects of a stream, and applies its zones, lines and masks, from the next frame on."""
        analytics = self._analytics.get(config.name)
        before = analytics.geometry if analytics else None
        try:
            if analytics is None:
                analytics = self._analytics[config.name] = StreamAnalytics(
                    config, self._track_ids[config.name], self._new_object_id, self._new_alert_id
                )
            else:
                analytics.set_config(config)
        except Exception as error:  # noqa: BLE001 - whatever it is: other streams are to be published
            self._metrics.unexpected.report("analytics", error, "the stream's new rules are not applied", config.name)
            return
        last = self._states.get(config.name)
        if last is not None and analytics.geometry != before:
            last.due_monotonic_seconds = 0.0

    def remove_stream(self, stream: str) -> str | None:
        """Repeats the stream's state no more; its numbers are kept unless too many other streams are removed after it.

        Returns:
            The stream whose numbers are forgotten now, or None.
        """
        self._states.pop(stream, None)
        self._analytics.pop(stream, None)
        self._removed.pop(stream, None)
        self._removed[stream] = None
        if len(self._removed) <= _MAX_REMOVED_STREAMS:
            return None
        oldest = next(iter(self._removed))
        del self._removed[oldest]
        self._track_ids.pop(oldest, None)
        for kind in wire.KINDS:
            self.seqs.pop(wire.topic(kind, oldest), None)
        return oldest

    def detections(self, result: FrameResult, trace_id: str | None = None) -> Message[DetectionEvent] | None:
        """The event of one frame."""
        stream = result.stream

        def make(seq: int) -> DetectionEvent:
            detections, crossings = self._analysed(result)
            return DetectionEvent(stream, self._epoch, seq, time.time(), result.frame, detections, crossings, trace_id)

        return self._write("detections", stream, make)

    def preview(self, preview: Preview) -> Message[PreviewEvent] | None:
        """The event of a picture."""
        of, jpeg = preview.event, preview.jpeg
        return self._write(
            "preview",
            of.stream,
            lambda seq: PreviewEvent(of.stream, self._epoch, seq, time.time(), of.frame, of.detections, jpeg),
        )

    def state(self, status: StreamStatus) -> Message[StateEvent] | None:
        """The event of a new state."""
        now = time.monotonic()
        analytics = self._analytics.get(status.stream)
        message = self._write(
            "state",
            status.stream,
            lambda seq: StateEvent(
                status.stream,
                self._epoch,
                seq,
                time.time(),
                state=status.state,
                reason=status.reason,
                detail=redact(status.detail),
                since=status.since,
                geometry=analytics.geometry if analytics else None,
            ),
        )
        before = self._states.get(status.stream)
        pause_seconds = before.pause_seconds if before else 0.0
        event = message.event if message else None
        self._states[status.stream] = _LastState(status, event, now, now + self._state_interval_seconds, pause_seconds)
        return message

    def due(self, latest: float) -> float:
        """When a state is next to be repeated, in monotonic seconds, but not after `latest`."""
        return min([latest, *(last.due_monotonic_seconds for last in self._states.values())])

    def subscribed(self, prefix: bytes) -> None:
        """Makes the states due that a client has just subscribed to."""
        if not prefix.startswith(_STATES) and not _STATES.startswith(prefix):
            return
        now = time.monotonic()
        shortest_seconds = max(_MIN_STATE_PAUSE_SECONDS, len(self._states) / _MAX_REPEATED_STATES_PER_SECOND)
        for stream, last in self._states.items():
            if not wire.topic("state", stream).encode().startswith(prefix):
                continue
            since_seconds = now - last.sent_monotonic_seconds
            if last.pause_seconds < shortest_seconds or since_seconds > _PAUSES_TO_CALM_DOWN * last.pause_seconds:
                last.pause_seconds = shortest_seconds
            due = last.sent_monotonic_seconds + last.pause_seconds
            if due < last.due_monotonic_seconds:
                last.due_monotonic_seconds, last.is_asked_for = due, True

    def due_states(self) -> Iterator[Message[StateEvent]]:
        """The states that are to be repeated now."""
        now = time.monotonic()
        for last in list(self._states.values()):
            if last.due_monotonic_seconds <= now:
                message = self._repeated(last, now)
                if message is not None:
                    yield message

    def _repeated(self, last: _LastState, now: float) -> Message[StateEvent] | None:
        """The state again, with its number: a client that has it has lost nothing, and replay keeps it already."""
        analytics = self._analytics.get(last.status.stream)
        event = last.event
        if event is None or event.geometry != (analytics.geometry if analytics else None):
            return self.state(last.status)
        last.sent_monotonic_seconds, last.due_monotonic_seconds = now, now + self._state_interval_seconds
        if last.is_asked_for:
            last.pause_seconds, last.is_asked_for = min(2 * last.pause_seconds, _MAX_STATE_PAUSE_SECONDS), False
        return self._write(
            "state", event.stream, lambda _: replace(event, published_at=time.time()), repeats_seq=event.seq
        )

    def _new_object_id(self) -> str:
        return f"{self._epoch}-{next(self._object_numbers)}"

    def _new_alert_id(self) -> str:
        return f"{self._epoch}-a{next(self._alert_numbers)}"

    def _analysed(self, result: FrameResult) -> tuple[tuple[Detection, ...], tuple[Crossing, ...]]:
        """What is published of a frame: tracked, with zones and crossings, without what a mask hides.

        Where that fails, this frame is published without tracks, and those of the stream begin again with the next.
        """
        stream, frame = result.stream, result.frame
        detections = wire.presentable(result.detections, frame.width, frame.height)
        if len(detections) < len(result.detections):
            left_out = len(result.detections) - len(detections)
            text = "left out %d detections without a usable box"
            self._throttle.log(_log, logging.WARNING, text, left_out, stream=stream)
        analytics = self._analytics.get(stream)
        if analytics is None:
            return detections, ()
        try:
            seen = analytics.see(detections, frame, result.captured_monotonic_seconds)
            if analytics.geometry is not None:
                self._metrics.shapes_seen(stream, analytics.zone_counts(seen.detections), seen.crossings)
        except Exception as error:  # noqa: BLE001 - whatever it is: the frame is to be published
            self._metrics.unexpected.report("analytics", error, "the stream's tracks begin again", stream)
            analytics.reset()
        else:
            return seen.detections, seen.crossings
        try:
            return tuple(analytics.see_untracked(detections, frame, result.captured_monotonic_seconds)), ()
        except Exception as error:  # noqa: BLE001 - whatever it is: the frame is to be published
            self._metrics.unexpected.report("analytics", error, "no zone or mask is applied", stream)
            # A mask hides what must not be seen: where none can be applied, nothing is shown.
            return () if analytics.has_masks else detections, ()

    def _write(
        self, kind: wire.Kind, stream: str, make: Callable[[int], _Event], *, repeats_seq: int | None = None
    ) -> Message[_Event] | None:
        """Numbers and encodes an event, or again one that has a number."""
        topic = wire.topic(kind, stream)
        is_new = repeats_seq is None
        seq = self.seqs[topic] + 1 if repeats_seq is None else repeats_seq
        try:
            event = make(seq)
            parts = wire.to_message(event)
        except Exception as error:  # noqa: BLE001 - whatever it is: other events are to be published
            self._metrics.unexpected.report("events", error, f"an event of {topic} is not published", stream)
            return None
        if is_new:
            self.seqs[topic] = seq
            self._removed.pop(stream, None)
        return Message(event, topic, parts, is_new and kind != "preview")
