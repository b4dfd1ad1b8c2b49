"""The analytics of one stream, frame by frame: tracks, zones and lines, objects, rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from streamdet.analytics.objects import LiveObject, ObjectChange, Objects
from streamdet.analytics.rules import AlertChange, Rules
from streamdet.analytics.tracker import PublishedTracks, StreamClock, Track, Tracker
from streamdet.analytics.zones import Zones
from streamdet.config import RuleConfig, StreamConfig
from streamdet.types import Crossing, Detection, EndReason, FrameInfo, Geometry

LOST_AFTER_SECONDS = 0.01
"""A stream is silent, so that its objects are lost, when no frame has come for this longer than the limit."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The results of the analytics for one frame, or at the end of a stream.

    Attributes:
        detections: with track ids and zones, without those that a mask removes.
        crossings: of lines in this frame.
        objects: objects that have begun, changed or ended.
        alerts: alerts that are raised or cleared.
        suppressed: names of rules whose alert was suppressed by their cooldown.
    """

    detections: tuple[Detection, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    objects: tuple[ObjectChange, ...] = ()
    alerts: tuple[AlertChange, ...] = ()
    suppressed: tuple[str, ...] = ()


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

    def see(self, detections: Sequence[Detection], frame: FrameInfo, captured_monotonic_seconds: float) -> Seen:
        """Analyses the next frame.

        Args:
            detections: within the frame.
            frame: the frame.
            captured_monotonic_seconds: when it was captured.
        """
        now = self._now = self._clock.at(frame.pts_seconds, captured_monotonic_seconds)
        tracks: dict[int, Track] = {}
        if self._tracker is not None:
            detections = self._tracker.update(detections, now, (frame.width, frame.height))
            tracks = self._tracker.tracks()
        return self._analyse(detections, (), frame, now, tracks)

    def see_published(
        self,
        detections: Sequence[Detection],
        crossings: tuple[Crossing, ...],
        frame: FrameInfo,
        captured_monotonic_seconds: float,
    ) -> Seen:
        """Analyses the next frame of events that were published: its detections have track ids.

        Args:
            detections: of the event; their zones are used if this stream has no shapes of its own.
            crossings: of the event; likewise.
            frame: the frame.
            captured_monotonic_seconds: when it was captured.
        """
        now = self._now = self._clock.at(frame.pts_seconds, captured_monotonic_seconds)
        self._published.update(detections, now)
        if self._zones.geometry is not None:
            detections = [replace(found, zones=()) for found in detections]
        return self._analyse(detections, crossings, frame, now, self._published.tracks())

    def see_untracked(
        self, detections: Sequence[Detection], frame: FrameInfo, captured_monotonic_seconds: float
    ) -> Sequence[Detection]:
        """The detections with their zones, without those that a mask removes, judged by this frame alone."""
        now = self._clock.at(frame.pts_seconds, captured_monotonic_seconds)
        return self._zones.see(detections, (frame.width, frame.height), now, {})[0]

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

    def _analyse(
        self,
        detections: Sequence[Detection],
        crossings: tuple[Crossing, ...],
        frame: FrameInfo,
        now: float,
        tracks: Mapping[int, Track],
    ) -> Seen:
        if self._zones.geometry is not None:
            detections, crossings = self._zones.see(detections, (frame.width, frame.height), now, tracks)
        objects = self._objects.see(detections, crossings, frame, now, tracks, self._zones)
        alerts = self._rules.see(objects, self._objects.live, detections, self._zones, frame, now)
        return Seen(tuple(detections), crossings, objects, alerts, self._rules.suppressed())


def _tracking(config: StreamConfig) -> tuple[bool, float, float]:
    return config.track, config.track_max_lost_seconds, config.track_start_score


def _is_paced(config: StreamConfig) -> bool:
    return config.pace == "realtime"
