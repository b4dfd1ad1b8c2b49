# ruff: noqa: INP001, S311, S101, T201, C901, PLR0912, PLR0915 - a program, not a module; its random numbers are to be
# the same each time
"""Measures what the motion gate saves and misses.

    PYTHONPATH=. .venv/bin/python benchmarks/gate.py --cache gate-clips [--detect]

The clip runs through the gate and the analytics of the daemon, which see only what passes; what was detected for a
frame comes back to the gate some frames later, as in the daemon. An object of the full run is missed if no frame that
shows it is detected, or if it is detected and never becomes an object.

Clips: the sample clip, where people walk all the time, and three scenes that are made from it. Their background is the
median of its frames, and single walkers are cut out of it and put back at other times, with the noise of a sensor,
rain, switched lights and corrected exposure; x264 encodes them as a camera does, 1 Mbit/s with a key frame every 2 s.

- empty: eight walkers in five minutes, in a quiet scene;
- weather: the same with rain, lights that are switched, and exposure that is corrected;
- slow: small people, at a quarter of their speed, who stop for half a minute and go on; 5 frames a second.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from streamdet.analytics.stream_analytics import StreamAnalytics
from streamdet.analytics.tracker import overlap_of
from streamdet.assets import sample_clip
from streamdet.capture.gate import AUDITED_SHARE, MotionGate
from streamdet.capture.motion import Background, cells_of, grid_of
from streamdet.capture.sources.picture import AvPicture
from streamdet.config import DetectorConfig, StreamConfig
from streamdet.detector.pipeline import ArrayPicture, FasterRcnnDetector
from streamdet.detector.weights import load_weights
from streamdet.types import Box, Detection, Frame, FrameInfo, Pass

FPS = 10
# Frames between a frame and what the gate hears of it.
DELAY_FRAMES = 2
TICK_SECONDS = 0.5
SAME_PLACE = 0.5
MADE_SECONDS = 300
KEY_FRAME_SECONDS = 2
BIT_RATE = 1_000_000

_KEPT = Path(__file__).parent.parent / "tests" / "data" / "clip_detections.json"

Found = list[list[Detection]]
Picture = NDArray[np.uint8]


@dataclass
class Cutout:
    """A walker in one frame: its pixels, how much of each is the walker, and where its upper left corner is."""

    pixels: Picture
    alpha: NDArray[np.float32]
    x: float
    y: float


# ---- clips ----


def frames_of(film: Path) -> Iterator[tuple[float, av.VideoFrame]]:
    """Seconds and picture of each frame."""
    with av.open(str(film)) as container:
        rate = float(container.streams.video[0].average_rate or FPS)
        for number, frame in enumerate(container.decode(video=0)):
            assert isinstance(frame, av.VideoFrame)
            yield number / rate, frame


def found_in_sample(cache: Path, *, again: bool) -> Found:
    """What the detector finds in the sample clip: in its first 20 s, as kept for tests; or now, in all of it."""
    kept = cache / "sample.detections"
    if not again and not kept.exists():
        frames = json.loads(_KEPT.read_text())
        return [[Detection("person", score / 100, (x1, y1, x2, y2)) for x1, y1, x2, y2, score in one] for one in frames]
    if not kept.exists():
        config = DetectorConfig()
        detector = FasterRcnnDetector(load_weights(config), config)
        kept.write_bytes(
            pickle.dumps([detector.detect([ArrayPicture(_rgb(f))])[0] for _, f in frames_of(sample_clip())])
        )
    found: Found = pickle.loads(kept.read_bytes())  # noqa: S301 - written above
    return found


def walkers_of(film: Path, found: Found) -> tuple[Picture, list[list[Cutout]]]:
    """The background of a film, and the ways of walkers that no other one comes close to."""
    pictures = [_rgb(frame) for _, (_, frame) in zip(found, frames_of(film), strict=False)]
    background = np.median(pictures[::7], axis=0).astype(np.uint8)
    ways: dict[int, list[tuple[int, Cutout]]] = defaultdict(list)
    analytics = _analytics(StreamConfig(name="film", url="film.mp4"))
    for number, detections in enumerate(found):
        seen = analytics.see(detections, _info(number, pictures[number]), number / FPS)
        grown = [(_grown(one.box), one.track_id) for one in seen.detections if one.track_id is not None]
        for box, track_id in grown:
            if all(other is box or overlap_of(box, other) == 0 for other, _ in grown):
                ways[track_id].append((number, _cut(pictures[number], background, box)))
    long_ways = []
    for way in ways.values():
        # Only the longest part without a gap.
        parts: list[list[tuple[int, Cutout]]] = [[]]
        for step in way:
            if parts[-1] and step[0] - parts[-1][-1][0] > 1:
                parts.append([])
            parts[-1].append(step)
        longest = max(parts, key=len)
        if len(longest) >= 30 and abs(longest[-1][1].x - longest[0][1].x) > 40:
            long_ways.append([cutout for _, cutout in longest])
    return background, long_ways


def _rgb(frame: av.VideoFrame) -> Picture:
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def _grown(box: Box) -> Box:
    x, y = 0.25 * (box[2] - box[0]), 0.1 * (box[3] - box[1])
    return box[0] - x, box[1] - y, box[2] + x, box[3] + y


def _cut(picture: Picture, background: Picture, box: Box) -> Cutout:
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = max(0, int(box[0])), max(0, int(box[1])), min(width, int(box[2])), min(height, int(box[3]))
    pixels, behind = picture[y1:y2, x1:x2], background[y1:y2, x1:x2]
    differs = cv2.absdiff(pixels, behind).max(axis=2)
    alpha = cv2.dilate((cv2.GaussianBlur(differs, (5, 5), 0) > 14).astype(np.float32), np.ones((5, 5)))
    return Cutout(pixels.copy(), np.asarray(cv2.GaussianBlur(alpha, (5, 5), 0), np.float32), x1, y1)


def _paste(picture: Picture, cutout: Cutout, scale: float, dx: float, dy: float) -> Detection:
    """Puts a walker into a picture, made smaller and so many pixels aside; returns what is to be found."""
    height, width = picture.shape[:2]
    # Its feet stay where they were.
    old_height, old_width = cutout.alpha.shape
    x = cutout.x + dx + old_width * (1 - scale) / 2
    y = cutout.y + dy + old_height * (1 - scale)
    move = np.array([[scale, 0, x], [0, scale, y]], np.float32)
    alpha = cv2.warpAffine(cutout.alpha, move, (width, height), flags=cv2.INTER_LINEAR)[..., None]
    pixels = cv2.warpAffine(
        cutout.pixels, move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    left, top = max(0, int(x) - 2), max(0, int(y) - 2)
    right, bottom = int(x + scale * old_width) + 3, int(y + scale * old_height) + 3
    part = np.s_[top:bottom, left:right]
    picture[part] = np.round(picture[part] * (1 - alpha[part]) + pixels[part] * alpha[part])
    # The box of the detector was grown by a quarter of its width and a tenth of its height on each side.
    inner_x, inner_y = scale * old_width / 6, scale * old_height / 12
    box = x + inner_x, y + inner_y, x + scale * old_width - inner_x, y + scale * old_height - inner_y
    return Detection("person", 0.9, (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height)))


Walk = Callable[[float], tuple[Cutout, float, float, float] | None]
"""Of a walker, at a time in seconds: the cutout, its scale, and pixels aside; None while it is not there."""


def _walking(way: list[Cutout], begins: float) -> Walk:
    def at(seconds: float) -> tuple[Cutout, float, float, float] | None:
        step = round((seconds - begins) * FPS)
        return (way[step], 1.0, 0.0, 0.0) if 0 <= step < len(way) else None

    return at


def _slow(way: list[Cutout], begins: float, slowness: float, stands_seconds: float, scale: float) -> Walk:
    """Goes at a fraction of its speed; in the middle of its way it stands, shifts its weight, and goes on."""
    middle = len(way) // 2
    half_seconds = middle * slowness / FPS

    def at(seconds: float) -> tuple[Cutout, float, float, float] | None:
        passed = seconds - begins
        if passed < 0:
            return None
        if half_seconds <= passed < half_seconds + stands_seconds:
            sway = np.sin(2 * np.pi * (passed - half_seconds) / 7.0)
            return way[middle], scale, 1.2 * float(sway), 0.0
        if passed >= half_seconds:
            passed -= stands_seconds
        step = passed * FPS / slowness
        if step >= len(way) - 1:
            return None
        here, there, part = way[int(step)], way[int(step) + 1], step % 1
        middle_of = [cut.x + cut.alpha.shape[1] / 2 for cut in (here, there)]
        feet_of = [cut.y + cut.alpha.shape[0] for cut in (here, there)]
        return here, scale, part * (middle_of[1] - middle_of[0]), part * (feet_of[1] - feet_of[0])

    return at


def make_film(film: Path, background: Picture, walks: list[Walk], rate: int, *, weather: bool, seed: int) -> None:
    """Encodes a scene as a camera does."""
    chance = np.random.default_rng(seed)
    height, width = background.shape[:2]
    # Twenty pictures of noise, each shifted at random: as good as new noise, and far cheaper.
    noises = [chance.normal(0, 3.0, (height, width, 1)) + chance.normal(0, 1.5, background.shape) for _ in range(20)]
    noises = [noise.astype(np.int8) for noise in noises]
    shown: Found = []
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", BIT_RATE
        stream.codec_context.gop_size = KEY_FRAME_SECONDS * rate
        stream.options = {"preset": "veryfast", "tune": "zerolatency", "maxrate": str(BIT_RATE), "bufsize": "1000000"}
        stream.time_base = Fraction(1, rate)
        for number in range(MADE_SECONDS * rate):
            seconds = number / rate
            picture = background.copy()
            shown.append([_paste(picture, *there) for walk in walks if (there := walk(seconds)) is not None])
            if weather:
                picture = _weather(picture, seconds, chance)
            noise = np.roll(noises[int(chance.integers(len(noises)))], int(chance.integers(height)), axis=0)
            picture = np.asarray(cv2.add(picture, noise, dtype=cv2.CV_8U), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    film.with_suffix(".shown").write_bytes(pickle.dumps(shown))


def _weather(picture: Picture, seconds: float, chance: np.random.Generator) -> Picture:
    """Exposure that is corrected, a light that is switched on and off, rain, and clouds."""
    minute = seconds % 300
    if 60 <= minute < 90:
        picture = _brighter(picture, 1 - 0.2 * min(1.0, (minute - 60) / 0.5))
    if 120 <= minute < 150:
        picture = _brighter(picture, 0.55)
    if 180 <= minute < 240:
        height, width = picture.shape[:2]
        rain = np.zeros((height, width), np.uint8)
        for _ in range(150):
            x, y = chance.uniform(0, width), chance.uniform(0, height)
            length = chance.uniform(12, 40)
            cv2.line(
                rain, (int(x), int(y)), (int(x + 0.15 * length), int(y + length)), float(chance.uniform(15, 45)), 1
            )
        picture = np.asarray(cv2.add(picture, cv2.merge([rain] * 3)), np.uint8)
    return _brighter(picture, 1 + 0.05 * float(np.sin(2 * np.pi * seconds / 40)))


def _brighter(picture: Picture, gain: float) -> Picture:
    return np.asarray(cv2.convertScaleAbs(picture, alpha=gain), np.uint8)


def make_films(cache: Path, found: Found) -> list[Path]:
    """The clips, made where they are not there yet."""
    films = {name: cache / f"{name}.mp4" for name in ("empty", "weather", "slow")}
    missing = {name for name, film in films.items() if not film.with_suffix(".shown").exists()}
    if missing:
        background, ways = walkers_of(sample_clip(), found)
        print(f"{len(ways)} walkers, {sum(map(len, ways)) / FPS:.0f} s of walking")
        chance = random.Random(7)
        for name in ("empty", "weather"):
            begins = [chance.uniform(10, MADE_SECONDS - 30) for _ in range(8)]
            walks = [_walking(chance.choice(ways), at) for at in begins]
            if name in missing:
                make_film(films[name], background, walks, FPS, weather=name == "weather", seed=len(name))
        begins = [10.0 + 48 * number for number in range(6)]
        slow = [_slow(chance.choice(ways), at, 4.0, 30.0, chance.choice((0.6, 0.7, 0.8))) for at in begins]
        if "slow" in missing:
            make_film(films["slow"], background, slow, FPS // 2, weather=False, seed=3)
    return list(films.values())


# ---- runs ----


def _analytics(config: StreamConfig) -> StreamAnalytics:
    ids, alerts = count(1), count(1)
    return StreamAnalytics(config, count(1), lambda: f"o{next(ids)}", lambda: f"a{next(alerts)}")


def _info(number: int, picture: object, seconds: float | None = None) -> FrameInfo:
    height, width = picture.shape[:2]  # type: ignore[attr-defined]
    return FrameInfo(number + 1, number / FPS if seconds is None else seconds, 0.0, "daemon", width, height)


@dataclass
class Result:
    """What came of one clip."""

    name: str
    frames: int
    passed: Counter[Pass | None]
    objects: int
    undetected: int
    unbegun: int
    delays_seconds: list[float]
    instances: int
    instances_lost: int
    judge_ms: float


def run(film: Path, found: Found, max_seconds: float) -> Result:
    """Runs a clip through the gate, and compares with the objects of the run without it."""
    stream = StreamConfig(name="film", url="film.mp4", gate="motion", gate_max_seconds=max_seconds)
    gate = MotionGate(stream, AUDITED_SHARE, random.Random(1).random)
    analytics, truth = _analytics(stream), _analytics(stream)
    shown: dict[int, dict[int, Box]] = defaultdict(dict)
    objects: set[int] = set()
    began: list[tuple[int, Box]] = []
    boxes_of: dict[int, dict[int, Box]] = {}
    passed: Counter[Pass | None] = Counter()
    detected: set[int] = set()
    waiting: deque[tuple[int, object]] = deque()
    instances = lost = 0
    is_still, ticked, cpu = False, 0.0, 0.0
    rate = FPS // 2 if film.stem == "slow" else FPS
    for number, (seconds, av_frame) in enumerate(frames_of(film)):
        if number == len(found):
            break
        picture = AvPicture(av_frame)
        info = FrameInfo(number + 1, seconds, 0.0, "daemon", picture.width, picture.height)
        seen = truth.see(found[number], info, seconds)
        objects |= {change.object.track_id for change in seen.objects if change.phase == "begin"}
        for one in seen.detections:
            if one.track_id is not None:
                shown[one.track_id][number] = one.box
        while waiting and waiting[0][0] <= number:
            gate.set_scene(waiting.popleft()[1])  # type: ignore[arg-type]
        frame = Frame("film", number + 1, seconds, 0.0, "daemon", seconds, picture, begins=number == 0)
        before = time.thread_time()
        why = gate.judge(frame)
        cpu += time.thread_time() - before
        passed[why] += 1
        if why is not None:
            detected.add(number)
            result = analytics.see(found[number], info, seconds, is_still=is_still, is_audit=why is Pass.AUDIT)
            waiting.append((number + DELAY_FRAMES, analytics.scene(info)))
            is_still = False
        else:
            is_still = True
            if seconds - ticked >= TICK_SECONDS and not waiting:
                ticked = seconds
                result = analytics.stand_still(info, seconds)
        for one in result.detections if why is not None else ():
            if one.track_id is not None:
                boxes_of.setdefault(one.track_id, {})[number] = one.box
        began += [(number, change.object.box) for change in result.objects if change.phase == "begin"]
        live = [one.box for one in analytics.objects]
        for one in seen.detections:
            if one.track_id is not None:
                instances += 1
                known = why is not None or any(overlap_of(one.box, box) >= SAME_PLACE for box in live)
                lost += not known
    truths = {track_id: shown[track_id] for track_id in objects}
    undetected = [track_id for track_id, frames in truths.items() if not detected & frames.keys()]
    unbegun = 0
    delays = []
    for frames in truths.values():
        first = min(frames)
        seen_at = min(detected & frames.keys(), default=None)
        if seen_at is not None:
            delays.append((seen_at - first) / rate)
        # Some object of the run with the gate is this one.
        is_begun = any(
            number in frames and overlap_of(frames[number], box) >= SAME_PLACE
            for boxes in boxes_of.values()
            if len(boxes) > 2
            for number, box in boxes.items()
        )
        unbegun += not is_begun
    total = sum(passed.values())
    return Result(
        film.stem, total, passed, len(truths), len(undetected), unbegun, delays, instances, lost, 1e3 * cpu / total
    )


def cost_1080p(cache: Path, film: Path) -> tuple[float, float]:
    """CPU milliseconds of the gate, and of decoding, for a frame of 1080p."""
    large = cache / "large.mp4"
    if not large.exists():
        with av.open(str(large), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 1920, 1080, "yuv420p", 4_000_000
            stream.options = {"preset": "veryfast", "tune": "zerolatency"}
            for number, (_, frame) in enumerate(frames_of(film)):
                for packet in stream.encode(frame.reformat(1920, 1080, "yuv420p")) if number < 100 else ():
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    background = Background(*grid_of(1920, 1080))
    gate_seconds, frames = 0.0, 0
    begin = time.thread_time()
    with av.open(str(large)) as container:
        container.streams.video[0].thread_type = "NONE"
        for number, decoded in enumerate(container.decode(video=0)):
            assert isinstance(decoded, av.VideoFrame)
            before = time.thread_time()
            background.see(cells_of(AvPicture(decoded)), number / 25, follows=False)
            gate_seconds += time.thread_time() - before
            frames += 1
    total = time.thread_time() - begin
    return 1e3 * gate_seconds / frames, 1e3 * (total - gate_seconds) / frames


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("gate-clips"), help="folder for clips and detections")
    parser.add_argument("--detect", action="store_true", help="detect all of the sample clip; takes a minute or more")
    parser.add_argument("--max-seconds", type=float, default=10.0, help="gate_max_seconds")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    table = Table("clip", "frames", "detected", "times fewer", "objects", "never detected", "never an object",
                  "delay p50 / p95", "instances lost", "ms a frame", "why")  # fmt: skip
    sample = found_in_sample(given.cache, again=given.detect)
    films = {sample_clip(): sample}
    for film in make_films(given.cache, sample):
        films[film] = pickle.loads(film.with_suffix(".shown").read_bytes())  # noqa: S301 - written by `make_film`
    for film, found in films.items():
        result = run(film, found, given.max_seconds)
        detected = result.frames - result.passed[None]
        delays = sorted(result.delays_seconds) or [0.0]
        why = ", ".join(f"{why} {n}" for why, n in result.passed.most_common() if why is not None)
        table.add_row(
            result.name, str(result.frames), f"{100 * detected / result.frames:.1f} %",
            f"{result.frames / detected:.1f}", str(result.objects), str(result.undetected), str(result.unbegun),
            f"{statistics.median(delays):.1f} / {delays[int(len(delays) * 0.95)]:.1f} s",
            f"{100 * result.instances_lost / max(result.instances, 1):.2f} %", f"{result.judge_ms:.2f}", why,
        )  # fmt: skip
        print(
            result.name, f"{100 * detected / result.frames:.1f} %", result.undetected, result.unbegun, why, flush=True
        )
    Console(width=200).print(table)
    gate_ms, decode_ms = cost_1080p(given.cache, sample_clip())
    print(f"1080p: gate {gate_ms:.2f} ms, decoding {decode_ms:.2f} ms of CPU a frame")


if __name__ == "__main__":
    main()
