# ruff: noqa: INP001, S311 - a program, not a module; its random numbers are to be the same each time
"""Compares the tracker with ByteTrack of the library `trackers`, on the same detections.

    PYTHONPATH=. uv run --no-project --with motmetrics==1.4.0 --with trackers==2.6.1 --with rich benchmarks/tracking.py

Sequences: TUD-Campus and TUD-Stadtmitte, whose ground truth is part of `motmetrics`, and synthetic scenes of walkers
that hide each other. Detections are made from the ground truth, with the faults of a detector: boxes are off by a
few percent, some are missing, hidden objects have low scores or none, and some boxes show nothing. The real detections
of both sequences that `motmetrics` contains are a case of their own. Every case runs at the full rate, with half and
with four fifths of the frames dropped at random. HOTA, IDF1, MOTA and the changes of id are computed by `trackers` over
the frames that were kept, in percent.

Both trackers get the time of each frame, give up an object after 2 s, begin tracks at a score of 0.6, and report a
track from its second detection on. ByteTrack runs with its default settings as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import motmetrics
import numpy as np
import supervision
from rich.console import Console
from rich.progress import track as progress_of
from rich.table import Table
from trackers import ByteTrackTracker
from trackers.eval import evaluate_mot_sequence

from streamdet.analytics.tracker import Tracker
from streamdet.types import Box, Detection

FPS = 25.0
LOST_SECONDS = 2.0
START_SCORE = 0.6
METRICS = ("HOTA", "IDF1", "MOTA", "IDSW")
# Parts of the frames that are dropped.
DROPPED = (0.0, 0.5, 0.8)

Truth = dict[int, dict[int, Box]]
"""By frame and id."""
Found = dict[int, list[Detection]]


@dataclass(frozen=True)
class Case:
    """One sequence, and what a detector finds in it."""

    name: str
    truth: Truth
    found: Found
    size: tuple[int, int]


def real_sequences(seeds: Sequence[int]) -> Iterator[Case]:
    """The sequences of motmetrics: with detections made from the truth, and with those that come with them."""
    for name in ("TUD-Campus", "TUD-Stadtmitte"):
        folder = Path(motmetrics.__file__).parent / "data" / name
        truth = _read(folder / "gt.txt")
        size = (640, 480)
        found = {
            frame: [Detection("person", 0.9, box) for box in boxes.values()]
            for frame, boxes in _read(folder / "test.txt").items()
        }
        for seed in seeds:
            yield Case(f"{name}, detections from the truth", truth, detect(truth, size, random.Random(seed)), size)
            yield Case(f"{name}, its own detections", truth, found, size)


def synthetic(seed: int, walkers: int = 12, seconds: float = 30.0) -> Case:
    """People who walk, stop and turn in a picture of 1280x720, larger the lower they stand."""
    rng = random.Random(seed)
    size = width, height = 1280, 720
    truth: Truth = defaultdict(dict)
    for number in range(1, walkers + 1):
        x, foot = rng.uniform(0, width), rng.uniform(0.35, 1.0) * height
        speed, heading = rng.uniform(0.3, 1.2), rng.uniform(0, math.tau)
        begin = rng.randrange(int(seconds * FPS / 3))
        end = rng.randrange(int(seconds * FPS * 2 / 3), int(seconds * FPS))
        for frame in range(begin, end):
            if rng.random() < 1 / (4 * FPS):
                heading, speed = heading + rng.uniform(-1.5, 1.5), rng.choice((0.0, rng.uniform(0.3, 1.2)))
            tall = 0.45 * foot
            x += math.cos(heading) * speed * tall / FPS
            foot += math.sin(heading) * speed * tall / FPS / 3
            if not (0 < x < width and 0.3 * height < foot < height):
                heading += math.pi
                x, foot = min(max(x, 1), width - 1), min(max(foot, 0.3 * height + 1), height - 1)
            box = (max(x - tall / 5, 0.0), foot - tall, min(x + tall / 5, float(width)), foot)
            truth[frame + 1][number] = box
    return Case("synthetic", truth, detect(truth, size, rng), size)


def detect(truth: Truth, size: tuple[int, int], rng: random.Random) -> Found:
    """What a detector with faults finds."""
    found: Found = {}
    for frame, boxes in truth.items():
        seen = []
        for number, box in boxes.items():
            hidden = max((_hidden(box, other) for one, other in boxes.items() if one != number), default=0.0)
            score = min(rng.gauss(0.85, 0.08) - 0.6 * max(hidden - 0.2, 0.0), 0.99)
            if score < 0.3 or rng.random() < 0.08:
                continue
            x1, y1, x2, y2 = box
            dx, dy = 0.05 * (x2 - x1), 0.03 * (y2 - y1)
            noise = (rng.gauss(0, dx), rng.gauss(0, dy), rng.gauss(0, dx), rng.gauss(0, dy))
            x1, y1, x2, y2 = (side + error for side, error in zip(box, noise, strict=True))
            seen.append(Detection("person", score, (max(x1, 0), max(y1, 0), min(x2, size[0]), min(y2, size[1]))))
        if rng.random() < 0.1:
            x, y, tall = rng.uniform(0, size[0] * 0.9), rng.uniform(0, size[1] * 0.6), size[1] * rng.uniform(0.1, 0.4)
            seen.append(Detection("person", rng.uniform(0.3, 0.8), (x, y, x + tall / 2.5, y + tall)))
        found[frame] = [box for box in seen if box.box[0] < box.box[2] and box.box[1] < box.box[3]]
    return found


Ids = Iterator[tuple[int, list[tuple[int, Box]]]]


def ours(case: Case, frames: Sequence[int]) -> Ids:
    """Track ids of streamdet, from the second detection of a track on."""
    tracker = Tracker(itertools.count(1), LOST_SECONDS, START_SCORE)
    seen: Counter[int] = Counter()
    for frame in frames:
        kept = []
        for given in tracker.update(case.found.get(frame, []), frame / FPS, case.size):
            if given.track_id is not None:
                seen[given.track_id] += 1
                if seen[given.track_id] > 1:
                    kept.append((given.track_id, given.box))
        yield frame, kept


def bytetrack(case: Case, frames: Sequence[int]) -> Ids:
    """Track ids of ByteTrack with the same settings."""
    return _bytetrack(
        ByteTrackTracker(
            lost_track_buffer=int(LOST_SECONDS * 30), frame_rate=FPS, track_activation_threshold=START_SCORE
        ),
        case,
        frames,
    )


def bytetrack_default(case: Case, frames: Sequence[int]) -> Ids:
    """Track ids of ByteTrack with its default settings."""
    return _bytetrack(ByteTrackTracker(frame_rate=FPS), case, frames)


def _bytetrack(tracker: ByteTrackTracker, case: Case, frames: Sequence[int]) -> Ids:
    for frame in frames:
        found = case.found.get(frame, [])
        boxes = np.array([one.box for one in found], dtype=float).reshape(-1, 4)
        scores = np.array([one.score for one in found], dtype=float)
        given = tracker.update(supervision.Detections(xyxy=boxes, confidence=scores), timestamp=frame / FPS)
        ids = [] if given.tracker_id is None else given.tracker_id
        yield (
            frame,
            [(int(number), tuple(map(float, box))) for number, box in zip(ids, given.xyxy, strict=True) if number >= 0],
        )


TRACKERS: dict[str, Callable[[Case, Sequence[int]], Ids]] = {
    "streamdet": ours,
    "ByteTrack": bytetrack,
    "ByteTrack, defaults": bytetrack_default,
}


def kept_frames(case: Case, dropped: float, seed: int) -> list[int]:
    """The frames that are not dropped."""
    rng = random.Random(seed)
    return [frame for frame in range(min(case.truth), max(case.truth) + 1) if rng.random() >= dropped]


def evaluate(case: Case, frames: Sequence[int], tracked: Ids) -> dict[str, float]:
    """The metrics of one run, in percent; IDSW is a number."""
    number_of = {frame: number for number, frame in enumerate(frames, 1)}
    with tempfile.TemporaryDirectory() as folder:
        truth, result = Path(folder) / "gt.txt", Path(folder) / "result.txt"
        _write(truth, ((number_of[frame], case.truth.get(frame, {}).items()) for frame in frames))
        _write(result, ((number_of[frame], boxes) for frame, boxes in tracked))
        found = evaluate_mot_sequence(truth, result, ["CLEAR", "HOTA", "Identity"])
    if found.HOTA is None or found.Identity is None or found.CLEAR is None:
        sys.exit("trackers computed no metrics")
    return {
        "HOTA": 100 * found.HOTA.HOTA,
        "IDF1": 100 * found.Identity.IDF1,
        "MOTA": 100 * found.CLEAR.MOTA,
        "IDSW": found.CLEAR.IDSW,
    }


def main() -> None:
    """Runs every case and prints the table."""
    parser = argparse.ArgumentParser(description="Compare the tracker with ByteTrack.")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each case with other random numbers")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    seeds = range(args.seeds)
    cases = [*real_sequences(seeds), *(synthetic(seed) for seed in seeds)]
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    steps = [(case, dropped) for case in cases for dropped in DROPPED]
    for number, (case, dropped) in enumerate(progress_of(steps, console=Console(stderr=True), transient=True)):
        frames = kept_frames(case, dropped, number)
        row = results.setdefault(f"{case.name}, {dropped:.0%} dropped", {})
        for name, tracker in TRACKERS.items():
            values = row.setdefault(name, defaultdict(list))
            for metric, value in evaluate(case, frames, tracker(case, frames)).items():
                values[metric].append(value)
    means = {
        row: {
            name: {metric: round(statistics.mean(values[metric]), 1) for metric in METRICS}
            for name, values in of.items()
        }
        for row, of in results.items()
    }
    if args.json:
        print(json.dumps(means, indent=1))  # noqa: T201 - it is the output
        return
    table = Table("case", *(f"{name}\n{' / '.join(METRICS)}" for name in TRACKERS))
    for row, of in means.items():
        table.add_row(row, *(" / ".join(f"{of[name][metric]:g}" for metric in METRICS) for name in TRACKERS))
    Console(width=150).print(table)


def _means(values: dict[str, list[float]]) -> dict[str, float]:
    return {metric: round(statistics.mean(values[metric]), 1) for metric in METRICS}


def _read(path: Path) -> Truth:
    boxes: Truth = defaultdict(dict)
    for line in path.read_text().splitlines():
        frame, number, x, y, width, height = (float(field) for field in line.split(",")[:6])
        boxes[int(frame)][int(number)] = (x, y, x + width, y + height)
    return boxes


def _write(path: Path, rows: Iterator[tuple[int, object]]) -> None:
    lines = []
    for frame, boxes in rows:
        for number, (x1, y1, x2, y2) in boxes:  # type: ignore[attr-defined] # pairs of an id and a box
            lines.append(f"{frame},{number},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},1,1,1")
    path.write_text("\n".join(lines) + "\n")


def _hidden(box: Box, other: Box) -> float:
    """The part of a box that another one covers, which stands nearer."""
    if other[3] <= box[3]:
        return 0.0
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0) * max(height, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


if __name__ == "__main__":
    main()
