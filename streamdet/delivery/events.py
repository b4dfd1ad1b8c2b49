"""Makes events of what was found and of what streams do: numbers them, keeps them for replay, and sends them."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from streamdet import wire
from streamdet.analytics.stream_analytics import StreamAnalytics
from streamdet.config import StreamConfig
from streamdet.delivery.preview import Preview
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.opentelemetry import Tracer
from streamdet.security.redact import redact
from streamdet.types import (
    Crossing,
    Detection,
    DetectionEvent,
    Drop,
    FrameInfo,
    Picture,
    PreviewEvent,
    StateEvent,
    StreamStatus,
)

# After a subscription the state of a stream is repeated at once, but so long after the last time; twice as long each
# time that another one follows soon. A client that comes and goes would otherwise flood all others.
_MIN_STATE_PAUSE_SECONDS = 0.1
_MAX_STATE_PAUSE_SECONDS = 10.0
_PAUSES_TO_CALM_DOWN = 10
_MAX_REPEATED_STATES_PER_SECOND = 1000

_STATES = b"state/"
# A stream that is removed and added again goes on counting, unless so many others have gone after it.
_MAX_GONE_STREAMS = 1000

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


@dataclass(slots=True)
class _LastState:
    """What was published of a stream last.

    Attributes:
        status: of the stream.
        event: as it was published; None where it could not be.
        sent_monotonic_seconds: when.
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
    """All events of one daemon; for the one thread that publishes.

    Args:
        epoch: new at each start of the daemon.
        state_interval_seconds: how often the state of a stream is repeated.
        metrics: counts frames and events.
        send: gets the parts of each event, with its topic, its number, and whether to keep it for replay.
        offer: gets each frame of which a preview may be made.
        tracer: follows some of the frames.

    Attributes:
        seqs: the newest number of each topic.
    """

    def __init__(
        self,
        epoch: str,
        state_interval_seconds: float,
        metrics: Metrics,
        send: Callable[[str, int, list[bytes], bool], None],
        offer: Callable[[DetectionEvent, Picture], None],
        tracer: Tracer | None = None,
    ) -> None:
        self._epoch = epoch
        self._state_interval_seconds = state_interval_seconds
        self._metrics = metrics
        self._send_parts = send
        self._offer = offer
        self._tracer = tracer
        self.seqs: Counter[str] = Counter()
        self._states: dict[str, _LastState] = {}
        self._scenes: dict[str, StreamAnalytics] = {}
        # Kept like the numbers of events: a stream that is added again goes on counting.
        self._gone: dict[str, None] = {}
        self._track_ids: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))

    @property
    def streams(self) -> list[str]:
        """Those whose state is repeated."""
        return list(self._states)

    def due(self, latest: float) -> float:
        """When a state is to be repeated, in monotonic seconds; `latest` where none is before."""
        return min([latest, *(last.due_monotonic_seconds for last in self._states.values())])

    def subscribed(self, prefix: bytes) -> None:
        """Makes the states due that someone has just subscribed to."""
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

    def remove_stream(self, stream: str) -> str | None:
        """Repeats nothing more of a stream; its numbers are kept as long as not too many others have gone after it.

        Returns:
            The stream whose numbers are not kept any more, or None.
        """
        self._states.pop(stream, None)
        self._scenes.pop(stream, None)
        self._gone.pop(stream, None)
        self._gone[stream] = None
        if len(self._gone) <= _MAX_GONE_STREAMS:
            return None
        oldest = next(iter(self._gone))
        del self._gone[oldest]
        self._track_ids.pop(oldest, None)
        for kind in wire.KINDS:
            self.seqs.pop(wire.topic(kind, oldest), None)
        return oldest

    def set_stream(self, config: StreamConfig) -> None:
        """Has the next frames of a stream tracked, and its shapes applied."""
        scene = self._scenes.get(config.name)
        before = scene.geometry if scene else None
        try:
            if scene is None:
                scene = self._scenes[config.name] = StreamAnalytics(config, self._track_ids[config.name])
            else:
                scene.change(config)
        except Exception as error:  # noqa: BLE001 - whatever it is: other streams are to be published
            self._metrics.unexpected.report("analytics", error, "the stream's new rules are not applied", config.name)
            return
        last = self._states.get(config.name)
        if last is not None and scene.geometry != before:
            last.due_monotonic_seconds = 0.0

    def repeat_states(self) -> None:
        """Sends those that are due."""
        now = time.monotonic()
        for last in list(self._states.values()):
            if last.due_monotonic_seconds <= now:
                self._repeat_state(last, now)

    def _repeat_state(self, last: _LastState, now: float) -> None:
        """Sends a state again, with its number: who has it already has lost nothing, and nothing has to be kept."""
        scene = self._scenes.get(last.status.stream)
        event = last.event
        if event is None or event.geometry != (scene.geometry if scene else None):
            self.send_state(last.status)
            return
        last.sent_monotonic_seconds, last.due_monotonic_seconds = now, now + self._state_interval_seconds
        if last.is_asked_for:
            last.pause_seconds, last.is_asked_for = min(2 * last.pause_seconds, _MAX_STATE_PAUSE_SECONDS), False
        self._publish("state", event.stream, lambda _: replace(event, published_at=time.time()), repeats_seq=event.seq)

    def send_detections(self, found: FrameResult) -> None:
        """What was found in one frame."""
        stream, frame = found.stream, found.frame
        trace = self._tracer.take(stream, frame.seq) if self._tracer else None

        def make(seq: int) -> DetectionEvent:
            detections, crossings = self._seen(found)
            trace_id = trace.trace_id if trace else None
            return DetectionEvent(stream, self._epoch, seq, time.time(), frame, detections, crossings, trace_id)

        event = self._publish("detections", stream, make)
        if event is None:
            self._metrics.frame_dropped(stream, Drop.INTERNAL_ERROR)
            return
        latency_seconds = time.monotonic() - found.captured_monotonic_seconds
        self._metrics.frame_published(stream, latency_seconds, [detection.label for detection in event.detections])
        if trace is not None and self._tracer is not None:
            self._tracer.published(trace, event.seq, len(event.detections))
        if found.picture is not None:
            self._offer(event, found.picture)

    def send_state(self, status: StreamStatus) -> None:
        """What a stream does."""
        now = time.monotonic()
        scene = self._scenes.get(status.stream)
        event = self._publish(
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
                geometry=scene.geometry if scene else None,
            ),
        )
        before = self._states.get(status.stream)
        pause_seconds = before.pause_seconds if before else 0.0
        self._states[status.stream] = _LastState(status, event, now, now + self._state_interval_seconds, pause_seconds)

    def send_preview(self, preview: Preview) -> None:
        """A picture."""
        of = preview.event
        self._publish(
            "preview",
            of.stream,
            lambda seq: PreviewEvent(of.stream, self._epoch, seq, time.time(), of.frame, of.detections, preview.jpeg),
        )

    def _seen(self, found: FrameResult) -> tuple[tuple[Detection, ...], tuple[Crossing, ...]]:
        """What is published of a frame: tracked, with zones and crossings, without what a mask hides.

        Where that fails, this frame is published without tracks, and those of the stream begin again with the next.
        """
        frame = found.frame
        detections = wire.presentable(found.detections, frame.width, frame.height)
        if len(detections) < len(found.detections):
            left_out = len(found.detections) - len(detections)
            _log.warning("left out %d detections without a usable box", left_out, extra={"stream": found.stream})
        scene = self._scenes.get(found.stream)
        if scene is None:
            return detections, ()
        try:
            seen, crossings = scene.see(detections, frame, found.captured_monotonic_seconds)
            if scene.geometry is not None:
                self._metrics.shapes_seen(found.stream, scene.zone_counts(seen), crossings)
        except Exception as error:  # noqa: BLE001 - whatever it is: the frame is to be published
            self._metrics.unexpected.report("analytics", error, "the stream's tracks begin again", found.stream)
            scene.begin_again()
        else:
            return tuple(seen), crossings
        try:
            return tuple(scene.see_untracked(detections, frame, found.captured_monotonic_seconds)), ()
        except Exception as error:  # noqa: BLE001 - whatever it is: the frame is to be published
            self._metrics.unexpected.report("analytics", error, "no zone or mask is applied", found.stream)
            # A mask hides what must not be seen: where none can be applied, nothing is shown.
            return () if scene.hides else detections, ()

    def _publish(
        self, kind: wire.Kind, stream: str, make: Callable[[int], _Event], *, repeats_seq: int | None = None
    ) -> _Event | None:
        """Numbers, encodes and sends an event, or again one that has a number.

        None, and no number is used, where it cannot be encoded.
        """
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
            self._gone.pop(stream, None)
        # Pictures are too large to be kept, and what is repeated is kept already.
        self._send_parts(topic, seq, parts, is_new and kind != "preview")
        self._metrics.event_published(topic)
        return event
