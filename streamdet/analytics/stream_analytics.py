"""The analytics of one stream, frame by frame: its objects, the zones that they are in, the lines that they cross."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from streamdet.analytics.tracker import StreamClock, Tracker
from streamdet.analytics.zones import Zones
from streamdet.config import StreamConfig
from streamdet.types import Crossing, Detection, FrameInfo, Geometry


class StreamAnalytics:
    """Tracks the objects of one stream, then applies its zones, lines and masks.

    Args:
        config: of the stream.
        ids: gives new track ids; never the same twice.
    """

    def __init__(self, config: StreamConfig, ids: Iterator[int]) -> None:
        self._config = config
        self._ids = ids
        self.reset()

    def set_config(self, config: StreamConfig) -> None:
        """Goes on with other rules; tracks go on where their rules are the same."""
        before, self._config = self._config, config
        if _tracking(config) != _tracking(before):
            self._tracker = self._new_tracker()
        if (config.zones, config.lines, config.masks) != (before.zones, before.lines, before.masks):
            self._zones = Zones(config)

    def reset(self) -> None:
        """Forgets all tracks, and where each object stood."""
        self._clock = StreamClock()
        self._tracker = self._new_tracker()
        self._zones = Zones(self._config)

    @property
    def geometry(self) -> Geometry | None:
        """The zones, lines and masks, to be drawn; None where the stream has none."""
        return self._zones.geometry

    @property
    def has_masks(self) -> bool:
        """Whether something may be hidden."""
        return bool(self._config.masks)

    def see(
        self, detections: Sequence[Detection], frame: FrameInfo, captured_monotonic_seconds: float
    ) -> tuple[Sequence[Detection], tuple[Crossing, ...]]:
        """Takes the detections of the next frame.

        Args:
            detections: within the frame.
            frame: the frame.
            captured_monotonic_seconds: when it was captured.

        Returns:
            The detections with track ids and zones, without those that a mask hides; and the crossings of lines.
        """
        size = frame.width, frame.height
        now = self._clock.at(frame.pts_seconds, captured_monotonic_seconds)
        if self._tracker is not None:
            detections = self._tracker.update(detections, now, size)
        if self._zones.geometry is None:
            return detections, ()
        alive = frozenset[int]() if self._tracker is None else self._tracker.alive()
        return self._zones.see(detections, size, now, alive)

    def see_untracked(
        self, detections: Sequence[Detection], frame: FrameInfo, captured_monotonic_seconds: float
    ) -> Sequence[Detection]:
        """The detections with their zones and without those that a mask hides, each judged by this frame alone."""
        now = self._clock.at(frame.pts_seconds, captured_monotonic_seconds)
        return self._zones.see(detections, (frame.width, frame.height), now, ())[0]

    def zone_counts(self, detections: Sequence[Detection]) -> Counter[str]:
        """How many of the detections stand in each zone, zero included."""
        counts = Counter({zone.name: 0 for zone in self._config.zones})
        counts.update(name for found in detections for name in found.zones)
        return counts

    def _new_tracker(self) -> Tracker | None:
        return Tracker(self._ids, *_tracking(self._config)[1:]) if self._config.track else None


def _tracking(config: StreamConfig) -> tuple[bool, float, float]:
    return config.track, config.track_max_lost_seconds, config.track_start_score
