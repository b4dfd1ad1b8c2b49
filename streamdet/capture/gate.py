"""The motion gate: holds back the frames of a stream that show nothing new.

A frame passes

- while the background is learned (`learning`): after the start, a new connection, another size of the picture;
- when something moves in it, for a while afterwards, and until the detector has seen it (`motion`);
- while an object moves, or was not found where it stood (`objects`);
- when none was detected for `gate_max_seconds` (`periodic`);
- once a second while someone looks at the stream's picture (`watched`);
- at random, one of 200 that would be held back (`audit`): what is found there is what the gate misses.

All others show what the newest detection shows: its objects stay where they are. They are dropped as `gated`, unless
`max_fps` drops them. The background is compared at the rate of the stream, not at that of `max_fps`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from streamdet.analytics.tracker import StreamClock
from streamdet.capture.motion import Background, cells_of, grid_of, places_of
from streamdet.config import StreamConfig
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Frame, Pass, Scene

AUDITED_SHARE = 0.005
"""Of the frames that would be held back, how many are detected all the same."""

# After the last motion, frames pass for this long, and for some periods of `max_fps`.
_HOLD_SECONDS = 1.0
_HOLD_PERIODS = 1.5
# A frame that has passed because one was due may be dropped later on: then another one is.
_PATIENCE_SECONDS = 1.0
_WATCHED_SECONDS = 1.0
_MAX_PASSED = 256


class MotionGate:
    """The gate of one stream. Its capture judges; what comes from elsewhere takes effect with the next frame.

    Args:
        config: of the stream.
        audited_share: part of the frames that would be held back which are detected all the same.
        chance: a number from 0 to 1, a new one with each call.

    Attributes:
        config: of the stream.
        newest_held: the newest frame that was held back; None where a newer one has passed.
    """

    def __init__(
        self,
        config: StreamConfig,
        audited_share: float = AUDITED_SHARE,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self.newest_held: Frame | None = None
        self._audited_share = audited_share
        self._chance = chance
        self._clock = StreamClock(is_paced=config.pace == "realtime")
        self._background: Background | None = None
        self._size = (0, 0)
        self._applied: StreamConfig | None = None
        self._scene: Scene | None = None
        self._seen_scene: Scene | None = None
        # Stream times.
        self._moved_at = self._asked_at = self._passed_at = self._detected_at = float("-inf")
        # The detector must see a frame from this number on.
        self._owed_seq = 0
        self._passed: deque[tuple[int, float]] = deque(maxlen=_MAX_PASSED)
        self._follows = True

    def set_scene(self, scene: Scene) -> None:
        """Takes what is known after a detected frame; from the thread that analyses."""
        self._scene = scene

    def judge(self, frame: Frame, *, is_watched: bool = False) -> Pass | None:
        """Why a frame passes; None where it shows nothing new.

        Args:
            frame: the stream's next one.
            is_watched: whether someone looks at the stream's picture.
        """
        now = self._clock.at(frame.pts_seconds, frame.captured_monotonic_seconds)
        background = self._background_for(frame)
        self._take_scene(background)
        motion = background.see(cells_of(frame.picture), now, follows=self._follows)
        why = self._why(frame.seq, now, is_known=motion.is_known, is_moving=motion.is_moving, is_watched=is_watched)
        # What one frame shows in passing is not all that is seen: the scene stays what it was.
        self._follows = why in {Pass.LEARNING, Pass.MOTION, Pass.OBJECTS}
        if why is None:
            self.newest_held = frame
        else:
            self.newest_held = None
            self._passed_at = now
            self._passed.append((frame.seq, now))
        return why

    def _why(self, seq: int, now: float, *, is_known: bool, is_moving: bool, is_watched: bool) -> Pass | None:
        if not is_known:
            self._owed_seq = seq
            return Pass.LEARNING
        if is_moving:
            self._moved_at, self._owed_seq = now, seq
        scene = self._scene
        if scene is None or now - self._moved_at <= self._hold_seconds or scene.seq < self._owed_seq:
            return Pass.MOTION
        if not scene.is_settled:
            return Pass.OBJECTS
        return self._why_although_nothing_moves(now, is_watched=is_watched)

    def _why_although_nothing_moves(self, now: float, *, is_watched: bool) -> Pass | None:
        is_due = now - self._detected_at >= self.config.gate_max_seconds
        if is_due and now - self._asked_at >= min(_PATIENCE_SECONDS, self.config.gate_max_seconds):
            self._asked_at = now
            return Pass.PERIODIC
        if is_watched and now - self._passed_at >= _WATCHED_SECONDS:
            return Pass.WATCHED
        return Pass.AUDIT if self._chance() < self._audited_share else None

    @property
    def _hold_seconds(self) -> float:
        max_fps = self.config.max_fps
        return _HOLD_SECONDS if max_fps is None else max(_HOLD_SECONDS, _HOLD_PERIODS / max_fps)

    def _background_for(self, frame: Frame) -> Background:
        """The background that a frame can be compared with; a new one where that is another scene."""
        size = frame.picture.width, frame.picture.height
        background = self._background
        if background is None or size != self._size:
            background = self._background = Background(*grid_of(*size))
            self._size, self._applied = size, None
        elif frame.begins:
            background.restart()
        config = self.config
        if self._applied is not config:
            self._applied = config
            zones = tuple(zone.polygon for zone in config.zones if zone.name in config.gate_zones)
            # A mask that is for some objects only hides no place.
            masks = tuple(
                mask.polygon for mask in config.masks if not mask.labels and (mask.min_size, mask.max_size) == (0, 1)
            )
            background.watch(places_of(*background.shape, zones, masks))
        return background

    def _take_scene(self, background: Background) -> None:
        scene = self._scene
        if scene is None or scene is self._seen_scene:
            return
        self._seen_scene = scene
        while self._passed and self._passed[0][0] <= scene.seq:
            self._detected_at = self._passed.popleft()[1]
        background.set_objects(scene.boxes, scene.width, scene.height)


class Gates:
    """The motion gates of the streams that have one. Any thread may call; one at a time judges the frames of a stream.

    Args:
        metrics: counts what passes, and reports what goes wrong.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._gates: dict[str, MotionGate] = {}

    def set_stream(self, config: StreamConfig) -> None:
        """Makes, changes or removes the gate of a stream, from its next frame on."""
        gate = self._gates.get(config.name)
        if config.gate == "off":
            self.remove_stream(config.name)
        elif gate is None:
            self._gates[config.name] = MotionGate(config)
        else:
            gate.config = config

    def remove_stream(self, stream: str) -> None:
        """Forgets a stream."""
        self._gates.pop(stream, None)

    def judged(self, frame: Frame, is_watched: Callable[[str], bool]) -> Frame:
        """The frame, marked if it is to be held back or is an audit. One that cannot be judged passes.

        Args:
            frame: as captured.
            is_watched: whether someone looks at the picture of a stream.
        """
        gate = self._gates.get(frame.stream)
        if gate is None:
            return frame
        try:
            why = gate.judge(frame, is_watched=is_watched(frame.stream))
        except Exception as error:  # noqa: BLE001 - whatever it is: no frame may be lost by it
            self._metrics.unexpected.report("gate", error, "the frame is detected", frame.stream)
            return frame
        if why is None:
            return replace(frame, is_gated=True)
        self._metrics.gate_passed(frame.stream, why)
        return replace(frame, is_audit=True) if why is Pass.AUDIT else frame

    def set_scene(self, stream: str, scene: Scene) -> None:
        """Takes what is known of a stream after one of its frames was analysed."""
        gate = self._gates.get(stream)
        if gate is not None:
            gate.set_scene(scene)

    def newest_held(self, stream: str) -> Frame | None:
        """The newest frame of a stream if it was held back; else None."""
        gate = self._gates.get(stream)
        return None if gate is None else gate.newest_held
