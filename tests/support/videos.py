"""Makes small videos, for tests that need a real file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """Has the thread scheduled afterwards as it was before.

    SVT-AV1 puts the thread of root that opens its encoder, and with it all processes that are started later, at the
    highest real-time priority. Two that are busy then keep everything else on the machine from running.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def make_video(
    path: Path,
    *,
    frames: int = 10,
    fps: int = 25,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    container: str | None = None,
    title: str = "",
    sample_aspect: Fraction | None = None,
    colorspace: int = 2,
) -> Path:
    """A clip that grows brighter from frame to frame."""
    with scheduling_kept(), av.open(str(path), "w", format=container) as output:
        output.metadata.update({"title": title} if title else {})
        stream = output.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if sample_aspect is not None:
            stream.codec_context.sample_aspect_ratio = sample_aspect
        stream.codec_context.colorspace = colorspace
        if codec in ("libx264", "libx265"):
            stream.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "5"}
        for number in range(frames):
            grey = np.full((height, width, 3), 40 + number % 20 * 10, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = number, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def make_audio(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        for number in range(10):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, number * 1024
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def concatenate(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path
