"""What is known of one stream from frame to frame: which object is which, where it stands, what it went over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from streamdet.analytics.tracker import StreamClock, Tracker
from streamdet.analytics.zones import Zones
from streamdet.config import StreamConfig
from streamdet.types import Crossing, Detection, FrameInfo, Geometry


class StreamAnalytics:
    """Tracks, then zones, then masks of one stream.

    Args:
        config: what is wanted.
        ids: where new track ids come from; never the same twice.
    """

    def __init__(self, config: StreamConfig, ids: Iterator[int]) -> None:
        self._ids = ids
        self._clock = StreamClock()
        self._config = config
        self._tracker = _tracker(config, ids)
        self._zones = Zones(config)

    @property
    def geometry(self) -> Geometry | None:
        """What may be drawn; None where there is nothing."""
        return self._zones.geometry

    def change(self, config: StreamConfig) -> None:
        """Goes on with other rules; tracks go on where theirs are the same."""
        if _tracking(config) != _tracking(self._config):
            self._tracker = _tracker(config, self._ids)
        if (config.zones, config.lines, config.masks) != (self._config.zones, self._config.lines, self._config.masks):
            self._zones = Zones(config)
        self._config = config

    def begin_again(self) -> None:
        """Forgets all tracks, and where each object stood."""
        self._clock = StreamClock()
        self._tracker = _tracker(self._config, self._ids)
        self._zones = Zones(self._config)

    @property
    def hides(self) -> bool:
        """Whether there are masks."""
        return bool(self._config.masks)

    def see_untracked(
        self, detections: Sequence[Detection], frame: FrameInfo, captured_monotonic_seconds: float
    ) -> Sequence[Detection]:
        """The detections with their zones and without what a mask hides, each judged by this frame alone."""
        now = self._clock.at(frame.pts_seconds, captured_monotonic_seconds)
        return self._zones.see(detections, (frame.width, frame.height), now, ())[0]

    def see(
        self, detections: Sequence[Detection], frame: FrameInfo, captured_monotonic_seconds: float
    ) -> tuple[Sequence[Detection], tuple[Crossing, ...]]:
        """Takes the next frame in.

        Args:
            detections: what was found; within the frame.
            frame: it.
            captured_monotonic_seconds: when it was captured.

        Returns:
            The detections with track ids and zones, without those that a mask hides; and who crossed which line.
        """
        size = frame.width, frame.height
        now = self._clock.at(frame.pts_seconds, captured_monotonic_seconds)
        if self._tracker is not None:
            detections = self._tracker.update(detections, now, size)
        if not self._zones:
            return detections, ()
        alive = frozenset[int]() if self._tracker is None else self._tracker.alive()
        return self._zones.see(detections, size, now, alive)

    def zone_counts(self, detections: Sequence[Detection]) -> Counter[str]:
        """How many objects stand in each zone; every zone is there."""
        counts = Counter({zone.name: 0 for zone in self._config.zones})
        counts.update(name for found in detections for name in found.zones)
        return counts


def _tracking(config: StreamConfig) -> tuple[bool, float, float]:
    return config.track, config.track_max_lost_seconds, config.track_start_score


def _tracker(config: StreamConfig, ids: Iterator[int]) -> Tracker | None:
    return Tracker(ids, config.track_max_lost_seconds, config.track_start_score) if config.track else None
