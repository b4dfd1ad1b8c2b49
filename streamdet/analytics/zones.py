"""Zones, lines and masks: which areas objects are in, and which lines they cross. Pure geometry.

The position of an object is its anchor: the middle of the lower edge of its box (its feet or wheels), the centre of the
box, or the whole box. The points of shapes are fractions of the picture's width and height, so shapes stay valid when
the size of the picture changes.

Boxes jitter, by a few hundredths of the object's height when nothing moves, and by most of it when two objects merge
into one box for a moment. So a tracked object stays inside an area, or on one side of a line, until it is on the other
side by a margin in units of its own height, or by half of that for a while; the change is then dated back to when it
came to that side. Small steps are smoothed, and a box whose height changes suddenly, or that jumps, is ignored until
the change has lasted for a while.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from streamdet.analytics.tracker import Track
from streamdet.config.stream import Anchor, LineConfig, MaskConfig, StreamConfig, ZoneConfig, side_of
from streamdet.types import Box, Crossing, Detection, Direction, Geometry, Point, Shape

Durations = Mapping[str, tuple[tuple[float, Literal["dwell", "loiter"]], ...]]
"""For each zone the durations of a visit that are reported, in seconds and rising, and as what."""
Size = tuple[int, int]

# How far an object must be from a line to be clearly on one side: parts of its own height and of the picture's.
# Measured on people who stand still in noise (20 s, 163 lines, all frames or every second or third): no crossing; 314
# without a margin in units of the object. With frames dropped at random, 36 times on 15 lines: one. Of 154 real
# crossings of a minute of the sample clip's source 148 are counted, in 1336 cases without a crossing 2 are.
_CLEAR_OF_HEIGHT = 0.2
_CLEAR_OF_PICTURE = 0.005
# To be inside an area or outside it, this part of the margin is enough for an object that stays on that side this long.
_STAYED_SECONDS = 1.0
_STAYED_CLEAR = 0.5
# A box whose height differs from before by more than this (natural logarithm; and by the second value more for each
# second between, up to one) shows another part of the object, or two objects.
_GROWTH = 0.2
_GROWTH_PER_SECOND = 0.3
_NO_GROWTH = math.exp(-_GROWTH), math.exp(_GROWTH)
_MOST_GROWTH_SECONDS = 1.0
# So does a box whose feet are further than this from where they were going, in parts of the height, and by the second
# value more for each second between.
_JUMP = 0.4
_JUMP_PER_SECOND = 0.5
# The velocity is known after this number of steps, and follows a change within about this time.
_STEPS_OF_VELOCITY = 3
_VELOCITY_SECONDS = 0.3
# After this long the new height is that of the object.
_GROWN_SECONDS = 0.5
# Steps shorter than this part of the height are averaged with the place before; longer ones are taken as they are.
_SMALL_STEP = 0.1
_SMALL_STEP_GAIN = 0.5
_SIZE_GAIN = 0.3
# An object that was within the sizes of a shape stays so until it is out of them by this factor.
_OTHER_SIZE = 1.1
# A side of an area that is this close to the edge of the picture is meant to lie on it: no margin is needed there.
_EDGE = 0.02
# The margin is at most this part of the radius of the largest circle in the area, so that narrow areas can be entered,
# and of the width and height of a box that counts as a whole.
_MOST_OF_RADIUS = 0.5
_MOST_OF_BOX = 0.25
_RADIUS_GRID = 16


# A segment: x and y of its start, the way to its end, and 1 / its length squared.
_Side = tuple[float, float, float, float, float]


class Zones:
    """The shapes of one stream, and where each tracked object was last clearly seen.

    Args:
        config: of the stream.

    Attributes:
        geometry: the shapes, to be drawn; None where the stream has none.
        durations: of visits to the zones, to be reported.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._places: dict[int, _Place] = {}
        self._size: Size = (0, 0)
        self._zones: dict[str, _Area] = {}
        self._masks: dict[str, _Area] = {}
        self._lines: dict[str, _Line] = {}
        self.geometry: Geometry | None = None
        self.durations: Durations = {}
        self.set_config(config)

    def set_config(self, config: StreamConfig) -> None:
        """Replaces the shapes; those that do not change keep the positions of objects."""
        self._zones = {z.name: _kept(self._zones.get(z.name), z) or _Area(z, self._size) for z in config.zones}
        self._masks = {m.name: _kept(self._masks.get(m.name), m) or _Area(m, self._size) for m in config.masks}
        self._lines = {n.name: _kept(self._lines.get(n.name), n) or _Line(n, self._size) for n in config.lines}
        for place in self._places.values():
            place.unsettle()
        self.geometry = _geometry(config)
        self.durations = {zone.name: _durations(zone) for zone in config.zones}

    def see(
        self, detections: Iterable[Detection], size: Size, now: float, tracks: Mapping[int, Track]
    ) -> tuple[list[Detection], tuple[Crossing, ...]]:
        """Applies the shapes to the detections of the next frame.

        Args:
            detections: of one frame; those without a track id are judged by this frame alone and cross no line.
            size: width and height of the frame in pixels.
            now: seconds of the stream, later than at the frame before.
            tracks: those that may be seen again, by track id; others are forgotten. Labels and scores are theirs.

        Returns:
            The detections that no mask removes, with the names of their zones; and the crossings of lines by objects
            since they were last clear of them.
        """
        if size != self._size:
            self._fit(size)
        self._forget(tracks)
        kept: list[Detection] = []
        crossed: list[Crossing] = []
        for found in detections:
            track = tracks.get(found.track_id) if found.track_id is not None else None
            place = self._step(found, track, now)
            if track is None or not place.is_settled(found, track):
                self._judge(found, track, place, now, crossed)
            if not place.is_hidden:
                names = place.zones
                kept.append(Detection(found.label, found.score, found.box, found.track_id, names) if names else found)
        return kept, tuple(crossed)

    def since(self, zone: str, track_id: int) -> float | None:
        """Since when an object has been where it is, inside a zone or outside, in seconds of the stream.

        None if it has not been seen since the zone exists.
        """
        area = self._zones.get(zone)
        stay = area.stays.get(track_id) if area is not None else None
        return None if stay is None else stay.changed

    def turned(self, zone: str, track_id: int) -> float | None:
        """Since when an object that counts as inside a zone has been outside, but not clearly; None if it is inside."""
        area = self._zones.get(zone)
        stay = area.stays.get(track_id) if area is not None else None
        return None if stay is None else stay.turned

    def _judge(self, found: Detection, track: Track | None, place: _Place, now: float, crossed: list[Crossing]) -> None:
        """Compares the place with every shape that it may have reached."""
        zones, masks = self._zones.values(), self._masks.values()
        if track is None:
            place.zones = tuple([zone.name for zone in zones if zone.holds_alone(found, place)])
            place.is_hidden = any(mask.holds_alone(found, place) for mask in masks)
            return
        changed = not place.is_same(found, track)
        # Every area follows the object, also where a mask hides it.
        stays = [zone.stay_of(found, track, place, now, anyway=changed) for zone in zones]
        place.zones = tuple([zone.name for zone, stay in zip(zones, stays, strict=True) if stay.counts])
        hides = [mask.stay_of(found, track, place, now, anyway=changed) for mask in masks]
        place.is_hidden = any(stay.counts for stay in hides)
        due = min([stay.due for stay in (*stays, *hides)], default=math.inf)
        for line in self._lines.values():
            if place.is_hidden:
                line.leave_out(track, place)
                continue
            crossing, line_due = line.crossed(track, place, anyway=changed)
            due = min(due, line_due)
            if crossing is not None:
                crossed.append(crossing)
        place.settle(found, track, due)

    def _step(self, found: Detection, track: Track | None, now: float) -> _Place:
        if track is None:
            return _Place(found, self._size, now)
        place = self._places.get(track.track_id)
        if place is None:
            place = self._places[track.track_id] = _Place(found, self._size, now)
        else:
            place.step(found, self._size, now)
        return place

    def _fit(self, size: Size) -> None:
        if 0 not in self._size:
            for place in self._places.values():
                place.scale(size[0] / self._size[0], size[1] / self._size[1])
        self._size = size
        for area in (*self._zones.values(), *self._masks.values()):
            area.fit(size)
        for line in self._lines.values():
            line.fit(size)

    def _forget(self, tracks: Mapping[int, Track]) -> None:
        for gone in self._places.keys() - tracks.keys():
            del self._places[gone]
            for area in (*self._zones.values(), *self._masks.values()):
                area.stays.pop(gone, None)
            for line in self._lines.values():
                line.clears.pop(gone, None)


class _Place:
    """The place where one object stands, in pixels.

    Attributes:
        x, y: the middle of the lower edge of its box.
        width: of its box.
        height: of its box.
        holds_still: the box was ignored this time; all else is from before.
        is_new: the place does not continue those before: it is the first one, or that of a box of another height.
        before: x, y and height at the step before, and when that was; None for a first place.
        zones: names of those that it is in.
        is_hidden: whether a mask hides it.
        travelled: pixels by which any point of the box can have moved in all, at most.
    """

    __slots__ = (
        "_due",
        "_found",
        "_label",
        "_label_of_track",
        "_odd_since",
        "_score",
        "_seen",
        "_size",
        "_steps",
        "_vx",
        "_vy",
        "before",
        "height",
        "holds_still",
        "is_hidden",
        "is_new",
        "travelled",
        "width",
        "x",
        "y",
        "zones",
    )

    def __init__(self, found: Detection, size: Size, now: float) -> None:
        self.before: tuple[float, float, float, float] | None = None
        self.zones: tuple[str, ...] = ()
        self.is_hidden = False
        self.travelled = 0.0
        self._label = self._label_of_track = ""
        self._score = 0.0
        self._begin(found, size, now)

    def _begin(self, found: Detection, size: Size, now: float) -> None:
        x1, y1, x2, y2 = found.box
        self.x, self.y = (x1 + x2) / 2, y2
        # A box that is clipped at the edge of the picture may have no height at all.
        self.width, self.height = x2 - x1, max(y2 - y1, 1.0)
        self._vx = self._vy = 0.0
        self._steps = 0
        self._seen = now
        self._odd_since: float | None = None
        self._found, self._size = found, size
        self.holds_still, self.is_new = False, True
        self.unsettle()

    def step(self, found: Detection, size: Size, now: float) -> None:
        """Moves to where the object is in the next frame that shows it."""
        x1, y1, x2, y2 = found.box
        x, y, height, seconds = self.x, self.y, self.height, now - self._seen
        dx, dy, growth = (x1 + x2) / 2 - x, y2 - y, max(y2 - y1, 1.0) / height
        jump_x, jump_y = dx - self._vx * seconds, dy - self._vy * seconds
        # Most boxes are like those before: comparing squares is faster than what `_is_odd` does.
        looks_odd = (
            jump_x * jump_x + jump_y * jump_y > (_JUMP * height) ** 2 or not _NO_GROWTH[0] < growth < _NO_GROWTH[1]
        )
        if looks_odd and self._is_odd(jump_x, jump_y, growth, seconds):
            self._odd_since = now if self._odd_since is None else self._odd_since
            if now - self._odd_since >= _GROWN_SECONDS:
                self.before = x, y, height, self._seen
                self._begin(found, size, now)
            else:
                self.holds_still, self.is_new = True, False
            return
        self.before = x, y, height, self._seen
        if dx * dx + dy * dy < (_SMALL_STEP * height) ** 2:
            dx, dy = _SMALL_STEP_GAIN * dx, _SMALL_STEP_GAIN * dy
        self.x, self.y = x + dx, y + dy
        follows = seconds / _VELOCITY_SECONDS if seconds < _VELOCITY_SECONDS else 1.0
        self._vx += follows * (dx / seconds - self._vx)
        self._vy += follows * (dy / seconds - self._vy)
        self._steps += 1
        taller, wider = _SIZE_GAIN * (growth - 1) * height, _SIZE_GAIN * (x2 - x1 - self.width)
        self.height, self.width = height + taller, self.width + wider
        self.travelled += abs(dx) + abs(dy) + abs(taller) + abs(wider)
        self._seen, self._odd_since = now, None
        self._found, self._size = found, size
        self.holds_still = self.is_new = False

    @property
    def part(self) -> float:
        """The part of the picture's height that its box takes."""
        return self.height / self._size[1]

    @property
    def margin(self) -> float:
        """The pixels by which it must be beyond a side to count as beyond."""
        width, height = self._size
        x1, _, x2, y2 = self._found.box
        least = _CLEAR_OF_PICTURE * height
        # On its way out of the picture it may never get further from a line that is close to the edge.
        leaves = x1 < 1 or x2 > width - 1 or y2 > height - 1
        return least if leaves else least + _CLEAR_OF_HEIGHT * self.height

    def scale(self, x: float, y: float) -> None:
        """Scales to a picture of another size."""
        self.x, self._vx, self.width = x * self.x, x * self._vx, x * self.width
        self.y, self._vy, self.height = y * self.y, y * self._vy, y * self.height
        self.before = None
        self.unsettle()

    def settle(self, found: Detection, track: Track, due: float) -> None:
        """Notes that it has been compared with all shapes, and at which `travelled` it may have reached one."""
        self._due = due
        self._label, self._label_of_track, self._score = found.label, track.label, track.score

    def unsettle(self) -> None:
        """It is to be compared with all shapes again."""
        self._due, self._label = 0.0, ""

    def is_same(self, found: Detection, track: Track) -> bool:
        """Whether label and score are those with which it was compared."""
        return found.label == self._label and track.label == self._label_of_track and track.score == self._score

    def is_settled(self, found: Detection, track: Track) -> bool:
        """Whether the result of the last comparison with all shapes still holds."""
        return self.travelled < self._due and self.is_same(found, track)

    def at(self, anchor: Anchor) -> Point:
        """The point that counts."""
        return _point(self.x, self.y, self.height, anchor)

    def was_at(self, anchor: Anchor) -> tuple[Point, float] | None:
        """The point that counted at the step before, and when that was."""
        if self.before is None:
            return None
        x, y, height, seen = self.before
        return _point(x, y, height, anchor), seen

    def box(self, grown: float = 0.0) -> Box:
        """The box, larger by this on every side; smaller below 0, but not by more than a part of it."""
        dx, dy = max(grown, -_MOST_OF_BOX * self.width), max(grown, -_MOST_OF_BOX * self.height)
        half = self.width / 2 + dx
        return self.x - half, self.y - self.height - dy, self.x + half, self.y + dy

    def _is_odd(self, dx: float, dy: float, growth: float, seconds: float) -> bool:
        """Whether the box cannot be what the object looks like now: it has grown, shrunk or jumped too much."""
        if abs(math.log(growth)) > _GROWTH + _GROWTH_PER_SECOND * min(seconds, _MOST_GROWTH_SECONDS):
            return True
        jump = math.hypot(dx, dy) / self.height
        return self._steps >= _STEPS_OF_VELOCITY and jump > _JUMP + _JUMP_PER_SECOND * seconds


def _point(x: float, y: float, height: float, anchor: Anchor) -> Point:
    return (x, y - height / 2) if anchor == "center" else (x, y)


class _Filter:
    """Which objects a shape counts."""

    def __init__(self, config: ZoneConfig | MaskConfig | LineConfig) -> None:
        self._labels = frozenset(config.labels)
        self._min_score = 0.0 if isinstance(config, MaskConfig) else config.min_score
        self._min_size, self._max_size = config.min_size, config.max_size
        self._fits_all = config.min_size == 0.0 and config.max_size == 1.0

    def wants(self, one: Detection | Track) -> bool:
        """By label and score."""
        return one.score >= self._min_score and (not self._labels or one.label in self._labels)

    def fits(self, part: float, *, did: bool = False) -> bool:
        """By size, with regard to whether it did before."""
        factor = _OTHER_SIZE if did else 1.0
        return self._min_size <= part * factor and part <= self._max_size * factor

    def room(self, place: _Place) -> float:
        """By how many pixels the height may change until it may fit or not."""
        if self._fits_all:
            return math.inf
        limits = (self._min_size, self._min_size / _OTHER_SIZE, self._max_size, self._max_size * _OTHER_SIZE)
        part, height = place.part, place.height
        return min(abs(part - limit) for limit in limits) * height / part


class _Stay:
    """Where one object is, inside an area or outside.

    Attributes:
        is_inside: whether it is inside, whatever it is.
        since: since when, in seconds of the stream.
        turned: since when it is on the other side, not clearly yet; None where it is not.
        fits: whether it has the size that counts.
        fits_since: since when it has that size, or another.
        counts: whether it is inside and counts.
        changed: since when.
        due: at which `travelled` the object may have reached another side.
    """

    __slots__ = ("changed", "counts", "due", "fits", "fits_since", "is_inside", "since", "turned")

    def __init__(self, now: float, *, is_inside: bool, fits: bool) -> None:
        self.is_inside, self.fits, self.counts = is_inside, fits, False
        self.since = self.fits_since = self.changed = now
        self.turned: float | None = None
        self.due = 0.0


class _Area:
    """A zone or a mask, and which tracked objects are inside."""

    def __init__(self, config: ZoneConfig | MaskConfig, size: Size) -> None:
        self.config = config
        self.name = config.name
        self.stays: dict[int, _Stay] = {}
        self._filter = _Filter(config)
        self._anchor = config.anchor
        self._is_mask = isinstance(config, MaskConfig)
        self.fit(size)

    def fit(self, size: Size) -> None:
        """Goes on in a picture of this size."""
        corners = self.config.polygon
        self._polygon = [_pixels(corner, size) for corner in corners]
        xs, ys = zip(*self._polygon, strict=True)
        self._bounds: Box = min(xs), min(ys), max(xs), max(ys)
        ends = zip(corners, corners[1:] + corners[:1], strict=True)
        self._sides: list[_Side] = []
        self._sides_off_edge: list[_Side] = []
        for start, end in ends:
            side = _side(_pixels(start, size), _pixels(end, size))
            self._sides.append(side)
            if not _lies_on_the_edge(start, end):
                self._sides_off_edge.append(side)
        self._radius: float | None = None

    def holds_alone(self, found: Detection, place: _Place) -> bool:
        """Whether a detection without a track is inside and counts."""
        return self._filter.wants(found) and self._filter.fits(place.part) and self._has(place)

    def stay_of(self, found: Detection, track: Track, place: _Place, now: float, *, anyway: bool) -> _Stay:
        """Where the object is, with regard to the margin and to where it was before.

        Args:
            found: the detection.
            track: its track.
            place: where it is.
            now: seconds of the stream.
            anyway: whether something else has changed, so that the place is compared however far away it is.
        """
        stay = self.stays.get(track.track_id)
        if stay is not None and not anyway and place.travelled < stay.due:
            return stay
        if stay is None:
            fits = self._filter.fits(place.part)
            stay = self.stays[track.track_id] = _Stay(now, is_inside=self._has(place), fits=fits)
        elif not place.holds_still:
            self._follow(stay, place, now)
        is_there = stay.is_inside and stay.fits
        if self._is_mask:
            # It hides what may not be seen: an object whose label is mistaken in one frame as well.
            stay.counts = is_there and (self._filter.wants(found) or self._filter.wants(track))
        elif is_there != stay.counts:
            # Once an object counts it does so for all of its visit, whatever becomes of its label.
            counts = is_there and self._filter.wants(track)
            if counts != stay.counts:
                stay.counts, stay.changed = counts, max(stay.since, stay.fits_since)
        stay.due = place.travelled + (0.0 if stay.turned is not None else self._room(place))
        return stay

    def _room(self, place: _Place) -> float:
        """By how many pixels the object may move or grow until something may change here."""
        left, top, right, bottom = self._bounds
        if self._anchor == "any":
            x1, y1, x2, y2 = place.box()
            point = (x1 + x2) / 2, (y1 + y2) / 2
        else:
            x1, y1 = x2, y2 = point = place.at(self._anchor)
        room = max(left - x2, x1 - right, top - y2, y1 - bottom)
        if room <= 0:
            # With its middle inside, a box touches the area; with its middle outside, it may or may not.
            is_sure = self._anchor != "any" or contains(self._polygon, point)
            room = _nearest(self._sides, point) if is_sure else 0.0
        return min(room, self._filter.room(place))

    def _follow(self, stay: _Stay, place: _Place, now: float) -> None:
        fits = self._filter.fits(place.part, did=stay.fits)
        if fits != stay.fits:
            stay.fits, stay.fits_since = fits, now
        is_inside = self._has(place)
        if is_inside == stay.is_inside:
            stay.turned = None
            return
        if stay.turned is None:
            stay.turned = self._crossed_at(place, now)
        if self._is_clear(place, is_inside, 1.0) or (
            now - stay.turned >= _STAYED_SECONDS and self._is_clear(place, is_inside, _STAYED_CLEAR)
        ):
            stay.is_inside, stay.since, stay.turned = is_inside, stay.turned, None

    def _has(self, place: _Place) -> bool:
        left, top, right, bottom = self._bounds
        if self._anchor == "any":
            x1, y1, x2, y2 = box = place.box()
            return x1 <= right and x2 >= left and y1 <= bottom and y2 >= top and touches(self._polygon, box)
        x, y = point = place.at(self._anchor)
        return left <= x <= right and top <= y <= bottom and contains(self._polygon, point)

    def _is_clear(self, place: _Place, is_inside: bool, part: float) -> bool:
        """Whether the object is on this side by a part of the margin."""
        if self._radius is None:
            self._radius = self._largest_radius()
        margin = part * min(place.margin, _MOST_OF_RADIUS * self._radius)
        if self._anchor == "any":
            return touches(self._polygon, place.box(-margin if is_inside else margin)) == is_inside
        return self._distance(place.at(self._anchor)) >= margin

    def _crossed_at(self, place: _Place, now: float) -> float:
        """When the object has come to the side where it is, between the step before and this one."""
        was_at = place.was_at(self._anchor)
        if was_at is None:
            return now
        point, seen = was_at
        if self._anchor == "any":
            return (seen + now) / 2
        before, after = self._distance(point), self._distance(place.at(self._anchor))
        part = before / (before + after) if 0 < before + after < math.inf else 0.5
        return seen + part * (now - seen)

    def _distance(self, point: Point) -> float:
        """Pixels from the nearest side that does not lie on the edge of the picture."""
        return _nearest(self._sides_off_edge, point)

    def _largest_radius(self) -> float:
        """About the radius in pixels of the largest circle inside; what lies outside the picture counts as inside."""
        left, top, right, bottom = self._bounds
        radius = 0.0
        for column in range(_RADIUS_GRID):
            x = left + (right - left) * (column + 0.5) / _RADIUS_GRID
            for row in range(_RADIUS_GRID):
                y = top + (bottom - top) * (row + 0.5) / _RADIUS_GRID
                if contains(self._polygon, (x, y)):
                    radius = max(radius, self._distance((x, y)))
        return radius


class _Clear:
    """Where an object was when it was last clear of a line.

    Attributes:
        point: the point that counted.
        is_latest: whether it has been clear of the line, and counted, at every step since then.
        due: at which `travelled` it may have reached the line.
    """

    __slots__ = ("due", "is_latest", "point")

    def __init__(self, point: Point, due: float) -> None:
        self.point = point
        self.is_latest = True
        self.due = due

    def stop(self, was_at: tuple[Point, float] | None) -> None:
        """From this step on it is not known to be clear; at the step before it was, if it was known to be."""
        if self.is_latest and was_at is not None:
            self.point = was_at[0]
        self.is_latest, self.due = False, 0.0


class _Line:
    """A line, and where each tracked object was when it was last clear of it."""

    def __init__(self, config: LineConfig, size: Size) -> None:
        self.config = config
        self.clears: dict[int, _Clear] = {}
        self._filter = _Filter(config)
        self._anchor = config.anchor
        self._size = size
        self.fit(size)

    def fit(self, size: Size) -> None:
        """Goes on in a picture of this size."""
        if 0 not in self._size:
            x, y = size[0] / self._size[0], size[1] / self._size[1]
            for clear in self.clears.values():
                clear.point = x * clear.point[0], y * clear.point[1]
        self._size = size
        self._start, self._end = (_pixels(point, size) for point in self.config.points)
        self._side = [_side(self._start, self._end)]

    def leave_out(self, track: Track, place: _Place) -> None:
        """Does not look at an object, until it is asked again."""
        clear = self.clears.get(track.track_id)
        if clear is not None:
            clear.stop((place.at(self._anchor), 0.0) if place.holds_still else place.was_at(self._anchor))

    def crossed(self, track: Track, place: _Place, *, anyway: bool) -> tuple[Crossing | None, float]:
        """The crossing that the object has completed with this frame, and at which `travelled` there may be another.

        Args:
            track: of the object.
            place: where it is.
            anyway: as for areas.
        """
        clear = self.clears.get(track.track_id)
        if clear is not None and not anyway and place.travelled < clear.due:
            return None, clear.due
        if place.holds_still:
            if clear is not None:
                clear.due = 0.0
            return None, 0.0
        if place.is_new:
            # The object did not move from the one box to the other.
            clear = self.clears.pop(track.track_id, None) and None
        point = place.at(self._anchor)
        room = _nearest(self._side, point) - place.margin
        if room < 0:
            if clear is not None:
                clear.stop(place.was_at(self._anchor))
            return None, 0.0
        due = place.travelled + min(room, self._filter.room(place))
        if clear is None:
            self.clears[track.track_id] = _Clear(point, due)
            return None, due
        clear.stop(place.was_at(self._anchor))
        clear.due = due
        if not (self._filter.wants(track) and self._filter.fits(place.part)):
            return None, due
        before = clear.point
        clear.point, clear.is_latest = point, True
        direction = crossing(self._start, self._end, before, point)
        found = None if direction is None else Crossing(self.config.name, direction, track.track_id, track.label)
        return found, due


def contains(polygon: Sequence[Point], point: Point) -> bool:
    """Whether a point lies within a polygon (even-odd rule); a point on its edge may count either way.

    A ray to the right meets the sides an odd number of times. Each side takes its upper end and not its lower one,
    so that a ray through a corner counts once, and of two zones that share a side exactly one takes a point on it.
    """
    x, y = point
    inside = False
    x1, y1 = polygon[-1]
    for x2, y2 in polygon:
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            inside = not inside
        x1, y1 = x2, y2
    return inside


def crossing(start: Point, end: Point, before: Point, after: Point) -> Direction | None:
    """In which direction the way from `before` to `after` crosses the line; None where it does not.

    From the left of the line to its right, as seen from its start towards its end, is "in".
    """
    was, now = side_of(start, end, before), side_of(start, end, after)
    if (was < 0) == (now < 0) or (side_of(before, after, start) < 0) == (side_of(before, after, end) < 0):
        return None
    return "in" if was < 0 else "out"


def distance(start: Point, end: Point, point: Point) -> float:
    """The distance from a point to the nearest point of a segment."""
    return _nearest([_side(start, end)], point)


def _side(start: Point, end: Point) -> _Side:
    dx, dy = end[0] - start[0], end[1] - start[1]
    square = dx * dx + dy * dy
    return *start, dx, dy, 1 / square if square else 0.0  # no size is known yet


def _nearest(sides: Sequence[_Side], point: Point) -> float:
    """The distance from a point to the nearest of some segments; infinite without any.

    All in one loop: most of the time that zones take is spent here.
    """
    x, y = point
    least = math.inf
    for x1, y1, dx, dy, by_square in sides:
        to_x, to_y = x - x1, y - y1
        along = (to_x * dx + to_y * dy) * by_square
        if along >= 1.0:
            to_x, to_y = to_x - dx, to_y - dy
        elif along > 0.0:
            to_x, to_y = to_x - along * dx, to_y - along * dy
        square = to_x * to_x + to_y * to_y
        if square < least:  # noqa: PLR1730 - a call of min would cost a quarter of the loop
            least = square
    return math.sqrt(least)


def touches(polygon: Sequence[Point], box: Box) -> bool:
    """Whether a box and a polygon have a point in common."""
    x1, y1, x2, y2 = box
    if contains(polygon, ((x1 + x2) / 2, (y1 + y2) / 2)) or contains(polygon, (x1, y1)):
        return True
    start = polygon[-1]
    for end in polygon:
        if _passes(start, end, box):
            return True
        start = end
    return False


def _passes(start: Point, end: Point, box: Box) -> bool:
    """Whether a segment has a point in a box: the part of it that is between left and right, above and below."""
    first, last = 0.0, 1.0
    for axis in (0, 1):
        at, way, low, high = start[axis], end[axis] - start[axis], box[axis], box[axis + 2]
        if way == 0:
            if not low <= at <= high:
                return False
            continue
        enters, leaves = sorted(((low - at) / way, (high - at) / way))
        first, last = max(first, enters), min(last, leaves)
    return first <= last


_Part = TypeVar("_Part", _Area, _Line)


def _kept(before: _Part | None, config: ZoneConfig | MaskConfig | LineConfig) -> _Part | None:
    """A shape of another configuration that is the same in this one."""
    return before if before is not None and before.config == config else None


def _durations(zone: ZoneConfig) -> tuple[tuple[float, Literal["dwell", "loiter"]], ...]:
    durations: list[tuple[float, Literal["dwell", "loiter"]]] = [(seconds, "dwell") for seconds in zone.dwell_seconds]
    if zone.loiter_seconds is not None:
        durations.append((zone.loiter_seconds, "loiter"))
    return tuple(sorted(durations))


def _pixels(point: Point, size: Size) -> Point:
    return point[0] * size[0], point[1] * size[1]


def _lies_on_the_edge(start: Point, end: Point) -> bool:
    """Whether a side lies on the edge of the picture, or so close that it was meant to."""
    return any(max(start[axis], end[axis]) <= _EDGE or min(start[axis], end[axis]) >= 1 - _EDGE for axis in (0, 1))


def _geometry(config: StreamConfig) -> Geometry | None:
    zones, masks = (
        tuple(Shape(shape.name, shape.polygon) for shape in shapes) for shapes in (config.zones, config.masks)
    )
    lines = tuple(Shape(line.name, line.points) for line in config.lines)
    return Geometry(zones, lines, masks) if zones or lines or masks else None
