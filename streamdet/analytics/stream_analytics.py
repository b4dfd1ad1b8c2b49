"""The analytics of one stream, frame by frame: tracks, zones and lines, objects, rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from streamdet.analytics.objects import LiveObject, ObjectChange, Objects
from streamdet.analytics.rules import AlertChange, Rules
from streamdet.analytics.tracker import PublishedTracks, StreamClock, Track, Tracker, overlap_of
from streamdet.analytics.zones import Zones
from streamdet.config import RuleConfig, StreamConfig
from streamdet.types import Crossing, Detection, EndReason, FrameInfo, Geometry, Scene

LOST_AFTER_SECONDS = 0.01
"""A stream is silent, so that its objects are lost, when no frame has come for this longer than the limit."""
# What stands still is held until this long before the next detected frame.
_MOMENT_SECONDS = 1e-3
# Detections without a track that overlap this much are the same object.
_SAME_PLACE = 0.3


@dataclass(frozen=True, slots=True)
class Seen:
    """The results of the analytics for one frame, or at the end of a stream.

    Attributes:
        detections: with track ids and zones, without those that a mask removes.
        crossings: of lines in this frame.
        objects: objects that have begun, changed or ended.
        alerts: alerts that are raised or cleared.
        suppressed: names of rules whose alert was suppressed by their cooldown.
        missed: objects that the motion gate has missed: found in a frame that was detected to learn that.
    """

    detections: tuple[Detection, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    objects: tuple[ObjectChange, ...] = ()
    alerts: tuple[AlertChange, ...] = ()
    suppressed: tuple[str, ...] = ()
    missed: int = 0


class StreamAnalytics:
    """Tracks the objects of one stream, applies its zones, lines and masks, and checks its rules.

    Args:
        config: of the stream.
        track_ids: gives new track ids; never the same twice.
        new_object_id: makes the id of an object, unique over all streams and restarts.
        new_alert_id: the same for alerts.
    """

    def __init__(
        self,
        config: StreamConfig,
        track_ids: Iterator[int],
        new_object_id: Callable[[], str],
        new_alert_id: Callable[[], str],
    ) -> None:
        self._config = config
        self._track_ids = track_ids
        self._new_object_id = new_object_id
        self._rule_configs: tuple[RuleConfig, ...] = ()
        self._rules = Rules(new_alert_id)
        self.reset()

    def set_config(self, config: StreamConfig) -> Seen:
        """Replaces the configuration of the stream; objects continue unless their tracking changes.

        Returns:
            The objects that end, with the reason `reload`, and the alerts that are cleared.
        """
        before, self._config = self._config, config
        ended = Seen()
        if _tracking(config) != _tracking(before):
            ended = self.end(EndReason.RELOAD)
        self._clock.is_paced = _is_paced(config)
        if (config.zones, config.lines, config.masks) != (before.zones, before.lines, before.masks):
            durations = self._zones.durations
            self._zones.set_config(config)
            self._objects.set_durations(durations, self._zones.durations)
        return replace(ended, alerts=ended.alerts + self._rules.set_config(self._rule_configs, config))

    def set_rules(self, rules: Iterable[RuleConfig]) -> Seen:
        """Replaces the rules. A rule of the same name keeps its alerts, and does not raise them again.

        Args:
            rules: that apply to the stream.

        Returns:
            The alerts that are cleared: their rule is removed, or its condition is no longer true.
        """
        self._rule_configs = tuple(rules)
        return Seen(alerts=self._rules.set_config(self._rule_configs, self._config))

    def restore_alerts(self, raised_at: Mapping[str, float]) -> None:
        """Restores when each rule, by name, last raised an alert before a restart, in Unix time."""
        self._rules.restore(raised_at)

    def reset(self) -> None:
        """Forgets all objects without ending them, and where each was."""
        self._clock = StreamClock(is_paced=_is_paced(self._config))
        self._now = 0.0
        self._tracker = Tracker(self._track_ids, *_tracking(self._config)[1:]) if self._config.track else None
        self._published = PublishedTracks(self._config.track_max_lost_seconds)
        # Of each object, what was last detected of it and when; and all that was detected in the newest frame.
        self._sights: dict[int, tuple[Detection, float]] = {}
        self._newest: Sequence[Detection] = ()
        self._detected = 0.0
        # Tracks that began in a frame of an audit.
        self._audited: set[int] = set()
        self._zones = Zones(self._config)
        self._objects = Objects(self._new_object_id, self._config.track_max_lost_seconds)
        self._rules.forget()

    @property
    def geometry(self) -> Geometry | None:
        """The zones, lines and masks, to be drawn; None if the stream has none."""
        return self._zones.geometry

    @property
    def has_masks(self) -> bool:
        """Whether detections may be removed by a mask."""
        return bool(self._config.masks)

    @property
    def objects(self) -> Collection[LiveObject]:
        """The objects that have not ended, including those that are not confirmed yet.

        If the newest frame is the best view of an object, its `best` has the number of that frame.
        """
        return self._objects.live.values()

    def see(
        self,
        detections: Sequence[Detection],
        frame: FrameInfo,
        captured_monotonic_seconds: float,
        *,
        is_still: bool = False,
        is_audit: bool = False,
    ) -> Seen:
        """Analyses the next frame.

        Args:
            detections: within the frame.
            frame: the frame.
            captured_monotonic_seconds: when it was captured.
            is_still: whether the motion gate has held back frames since the one before: nothing has moved until now.
            is_audit: whether the gate would have held back this frame as well.
        """
        now = self._begin(frame, captured_monotonic_seconds, is_still=is_still)
        tracks: dict[int, Track] = {}
        known: Iterable[int] = ()
        if self._tracker is not None:
            known = self._tracker.tracks().keys()
            detections = self._tracker.update(detections, now, (frame.width, frame.height))
            tracks = self._tracker.tracks()
        seen = self._analyse(detections, (), frame, now, tracks, is_still=is_still)
        if self._config.gate == "off":
            return seen
        seen = replace(seen, missed=self._missed(seen, known, is_audit=is_audit))
        self._note(seen.detections, now)
        return seen

    def stand_still(self, frame: FrameInfo, captured_monotonic_seconds: float) -> Seen:
        """Takes a frame that the motion gate holds back: objects that stand still are where they were.

        To be called from time to time, so that durations are reported when they are reached.

        Args:
            frame: the frame.
            captured_monotonic_seconds: when it was captured.
        """
        now = self._now = self._clock.at(frame.pts_seconds, captured_monotonic_seconds)
        standing = self._hold(now)
        tracks = {} if self._tracker is None else self._tracker.tracks()
        detections = [replace(self._sights[track_id][0], zones=()) for track_id in standing]
        return self._analyse(detections, (), frame, now, tracks, is_still=True)

    def see_published(
        self,
        detections: Sequence[Detection],
        crossings: tuple[Crossing, ...],
        frame: FrameInfo,
        captured_monotonic_seconds: float,
        *,
        is_still: bool = False,
    ) -> Seen:
        """Analyses the next frame of events that were published: its detections have track ids.

        Args:
            detections: of the event; their zones are used if this stream has no shapes of its own.
            crossings: of the event; likewise.
            frame: the frame.
            captured_monotonic_seconds: when it was captured.
            is_still: whether the motion gate has held back frames since the one before.
        """
        now = self._begin(frame, captured_monotonic_seconds, is_still=is_still)
        self._published.update(detections, now)
        if self._zones.geometry is not None:
            detections = [replace(found, zones=()) for found in detections]
        seen = self._analyse(detections, crossings, frame, now, self._published.tracks(), is_still=is_still)
        self._note(seen.detections, now)
        return seen

    def see_untracked(
        self, detections: Sequence[Detection], frame: FrameInfo, captured_monotonic_seconds: float
    ) -> Sequence[Detection]:
        """The detections with their zones, without those that a mask removes, judged by this frame alone."""
        now = self._clock.at(frame.pts_seconds, captured_monotonic_seconds)
        return self._zones.see(detections, (frame.width, frame.height), now, {})[0]

    def scene(self, frame: FrameInfo) -> Scene:
        """What the motion gate must know after a frame was analysed."""
        standing = self._standing()
        boxes = tuple(one.box for one in self._objects.live.values() if one.track_id not in standing)
        return Scene(frame.seq, not boxes, boxes, frame.width, frame.height)

    @property
    def is_waiting(self) -> bool:
        """Whether time alone may change something: there are objects or rules."""
        return bool(self._objects.live or self._rule_configs)

    def silent(self, seconds: float, *, is_up: bool) -> Seen:
        """Ends the objects that are lost by now; to be called from time to time while no frame comes.

        Args:
            seconds: since the newest frame.
            is_up: whether the stream is up; the reason is `lost` then, else `stream_down`.
        """
        seen_before = self._now + seconds - self._config.track_max_lost_seconds
        # A late frame, as after a network failure, would continue the track of an object that has ended.
        self._published.forget(seen_before)
        if self._tracker is not None:
            self._tracker.forget(seen_before)
        reason = EndReason.LOST if is_up else EndReason.STREAM_DOWN
        objects = self._objects.end(reason, seen_before)
        return Seen(objects=objects, alerts=self._rules.end(objects, everything=False) if objects else ())

    def end(self, reason: EndReason) -> Seen:
        """Ends all objects and clears all alerts; the next frame begins with none."""
        try:
            objects = self._objects.end(reason)
            return Seen(objects=objects, alerts=self._rules.end(objects, everything=True))
        finally:
            self.reset()

    def zone_counts(self, detections: Sequence[Detection]) -> Counter[str]:
        """The number of detections in each zone, zero included."""
        counts = Counter({zone.name: 0 for zone in self._config.zones})
        counts.update(name for found in detections for name in found.zones)
        return counts

    def _begin(self, frame: FrameInfo, captured_monotonic_seconds: float, *, is_still: bool) -> float:
        """The time of the next frame; until then, what stands still is held where no frame was detected."""
        before = self._now
        now = self._now = self._clock.at(frame.pts_seconds, captured_monotonic_seconds)
        if is_still:
            self._hold(max(before, now - _MOMENT_SECONDS))
        return now

    def _hold(self, now: float) -> set[int]:
        """Moves on to a time without a detected frame; returns the tracks of the objects that stand still."""
        standing = self._standing()
        if self._tracker is not None:
            self._tracker.hold(standing, now)
        self._published.hold(standing, now)
        self._objects.hold(standing, now)
        return standing

    def _standing(self) -> set[int]:
        """The tracks of objects that stand still and were found there lately, as long as frames were detected."""
        lately = self._detected - self._config.track_max_lost_seconds / 2
        return {
            track_id
            for track_id, one in self._objects.live.items()
            if one.is_stationary and track_id in self._sights and self._sights[track_id][1] >= lately
        }

    def _note(self, detections: Sequence[Detection], now: float) -> None:
        """Takes the detections of a frame, to be held while the frames after it are not detected."""
        self._newest, self._detected = detections, now
        live = self._objects.live
        self._sights = {track_id: sight for track_id, sight in self._sights.items() if track_id in live}
        self._sights.update({found.track_id: (found, now) for found in detections if found.track_id is not None})

    def _missed(self, seen: Seen, known: Iterable[int], *, is_audit: bool) -> int:
        """How many objects turn out to be such that the motion gate has missed.

        A track counts once it is certain that it is an object. Without tracks, a detection counts where the newest
        frame before has none.
        """
        gate_zones = set(self._config.gate_zones)
        found_now = [found for found in seen.detections if not gate_zones or gate_zones.intersection(found.zones)]
        if self._tracker is None:
            new = [
                found
                for found in found_now
                if found.score >= self._config.track_start_score
                and all(
                    found.label != other.label or overlap_of(found.box, other.box) < _SAME_PLACE
                    for other in self._newest
                )
            ]
            return len(new) if is_audit else 0
        if is_audit:
            self._audited.update(
                {found.track_id for found in found_now if found.track_id is not None}.difference(known)
            )
        began = {change.object.track_id for change in seen.objects if change.phase == "begin"} & self._audited
        self._audited = (self._audited - began) & self._objects.live.keys()
        return len(began)

    def _analyse(
        self,
        detections: Sequence[Detection],
        crossings: tuple[Crossing, ...],
        frame: FrameInfo,
        now: float,
        tracks: Mapping[int, Track],
        *,
        is_still: bool,
    ) -> Seen:
        if self._zones.geometry is not None:
            detections, crossings = self._zones.see(detections, (frame.width, frame.height), now, tracks)
        objects = self._objects.see(detections, crossings, frame, now, tracks, self._zones)
        alerts = self._rules.see(objects, self._objects.live, detections, self._zones, frame, now, is_still=is_still)
        return Seen(tuple(detections), crossings, objects, alerts, self._rules.suppressed())


def _tracking(config: StreamConfig) -> tuple[bool, float, float]:
    return config.track, config.track_max_lost_seconds, config.track_start_score


def _is_paced(config: StreamConfig) -> bool:
    return config.pace == "realtime"
