"""Makes the events of a daemon: runs the analytics of each stream, numbers each event, and encodes it.

Each object that begins ends exactly once, and each alert that is raised is cleared exactly once: `_Open` holds the
newest event of each, from which the last one is made if the analytics fail.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

from streamdet import wire
from streamdet.analytics.objects import ObjectChange
from streamdet.analytics.rules import AlertChange
from streamdet.analytics.stream_analytics import LOST_AFTER_SECONDS, Seen, StreamAnalytics
from streamdet.config import RuleConfig, StreamConfig
from streamdet.config.rules import rules_of
from streamdet.delivery.clips import Clips
from streamdet.delivery.event_store import LeftBehind
from streamdet.delivery.packet_ring import NO_PACKETS
from streamdet.delivery.pictures import Pictures
from streamdet.delivery.preview import Preview
from streamdet.delivery.privacy import Hidden, Privacy
from streamdet.errors import WireError
from streamdet.monitoring.log import LogThrottle
from streamdet.monitoring.metrics import Metrics
from streamdet.security.redact import redact
from streamdet.types import (
    Alert,
    AlertEvent,
    Detection,
    DetectionEvent,
    EndReason,
    Frame,
    FrameInfo,
    ObjectEvent,
    Owner,
    Picture,
    PictureInfo,
    PreviewEvent,
    Reason,
    Scene,
    SceneWatch,
    State,
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
# While frames of a silent stream are still on their way, its silence is looked at again after this time.
_ON_ITS_WAY_SECONDS = 0.5

# How often time passes for a stream whose frames the motion gate holds back.
_STILL_SECONDS = 0.5

_Event = TypeVar("_Event", DetectionEvent, StateEvent, PreviewEvent, ObjectEvent, AlertEvent)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrameResult:
    """The result of one frame, to be published.

    Attributes:
        stream: name of the stream.
        frame: the frame.
        captured_monotonic_seconds: when it was captured.
        detections: what was found in it.
        picture: its pixels, where they may be needed; else None.
        is_preview_due: whether a preview is to be made of it.
        packet_pts: timestamp of the packet that it was decoded from; None where that is not known.
        is_asked_for: whether clients of the control API wait for a picture of it.
        gated_before: frames of the stream that the motion gate has held back before it.
        is_audit: whether it was detected only to learn what the motion gate misses.
    """

    stream: str
    frame: FrameInfo
    captured_monotonic_seconds: float
    detections: tuple[Detection, ...]
    picture: Picture | None
    is_preview_due: bool = False
    packet_pts: int | None = None
    is_asked_for: bool = False
    gated_before: int = 0
    is_audit: bool = False


@dataclass(frozen=True, slots=True)
class Message(Generic[_Event]):
    """An event that is ready to be sent.

    Attributes:
        event: the event.
        topic: its topic.
        parts: the parts of the ZeroMQ message.
        is_kept: whether replay keeps it: previews are too large, and a repeated state is kept already.
    """

    event: _Event
    topic: str
    parts: list[bytes]
    is_kept: bool


Occurrence = Message[ObjectEvent] | Message[AlertEvent]


class _Clip(NamedTuple):
    """What an alert says of its clip."""

    clip_id: str | None = None
    seconds: tuple[float, float] | None = None
    missing: str | None = None

    @classmethod
    def of(cls, event: AlertEvent) -> _Clip:
        """What an earlier event of the alert has said."""
        return cls(event.clip_id, event.clip_seconds, event.clip_missing)


@dataclass(frozen=True, slots=True)
class FrameEvents:
    """What is published of one frame.

    Attributes:
        message: its event; None where it could not be encoded.
        occurrences: the events of objects, then of alerts, that it has changed.
        hidden: what must not be seen in its picture; None if that is not known, so no picture may leave.
    """

    message: Message[DetectionEvent] | None
    occurrences: list[Occurrence]
    hidden: Hidden | None


@dataclass(slots=True)
class _Open:
    """The objects and alerts of a stream that have begun and not ended.

    Attributes:
        objects: the newest event of each object, by its id.
        alerts: the event that raised each alert, by its id.
        seen_monotonic_seconds: when the newest frame was captured.
        silent_monotonic_seconds: when objects are lost unless a frame comes before; infinite without objects.
    """

    objects: dict[str, ObjectEvent] = field(default_factory=dict)
    alerts: dict[str, AlertEvent] = field(default_factory=dict)
    seen_monotonic_seconds: float = 0.0
    silent_monotonic_seconds: float = math.inf


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
        metrics: counts objects, visits to zones and crossings; its ledger knows which frames are in flight.
        pictures: makes pictures of objects and alerts; None for none.
        clips: keeps clips around alerts; None for none.
        gates: the motion gates of streams; None where no stream has one.

    Attributes:
        seqs: the newest number of each topic.
    """

    def __init__(
        self,
        epoch: str,
        state_interval_seconds: float,
        metrics: Metrics,
        pictures: Pictures | None = None,
        clips: Clips | None = None,
        gates: SceneWatch | None = None,
    ) -> None:
        self._gates = gates
        self._still_monotonic_seconds = math.inf
        # Of streams with a motion gate: how many frames it had held back, and the newest frame that was analysed.
        self._gated: dict[str, int] = {}
        self._seen_seqs: dict[str, int] = {}
        self._epoch = epoch
        self._state_interval_seconds = state_interval_seconds
        self._metrics = metrics
        self._pictures = pictures
        self._clips = clips
        self._privacy = Privacy()
        # The frame whose events are being made, and what must not be seen in it; None where that is not known.
        self._current: tuple[FrameResult, Hidden | None] | None = None
        self._throttle = LogThrottle()
        self.seqs: Counter[str] = Counter()
        self._states: dict[str, _LastState] = {}
        self._analytics: dict[str, StreamAnalytics] = {}
        self._configs: dict[str, StreamConfig] = {}
        self._owners: dict[str, Owner] = {}
        self._open: dict[str, _Open] = {}
        self._rules: tuple[RuleConfig, ...] = ()
        # When each rule last raised an alert on each stream, in Unix time, including earlier epochs.
        self._raised_at: defaultdict[str, dict[str, float]] = defaultdict(dict)
        # The numbers of removed streams are kept for a while, and so are their track ids.
        self._removed: dict[str, None] = {}
        self._object_numbers, self._alert_numbers = itertools.count(1), itertools.count(1)
        self._track_ids: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))

    @property
    def streams(self) -> list[str]:
        """The streams whose state is repeated."""
        return list(self._states)

    def is_set(self, stream: str) -> bool:
        """Whether a stream is configured."""
        return stream in self._configs

    def set_stream(self, config: StreamConfig, owner: Owner | None = None) -> list[Occurrence]:
        """Tracks the objects of a stream, and applies its zones, lines and masks, from the next frame on.

        Args:
            config: of the stream.
            owner: stands in its events from now on; None where it belongs to no cluster.

        Returns:
            The ends of objects that do not continue: the stream is paused, or its tracking or url has changed.
        """
        stream = config.name
        before, self._configs[stream] = self._configs.get(stream), config
        self._own(stream, owner)
        self._privacy.set_stream(config)
        hides_others = before is not None and (before.blur, before.masks) != (config.blur, config.masks)
        if self._pictures is not None and hides_others:
            self._pictures.forget_stream(stream)  # earlier views may show what must be hidden now
        analytics = self._analytics.get(stream)
        geometry = analytics.geometry if analytics else None
        ended: list[Occurrence] = []
        if before is not None and (config.paused or (config.url, config.detect_url) != (before.url, before.detect_url)):
            ended = self.end(stream, EndReason.REMOVED if config.paused else EndReason.RELOAD)
        try:
            if analytics is None:
                analytics = self._new_analytics(config)
            else:
                ended += self._occurrences(stream, analytics.set_config(config))
        except Exception as error:  # noqa: BLE001 - whatever it is: other streams are to be published
            self._metrics.unexpected.report("analytics", error, "the stream's new configuration is not applied", stream)
            return [*ended, *self._end_rest(stream, EndReason.INTERNAL_ERROR)]
        last = self._states.get(stream)
        if last is not None and analytics.geometry != geometry:
            last.due_monotonic_seconds = 0.0
        self._open_gate(stream)
        has_gates = any(config.gate != "off" for config in self._configs.values())
        self._still_monotonic_seconds = time.monotonic() + _STILL_SECONDS if has_gates else math.inf
        return ended

    def _own(self, stream: str, owner: Owner | None) -> None:
        before = self._owners.get(stream)
        if owner is None:
            self._owners.pop(stream, None)
        else:
            self._owners[stream] = owner
        last = self._states.get(stream)
        if last is not None and owner != before:
            # Its next repetition is a new event, so that readers see at once who owns the stream.
            last.event, last.due_monotonic_seconds = None, 0.0

    def set_rules(self, rules: Iterable[RuleConfig]) -> Iterator[Occurrence]:
        """Replaces the rules from the next frame on.

        Returns:
            The alerts that are cleared: their rule is removed, or its condition is no longer true.
        """
        self._rules = tuple(rules)
        names = {rule.name for rule in self._rules}
        for raised_at in self._raised_at.values():
            for gone in raised_at.keys() - names:
                del raised_at[gone]
        for stream, analytics in list(self._analytics.items()):
            try:
                yield from self._occurrences(stream, analytics.set_rules(rules_of(stream, self._rules)))
            except Exception as error:  # noqa: BLE001 - whatever it is: other streams are to be published
                self._metrics.unexpected.report("analytics", error, "the stream's new rules are not applied", stream)
                yield from self.end(stream, EndReason.INTERNAL_ERROR)

    def end(self, stream: str, reason: EndReason) -> list[Occurrence]:
        """Ends all objects of a stream, and clears its alerts."""
        analytics = self._analytics.get(stream)
        ended: list[Occurrence] = []
        try:
            if analytics is not None:
                ended = self._occurrences(stream, analytics.end(reason))
        except Exception as error:  # noqa: BLE001 - whatever it is: each object is to end
            self._metrics.unexpected.report("analytics", error, "objects end as they were last published", stream)
        self._open_gate(stream)
        return [*ended, *self._end_rest(stream, reason)]

    def end_all(self, reason: EndReason) -> Iterator[Occurrence]:
        """Ends the objects of all streams, and clears all alerts."""
        for stream in list(self._open):
            yield from self.end(stream, reason)

    def end_silent(self) -> Iterator[Occurrence]:
        """Ends the objects that are lost because no frame has come for too long."""
        now = time.monotonic()
        for stream, opened in self._open.items():
            if opened.silent_monotonic_seconds > now:
                continue
            held = self._gates.newest_held(stream) if self._gates is not None else None
            if held is not None:
                # Frames do come, and show nothing new.
                opened.seen_monotonic_seconds = held.captured_monotonic_seconds
                opened.silent_monotonic_seconds = self._silent_at(stream, held.captured_monotonic_seconds)
                if opened.silent_monotonic_seconds > now:
                    continue
            if self._metrics.ledger.is_on_its_way(stream):
                opened.silent_monotonic_seconds = now + _ON_ITS_WAY_SECONDS
                continue
            yield from self._ended_in_silence(stream, opened, now)

    def stand_still(self) -> Iterator[Occurrence]:
        """What time alone brings about while the motion gate of a stream holds back its frames, twice a second."""
        now = time.monotonic()
        if now < self._still_monotonic_seconds or self._gates is None:
            return
        self._still_monotonic_seconds = now + _STILL_SECONDS
        for stream, config in list(self._configs.items()):
            analytics = self._analytics.get(stream)
            if config.gate == "off" or config.paused or analytics is None or not analytics.is_waiting:
                continue
            held = self._gates.newest_held(stream)
            # What was captured before it must have been analysed before it.
            if held is None or held.seq <= self._seen_seqs.get(stream, 0) or self._metrics.ledger.is_on_its_way(stream):
                continue
            yield from self._stood_still(stream, analytics, held)

    def take_over(self, left_behind: LeftBehind) -> Iterator[Occurrence]:
        """Ends the objects and clears the alerts that were open when an earlier epoch was cut off.

        Cooldowns of rules continue from there.
        """
        for event in self._decoded(left_behind.raised):
            if isinstance(event, AlertEvent):
                self._restore(event.stream, event.alert)
        for event in self._decoded(left_behind.unfinished):
            message: Occurrence | None = None
            if isinstance(event, ObjectEvent):
                message = self._last_of_object(event, EndReason.RESTART)
            elif isinstance(event, AlertEvent):
                message = self._last_of_alert(event)
            if message is not None:
                yield message

    def remove_stream(self, stream: str) -> str | None:
        """Stops repeating the stream's state; keeps its numbers unless too many other streams are removed after it.

        Its objects and alerts must have been ended by `end`, and its last state is that of `removed`.

        Returns:
            The stream whose numbers are forgotten now, or None.
        """
        for of_streams in (
            self._states, self._analytics, self._configs, self._owners, self._open, self._removed, self._gated,
            self._seen_seqs,
        ):  # fmt: skip
            of_streams.pop(stream, None)
        self._privacy.remove_stream(stream)
        if self._pictures is not None:
            self._pictures.forget_stream(stream)
        self._removed[stream] = None
        if len(self._removed) <= _MAX_REMOVED_STREAMS:
            return None
        oldest = next(iter(self._removed))
        del self._removed[oldest]
        self._track_ids.pop(oldest, None)
        self._raised_at.pop(oldest, None)
        for kind in wire.KINDS:
            self.seqs.pop(wire.topic(kind, oldest), None)
        return oldest

    def detections(self, result: FrameResult, trace_id: str | None = None) -> FrameEvents:
        """The event of one frame, and those of the objects and alerts that it changes."""
        stream, frame = result.stream, result.frame
        detected = wire.presentable(result.detections, frame.width, frame.height)
        if len(detected) < len(result.detections):
            left_out = len(result.detections) - len(detected)
            text = "left out %d detections without a usable box"
            self._throttle.log(_log, logging.WARNING, text, left_out, stream=stream)
        gated = self._gated_since(result)
        seen, ended = self._analysed(result, detected, is_still=gated > 0)
        message = self._write(
            "detections",
            stream,
            lambda seq: DetectionEvent(
                stream,
                self._epoch,
                seq,
                time.time(),
                frame,
                seen.detections,
                seen.crossings,
                trace_id,
                gated=gated,
            ),
        )
        hidden = self._hidden(result, detected, seen.detections)
        self._offer_views(result, hidden)
        self._current = result, hidden
        occurrences = [*ended, *self._occurrences(stream, seen)]
        self._current = None
        opened = self._open.get(stream)
        if opened is not None and opened.objects:
            captured = result.captured_monotonic_seconds
            opened.seen_monotonic_seconds, opened.silent_monotonic_seconds = captured, self._silent_at(stream, captured)
        self._settle_gate(result, seen)
        return FrameEvents(message, occurrences, hidden)

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

    def removed(self, stream: str) -> Message[StateEvent] | None:
        """The last state of a stream that is removed."""
        return self.state(StreamStatus(stream, State.DOWN, Reason.REMOVED, "the stream was removed", time.time()))

    def due(self, latest: float) -> float:
        """When a state is next to be repeated or a stream is silent, in monotonic seconds, but not after `latest`."""
        return min(
            latest,
            min((last.due_monotonic_seconds for last in self._states.values()), default=math.inf),
            min((opened.silent_monotonic_seconds for opened in self._open.values()), default=math.inf),
            self._still_monotonic_seconds,
        )

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

    def _new_analytics(self, config: StreamConfig) -> StreamAnalytics:
        stream = config.name
        analytics = StreamAnalytics(config, self._track_ids[stream], self._new_object_id, self._new_alert_id)
        analytics.set_rules(rules_of(stream, self._rules))
        analytics.restore_alerts(self._raised_at[stream])
        self._analytics[stream] = analytics
        return analytics

    def _silent_at(self, stream: str, seen_monotonic_seconds: float) -> float:
        """When the objects of a stream are lost if no other frame comes."""
        return seen_monotonic_seconds + self._configs[stream].track_max_lost_seconds + LOST_AFTER_SECONDS

    def _gated_since(self, result: FrameResult) -> int:
        """How many frames the motion gate has held back since the frame before."""
        before = self._gated.get(result.stream, 0)
        if result.gated_before != before:
            self._gated[result.stream] = result.gated_before
        # A stream that was removed and added again counts from 0.
        return result.gated_before - before if result.gated_before >= before else result.gated_before

    def _settle_gate(self, result: FrameResult, seen: Seen) -> None:
        """Reports to the motion gate of a stream what is known after a frame, and counts what an audit finds."""
        stream = result.stream
        config, analytics = self._configs.get(stream), self._analytics.get(stream)
        if self._gates is None or config is None or config.gate == "off" or analytics is None:
            return
        self._seen_seqs[stream] = result.frame.seq
        self._gates.set_scene(stream, analytics.scene(result.frame))
        if result.is_audit:
            self._metrics.gate_audited(stream)
        if seen.missed:
            self._metrics.gate_missed(stream, seen.missed)

    def _open_gate(self, stream: str) -> None:
        """Has the next frames detected: what was known of the stream is no longer so."""
        if self._gates is not None:
            self._gates.set_scene(stream, Scene(0, is_settled=False))

    def _stood_still(self, stream: str, analytics: StreamAnalytics, held: Frame) -> list[Occurrence]:
        """The events of a frame that was held back: durations that are reached, objects that are still there."""
        picture, captured = held.picture, held.captured_monotonic_seconds
        frame = FrameInfo(held.seq, held.pts_seconds, held.captured_at, held.clock, picture.width, picture.height)
        self._seen_seqs[stream] = held.seq
        try:
            seen = analytics.stand_still(frame, captured)
        except Exception as error:  # noqa: BLE001 - whatever it is: other streams are to be published
            self._metrics.unexpected.report("analytics", error, "the stream's tracks begin again", stream)
            return self.end(stream, EndReason.INTERNAL_ERROR)
        if analytics.geometry is not None:
            self._metrics.shapes_seen(stream, analytics.zone_counts(seen.detections), ())
        result = FrameResult(stream, frame, captured, (), picture, packet_pts=held.packet_pts)
        # Where something must be blurred it is not known what: nothing was detected in this very frame.
        hidden = None if self._configs[stream].blur else self._hidden(result, (), ())
        self._current = result, hidden
        occurrences = self._occurrences(stream, seen)
        self._current = None
        opened = self._open.get(stream)
        if opened is not None and opened.objects:
            opened.seen_monotonic_seconds, opened.silent_monotonic_seconds = captured, self._silent_at(stream, captured)
        return occurrences

    def _restore(self, stream: str, alert: Alert) -> None:
        """Restores when a rule last raised an alert in an earlier epoch, unless it has raised one since."""
        raised_at = self._raised_at[stream]
        if alert.rule in raised_at:
            return
        raised_at[alert.rule] = alert.raised_at
        analytics = self._analytics.get(stream)
        if analytics is not None:
            analytics.restore_alerts({alert.rule: alert.raised_at})

    def _new_object_id(self) -> str:
        return f"{self._epoch}-{next(self._object_numbers)}"

    def _new_alert_id(self) -> str:
        return f"{self._epoch}-a{next(self._alert_numbers)}"

    def _hidden(
        self, result: FrameResult, detected: Sequence[Detection], published: Sequence[Detection]
    ) -> Hidden | None:
        """What must not be seen in the picture of a frame; None if that is not known."""
        try:
            size = result.frame.width, result.frame.height
            return self._privacy.see(result.stream, detected, published, result.captured_monotonic_seconds, size)
        except Exception as error:  # noqa: BLE001 - whatever it is: the frame is to be published, without a picture
            self._metrics.unexpected.report("pictures", error, "no picture of the frame leaves", result.stream)
            return None

    def _offer_views(self, result: FrameResult, hidden: Hidden | None) -> None:
        """Takes the views of objects in a frame."""
        analytics = self._analytics.get(result.stream)
        if self._pictures is None or hidden is None or analytics is None:
            return
        for one in analytics.objects if hidden.new_tracks else ():
            if one.track_id in hidden.new_tracks:
                self._pictures.forget(one.object_id)  # its view is from before it had a label of `blur`
        if result.picture is None:
            return
        try:
            self._pictures.offer(result.stream, result.frame, result.picture, hidden, analytics.objects)
        except Exception as error:  # noqa: BLE001 - whatever it is: the frame is to be published
            self._metrics.unexpected.report("pictures", error, "no view of a frame is kept", result.stream)

    def _picture_of_object(self, stream: str, object_id: str) -> PictureInfo | None:
        """Describes the picture of an object that ends."""
        if self._pictures is None:
            return None
        try:
            return self._pictures.of_ended(stream, object_id)
        except Exception as error:  # noqa: BLE001 - whatever it is: the end is to be published
            self._metrics.unexpected.report("pictures", error, "an object has no picture", stream)
            return None

    def _picture_of_alert(self, stream: str, change: AlertChange) -> PictureInfo | None:
        """Describes the picture of an alert that is raised."""
        if self._pictures is None or not change.rule.picture:
            return None
        if self._current is None or self._current[0].frame != change.frame:
            self._metrics.pictures.dropped("no_frame")
            return None
        result, hidden = self._current
        alert, analytics = change.alert, self._analytics[stream]
        ids = set(alert.object_ids)
        boxes = [one.box for one in analytics.objects if one.object_id in ids and one.frame.seq == change.frame.seq]
        try:
            return self._pictures.of_frame(stream, change.frame, result.picture, hidden, alert.box, boxes)
        except Exception as error:  # noqa: BLE001 - whatever it is: the alert is to be published
            self._metrics.unexpected.report("pictures", error, "an alert has no picture", stream)
            return None

    def _analysed(
        self, result: FrameResult, detections: tuple[Detection, ...], *, is_still: bool
    ) -> tuple[Seen, list[Occurrence]]:
        """Runs the analytics on a frame.

        If they fail, the frame is published without tracks, and those of the stream begin again with the next frame.
        Frames that were in flight when their stream was paused are published without tracks, too.

        Returns:
            The results, and the ends of all objects of the stream if its tracks begin again.
        """
        stream, frame = result.stream, result.frame
        analytics = self._analytics.get(stream)
        if analytics is None:
            return Seen(detections), []
        ended: list[Occurrence] = []
        if not self._configs[stream].paused:
            try:
                seen = analytics.see(
                    detections, frame, result.captured_monotonic_seconds, is_still=is_still, is_audit=result.is_audit
                )
                if analytics.geometry is not None:
                    self._metrics.shapes_seen(stream, analytics.zone_counts(seen.detections), seen.crossings)
            except Exception as error:  # noqa: BLE001 - whatever it is: the frame is to be published
                self._metrics.unexpected.report("analytics", error, "the stream's tracks begin again", stream)
                ended = self.end(stream, EndReason.INTERNAL_ERROR)
            else:
                return seen, ended
        try:
            untracked = analytics.see_untracked(detections, frame, result.captured_monotonic_seconds)
            return Seen(tuple(untracked)), ended
        except Exception as error:  # noqa: BLE001 - whatever it is: the frame is to be published
            self._metrics.unexpected.report("analytics", error, "no zone or mask is applied", stream)
            # A mask hides what must not be seen: if it cannot be applied, no detection is published.
            return Seen(() if analytics.has_masks else detections), ended

    def _occurrences(self, stream: str, seen: Seen) -> list[Occurrence]:
        """The events of the objects and alerts that have changed."""
        for rule in seen.suppressed:
            self._metrics.alert_suppressed(rule, stream)
        if not seen.objects and not seen.alerts:
            return []
        opened = self._open.setdefault(stream, _Open())
        messages = [
            *(self._of_object(stream, opened, change) for change in seen.objects),
            *(self._of_alert(stream, opened, change) for change in seen.alerts),
        ]
        self._settle(stream, opened)
        return [message for message in messages if message is not None]

    def _of_object(self, stream: str, opened: _Open, change: ObjectChange) -> Message[ObjectEvent] | None:
        """The event of an object; None if its begin could not be published."""
        object_id = change.object.object_id
        before = opened.objects.get(object_id)
        if before is None and change.phase != "begin":
            if self._pictures is not None:
                self._pictures.forget(object_id)
            return None
        self._metrics.zones_changed(stream, change.changes)
        picture = self._picture_of_object(stream, object_id) if change.phase == "end" else None
        message = self._write(
            "objects",
            stream,
            lambda seq: ObjectEvent(
                stream, self._epoch, seq, time.time(),
                change.phase, change.frame, change.object, change.changes, change.crossings, change.reason, picture,
            ),
        )  # fmt: skip
        if change.phase == "end":
            del opened.objects[object_id]
            self._metrics.zones_visited(stream, change.object.zones)
            if message is None and before is not None:
                return self._last_of_object(before, change.reason or EndReason.LOST)
        elif message is not None:
            opened.objects[object_id] = message.event
            if change.phase == "begin":
                self._metrics.object_began(stream, change.object.label)
        return message

    def _of_alert(self, stream: str, opened: _Open, change: AlertChange) -> Message[AlertEvent] | None:
        """The event of an alert; None for the clearing of one whose raising could not be published."""
        alert_id = change.alert.alert_id
        before = opened.alerts.pop(alert_id, None)
        if before is None and change.phase != "raised":
            return None
        picture = self._picture_of_alert(stream, change) if before is None else before.picture
        clip = self._clip_of(stream, change) if before is None else _Clip.of(before)
        message = self._write(
            "alerts",
            stream,
            lambda seq: AlertEvent(
                stream,
                self._epoch,
                seq,
                time.time(),
                change.phase,
                change.frame,
                change.alert,
                picture,
                clip.clip_id,
                clip_seconds=clip.seconds,
                clip_missing=clip.missing,
            ),
        )
        if change.phase == "raised" and message is not None:
            opened.alerts[alert_id] = message.event
            self._raised_at[stream][change.alert.rule] = change.alert.raised_at
            self._metrics.alert_raised(change.alert.rule, stream)
        if message is None and before is not None:
            return self._last_of_alert(before)
        return message

    def _clip_of(self, stream: str, change: AlertChange) -> _Clip:
        """The clip around an alert that is raised, or why there is none."""
        span = change.rule.clip_seconds
        if self._clips is None or span is None:
            return _Clip()
        if self._current is None:
            return _Clip(None, span, NO_PACKETS)
        result, _ = self._current
        try:
            clip_id = self._clips.want(stream, result.packet_pts, result.captured_monotonic_seconds, span)
        except LookupError as missing:
            return _Clip(None, span, str(missing.args[0]))
        except Exception as error:  # noqa: BLE001 - whatever it is: the alert is to be published
            self._metrics.unexpected.report("clips", error, "an alert has no clip", stream)
            return _Clip(None, span, "error")
        return _Clip(clip_id, span)

    def _ended_in_silence(self, stream: str, opened: _Open, now: float) -> list[Occurrence]:
        last = self._states.get(stream)
        is_up = last is not None and last.status.state is State.UP
        silence_seconds = now - opened.seen_monotonic_seconds
        opened.silent_monotonic_seconds = math.inf
        self._open_gate(stream)
        try:
            return self._occurrences(stream, self._analytics[stream].silent(silence_seconds, is_up=is_up))
        except Exception as error:  # noqa: BLE001 - whatever it is: each object is to end
            self._metrics.unexpected.report("analytics", error, "the stream's tracks begin again", stream)
            return self.end(stream, EndReason.INTERNAL_ERROR)

    def _end_rest(self, stream: str, reason: EndReason) -> list[Occurrence]:
        """Ends what the analytics have not ended, as it was last published."""
        opened = self._open.get(stream)
        if opened is None:
            return []
        messages = [
            *(self._last_of_object(event, reason) for event in opened.objects.values()),
            *(self._last_of_alert(event) for event in opened.alerts.values()),
        ]
        opened.objects.clear()
        opened.alerts.clear()
        self._settle(stream, opened)
        return [message for message in messages if message is not None]

    def _last_of_object(self, event: ObjectEvent, reason: EndReason) -> Message[ObjectEvent] | None:
        picture = event.picture
        if reason is not EndReason.RESTART:  # after a restart, no view of it is in memory
            picture = self._picture_of_object(event.stream, event.object.object_id)
        end = replace(event, epoch=self._epoch, phase="end", changes=(), crossings=(), reason=reason, picture=picture)
        return self._write("objects", event.stream, lambda seq: replace(end, seq=seq, published_at=time.time()))

    def _last_of_alert(self, event: AlertEvent) -> Message[AlertEvent] | None:
        cleared = replace(event, epoch=self._epoch, phase="cleared")
        return self._write("alerts", event.stream, lambda seq: replace(cleared, seq=seq, published_at=time.time()))

    def _decoded(self, payloads: Iterable[bytes]) -> Iterator[wire.Event]:
        for payload in payloads:
            try:
                yield wire.decode(payload)
            except WireError as error:
                self._metrics.unexpected.report("events", error, "an event of an earlier epoch is not read")

    def _settle(self, stream: str, opened: _Open) -> None:
        """Updates the number of objects, and stops waiting for silence where there are no objects."""
        self._metrics.objects_present(stream, len(opened.objects))
        if not opened.objects:
            opened.silent_monotonic_seconds = math.inf

    def _write(
        self, kind: wire.Kind, stream: str, make: Callable[[int], _Event], *, repeats_seq: int | None = None
    ) -> Message[_Event] | None:
        """Numbers and encodes an event, or encodes again one that has a number."""
        topic = wire.topic(kind, stream)
        is_new = repeats_seq is None
        seq = self.seqs[topic] + 1 if repeats_seq is None else repeats_seq
        try:
            event = make(seq)
            owner = self._owners.get(stream)
            if owner is not None:
                event = replace(event, owner=owner)
            parts = wire.to_message(event)
        except Exception as error:  # noqa: BLE001 - whatever it is: other events are to be published
            self._metrics.unexpected.report("events", error, f"an event of {topic} is not published", stream)
            return None
        if is_new:
            self.seqs[topic] = seq
            self._removed.pop(stream, None)
        return Message(event, topic, parts, is_new and kind != "preview")
