# ruff: noqa: INP001, S603, T201 - a program, not a module; it starts the daemon of this tree
"""Measures the memory of the real daemon with many streams of 1080p and the default engine.

    PYTHONPATH=. .venv/bin/python benchmarks/memory.py --streams 16 --seconds 600 [--where]

Each stream is the sample clip, scaled to 1920x1080 and encoded as a camera does (H.264, one reference frame, no
B-frames, a key frame every 2 s), as a file that is read in real time, again and again. Memory is that of the daemon's
process: `resident` as in `ps`, `proportional` without the part of shared pages that is others' (PSS), `private` what
would be free if it ended; `peak` is the most that was ever resident, from the start on. It is flat if the least of the
last minute is at most 1 % above that of the minute after the warm-up. `--where` lists what is mapped, largest first.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from streamdet.assets import sample_clip

SIZE = (1920, 1080)
FPS = 10
KEY_FRAME_SECONDS = 2
BIT_RATE = 4_000_000
START_SECONDS = 600
# The daemon gives back what it does not need every ten seconds, and models of unused sizes after two minutes.
WARM_UP_SECONDS = 130
# What is given back is free memory that the next batches take again within seconds: the least is seen just after that.
SAMPLE_SECONDS = 0.2
SAMPLES_OF_ALL = 25  # one in so many says what all the memory is, which takes the kernel some milliseconds
FLAT = 1.01


def make_film(path: Path, *, b_frames: int, seconds: int) -> None:
    """Writes the first seconds of the sample clip in 1080p."""
    with av.open(str(sample_clip())) as source, av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=FPS)
        stream.width, stream.height = SIZE
        stream.pix_fmt, stream.bit_rate = "yuv420p", BIT_RATE
        stream.options = {
            "preset": "veryfast",
            "x264-params": f"bframes={b_frames}:ref={1 if b_frames == 0 else 3}:keyint={FPS * KEY_FRAME_SECONDS}",
        }
        for number, frame in enumerate(source.decode(video=0)):
            if number == seconds * FPS:
                break
            large = frame.reformat(*SIZE, format="yuv420p")
            large.pts, large.time_base = number, Fraction(1, FPS)
            film.mux(stream.encode(large))
        film.mux(stream.encode(None))


def memory_of(pid: int) -> dict[str, float]:
    """What the kernel says about a process, in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {
        name: round(size * 1024 / 1e6, 1)
        for name, size in (
            ("resident", kilobytes["Rss"]),
            ("proportional", kilobytes["Pss"]),
            ("private", private),
        )
    }


def resident_of(pid: int) -> float:
    """What is resident of a process, in MB."""
    return round(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def peak_of(pid: int) -> float:
    """The most that was ever resident of a process, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6, 1)


def mappings_of(pid: int) -> list[tuple[str, float]]:
    """What is mapped, by file, and how much of it is resident, in MB; largest first."""
    sizes: Counter[str] = Counter()
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):
            name = Path(rest[4]).name if len(rest) == 5 else f"anonymous {rest[0]}"
        elif first == "Rss:":
            sizes[name] += int(rest[0])
    return [(name, round(size * 1024 / 1e6, 1)) for name, size in sizes.most_common()]


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def _count(port: int, metric: str) -> float:
    lines = _get(port, "/metrics").splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.partition("{")[0].partition(" ")[0] == metric)


def _wait_until_ready(port: int, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and daemon.poll() is None:
        try:
            _get(port, "/readyz")
        except OSError:
            time.sleep(1)
        else:
            return
    message = f"the daemon is not ready; exit code {daemon.poll()}"
    raise SystemExit(message)


def measure(daemon: subprocess.Popen[bytes], port: int, wanted: argparse.Namespace) -> dict[str, Any]:
    """Samples the daemon once it is warm."""
    _wait_until_ready(port, daemon)
    samples: list[dict[str, float]] = []
    resident: list[float] = []
    time.sleep(WARM_UP_SECONDS)
    began, before = time.monotonic(), _count(port, "streamdet_frames_published_total")
    while time.monotonic() - began < wanted.seconds:
        if len(resident) % SAMPLES_OF_ALL == 0:
            samples.append(memory_of(daemon.pid))
        resident.append(resident_of(daemon.pid))
        time.sleep(SAMPLE_SECONDS)
    took = time.monotonic() - began
    minute = round(len(resident) * min(60 / took, 1))
    first, last = min(resident[:minute]), min(resident[-minute:])
    result: dict[str, Any] = {
        "streams": wanted.streams,
        "fps": round((_count(port, "streamdet_frames_published_total") - before) / took, 1),
        "peak": peak_of(daemon.pid),
        "largest": {key: max(one[key] for one in samples) for key in samples[0]},
        "last": samples[-1],
        "least_of_first_and_last_minute": [first, last],
        "flat": last <= first * FLAT,
    }
    if wanted.where:
        result["where"] = mappings_of(daemon.pid)[:30]
    return result


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=600, help="of sampling, after the warm-up")
    parser.add_argument("--film", action="store_true", help="with B-frames and three reference frames")
    parser.add_argument("--detector", default="", help='lines of [detector], such as "workers = 1"')
    parser.add_argument("--port", type=int, default=19095, help="of the daemon's metrics")
    parser.add_argument("--where", action="store_true", help="list what is mapped")
    parser.add_argument("--limit-mb", type=float, help="exit code 1 where more was ever resident")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_film(folder / "film.mp4", b_frames=3 if wanted.film else 0, seconds=20)
        config = folder / "streamdet.toml"
        config.write_text(
            f'[detector]\n{wanted.detector}\n[publisher]\nendpoint = "ipc://{folder}/events"\n'
            f'[metrics]\nendpoint = "127.0.0.1:{wanted.port}"\n[control]\npath = "{folder}/control.sock"\n'
            + "".join(
                f'[[streams]]\nname = "s{number}"\nurl = "film.mp4"\nloop = true\n' for number in range(wanted.streams)
            )
        )
        command = [sys.executable, "-m", "streamdet", "run", "--config", str(config)]
        with subprocess.Popen(command, env={**os.environ}, stderr=(folder / "log").open("wb")) as daemon:
            try:
                result = measure(daemon, wanted.port, wanted)
            finally:
                daemon.send_signal(signal.SIGTERM)
                daemon.wait(60)
                log = (folder / "log").read_text()
        result["detector"] = next((line for line in log.splitlines() if "detecting with" in line), "")
    print(json.dumps(result, indent=2))
    if not result["flat"] or (wanted.limit_mb is not None and result["peak"] > wanted.limit_mb):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
