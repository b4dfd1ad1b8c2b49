"""Real frames to measure with, in the decoder's format, and a clip of them for the daemon."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from streamdet.capture.sources.picture import AvPicture
from streamdet.errors import DataError

Size = tuple[int, int]
"""Width and height in pixels."""

FRAMES = 16
"""How many different frames there are; a larger batch sees some twice."""

_STRIDE = 12
_CLIP_SECONDS = 8.0
_SPOOLED_SECONDS = 2


@dataclass(frozen=True)
class Clip:
    """A video that plays as a stream.

    Attributes:
        path: of the file.
        size: width and height in pixels.
        fps: frames per second.
        frames: how many there are, if it was made here; None for a file of the user's.
    """

    path: Path
    size: Size
    fps: float
    frames: int | None = None


def describe(path: Path) -> Clip:
    """Size and frame rate of a video.

    Raises:
        DataError: it cannot be read, or holds no video.
    """
    with _video(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        return Clip(path, (stream.codec_context.width, stream.codec_context.height), float(rate) if rate else 25.0)


def read_frames(path: Path, size: Size, count: int = FRAMES, stride: int = _STRIDE) -> list[av.VideoFrame]:
    """Frames of a video at a fixed interval, as YUV 4:2:0 of the given size; starts again at the video's end.

    Raises:
        DataError: it cannot be read, or there is no frame in it.
    """
    with _video(path) as container:
        chosen = itertools.islice(container.decode(video=0), 0, count * stride, stride)
        frames = [_scaled(frame, size) for frame in chosen]
    if not frames:
        msg = f"{path} has no frame that can be decoded"
        raise DataError(msg)
    return list(itertools.islice(itertools.cycle(frames), count))


def pictures(frames: Sequence[av.VideoFrame], count: int) -> list[AvPicture]:
    """This number of new pictures: new ones each time, because a picture keeps its converted pixels."""
    return [AvPicture(frame) for frame in itertools.islice(itertools.cycle(frames), count)]


def make_clip(source: Path, size: Size, fps: float, folder: Path) -> Clip:
    """Makes a clip of H.264 with this size and rate, or returns the source itself if it has these already.

    Raises:
        DataError: the source cannot be read.
    """
    found = describe(source)
    if found.size == size and abs(found.fps - fps) < 0.01 * fps:
        return Clip(source, size, found.fps)
    rate = Fraction(fps).limit_denominator(1000)
    path = folder / "bench.mp4"
    count = max(round(_CLIP_SECONDS * fps), 8)
    with _video(source) as container, av.open(str(path), "w") as output:
        # What most cameras send: no frames out of order, a whole picture every two seconds.
        options = {"preset": "veryfast", "bf": "0", "g": str(max(round(_SPOOLED_SECONDS * fps), 1)), "crf": "25"}
        stream = output.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        number = 0
        for number, frame in enumerate(itertools.islice(container.decode(video=0), count), 1):
            picture = _scaled(frame, size)
            picture.pts, picture.time_base = number - 1, 1 / rate
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return Clip(path, size, float(rate), number)


def _scaled(frame: av.VideoFrame, size: Size) -> av.VideoFrame:
    return frame.reformat(width=size[0], height=size[1], format="yuv420p")


@contextmanager
def _video(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        msg = f"cannot read the video {path}: {error.strerror}"
        raise DataError(msg) from None
    with container:
        if not container.streams.video:
            msg = f"there is no video in {path}"
            raise DataError(msg)
        yield container
