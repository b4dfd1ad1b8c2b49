"""Reads frames to calibrate with: pictures of a folder, a video, or a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from streamdet.capture.sources import Source, open_source, read_sound
from streamdet.config.load import read_once
from streamdet.detector.picture_files import PICTURE_SUFFIXES, read_rgb
from streamdet.detector.pipeline import ArrayPicture
from streamdet.errors import ConfigError, DataError, SourceError
from streamdet.security.redact import redact
from streamdet.types import Picture, Reason

FEWEST_FRAMES = 10

OnProgress = Callable[[int, int], None]


def read_frames(source: str, count: int, every_seconds: float, on_progress: OnProgress | None = None) -> list[Picture]:
    """Reads different frames, spread over a folder or over time.

    Args:
        source: a folder of pictures, the path of a video, or the URL of a stream.
        count: of frames, at most.
        every_seconds: between two frames of a video or stream.
        on_progress: called with the number of frames that were read, and of all.

    Returns:
        at least `FEWEST_FRAMES`.

    Raises:
        DataError: there are too few, or a picture is broken.
        SourceError: the stream cannot be opened.
    """
    path = Path(source)
    is_folder = "://" not in source and path.is_dir()
    frames: list[Picture] = []
    for picture in _pictures_of(path, count) if is_folder else _frames_of(source, every_seconds):
        frames.append(picture)
        if on_progress:
            on_progress(len(frames), count)
        if len(frames) >= count:
            break
    if len(frames) < FEWEST_FRAMES:
        msg = f"{redact(source)} has {len(frames)} frames; at least {FEWEST_FRAMES} are needed, some hundred are good"
        raise DataError(msg)
    return frames


def _pictures_of(folder: Path, count: int) -> Iterator[Picture]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    for number in np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int) if paths else []:
        try:
            yield ArrayPicture(read_rgb(paths[number]))
        except DataError as error:
            msg = f"{error}; take it out of the folder"
            raise DataError(msg) from None


def _frames_of(source: str, every_seconds: float) -> Iterator[Picture]:
    try:
        config = read_once(source)
    except ConfigError as error:
        msg = f"{redact(source)} is neither a folder of pictures nor a video or stream: {error.problems[0]}"
        raise DataError(msg) from None
    stream = open_source(config)
    try:
        yield from _spread(stream, every_seconds)
    finally:
        stream.close()


def _spread(stream: Source, every_seconds: float) -> Iterator[Picture]:
    """Yields a frame, and the next one when the stream's clock, or else this machine's, has advanced by this time."""
    due = -float("inf")
    while True:
        try:
            frame = read_sound(stream)
        except SourceError as error:
            if error.reason is Reason.ENDED:
                return
            raise
        now = time.monotonic() if frame.pts_seconds is None else frame.pts_seconds
        if now >= due:
            due = now + every_seconds
            yield frame.picture
