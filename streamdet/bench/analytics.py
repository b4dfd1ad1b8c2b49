"""What the publisher's thread computes: the cost of tracking, zones, objects, rules and events, without a detector."""

from __future__ import annotations

import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from streamdet.analytics.stream_analytics import StreamAnalytics
from streamdet.analytics.tracker import Tracker
from streamdet.config import RuleConfig, StreamConfig
from streamdet.config.rules import rules_of
from streamdet.delivery.events import EventWriter, FrameResult
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Detection, FrameInfo

STREAMS, FPS, OBJECTS, RULES = 30, 25, 20, 20

_WIDTH, _HEIGHT = 1920, 1080
_WARM_UP_SECONDS = 3
_TURN = 5  # frames of each stream, by one step after the other
_FOUND_SHARE = 0.95
_CYCLES_PER_SECOND = 0.01, 0.06  # at most 350 pixels a second: of someone 1.7 m tall and 165 pixels high, 3.6 m/s
_JITTER_PIXELS = 2.0
_ZONES = [
    {
        "name": f"zone-{number}",
        "polygon": [[x, 0.3], [x + 0.3, 0.3], [x + 0.35, 0.9], [x + 0.1, 1.0], [x - 0.05, 0.8]],
        "labels": ["person"],
        "dwell_seconds": [1, 10],
        "loiter_seconds": 5,
    }
    for number, x in enumerate((0.05, 0.25, 0.45, 0.6))
]
_LINES = [{"name": f"line-{number}", "points": [[x, 0.0], [x, 1.0]]} for number, x in enumerate((0.35, 0.65))]
_CONDITIONS: Sequence[dict[str, Any]] = (
    {"zone": "zone-0"},
    {"zone": "zone-1", "for_seconds": 2},
    {"zone": "zone-2", "at_least": 3, "for_seconds": 1},
    {"zone": "zone-3", "none_for_seconds": 2, "between": ["22:00", "06:00"]},
    {"line": "line-0"},
    {"line": "line-1", "direction": "in", "cooldown_seconds": 1},
    {"for_seconds": 3, "days": ["sat", "sun"]},
)


def measure_analytics(seconds: float) -> dict[str, Any]:
    """Measures CPU time, each step on the same detections as the one before it.

    Args:
        seconds: of video; some is played before, until objects are confirmed and zones have been entered.

    Returns:
        what was measured, and in `core_share` the CPU seconds per second of video of each step; "events" contains
        numbering and encoding.
    """
    measured = _TURN * max(math.ceil(seconds * FPS / _TURN), 1)
    frames = _WARM_UP_SECONDS * FPS + measured
    scenes = [list(itertools.islice(_scene(stream), frames)) for stream in range(STREAMS)]
    played = [(stream, *scenes[stream][number]) for number in range(frames) for stream in range(STREAMS)]
    steps = {
        "tracking": _tracking(),
        "zones_and_objects": _analytics(0),
        "rules": _analytics(RULES),
        "events": _events(),
    }
    shares, before = {}, 0.0
    for name, seconds_taken in _cpu_seconds(steps, played, measured * STREAMS).items():
        share = seconds_taken * FPS / measured
        shares[name], before = round(max(share - before, 0.0), 4), max(share, before)
    return {
        "streams": STREAMS, "fps": FPS, "objects": OBJECTS, "zones": len(_ZONES), "lines": len(_LINES), "rules": RULES,
        "core_share": shares, "total_core_share": round(before, 4),
    }  # fmt: skip


_Frame = tuple[int, list[Detection], FrameInfo]
_See = Callable[[int, list[Detection], FrameInfo], object]


def _cpu_seconds(steps: Mapping[str, _See], played: Sequence[_Frame], measured: int) -> dict[str, float]:
    """Of each step for the last frames, in turns, so that a slowdown of the machine affects all of them."""
    taken = dict.fromkeys(steps, 0.0)
    gc.collect()
    gc.freeze()  # a daemon does not have all of these frames in memory, to be looked through again and again
    try:
        for begin in range(0, len(played), _TURN * STREAMS):
            turn = played[begin : begin + _TURN * STREAMS]
            for name, see in steps.items():
                began = time.thread_time()
                for frame in turn:
                    see(*frame)
                if begin >= len(played) - measured:
                    taken[name] += time.thread_time() - began
    finally:
        gc.unfreeze()
    return taken


def _scene(stream: int) -> Iterator[tuple[list[Detection], FrameInfo]]:
    """People who walk or run to and fro, each at a speed of its own; some are missed now and then."""
    chance = random.Random(stream)  # noqa: S311 - the same every time
    people = [
        (chance.random(), chance.uniform(*_CYCLES_PER_SECOND), 0.2 + 0.7 * number / OBJECTS, chance.uniform(80, 250))
        for number in range(OBJECTS)
    ]
    for number in itertools.count():
        found = []
        for phase, speed, y, height in people:
            x = _WIDTH * (0.5 + 0.48 * math.sin(2 * math.pi * (phase + speed * number / FPS)))
            x, foot = x + chance.gauss(0, _JITTER_PIXELS), _HEIGHT * y + chance.gauss(0, _JITTER_PIXELS)
            box = (max(x - height / 5, 0.0), max(foot - height, 0.0), min(x + height / 5, _WIDTH), foot)
            if chance.random() < _FOUND_SHARE:
                found.append(Detection("person", chance.uniform(0.6, 0.99), box))
        pts_seconds = number / FPS
        yield found, FrameInfo(number + 1, pts_seconds, 1.7e9 + pts_seconds, "daemon", _WIDTH, _HEIGHT)


def _config(stream: int) -> StreamConfig:
    keys = {"name": f"camera-{stream}", "url": "rtsp://192.0.2.1/x", "zones": _ZONES, "lines": _LINES}
    return StreamConfig.model_validate(keys)


def _rules(count: int) -> tuple[RuleConfig, ...]:
    conditions = itertools.islice(itertools.cycle(_CONDITIONS), count)
    return tuple(RuleConfig.model_validate({"name": f"rule {n}", **each}) for n, each in enumerate(conditions))


def _tracking() -> _See:
    ids = itertools.count(1)
    config = _config(0)
    trackers = [Tracker(ids, config.track_max_lost_seconds, config.track_start_score) for _ in range(STREAMS)]

    def see(stream: int, detections: list[Detection], frame: FrameInfo) -> object:
        return trackers[stream].update(detections, frame.pts_seconds or 0.0, (frame.width, frame.height))

    return see


def _analytics(rules: int) -> _See:
    ids = itertools.count(1)
    all_analytics = []
    for stream in range(STREAMS):
        config = _config(stream)
        analytics = StreamAnalytics(config, ids, lambda: f"epoch-{next(ids)}", lambda: f"epoch-a{next(ids)}")
        analytics.set_rules(rules_of(config.name, _rules(rules)))
        all_analytics.append(analytics)

    def see(stream: int, detections: list[Detection], frame: FrameInfo) -> object:
        return all_analytics[stream].see(detections, frame, frame.captured_at)

    return see


def _events() -> _See:
    writer = EventWriter("epoch", 10.0, Metrics(Ledger()))
    for stream in range(STREAMS):
        writer.set_stream(_config(stream))
    list(writer.set_rules(_rules(RULES)))

    def see(stream: int, detections: list[Detection], frame: FrameInfo) -> object:
        name = f"camera-{stream}"
        return writer.detections(FrameResult(name, frame, frame.captured_at, tuple(detections), None))

    return see
