"""Objects: tracks with a beginning and an end, and what they do in between.

An object is one track, without the detections that a mask removes. All times are seconds of the stream (`StreamClock`),
so dropped frames and pauses between frames do not change them. An object that is not seen remains live until its track
is given up; its end is then the time at which it was last seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from streamdet.analytics.tracker import Track
from streamdet.analytics.zones import Durations, Zones
from streamdet.types import (
    Box,
    Crossing,
    Detection,
    EndReason,
    FrameInfo,
    Point,
    Shot,
    TrackedObject,
    ZoneChange,
    ZoneVisit,
)
from streamdet.wire import MAX_PATH_POINTS

# How often an object is published while it moves, and while it is stationary.
_UPDATE_SECONDS = 1.0
_STATIONARY_UPDATE_SECONDS = 10.0
# An object is stationary when its anchor has stayed this long within this fraction of its size (the root of its area),
# and moves again when it has been further away for a while: two boxes may merge into one for a moment.
_STILL_SECONDS = 3.0
_STILL_OF_SIZE = 0.3
_MOVED_SECONDS = 0.7
# A view must be better by this factor to be the new best one. Size counts as the fourth root of the area: a box of
# twice the width and height is as good as one with 1.4 times the score.
_BETTER = 1.05
_SIZE_POWER = 0.25
# A box this close to the edge of the picture, in pixels, may contain only a part of the object.
_CUT_PIXELS = 1.5
# A point is added to the path when the anchor is this far from the previous point: fractions of the picture, and of
# the object's own height.
_PATH_STEP = 0.01
_PATH_STEP_OF_HEIGHT = 0.1
# When the path is full, it keeps this many points.
_THINNED_POINTS = 40

Phase = Literal["begin", "update", "end"]
PathPoint = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """An object begins, changes or ends.

    Attributes:
        phase: "begin" once, when the object is confirmed; then "update"s; "end" once.
        frame: the frame that causes the change; at the end, the last one that shows the object.
        object: its state.
        changes: what it has done in zones since its previous change.
        crossings: the lines that it has crossed since its previous change.
        reason: why it ends; None before.
    """

    phase: Phase
    frame: FrameInfo
    object: TrackedObject
    changes: tuple[ZoneChange, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    reason: EndReason | None = None


@dataclass(slots=True)
class Visit:
    """The visits of one object to one zone.

    Attributes:
        before_seconds: duration of the earlier visits together.
        since: when this visit began, in seconds of the stream.
        is_inside: whether the object is inside, or was when it was last seen.
        reached: how many of the zone's durations this visit has reached.
    """

    before_seconds: float = 0.0
    since: float = 0.0
    is_inside: bool = False
    reached: int = 0

    def seconds(self, now: float) -> float:
        """Duration of this visit until `now`, a time of the stream; 0 outside."""
        return max(now - self.since, 0.0) if self.is_inside else 0.0


class LiveObject:
    """An object that has begun and not ended; only `Objects` changes it.

    Attributes:
        object_id: unique, also over restarts.
        track_id: of its detections.
        label: of its track: the one with the largest sum of scores.
        score: of its track: the best so far.
        box: where it was last seen.
        frame: the one that last showed it.
        began: when it was first seen, in seconds of the stream.
        began_at: the same in Unix time.
        seen: when it was last seen, in seconds of the stream.
        is_confirmed: whether it was seen often enough, so that its "begin" has been published.
        is_stationary: whether it does not move.
        best: its best view.
        visits: for each zone that it has been in, in the order of the first visits.
    """

    __slots__ = (
        "_away_since",
        "_best_rank",
        "_changes",
        "_crossings",
        "_next_duration",
        "_path",
        "_published",
        "_published_stationary",
        "_rest",
        "_rest_since",
        "_zones",
        "began",
        "began_at",
        "best",
        "box",
        "frame",
        "is_confirmed",
        "is_stationary",
        "label",
        "object_id",
        "score",
        "seen",
        "track_id",
        "visits",
    )

    def __init__(self, object_id: str, track: Track, found: Detection, frame: FrameInfo, now: float) -> None:
        self.object_id = object_id
        self.track_id = track.track_id
        self.began = now
        self.began_at = frame.captured_at
        self.is_confirmed = self.is_stationary = False
        self.visits: dict[str, Visit] = {}
        self._best_rank = -1.0
        self._rest, self._rest_since = _anchor(found.box, frame), now
        self._away_since: float | None = None
        self._zones: tuple[str, ...] = ()
        self._next_duration = math.inf
        self._path: list[PathPoint] = []
        self._published = -math.inf
        self._published_stationary = False
        self._changes: list[ZoneChange] = []
        self._crossings: list[Crossing] = []
        self.see(track, found, frame, now)

    def see(self, track: Track, found: Detection, frame: FrameInfo, now: float) -> None:
        """Updates it from a frame that shows it, except for zones and lines."""
        self.box, self.frame, self.seen = found.box, frame, now
        self.label, self.score = track.label, track.score
        self._judge(found, frame)
        x, y = _anchor(found.box, frame)
        self._rest_or_move(x, y, now)
        self._walk(x, y, now)

    def stand_in(self, names: tuple[str, ...], zones: Zones) -> None:
        """Updates its visits: the zones that it is in, and the durations that its visits have reached."""
        if names != self._zones:
            self._enter_and_leave(names, zones)
        if self.seen >= self._next_duration:
            self._reach(zones)

    def set_durations(self, before: Durations, durations: Durations) -> None:
        """Replaces the durations to be reported; one that a visit has already exceeded is not reported."""
        for zone, visit in self.visits.items():
            if durations.get(zone) != before.get(zone):
                visit.reached = sum(seconds <= visit.seconds(self.seen) for seconds, _ in durations.get(zone, ()))
        self._set_next_duration(durations)

    def cross(self, crossing: Crossing) -> None:
        """Records that it has crossed a line."""
        self._crossings.append(crossing)

    def confirm(self, track: Track) -> bool:
        """Confirms it if its track is; true only the first time."""
        if self.is_confirmed or not track.is_confirmed():
            return False
        self.is_confirmed = True
        return True

    def is_due(self) -> bool:
        """Whether an update must be published, after a frame that shows it."""
        if self._changes or self._crossings:
            return True
        stays = self.is_stationary and self._published_stationary
        return self.seen - self._published >= (_STATIONARY_UPDATE_SECONDS if stays else _UPDATE_SECONDS)

    def publish(self, phase: Phase, reason: EndReason | None = None) -> ObjectChange:
        """The change to be published, with everything since the previous one."""
        changes, crossings = tuple(self._changes), tuple(self._crossings)
        self._changes.clear()
        self._crossings.clear()
        self._published, self._published_stationary = self.seen, self.is_stationary
        return ObjectChange(phase, self.frame, self.snapshot(), changes, crossings, reason)

    def snapshot(self) -> TrackedObject:
        """Its state at the time at which it was last seen."""
        visits = tuple(
            ZoneVisit(zone, visit.before_seconds + visit.seconds(self.seen), visit.is_inside)
            for zone, visit in self.visits.items()
        )
        return TrackedObject(
            self.object_id,
            self.track_id,
            self.label,
            self.score,
            self.box,
            self.began_at,
            self.seen - self.began,
            self.is_stationary,
            tuple(self._path),
            visits,
            self.best,
        )

    def _judge(self, found: Detection, frame: FrameInfo) -> None:
        """Keeps the frame if it is the best view so far: an uncut box is better than a cut one, then score and size."""
        x1, y1, x2, y2 = found.box
        right, bottom = frame.width - _CUT_PIXELS, frame.height - _CUT_PIXELS
        is_whole = x1 > _CUT_PIXELS and y1 > _CUT_PIXELS and x2 < right and y2 < bottom
        # Every whole box ranks above 1, every cut one below.
        part = (x2 - x1) * (y2 - y1) / (frame.width * frame.height)
        rank = is_whole + found.score * part**_SIZE_POWER
        if rank > self._best_rank and (rank - is_whole) > _BETTER * (self._best_rank - is_whole):
            self._best_rank = rank
            self.best = Shot(frame.seq, frame.captured_at, found.score, found.box)

    def _rest_or_move(self, x: float, y: float, now: float) -> None:
        (x1, y1, x2, y2), frame = self.box, self.frame
        dx, dy = (x - self._rest[0]) * frame.width, (y - self._rest[1]) * frame.height
        if dx * dx + dy * dy <= _STILL_OF_SIZE**2 * (x2 - x1) * (y2 - y1):
            self._away_since = None
            if now - self._rest_since >= _STILL_SECONDS:
                self.is_stationary = True
            return
        if self._away_since is None:
            self._away_since = now
        if not self.is_stationary or now - self._away_since >= _MOVED_SECONDS:
            self._rest, self._rest_since, self._away_since = (x, y), now, None
            self.is_stationary = False

    def _walk(self, x: float, y: float, now: float) -> None:
        path = self._path
        if len(path) >= 2:
            step = max(_PATH_STEP, _PATH_STEP_OF_HEIGHT * (self.box[3] - self.box[1]) / self.frame.height)
            (before_x, before_y, _), (last_x, last_y, _) = path[-2:]
            is_near = abs(x - before_x) < step and abs(y - before_y) < step
            if is_near and abs(last_x - before_x) < step and abs(last_y - before_y) < step:
                # It has not moved since the last point that is kept.
                path[-1] = (x, y, now - self.began)
                return
        path.append((x, y, now - self.began))
        if len(path) > MAX_PATH_POINTS:
            self._path = thinned(path, _THINNED_POINTS)

    def _enter_and_leave(self, names: tuple[str, ...], zones: Zones) -> None:
        for name in self._zones:
            if name not in names:
                visit, left = self.visits[name], zones.since(name, self.track_id)
                seconds = visit.seconds(self.seen if left is None else left)
                visit.before_seconds += seconds
                visit.is_inside = False
                self._changes.append(ZoneChange("leave", name, seconds))
        for name in names:
            if name not in self._zones:
                visit, entered = self.visits.setdefault(name, Visit()), zones.since(name, self.track_id)
                visit.since = self.seen if entered is None else max(entered, self.began)
                visit.is_inside, visit.reached = True, 0
                self._changes.append(ZoneChange("enter", name, 0.0))
        self._zones = names
        self._set_next_duration(zones.durations)

    def _reach(self, zones: Zones) -> None:
        for name in self._zones:
            visit, durations = self.visits[name], zones.durations.get(name, ())
            left = zones.turned(name, self.track_id)
            seconds = visit.seconds(self.seen if left is None else left)
            while visit.reached < len(durations) and seconds >= durations[visit.reached][0]:
                reached, change = durations[visit.reached]
                visit.reached += 1
                self._changes.append(ZoneChange(change, name, reached))
        self._set_next_duration(zones.durations)

    def _set_next_duration(self, durations: Durations) -> None:
        self._next_duration = math.inf
        for zone in self._zones:
            visit, of_zone = self.visits[zone], durations.get(zone, ())
            if visit.reached < len(of_zone):
                self._next_duration = min(self._next_duration, visit.since + of_zone[visit.reached][0])


class Objects:
    """The objects of one stream.

    Args:
        new_id: makes the id of an object.
        max_lost_seconds: how long an object that is not seen remains live.

    Attributes:
        live: objects that have not ended, by track id, including those that are not confirmed yet.
    """

    def __init__(self, new_id: Callable[[], str], max_lost_seconds: float) -> None:
        self.live: dict[int, LiveObject] = {}
        self._new_id = new_id
        self._max_lost_seconds = max_lost_seconds

    def set_durations(self, before: Durations, durations: Durations) -> None:
        """Replaces the durations of visits that are reported."""
        for one in self.live.values():
            one.set_durations(before, durations)

    def see(
        self,
        detections: Iterable[Detection],
        crossings: Iterable[Crossing],
        frame: FrameInfo,
        now: float,
        tracks: Mapping[int, Track],
        zones: Zones,
    ) -> tuple[ObjectChange, ...]:
        """Updates the objects from the next frame.

        Args:
            detections: with track ids and zones; those without a track id belong to no object.
            crossings: of lines in this frame.
            frame: the frame.
            now: seconds of the stream, later than at the frame before.
            tracks: those that may be seen again, by track id.
            zones: of the stream; they have seen these detections.

        Returns:
            The changes: objects that end, then those that this frame shows, in the order of the detections.
        """
        changes = [
            self._ended(one, EndReason.LOST)
            for one in list(self.live.values())
            if one.track_id not in tracks or now - one.seen > self._max_lost_seconds
        ]
        shown: list[LiveObject] = []
        for found in detections:
            track_id = found.track_id
            if track_id is None:
                continue
            one = self.live.get(track_id)
            if one is None:
                one = self.live[track_id] = LiveObject(self._new_id(), tracks[track_id], found, frame, now)
            else:
                one.see(tracks[track_id], found, frame, now)
            one.stand_in(found.zones, zones)
            shown.append(one)
        for crossing in crossings:
            self.live[crossing.track_id].cross(crossing)
        for one in shown:
            if one.confirm(tracks[one.track_id]):
                changes.append(one.publish("begin"))
            elif one.is_confirmed and one.is_due():
                changes.append(one.publish("update"))
        return tuple(change for change in changes if change is not None)

    def hold(self, track_ids: Iterable[int], now: float) -> None:
        """Moves on to a time, in seconds of the stream, until which some objects have not moved: they count as seen."""
        for track_id in track_ids:
            self.live[track_id].seen = now

    def end(self, reason: EndReason, unseen_since: float = math.inf) -> tuple[ObjectChange, ...]:
        """Ends objects.

        Args:
            reason: why.
            unseen_since: only objects that were last seen before this time of the stream.
        """
        changes = [self._ended(one, reason) for one in list(self.live.values()) if one.seen < unseen_since]
        return tuple(change for change in changes if change is not None)

    def _ended(self, one: LiveObject, reason: EndReason) -> ObjectChange | None:
        """Ends an object; None if it was never confirmed."""
        del self.live[one.track_id]
        return one.publish("end", reason) if one.is_confirmed else None


def thinned(path: Sequence[PathPoint], points: int) -> list[PathPoint]:
    """Simplifies a path in space and time; keeps both ends.

    Removes, one after the other, the point that is closest to where the object would have been at that time if it had
    moved straight from the previous point to the next one.

    Args:
        path: x, y and seconds, in the order of time.
        points: number of points that remain, at least 2.
    """
    kept = list(path)
    costs = [math.inf, *(_detour(kept, at) for at in range(1, len(kept) - 1)), math.inf]
    while len(kept) > points:
        at = costs.index(min(costs))
        del kept[at], costs[at]
        for near in (at - 1, at):
            if 0 < near < len(kept) - 1:
                costs[near] = _detour(kept, near)
    return kept


def _detour(path: Sequence[PathPoint], at: int) -> float:
    """The squared distance of a point from the straight way between its neighbours, at its time."""
    (x1, y1, t1), (x, y, t), (x2, y2, t2) = path[at - 1 : at + 2]
    part = (t - t1) / (t2 - t1) if t2 > t1 else 0.5
    return float((x - x1 - part * (x2 - x1)) ** 2 + (y - y1 - part * (y2 - y1)) ** 2)


def _anchor(box: Box, frame: FrameInfo) -> Point:
    """The middle of the lower edge, as fractions of the picture."""
    return (box[0] + box[2]) / (2 * frame.width), box[3] / frame.height
