"""Decoding alone, with the least that can be done in Python."""

from __future__ import annotations

import time
from pathlib import Path

import av

from streamdet.bench.usage import cpu_seconds


def decode_milliseconds(path: Path, seconds: float) -> float:
    """CPU time to decode one frame with PyAV alone, in one thread; the file is read anew at its end."""
    frames, began, cpu = 0, time.perf_counter(), cpu_seconds()
    while not frames or time.perf_counter() - began < seconds:
        with av.open(f"file:{path}") as container:
            container.streams.video[0].codec_context.thread_count = 1
            for _ in container.decode(video=0):
                frames += 1
                if time.perf_counter() - began >= seconds:
                    break
    return 1000 * (cpu_seconds() - cpu) / frames
