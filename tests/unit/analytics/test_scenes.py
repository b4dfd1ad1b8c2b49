"""Walks through zones and over lines whose truth is known, as detections that jitter, are missing, or come late.

Each walker goes from place to place and stays there for a while. What is true is computed from the walks alone, in
steps of 10 ms.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from streamdet.analytics.objects import ObjectChange
from streamdet.analytics.stream_analytics import StreamAnalytics
from streamdet.analytics.zones import contains
from streamdet.config import StreamConfig
from streamdet.types import Detection, EndReason, FrameInfo, Point

SIZE, SMALL = (1280, 720), (640, 360)
DOOR = ((0.35, 0.3), (0.65, 0.35), (0.62, 0.85), (0.38, 0.8))
GATE = ((0.2, 0.0), (0.2, 1.0))
DWELLS = (2.0, 5.0)
TICK = 0.01
SPEED_UP_SECONDS = 0.6


def eased(part: float, slow: float) -> float:
    """The part of the way after this part of the time; speed rises at the beginning and falls at the end."""
    slow = min(slow, 0.5)
    if part < slow:
        return part * part / (2 * slow * (1 - slow))
    if part > 1 - slow:
        return 1 - (1 - part) ** 2 / (2 * slow * (1 - slow))
    return (part - slow / 2) / (1 - slow)


@dataclass(frozen=True)
class Walker:
    """Is at each place at its time, and goes straight between: x and y as parts, then seconds.

    The lower in the picture, the nearer and the larger.
    """

    places: tuple[tuple[float, float, float], ...]
    height: float = 0.3

    @property
    def begins(self) -> float:
        return self.places[0][2]

    @property
    def ends(self) -> float:
        return self.places[-1][2]

    def at(self, seconds: float) -> Point:
        for (x1, y1, t1), (x2, y2, t2) in itertools.pairwise(self.places):
            if t1 <= seconds <= t2:
                part = (seconds - t1) / (t2 - t1)
                part = eased(part, SPEED_UP_SECONDS / (t2 - t1))
                return x1 + part * (x2 - x1), y1 + part * (y2 - y1)
        raise AssertionError(seconds)

    def crossings(self) -> list[str]:
        """The directions in which it goes over the gate, from the top of the picture to its bottom."""
        ticks = range(int((self.ends - self.begins) / TICK))
        sides = [self.at(self.begins + TICK * number)[0] < GATE[0][0] for number in ticks]
        return ["in" if after else "out" for before, after in itertools.pairwise(sides) if before != after]

    def visits(self) -> list[tuple[float, float]]:
        """When it enters and leaves the door."""
        ticks = [self.begins + TICK * number for number in range(int((self.ends - self.begins) / TICK))]
        found = []
        for inside, group in itertools.groupby(ticks, lambda seconds: contains(DOOR, self.at(seconds))):
            times = list(group)
            if inside:
                found.append((times[0], times[-1]))
        return found


@dataclass(frozen=True)
class Camera:
    """How well the walkers are seen.

    Attributes:
        fps: frames per second, one after the other for 3 s each.
        dropped: part of the frames.
        jitter: standard deviation of each side of a box, in parts of its height.
        flips: part of the detections with another label.
        hidden: from when to when nothing is found.
        has_pts: whether frames have a presentation time.
        blind: from when to when there are no frames.
        jumps: at these seconds the presentation time jumps by these seconds.
        shrinks: whether the picture is smaller for 4 s, again and again.
    """

    fps: tuple[float, ...] = (10,)
    dropped: float = 0.0
    jitter: float = 0.015
    flips: float = 0.0
    hidden: tuple[tuple[float, float], ...] = ()
    has_pts: bool = True
    blind: tuple[tuple[float, float], ...] = ()
    jumps: tuple[tuple[float, float], ...] = ()
    shrinks: bool = False
    seed: int = 0


@dataclass
class Film:
    """What is published of a scene, for each change its second; and of all frames that show something."""

    changes: list[tuple[float, ObjectChange]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def by_object(self) -> dict[str, list[tuple[float, ObjectChange]]]:
        found: dict[str, list[tuple[float, ObjectChange]]] = {}
        for second, change in self.changes:
            found.setdefault(change.object.object_id, []).append((second, change))
        return found


def times_of(camera: Camera, until: float, dice: random.Random) -> Iterator[float]:
    now = 0.0
    while now < until:
        is_blind = any(begins <= now < ends for begins, ends in camera.blind)
        if dice.random() >= camera.dropped and not is_blind:
            yield now
        now += 1 / camera.fps[int(now / 3) % len(camera.fps)]


def detection_of(walker: Walker, now: float, camera: Camera, dice: random.Random, frame: FrameInfo) -> Detection:
    x, y = walker.at(now)
    tall = walker.height * y * frame.height
    x1, x2 = x * frame.width - tall / 5, x * frame.width + tall / 5
    y1, y2 = y * frame.height - tall, y * frame.height
    x1, y1, x2, y2 = (side + dice.gauss(0, camera.jitter * tall) for side in (x1, y1, x2, y2))
    label = "dog" if dice.random() < camera.flips else "person"
    box = max(x1, 0.0), max(y1, 0.0), min(x2, float(frame.width)), min(y2, float(frame.height))
    return Detection(label, dice.uniform(0.61, 0.97), box)


def film(walkers: Sequence[Walker], camera: Camera) -> Film:
    dice, numbers = random.Random(camera.seed), itertools.count(1)  # noqa: S311 - the same each time
    zone = {"name": "door", "polygon": DOOR, "dwell_seconds": DWELLS, "labels": ["person"]}
    shapes = {"zones": [zone], "lines": [{"name": "gate", "points": GATE, "labels": ["person"]}]}
    config = StreamConfig.model_validate({"name": "a", "url": "rtsp://192.0.2.5/x", **shapes})
    analytics = StreamAnalytics(config, itertools.count(1), lambda: f"e-{next(numbers)}", str)
    film, until = Film(), max(walker.ends for walker in walkers) + 4
    for seq, now in enumerate(times_of(camera, until, dice), 1):
        pts = now + sum(by for at, by in camera.jumps if now >= at)
        small = camera.shrinks and now % 8 > 4
        frame = FrameInfo(seq, pts if camera.has_pts else None, 5000 + now, "daemon", *(SMALL if small else SIZE))
        is_hidden = any(begins <= now < ends for begins, ends in camera.hidden)
        film.times += [] if is_hidden else [now]
        seen = [walker for walker in walkers if walker.begins <= now <= walker.ends and not is_hidden]
        found = [detection_of(walker, now, camera, dice, frame) for walker in seen]
        dice.shuffle(found)
        # Frames come a little late, some more than others.
        film.changes += [(now, one) for one in analytics.see(found, frame, 100 + now + dice.uniform(0, 0.05)).objects]
    film.changes += [(until, one) for one in analytics.end(EndReason.STOPPING).objects]
    return film


def crowd(seed: int, fastest: float = 0.11) -> list[Walker]:
    """Three walkers, one behind the other, who pass each other on their ways through the door and back or on."""
    dice = random.Random(seed)  # noqa: S311 - the same each time
    walkers = []
    for lane in (0.5, 0.62, 0.74):
        speed, now, x = dice.uniform(0.04, fastest), dice.uniform(0, 3), 0.08
        places = [(x, lane, now)]
        for _ in range(dice.choice([1, 1, 2])):
            for to, stay in (
                (0.5 + dice.uniform(-0.04, 0.04), dice.choice([0.5, 1.2, 3, 6.5])),
                (dice.choice([0.1, 0.9]), dice.uniform(0.2, 2)),
            ):
                now += abs(to - x) / speed
                places += [(to, lane, now), (to, lane, now + stay)]
                now, x = now + stay, to
        walkers.append(Walker(tuple(places)))
    return walkers


def assert_true(walkers: Sequence[Walker], film: Film) -> None:
    """Every walker is one object, every visit and crossing is there once, and durations are right within 0.5 s."""
    objects = film.by_object()
    assert len(objects) == len(walkers)
    for walker in walkers:
        (changes,) = (
            changes
            for changes in objects.values()
            if changes[0][1].object.path[0][1] == pytest.approx(walker.places[0][1], abs=0.05)
        )
        assert [change.phase for _, change in changes].count("begin") == 1
        assert changes[-1][1].phase == "end"
        last = changes[-1][1].object
        assert last.label == "person"
        assert last.seconds == pytest.approx(walker.ends - walker.begins, abs=1.0)
        assert [one.direction for _, change in changes for one in change.crossings] == walker.crossings()
        zone_changes = [(second, one) for second, change in changes for one in change.changes]
        visits = walker.visits()
        came_and_went = [one.change for _, one in zone_changes if one.change in ("enter", "leave")]
        assert came_and_went == ["enter", "leave"] * len(visits)
        lasted = [one.seconds for _, one in zone_changes if one.change == "leave"]
        assert lasted == pytest.approx([left - entered for entered, left in visits], abs=0.5)
        (visit,) = last.zones
        assert visit.seconds == pytest.approx(sum(lasted))
        assert_dwells(visits, [(second, one.seconds) for second, one in zone_changes if one.change == "dwell"], film)


def assert_dwells(visits: list[tuple[float, float]], dwells: list[tuple[float, float]], film: Film) -> None:
    """Each duration that a visit reaches is published within half a second, or by the next frame that shows anything.

    An object that is hidden may have left.
    """
    for duration in DWELLS:
        at = [second for second, reached in dwells if reached == duration]
        reached = [entered + duration for entered, left in visits if left - entered >= duration + 0.5]
        perhaps = [entered + duration for entered, left in visits if left - entered >= duration - 0.5]
        assert len(reached) <= len(at) <= len(perhaps)
        for due in reached:
            early, late = due - 0.5, next(second for second in film.times if second >= due + 0.25) + 0.25
            assert sum(early <= second <= late for second in at) == 1


CAMERAS = {
    "all frames": Camera(),
    "half of the frames": Camera(dropped=0.5, fps=(15,)),
    "4 of 10 frames": Camera(dropped=0.6, fps=(25,)),
    "7 of 10 frames": Camera(dropped=0.3),
    "rates that change": Camera(fps=(30, 3, 10, 5)),
    "5 frames a second": Camera(fps=(5,)),
    "no presentation times": Camera(has_pts=False),
    "a bad detector": Camera(jitter=0.04, flips=0.2),
    "a clock that jumps": Camera(jumps=((5, 4.0), (9, -100.0), (14, 3.0), (18, 1000.0))),
    "pictures of two sizes": Camera(shrinks=True),
}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", CAMERAS)
def test_every_occurrence_is_published_once(name: str, seed: int) -> None:
    walkers = crowd(seed)
    assert_true(walkers, film(walkers, replace(CAMERAS[name], seed=seed)))


@pytest.mark.parametrize("seed", range(8))
def test_two_frames_a_second_are_enough_for_slow_walkers(seed: int) -> None:
    walkers = crowd(seed, fastest=0.06)
    assert_true(walkers, film(walkers, Camera(fps=(2,), seed=seed)))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shown", [True, False])
def test_who_is_hidden_on_the_way_or_in_the_zone_is_the_same(seed: int, shown: bool) -> None:
    """Nothing is seen for 1.5 s at a time, also when the walker stops; with empty frames or none."""
    way = 0.42 / 0.07
    walker = Walker(((0.08, 0.6, 1.0), (0.5, 0.6, 1 + way), (0.5, 0.6, 11 + way), (0.9, 0.6, 11 + way + 0.4 / 0.07)))
    hidden = ((4.0, 5.5), (6.3, 7.8), (9.0, 10.5), (13.0, 14.5), (11 + way + 1.5, 11 + way + 3.0))
    camera = Camera(hidden=hidden if shown else (), blind=() if shown else hidden, seed=seed)
    assert_true([walker], film([walker], camera))
