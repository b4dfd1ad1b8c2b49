# ruff: noqa: INP001 - a program, not a module
"""Measures what `decode` saves: CPU time of receiving and decoding a stream of 1080p at 25 frames per second.

    .venv/bin/python benchmarks/decoding.py --rounds 5

The films are made of the sample clip, scaled and with noise as of a camera at dusk, with a key frame every two seconds:
H.264 and H.265, each with and without pictures that no other depends on. Every way of decoding takes its turn in each
round, through the source that the daemon uses; time is that of the stream, so that files are read as fast as they can
be. The first eight seconds, in which "auto" learns the distance of key frames, do not count. Prints a table: percent of
a core that a stream takes, that as a part of "all" in the same round (medians), and frames that `max_fps` let pass.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from streamdet.assets import sample_clip
from streamdet.capture.sources.av import AvSource
from streamdet.config import StreamConfig
from streamdet.errors import LeftOutError, SourceError

_FPS, _GROUP, _LEARNING = 25, 50, 200
_KEYS = f"keyint={_GROUP}:min-keyint={_GROUP}:scenecut=0"
_FILMS = {
    "H.264": ("libx264", f"{_KEYS}:bframes=0"),
    "H.264, two of three free": ("libx264", f"{_KEYS}:bframes=2:b-adapt=0:b-pyramid=none"),
    "H.265": ("libx265", f"{_KEYS}:bframes=0:open-gop=0:log-level=none"),
    "H.265, every second one free": (
        "libx265", f"{_KEYS}:bframes=3:b-adapt=0:temporal-layers=3:open-gop=0:log-level=none"
    ),
}  # fmt: skip


class Way(NamedTuple):
    """One way of decoding a film."""

    decode: str
    max_fps: float | None


_WAYS = [
    Way("all", None),
    Way("reference", None),
    Way("keyframes", None),
    *(Way("auto", fps) for fps in (25.0, 5.0, 1.0, 0.5)),
]


class Schedule:
    """What `max_fps` lets pass, as the batch queue decides, by the time of the stream."""

    def __init__(self, max_fps: float | None) -> None:
        self.max_fps = max_fps
        self.now = self._due_at = 0.0

    def is_due(self, at_monotonic_seconds: float) -> bool:  # noqa: ARG002 - as in `Demand`
        """Whether a picture of the present moment would pass."""
        return self.max_fps is None or self.now >= self._due_at - 0.5 / self.max_fps

    def take(self) -> bool:
        """Whether a frame of the present moment passes."""
        if self.max_fps is not None and self.is_due(0.0):
            self._due_at = max(self._due_at, self.now - 1 / self.max_fps) + 1 / self.max_fps
            return True
        return self.max_fps is None


def make(path: Path, codec: str, parameters: str, seconds: int) -> None:
    """A film as a camera would send it."""
    noise = np.random.default_rng(1).normal(0, 3, (1080 + 64, 1920 + 64)).astype(np.int8)
    with av.open(str(sample_clip())) as clip:
        pictures = [f.reformat(1920, 1080, "yuv420p") for f in clip.decode(video=0)]
    options = {f"{codec.removeprefix('lib')}-params": parameters, "preset": "superfast"}
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=_FPS, options=options)
        assert isinstance(stream, av.VideoStream)  # noqa: S101 - for mypy
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.bit_rate = 4_000_000
        for number in range(seconds * _FPS):
            # To and fro, so that no cut is in it.
            at = number % (2 * len(pictures) - 2)
            planes = pictures[min(at, 2 * len(pictures) - 2 - at)].to_ndarray()
            x, y = number * 7 % 64, number * 13 % 64
            planes[:1080] = np.clip(planes[:1080].astype(np.int16) + noise[y : y + 1080, x : x + 1920], 0, 255)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, _FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def measure(path: Path, way: Way) -> tuple[float, float]:
    """Seconds of a core for each second of the film, and frames per second that pass."""
    schedule = Schedule(way.max_fps)
    config = StreamConfig.model_validate({"name": "film", "url": str(path), "decode": way.decode, "pace": "fastest"})
    source = AvSource(config, demand=schedule)
    pictures = passed = 0
    started = time.thread_time()
    try:
        while True:
            schedule.now = pictures / _FPS
            try:
                source.read()
                passed += schedule.take() and pictures >= _LEARNING
            except LeftOutError:
                pass
            pictures += 1
            if pictures == _LEARNING:
                started = time.thread_time()
    except SourceError:
        pass  # the end
    finally:
        used = time.thread_time() - started
        source.close()
    seconds = (pictures - _LEARNING) / _FPS
    return used / seconds, passed / seconds


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=24, help="length of the films")
    arguments = parser.parse_args()
    print('| stream | `decode` | `max_fps` | % of a core | of "all" | frames/s that pass |\n|---|---|---|---|---|---|')  # noqa: T201 - its result
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (codec, parameters)) in enumerate(_FILMS.items()):
            film = Path(folder) / f"{number}.mkv"
            make(film, codec, parameters, arguments.seconds)
            used: defaultdict[Way, list[float]] = defaultdict(list)
            passed: dict[Way, float] = {}
            for _ in range(arguments.rounds):
                for way in _WAYS:
                    cores, passed[way] = measure(film, way)
                    used[way].append(cores)
            for way in _WAYS:
                part = statistics.median(a / b for a, b in zip(used[way], used[_WAYS[0]], strict=True))
                shown = "-" if way.max_fps is None else f"{way.max_fps:g}"
                cores = statistics.median(used[way])
                row = f"| {name} | {way.decode} | {shown} | {100 * cores:.1f} | {part:.2f} | {passed[way]:.2f} |"
                print(row, flush=True)  # noqa: T201 - its result


main()
