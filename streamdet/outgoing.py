"""Makes events of what was found and of what streams do: numbers them, keeps them for replay, and sends them."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from streamdet import wire
from streamdet.config import StreamConfig
from streamdet.metrics import Metrics
from streamdet.preview import Preview
from streamdet.redact import redact
from streamdet.scene import Scene
from streamdet.tracing import Tracer
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

# However often somebody subscribes, the state of a stream is repeated at most this often.
_MIN_STATE_INTERVAL_SECONDS = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """One frame's result on its way out; `picture` only where a preview is to be made of it."""

    stream: str
    frame: FrameInfo
    captured_monotonic_seconds: float
    detections: tuple[Detection, ...]
    picture: Picture | None


@dataclass(slots=True)
class _LastState:
    status: StreamStatus
    sent_monotonic_seconds: float
    due_monotonic_seconds: float


class Outgoing:
    """All events of one daemon; for the one thread that publishes.

    Args:
        epoch: new at each start of the daemon.
        state_interval_seconds: how often the state of a stream is repeated.
        metrics: counts frames and events.
        send: gets the parts of each event, with its topic and number.
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
        send: Callable[[str, int, list[bytes]], None],
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
        self._scenes: dict[str, Scene] = {}
        # Kept for ever, like the numbers of events: a stream that is added again goes on counting.
        self._track_ids: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))

    @property
    def streams(self) -> list[str]:
        """Those whose state is repeated."""
        return list(self._states)

    def due(self, latest: float) -> float:
        """When a state is to be repeated, in monotonic seconds; `latest` where none is before."""
        return min([latest, *(last.due_monotonic_seconds for last in self._states.values())])

    def subscribed(self, prefix: bytes) -> None:
        """Makes the states due that somebody has just subscribed to."""
        for stream, last in self._states.items():
            if wire.topic("state", stream).encode().startswith(prefix):
                last.due_monotonic_seconds = min(
                    last.due_monotonic_seconds, last.sent_monotonic_seconds + _MIN_STATE_INTERVAL_SECONDS
                )

    def forget_stream(self, stream: str) -> None:
        """Repeats nothing more of a stream; its numbers are kept."""
        self._states.pop(stream, None)
        self._scenes.pop(stream, None)

    def apply_rules(self, config: StreamConfig) -> None:
        """Has the next frames of a stream tracked, and its shapes heeded."""
        scene = self._scenes.get(config.name)
        before = scene.geometry if scene else None
        if scene is None:
            scene = self._scenes[config.name] = Scene(config, self._track_ids[config.name])
        else:
            scene.change(config)
        self._metrics.set_shapes(
            config.name, [zone.name for zone in config.zones], [line.name for line in config.lines]
        )
        last = self._states.get(config.name)
        if last is not None and scene.geometry != before:
            last.due_monotonic_seconds = 0.0

    def repeat_states(self) -> None:
        """Sends those that are due."""
        now = time.monotonic()
        for last in list(self._states.values()):
            if last.due_monotonic_seconds <= now:
                self.send_state(last.status)

    def send_detections(self, found: Found) -> None:
        """What was found in one frame."""
        frame = found.frame
        detections = wire.presentable(found.detections, frame.width, frame.height)
        if len(detections) < len(found.detections):
            left_out = len(found.detections) - len(detections)
            _log.warning("left out %d detections without a usable box", left_out, extra={"stream": found.stream})
        scene = self._scenes.get(found.stream)
        crossings: tuple[Crossing, ...] = ()
        if scene is not None:
            seen, crossings = scene.see(detections, frame, found.captured_monotonic_seconds)
            detections = tuple(seen)
            if scene.geometry is not None:
                self._metrics.shapes_seen(found.stream, scene.zone_counts(detections), crossings)
        topic = wire.topic("detections", found.stream)
        trace = self._tracer.take(found.stream, frame.seq) if self._tracer else None
        trace_id = trace.trace_id if trace else None
        event = DetectionEvent(
            found.stream, self._epoch, self._next_seq(topic), time.time(), frame, detections, crossings, trace_id
        )
        self._send(topic, event)
        if trace is not None and self._tracer is not None:
            self._tracer.published(trace, event.seq, len(detections))
        if found.picture is not None:
            self._offer(event, found.picture)
        latency_seconds = time.monotonic() - found.captured_monotonic_seconds
        self._metrics.frame_published(found.stream, latency_seconds, [detection.label for detection in detections])

    def send_state(self, status: StreamStatus) -> None:
        """What a stream does."""
        topic = wire.topic("state", status.stream)
        event = StateEvent(
            status.stream,
            self._epoch,
            self._next_seq(topic),
            time.time(),
            state=status.state,
            reason=status.reason,
            detail=redact(status.detail),
            since=status.since,
            geometry=scene.geometry if (scene := self._scenes.get(status.stream)) else None,
        )
        self._send(topic, event)
        now = time.monotonic()
        self._states[status.stream] = _LastState(status, now, now + self._state_interval_seconds)

    def send_preview(self, preview: Preview) -> None:
        """A picture."""
        of = preview.event
        topic = wire.topic("preview", of.stream)
        seq, now = self._next_seq(topic), time.time()
        self._send(topic, PreviewEvent(of.stream, self._epoch, seq, now, of.frame, of.detections, preview.jpeg))

    def _next_seq(self, topic: str) -> int:
        self.seqs[topic] += 1
        return self.seqs[topic]

    def _send(self, topic: str, event: wire.Event) -> None:
        self._send_parts(topic, event.seq, wire.to_message(event))
        self._metrics.event_published(topic)
