# ruff: noqa: INP001, S311, T201 - a program, not a module; its random numbers are to be the same each time
"""Measures what tiles find in frames of 4K, and what they cost.

    PYTHONPATH=. .venv/bin/python benchmarks/tiles.py --data val.json --images pictures [--json]

Labelled pictures are made smaller and put side by side, 60 of them into each frame of 3840x2160, so that every person
in it is known. Each person is found if a detection overlaps it by half (intersection over union), and each is found at
most once: another detection of the same person is a double. All ways of looking see the same frames, one after the
other, so that whatever else runs on the machine slows down all of them.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from streamdet.analytics.tracker import overlap_of
from streamdet.config import DetectorConfig
from streamdet.config.stream import TILES
from streamdet.detector.pipeline import ArrayPicture, load_detector
from streamdet.detector.stages.tiles import detect_with_tiles
from streamdet.types import Box, Detection, DetectionSettings

WIDTH, HEIGHT = 3840, 2160
COLUMNS, ROWS = 10, 6
PERSON = 1
SCALES = (0.4, 0.6, 0.8, 1.0)
FOUND = 0.5
BLUR = 20
# Least height of a person in pixels of 4K.
BINS = {"under 32": 0, "32 to 64": 32, "64 to 128": 64, "128 and more": 128}

Rgb = NDArray[np.uint8]


@dataclass
class Scene:
    """A frame, the people in it, and the places where there may be more than is labelled."""

    pixels: Rgb
    people: list[Box] = field(default_factory=list)
    crowds: list[Box] = field(default_factory=list)


@dataclass
class Tally:
    """What one way of looking has found."""

    found: Counter[str] = field(default_factory=Counter)
    doubles: int = 0
    false: int = 0
    lost: int = 0
    seconds: list[float] = field(default_factory=list)


def scenes_of(data: Path, images: Path, frames: int | None) -> Iterator[Scene]:
    """Frames of 4K that are made of labelled pictures, each of which is in one of them."""
    known = json.loads(data.read_text())
    dice = random.Random(7)
    labels: dict[int, list[dict[str, Any]]] = {}
    for one in known["annotations"]:
        labels.setdefault(one["image_id"], []).append(one)
    pictures = [one for one in known["images"] if PERSON in one["labelled"]]
    dice.shuffle(pictures)
    cells = COLUMNS * ROWS
    for number in range(min(len(pictures) // cells, frames or len(pictures))):
        scene = Scene(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        for cell, picture in enumerate(pictures[number * cells : (number + 1) * cells]):
            pixels = np.asarray(cv2.imread(str(images / picture["file_name"]), cv2.IMREAD_COLOR_RGB), np.uint8)
            scale = dice.choice(SCALES)
            small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            height, width = small.shape[:2]
            row, column = cell // COLUMNS * (HEIGHT // ROWS), cell % COLUMNS * (WIDTH // COLUMNS)
            x = column + dice.randint(0, WIDTH // COLUMNS - width)
            y = row + dice.randint(0, HEIGHT // ROWS - height)
            # Around it, its own colours: a bright picture on grey looks like an object itself.
            around = cv2.GaussianBlur(cv2.resize(pixels, (WIDTH // COLUMNS, HEIGHT // ROWS)), (0, 0), BLUR)
            scene.pixels[row : row + HEIGHT // ROWS, column : column + WIDTH // COLUMNS] = around
            scene.pixels[y : y + height, x : x + width] = small
            for one in labels.get(picture["id"], ()):
                left, top, across, down = (side * scale for side in one["bbox"])
                box = (x + left, y + top, x + left + across, y + top + down)
                if one["iscrowd"]:
                    scene.crowds.append(box)
                elif one["category_id"] == PERSON:
                    scene.people.append(box)
        yield scene


def bin_of(box: Box) -> str:
    """The bin of a person."""
    return [name for name, least in BINS.items() if box[3] - box[1] >= least][-1]


def judge(tally: Tally, scene: Scene, detections: list[Detection], whole: list[Detection]) -> None:
    """Counts what was found in a frame.

    Args:
        tally: takes the counts.
        scene: what there is.
        detections: what was found.
        whole: what the whole frame alone shows.
    """
    tally.lost += sum(one not in detections for one in whole)
    left = list(scene.people)
    for one in detections:
        best = max(left, key=lambda box: overlap_of(one.box, box), default=None)
        if best is not None and overlap_of(one.box, best) >= FOUND:
            left.remove(best)
            tally.found[bin_of(best)] += 1
        elif any(overlap_of(one.box, box) >= FOUND for box in scene.people):
            tally.doubles += 1
        elif not any(_within(one.box, crowd) for crowd in scene.crowds):
            tally.false += 1


def _within(box: Box, crowd: Box) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return crowd[0] <= x <= crowd[2] and crowd[1] <= y <= crowd[3]


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labels in the format of COCO")
    parser.add_argument("--images", type=Path, required=True, help="the folder of the pictures")
    parser.add_argument("--frames", type=int, help="frames at most; all that the pictures yield unless given")
    parser.add_argument("--threshold", type=float, default=0.5, help="score_threshold")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()

    config = DetectorConfig.model_validate(
        {"engine": wanted.engine, "precision": wanted.precision, "score_threshold": wanted.threshold}
    )
    detector = load_detector(config, threads=1)
    detector.warm_up()
    tallies = {name: Tally() for name in TILES}
    people: Counter[str] = Counter()
    for scene in scenes_of(wanted.data, wanted.images, wanted.frames):
        people.update(map(bin_of, scene.people))
        whole: list[Detection] = []
        for name, tiles in TILES.items():
            settings = DetectionSettings(("person",), wanted.threshold, max_detections=1000, tiles=tiles)
            began = time.perf_counter()
            (found,) = detect_with_tiles(detector, [ArrayPicture(scene.pixels)], [settings], config.largest_batch)
            tallies[name].seconds.append(time.perf_counter() - began)
            whole = whole or found
            judge(tallies[name], scene, found, whole)

    rows: list[dict[str, Any]] = [
        {
            "tiles": name,
            "found": {size: tally.found[size] / people[size] for size in BINS if people[size]},
            "all": tally.found.total() / people.total(),
            "precision": tally.found.total() / max(tally.found.total() + tally.false + tally.doubles, 1),
            "doubles": tally.doubles,
            "lost": tally.lost,
            "seconds": statistics.median(tally.seconds),
            "times": statistics.median(
                one / other for one, other in zip(tally.seconds, tallies["off"].seconds, strict=True)
            ),
        }
        for name, tally in tallies.items()
    ]
    if wanted.json:
        print(json.dumps({"people": people, "rows": rows}, indent=2))
        return
    table = Table("tiles", *(f"{name} px ({people[name]})" for name in BINS), "all", "precision", "doubles", "lost",
                  "ms", "times")  # fmt: skip
    for row in rows:
        table.add_row(
            row["tiles"], *(f"{100 * row['found'].get(name, 0):.0f} %" for name in BINS), f"{100 * row['all']:.0f} %",
            f"{100 * row['precision']:.0f} %", str(row["doubles"]), str(row["lost"]), f"{1000 * row['seconds']:.0f}",
            f"{row['times']:.1f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
