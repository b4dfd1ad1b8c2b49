"""Track ids: the same number for the same object in successive frames of one stream.

Each track predicts where its object is now, with a Kalman filter of constant velocity, and takes the detection that
overlaps the prediction best. Where none overlaps it well, it takes one that does so with a margin around both, because
objects move between frames that are far apart (https://arxiv.org/abs/2211.14317). Detections with high scores choose
first, and only they begin tracks; others may continue a track that nothing else continues (the idea of ByteTrack,
https://arxiv.org/abs/2110.06864). Time is counted in seconds of the stream, never in frames: their rate changes, and
frames are dropped. For the few objects of a picture plain numbers are faster than arrays.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence

from streamdet.types import Box, Detection

# Rank (1 plus a good overlap, or the overlap with margins), number of the track, number of the detection.
_Pair = tuple[float, int, int]

# Boxes that overlap this much rank before all that overlap only with their margins, which are parts of width and height
# on each side. In a minute of a crowd this changed a third fewer ids than margins for all. Smaller margins lose objects
# at low frame rates, a lower limit joins neighbours: benchmarks/tracking.py compares the values.
_GOOD_OVERLAP = 0.4
_MARGIN = 0.7
_MIN_OVERLAP = 0.3
# By the margins, boxes grow by this factor. Those whose centers are further apart than this part of both widths, or
# heights, overlap too little even so: of the wider one, less than the lowest overlap.
_GROWN = 1 + 2 * _MARGIN
_REACH = _GROWN * (1 - _MIN_OVERLAP) / 2
# Of two tracks, the one that was seen later is preferred.
_LOST_COSTS_PER_SECOND = 0.1
# A car that is labelled a truck in one frame is still the same where the boxes overlap by more than half.
_OTHER_LABEL_COSTS = 1.25
# An object that starts, stops or turns between two frames that are far apart overlaps nothing. So a detection that is
# left over is taken for a track that is left over where it is off its way by no more than this, in sizes, and by so
# much more for each second between the frames, up to one; and where its height differs by no more than this factor.
# Closer where frames between did not show the object, others come out from behind what hides it: unless nothing else is
# missing and nothing else is unexplained, and it does not come in from the left or right edge of the picture.
_REUNITED_SIZES = 0.5
_REUNITED_SIZES_PER_SECOND = 1.0
_REUNITED_GROWTH = 1.4
_REUNITED_MISSED_SIZES = 0.35
_REUNITED_MISSED_GROWTH = 1.2
_EDGE = 0.03
# A label with this part of the votes for the first one is an object's own as well.
_KNOWN_SHARE = 0.1
# Noise of the filter, in units of the box's size (the root of its area): a detected box is off by a twentieth, and
# an object changes its speed by about one size per second within a second.
_MEASURED_VARIANCE = 0.05**2
_ACCELERATION_DENSITY = 1.0
_FIRST_SPEED_VARIANCE = 2.0**2
# The weight of a measured width and height, against those before.
_SIZE_GAIN = 0.5
# A track is certain to be an object when it was seen this often, or twice with this time between and hardly missed.
_CONFIRMED_SIGHTS = 3
_CONFIRMED_SECONDS = 0.45  # two frames a second, with jitter
# Until then it may be a mistake: it is given up this soon after it is missed, or later by the time for which it was
# seen.
_FIRST_PATIENCE_SECONDS = 0.5
# Another label must lead by this factor, so that two labels that are nearly equal do not take turns.
_LABEL_LEAD = 1.1
# A presentation time that jumps by more is ignored, and so is one that runs ahead of our clock by this much more than
# any before it did.
_MAX_STEP_SECONDS = 10.0
_LARGEST_LEAD_SECONDS = 0.5
# Of the clock of a stream. Floats hold these and their differences without rounding.
_TICKS_PER_SECOND = 65536


class StreamClock:
    """Seconds that only go forward, from presentation times where these are plausible.

    They begin near 0 and are multiples of 1/65536. Events hold times rounded to microseconds; where the analytics run
    again on these, every duration is to be the same to the last bit, so presentation times are rounded here as well.

    Args:
        is_paced: whether frames come as fast as time goes by, so that presentation times cannot run ahead of it. They
            may be late, and then come all at once.

    Attributes:
        is_paced: the same.
    """

    def __init__(self, *, is_paced: bool = True) -> None:
        self.is_paced = is_paced
        self._seconds = 0.0
        self._pts: float | None = None
        self._captured: float | None = None
        self._lead = 0.0

    def at(self, pts_seconds: float | None, captured_monotonic_seconds: float) -> float:
        """The time of a frame.

        Presentation times jump when a source is connected again, a file begins again, or a camera sets its clock; then
        the time between the captures counts.

        Args:
            pts_seconds: presentation time; None where the source gives none.
            captured_monotonic_seconds: monotonic time of the capture.
        """
        step = 0.0 if self._captured is None else captured_monotonic_seconds - self._captured
        if pts_seconds is not None:
            pts_seconds = round(pts_seconds, 6)
            lead = pts_seconds - captured_monotonic_seconds
            pts_step = 0.0 if self._pts is None else pts_seconds - self._pts
            runs_ahead = self.is_paced and min(pts_step, lead - self._lead) > _LARGEST_LEAD_SECONDS
            if 0 < pts_step < _MAX_STEP_SECONDS and not runs_ahead:
                step, lead = pts_step, max(lead, self._lead)
            self._lead = lead
        self._pts, self._captured = pts_seconds, captured_monotonic_seconds
        self._seconds += max(step, 1e-3)
        return round(self._seconds * _TICKS_PER_SECOND) / _TICKS_PER_SECOND


class Track:
    """One object: where it is, how fast it moves, and how certain that is.

    Centre, size and speed are in pixels and pixels per second. The variances of position and speed, and their
    covariance, are those of the Kalman filter; they are the same for x and y.

    Attributes:
        track_id: never used twice in a stream.
        label: the one with the largest sum of scores.
        score: the best.
        began: when it was detected first, in seconds of the stream.
        seen: when it was detected last.
        sights: frames that have shown it.
        frames: all frames since it was detected first.
    """

    __slots__ = (
        "_votes",
        "began",
        "covariance",
        "frames",
        "height",
        "label",
        "last_label",
        "position_variance",
        "score",
        "seen",
        "sights",
        "speed_variance",
        "track_id",
        "vx",
        "vy",
        "width",
        "x",
        "y",
    )

    def __init__(self, track_id: int, found: Detection, now: float) -> None:
        x1, y1, x2, y2 = found.box
        self.track_id = track_id
        self.label = self.last_label = found.label
        self.score = found.score
        self._votes = {found.label: found.score}
        self.began = self.seen = now
        self.sights = self.frames = 1
        self.x, self.y = (x1 + x2) / 2, (y1 + y2) / 2
        self.width, self.height = x2 - x1, y2 - y1
        self.vx = self.vy = 0.0
        area = self.width * self.height
        self.position_variance, self.covariance = _MEASURED_VARIANCE * area, 0.0
        self.speed_variance = _FIRST_SPEED_VARIANCE * area

    def predict(self, seconds: float) -> None:
        """Moves on by a time; acceleration is modelled as white noise."""
        self.x += self.vx * seconds
        self.y += self.vy * seconds
        noise = _ACCELERATION_DENSITY * self.width * self.height * seconds
        self.position_variance += seconds * (2 * self.covariance + seconds * (self.speed_variance + noise / 3))
        self.covariance += seconds * (self.speed_variance + noise / 2)
        self.speed_variance += noise

    def stay(self, now: float) -> None:
        """Moves on to a time until which the object has not moved, although no frame that shows it was detected."""
        self.vx = self.vy = 0.0
        self.seen = now

    def correct(self, found: Detection, now: float) -> None:
        """Moves towards where the object was seen, by the gain of the filter."""
        x1, y1, x2, y2 = found.box
        width, height = x2 - x1, y2 - y1
        total = self.position_variance + _MEASURED_VARIANCE * width * height
        gain, speed_gain = self.position_variance / total, self.covariance / total
        dx, dy = (x1 + x2) / 2 - self.x, (y1 + y2) / 2 - self.y
        self.x += gain * dx
        self.y += gain * dy
        self.vx += speed_gain * dx
        self.vy += speed_gain * dy
        self.width += _SIZE_GAIN * (width - self.width)
        self.height += _SIZE_GAIN * (height - self.height)
        self.speed_variance -= speed_gain * self.covariance
        self.position_variance *= 1 - gain
        self.covariance *= 1 - gain
        self.seen = now
        self.sights += 1
        self._vote(found)

    def is_confirmed(self) -> bool:
        """Whether it is certain that there is an object."""
        if self.sights >= _CONFIRMED_SIGHTS:
            return True
        is_missed_often = self.frames > self.sights + 1
        return self.sights > 1 and self.seen - self.began >= _CONFIRMED_SECONDS and not is_missed_often

    def scale(self, x: float, y: float) -> None:
        """Goes on in a picture of another size."""
        self.x, self.vx, self.width = x * self.x, x * self.vx, x * self.width
        self.y, self.vy, self.height = y * self.y, y * self.vy, y * self.height
        self.position_variance *= x * y
        self.covariance *= x * y
        self.speed_variance *= x * y

    def is_lost(self, before: float, now: float, max_lost_seconds: float) -> bool:
        """Whether it was not seen for too long; `before` is the time of the frame before this one."""
        lost_seconds, seen_seconds = now - self.seen, self.seen - self.began
        if lost_seconds > max_lost_seconds:
            return True
        is_missed = self.seen < before and lost_seconds > _FIRST_PATIENCE_SECONDS + seen_seconds
        return is_missed and not self.is_confirmed()

    def detour_to(self, found: Detection, now: float, sizes: float, growth: float) -> float | None:
        """How far a detection is from the way between where the object was last and where it is expected now.

        It may have stopped on the way.

        Args:
            found: the detection.
            now: seconds of the stream.
            sizes: the largest distance that is believed, in sizes of the object (the root of its area).
            growth: the largest factor between both heights that is believed.

        Returns:
            The distance in sizes; None where it cannot be this object.
        """
        x1, y1, x2, y2 = found.box
        if found.label != self.last_label or not 1 / growth < (y2 - y1) / self.height < growth:
            return None
        dx, dy = (x1 + x2) / 2 - self.x, (y1 + y2) / 2 - self.y
        lost_seconds = now - self.seen
        back_x, back_y = -self.vx * lost_seconds, -self.vy * lost_seconds
        length = back_x * back_x + back_y * back_y
        part = min(max((dx * back_x + dy * back_y) / length, 0.0), 1.0) if length > 0 else 0.0
        aside = math.hypot(dx - part * back_x, dy - part * back_y) / math.sqrt(self.width * self.height)
        return aside if aside <= sizes else None

    def is_known_as(self, label: str) -> bool:
        """Whether the object has had this label often."""
        return self._votes.get(label, 0.0) >= _KNOWN_SHARE * self._votes[self.label]

    def _vote(self, found: Detection) -> None:
        label, votes = found.label, self._votes
        votes[label] = votes.get(label, 0.0) + found.score
        if label != self.label and votes[label] > _LABEL_LEAD * votes[self.label]:
            self.label = label
        self.last_label, self.score = label, max(self.score, found.score)


class Tracker:
    """Tracks of one stream.

    Args:
        ids: gives new track ids; it outlives the tracker, so that none is used twice.
        max_lost_seconds: for how long an object that is not detected keeps its id.
        start_score: a detection with a lower score continues tracks but begins none.
    """

    def __init__(self, ids: Iterator[int], max_lost_seconds: float, start_score: float) -> None:
        self.max_lost_seconds = max_lost_seconds
        self.start_score = start_score
        self._ids = ids
        self._before = self._now = 0.0
        self._size = (0, 0)
        self._tracks: list[Track] = []

    def update(self, detections: Sequence[Detection], now: float, size: tuple[int, int]) -> list[Detection]:
        """The same detections in the same order, with track ids.

        Args:
            detections: of one frame.
            now: seconds of the stream, later than at the frame before.
            size: width and height of the frame in pixels; when it changes, the same picture is taken to be smaller or
                larger.
        """
        if size != self._size:
            for track in self._tracks:
                track.scale(size[0] / self._size[0], size[1] / self._size[1])
            self._size = size
        before = self._before = self._now
        self._now = now
        # An object that was lost before this frame is gone, wherever it turns up.
        self._tracks = [
            track
            for track in self._tracks
            if track.seen == before >= now - self.max_lost_seconds
            or not track.is_lost(before, now, self.max_lost_seconds)
        ]
        for track in self._tracks:
            track.frames += 1
            track.predict(now - before)
        track_of = self._assign(detections)
        given: list[Detection] = []
        for index, found in enumerate(detections):
            track_id = None
            if index in track_of:
                track_of[index].correct(found, now)
                track_id = track_of[index].track_id
            elif found.score >= self.start_score:
                track_id = next(self._ids)
                self._tracks.append(Track(track_id, found, now))
            given.append(Detection(found.label, found.score, found.box, track_id, found.zones))
        return given

    def hold(self, track_ids: Collection[int], now: float) -> None:
        """Moves on to a time without a frame.

        Args:
            track_ids: of objects that have not moved meanwhile, and so count as seen.
            now: seconds of the stream, not before the newest frame.
        """
        for track in self._tracks:
            if track.track_id in track_ids:
                track.stay(now)
            else:
                track.predict(now - self._now)
        self._now = now

    def forget(self, seen_before: float) -> None:
        """Gives up the tracks that were last seen before a time of the stream."""
        self._tracks = [track for track in self._tracks if track.seen >= seen_before]

    def tracks(self) -> dict[int, Track]:
        """The objects that may be seen again, by track id."""
        return {track.track_id: track for track in self._tracks}

    def _assign(self, detections: Sequence[Detection]) -> dict[int, Track]:
        """The track that each detection continues: high scores choose before others, the best pairs first."""
        sure, unsure = self._pairs(detections)
        track_of: dict[int, Track] = {}
        taken: set[int] = set()
        for pairs in (sure, unsure):
            pairs.sort(key=_rank_of, reverse=True)
            for _, row, index in pairs:
                if row not in taken and index not in track_of:
                    taken.add(row)
                    track_of[index] = self._tracks[row]
        if len(track_of) < len(detections) and len(taken) < len(self._tracks):
            self._reunite(detections, track_of, taken)
        return track_of

    def _reunite(self, detections: Sequence[Detection], track_of: dict[int, Track], taken: set[int]) -> None:
        """Gives sure detections that nothing explains to tracks that nothing continues, the nearest first."""
        unexplained = [
            (index, found)
            for index, found in enumerate(detections)
            if index not in track_of and found.score >= self.start_score
        ]
        left = [(row, track) for row, track in enumerate(self._tracks) if row not in taken]
        pairs: list[_Pair] = []
        for row, track in left if unexplained else ():
            sizes, growth = self._reach_of(track), _REUNITED_GROWTH
            if track.seen < self._before:
                sizes, growth = _REUNITED_MISSED_SIZES if track.is_confirmed() else 0.0, _REUNITED_MISSED_GROWTH
            for index, found in unexplained:
                detour = track.detour_to(found, self._now, sizes, growth)
                if detour is not None:
                    pairs.append((detour / sizes if sizes else 0.0, row, index))
        pairs.sort()
        for _, row, index in pairs:
            if row not in taken and index not in track_of:
                taken.add(row)
                track_of[index] = self._tracks[row]
        self._reunite_last(
            [(index, found) for index, found in unexplained if index not in track_of],
            [track for row, track in left if row not in taken and track.is_confirmed()],
            track_of,
        )

    def _reunite_last(
        self, unexplained: list[tuple[int, Detection]], left: list[Track], track_of: dict[int, Track]
    ) -> None:
        """Gives the only detection that is still unexplained to the only object that is still missing."""
        if len(unexplained) != 1 or len(left) != 1:
            return
        ((index, found),), (track,) = unexplained, left
        edge = _EDGE * self._size[0]
        comes_in = found.box[0] < edge or found.box[2] > self._size[0] - edge
        detour = track.detour_to(found, self._now, self._reach_of(track), _REUNITED_MISSED_GROWTH)
        if detour is not None and not comes_in:
            track_of[index] = track

    def _reach_of(self, track: Track) -> float:
        """How far an object can have gone aside since it was seen, in sizes."""
        return _REUNITED_SIZES + _REUNITED_SIZES_PER_SECOND * min(self._now - track.seen, 1.0)

    def _pairs(self, detections: Sequence[Detection]) -> tuple[list[_Pair], list[_Pair]]:
        """Tracks and detections that may be the same object: those with a high score, and the others."""
        sure: list[_Pair] = []
        unsure: list[_Pair] = []
        # From left to right, so that only those are compared that are not too far to the left or to the right.
        expected = sorted([(track.x, row, track) for row, track in enumerate(self._tracks)])
        centers = [x for x, _, _ in expected]
        widest = max([track.width for track in self._tracks], default=0.0)
        for index, found in enumerate(detections):
            label, (x1, y1, x2, y2) = found.label, found.box
            pairs, lowest = (sure, _MIN_OVERLAP) if found.score >= self.start_score else (unsure, _GOOD_OVERLAP)
            x, y, width, height = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
            reach = _REACH * (width + widest)
            for _, row, track in expected[bisect_left(centers, x - reach) : bisect_right(centers, x + reach)]:
                dx, dy = abs(track.x - x), abs(track.y - y)
                if dx >= _REACH * (width + track.width) or dy >= _REACH * (height + track.height):
                    continue
                rank = 1 + _overlap(dx, dy, width, height, track.width, track.height)
                if rank <= 1 + _GOOD_OVERLAP:
                    rank = _overlap(dx / _GROWN, dy / _GROWN, width, height, track.width, track.height)
                if label != track.last_label and not track.is_known_as(label):
                    rank -= _OTHER_LABEL_COSTS
                if rank > lowest:
                    pairs.append((rank - (self._now - track.seen) * _LOST_COSTS_PER_SECOND, row, index))
        return sure, unsure


class PublishedTracks:
    """The tracks of detections that were tracked before, as events hold them.

    Args:
        max_lost_seconds: for how long an object that is not detected is still there.
    """

    def __init__(self, max_lost_seconds: float) -> None:
        self._max_lost_seconds = max_lost_seconds
        self._now = 0.0
        self._tracks: dict[int, Track] = {}

    def update(self, detections: Iterable[Detection], now: float) -> None:
        """Takes the detections of the next frame, at a later time of the stream."""
        before, self._now = self._now, now
        for track in list(self._tracks.values()):
            if track.is_lost(before, now, self._max_lost_seconds):
                del self._tracks[track.track_id]
            track.frames += 1
        for found in detections:
            if found.track_id is None:
                continue
            track_of = self._tracks.get(found.track_id)
            if track_of is None:
                self._tracks[found.track_id] = Track(found.track_id, found, now)
            else:
                track_of.correct(found, now)

    def hold(self, track_ids: Collection[int], now: float) -> None:
        """Moves on to a time without a frame; as in `Tracker`."""
        for track_id in track_ids:
            if track_id in self._tracks:
                self._tracks[track_id].stay(now)
        self._now = now

    def forget(self, seen_before: float) -> None:
        """Gives up the tracks that were last seen before a time of the stream."""
        self._tracks = {number: track for number, track in self._tracks.items() if track.seen >= seen_before}

    def tracks(self) -> dict[int, Track]:
        """The objects that may be seen again, by track id."""
        return self._tracks


def overlap_of(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    dx, dy = (one[0] + one[2] - other[0] - other[2]) / 2, (one[1] + one[3] - other[1] - other[3]) / 2
    width, height = one[2] - one[0], one[3] - one[1]
    return _overlap(abs(dx), abs(dy), width, height, other[2] - other[0], other[3] - other[1])


def _overlap(dx: float, dy: float, width: float, height: float, other_width: float, other_height: float) -> float:
    """Intersection over union of two boxes whose centers are this far apart."""
    shared_width = min(width, other_width, (width + other_width) / 2 - dx)
    shared_height = min(height, other_height, (height + other_height) / 2 - dy)
    if shared_width <= 0 or shared_height <= 0:
        return 0.0
    shared = shared_width * shared_height
    return shared / (width * height + other_width * other_height - shared)


def _rank_of(pair: _Pair) -> float:
    return pair[0]
