"""Films whose frames show their own number, as twelve black or white bars, and can be found again by it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from support.videos import scheduling_kept

_BITS = 12


def numbered(number: int, width: int, height: int, *, noise: np.random.Generator | None = None) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: bars for the bits of the number, the first one on the left.

    Args:
        number: 0 to 4095.
        width: pixels.
        height: pixels.
        noise: fills the lower half with what costs many bytes to encode.
    """
    bits = np.array([number >> bit & 1 for bit in range(_BITS)], np.uint8)
    row = np.repeat(bits, -(-width // _BITS))[:width] * 200 + 20
    picture = np.repeat(np.repeat(row[None, :, None], height, 0), 3, 2).astype(np.uint8)
    if noise is not None:
        picture[height // 2 :] = noise.integers(0, 255, (height - height // 2, width, 3), np.uint8)
    return picture


def number_in(rgb: NDArray[np.uint8]) -> int:
    """The number that a frame shows."""
    height, width = rgb.shape[:2]
    step = -(-width // _BITS)
    row = rgb[height // 4, :, 0]
    return sum(int(row[min(width - 1, bit * step + step // 2)] > 120) << bit for bit in range(_BITS))


def make_film(
    path: Path,
    *,
    seconds: float = 4,
    fps: int = 10,
    width: int = 96,
    height: int = 64,
    codec: str = "libx264",
    bframes: int = 0,
    group: int | None = None,
    container: str | None = None,
    noise: bool = False,
    bit_rate: int | None = None,
    sample_aspect: Fraction | None = None,
    quarter_turns: int = 0,
    first: int = 0,
    **options: str,
) -> Path:
    """A film whose frames are numbered from `first` on, with a key frame every `group` frames; one second's by default.

    The name of the file says the container, unless it is given.
    """
    random = np.random.default_rng(1) if noise else None
    parameters: dict[str, Any] = {"g": str(group or fps), "bf": str(bframes), "preset": "ultrafast", **options}
    if codec == "libx265":
        parameters["x265-params"] = "log-level=none"
    with scheduling_kept(), av.open(str(path), "w", container) as output:
        stream = output.add_stream(codec, rate=fps, options=parameters)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        if sample_aspect is not None:
            stream.codec_context.sample_aspect_ratio = sample_aspect
        if quarter_turns:
            stream.set_display_rotation(90.0 * quarter_turns)
        for number in range(round(seconds * fps)):
            picture = numbered(first + number, width, height, noise=random)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def numbers_of(path: Path) -> list[int]:
    """The numbers of all frames of a film, in the order in which they are shown."""
    with av.open(str(path)) as container:
        return [number_in(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
