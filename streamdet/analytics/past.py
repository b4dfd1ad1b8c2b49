"""Tries rules on the past: runs the analytics again on published events."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from streamdet.analytics.stream_analytics import LOST_AFTER_SECONDS, Seen, StreamAnalytics
from streamdet.config import RuleConfig, StreamConfig
from streamdet.config.rules import rules_of
from streamdet.types import Alert, DetectionEvent, EndReason, ObjectEvent, Reason, StateEvent

# Without a configuration of the stream, presentation times are trusted: a file may have been read faster than it
# plays.
_UNKNOWN_URL, _UNKNOWN_PACE = "unknown", "fastest"


@dataclass(frozen=True, slots=True)
class PastAlert:
    """An alert that would have been raised.

    Attributes:
        stream: name of the stream.
        epoch: of the events.
        frame_seq: number of the frame that raised it.
        alert: as it would have been raised; its objects have their published ids if these are known.
        track_ids: of its objects.
        cleared_at: Unix time in seconds of the frame that cleared it; None if the events end before.
        cleared_seconds: how long the condition lasted in total; None likewise.
    """

    stream: str
    epoch: str
    frame_seq: int
    alert: Alert
    track_ids: tuple[int, ...]
    cleared_at: float | None = None
    cleared_seconds: float | None = None


class Past:
    """The streams of the past, and the alerts that rules would have raised.

    Args:
        rules: to be tried.
        streams: their configuration; None to use zones and crossings as they were published. Events of other streams
            have no effect.

    Attributes:
        events: number of detection events so far.
        suppressed: by rule, the number of alerts that its cooldown suppressed.
    """

    def __init__(self, rules: Sequence[RuleConfig], streams: Iterable[StreamConfig] | None) -> None:
        self.events = 0
        self.suppressed: Counter[str] = Counter()
        self._rules = rules
        self._configs = None if streams is None else {stream.name: stream for stream in streams}
        self._streams: dict[str, _PastStream] = {}
        self._raised: dict[str, PastAlert] = {}
        self._ids = itertools.count(1)
        self._object_ids: dict[tuple[str, str, int], str] = {}

    @property
    def streams(self) -> list[str]:
        """Names of the streams that had events."""
        return list(self._streams)

    def see(self, event: DetectionEvent | ObjectEvent | StateEvent) -> None:
        """Takes the next event, in the order in which they were published."""
        if isinstance(event, ObjectEvent):
            self._object_ids[event.stream, event.epoch, event.object.track_id] = event.object.object_id
            return
        stream = self._streams.get(event.stream) or self._new_stream(event)
        if stream is None:
            return
        if event.epoch != stream.epoch:
            self._keep(stream, stream.analytics.end(EndReason.RESTART))
            stream.epoch, stream.began_at, stream.newest = event.epoch, None, None
        if isinstance(event, DetectionEvent):
            self.events += 1
            self._keep(stream, stream.silent_before(event))
            self._keep(stream, stream.see(event))
        elif event.reason in (Reason.PAUSED, Reason.REMOVED):
            self._keep(stream, stream.analytics.end(EndReason.REMOVED))

    def alerts(self) -> list[PastAlert]:
        """The alerts that would have been raised so far, in the order of time."""
        return [self._with_object_ids(alert) for alert in self._raised.values()]

    def _new_stream(self, event: DetectionEvent | StateEvent) -> _PastStream | None:
        if self._configs is None:
            config = StreamConfig(name=event.stream, url=_UNKNOWN_URL, pace=_UNKNOWN_PACE)
        elif event.stream in self._configs:
            config = self._configs[event.stream]
        else:
            return None
        analytics = StreamAnalytics(config, itertools.count(1), self._new_id, self._new_id)
        analytics.set_rules(rules_of(event.stream, self._rules))
        stream = _PastStream(event.stream, event.epoch, analytics, config.track_max_lost_seconds)
        self._streams[event.stream] = stream
        return stream

    def _new_id(self) -> str:
        return str(next(self._ids))

    def _keep(self, stream: _PastStream, seen: Seen) -> None:
        self.suppressed.update(seen.suppressed)
        for begun in seen.objects:
            if begun.phase == "begin":
                stream.track_ids[begun.object.object_id] = begun.object.track_id
        for change in seen.alerts:
            alert, at = change.alert, change.frame.captured_at
            if change.phase == "raised":
                tracks = tuple(stream.track_ids[object_id] for object_id in alert.object_ids)
                kept = PastAlert(stream.name, stream.epoch, change.frame.seq, alert, tracks)
            else:
                kept = replace(self._raised[alert.alert_id], cleared_at=at, cleared_seconds=alert.seconds)
            self._raised[alert.alert_id] = kept
        for ended in seen.objects:
            if ended.phase == "end":
                del stream.track_ids[ended.object.object_id]

    def _with_object_ids(self, past: PastAlert) -> PastAlert:
        keys = [(past.stream, past.epoch, track_id) for track_id in past.track_ids]
        published = tuple(self._object_ids[key] for key in keys if key in self._object_ids)
        return replace(past, alert=replace(past.alert, object_ids=published))


class _PastStream:
    """One stream, and the track ids of its objects.

    Attributes:
        epoch: of the newest event.
        began_at: when the first frame of the epoch was captured, in Unix time; None before it.
        newest: the previous frame of the same epoch.
        track_ids: by object id.
    """

    def __init__(self, name: str, epoch: str, analytics: StreamAnalytics, max_lost_seconds: float) -> None:
        self.name = name
        self.epoch = epoch
        self.analytics = analytics
        self.began_at: float | None = None
        self.newest: DetectionEvent | None = None
        self._max_lost_seconds = max_lost_seconds
        self.track_ids: dict[str, int] = {}

    def silent_before(self, event: DetectionEvent) -> Seen:
        """The objects that ended in the pause before this frame."""
        before, self.newest = self.newest, event
        if before is None or not any(one.is_confirmed for one in self.analytics.objects):
            return Seen()
        # A camera's timestamps do not show when its frames arrived.
        is_ours = before.frame.clock == event.frame.clock == "daemon"
        came_at = [e.frame.captured_at if is_ours else e.published_at for e in (before, event)]
        seconds = came_at[1] - came_at[0]
        if seconds <= self._max_lost_seconds + LOST_AFTER_SECONDS:
            return Seen()
        return self.analytics.silent(seconds, is_up=True)

    def see(self, event: DetectionEvent) -> Seen:
        """Takes the detections of the next frame."""
        frame = event.frame
        if self.began_at is None:
            self.began_at = frame.captured_at
        seconds, is_still = frame.captured_at - self.began_at, event.gated > 0
        return self.analytics.see_published(event.detections, event.crossings, frame, seconds, is_still=is_still)


def relaxed(rule: RuleConfig) -> Mapping[str, RuleConfig]:
    """Variants of a rule with one condition removed or relaxed, to find the condition that prevents an alert.

    Returns:
        The variants, by what was changed. Their names contain a line break, which names of rules cannot.
    """
    changes: dict[str, dict[str, object]] = {}
    if rule.between or rule.days:
        keys = [key for key in ("between", "days") if getattr(rule, key)]
        changes[f"without {' and '.join(keys)}"] = dict.fromkeys(keys, ())
    if rule.for_seconds is not None:
        changes["without for_seconds"] = {"for_seconds": None}
    if rule.at_least is not None and rule.at_least > 1:
        changes[f"with at_least = {rule.at_least - 1}"] = {"at_least": rule.at_least - 1}
    if rule.none_for_seconds is not None:
        half = rule.none_for_seconds / 2
        changes[f"with none_for_seconds = {half:g}"] = {"none_for_seconds": half}
    if rule.line is not None:
        changes["without line"] = {"line": None, "direction": None}
    if rule.direction is not None:
        changes["without direction"] = {"direction": None}
    if rule.labels:
        changes["without labels"] = {"labels": ()}
    if rule.zone is not None:
        changes["without zone"] = {"zone": None}
    return {
        words: rule.model_copy(update={**update, "name": f"{rule.name}\n{words}", "cooldown_seconds": 0.0})
        for words, update in changes.items()
    }
