"""Reads the picture to trace: a picture file, or one frame of anything that can be opened as a stream."""

from __future__ import annotations

from pathlib import Path

from streamdet.capture.sources import open_source, read_sound
from streamdet.config import StreamConfig
from streamdet.config.load import read_once
from streamdet.detector.picture_files import PICTURE_SUFFIXES, read_rgb
from streamdet.detector.pipeline import ArrayPicture
from streamdet.errors import ConfigError, DataError, SourceError
from streamdet.security.redact import redact
from streamdet.types import Picture, Reason


def read_picture(source: str, number: int = 1) -> Picture:
    """Reads a picture.

    Args:
        source: path of a picture or a video, or the URL of a stream.
        number: of the frame in a video or stream, from 1.

    Raises:
        DataError: the picture or stream cannot be read, or the video has fewer frames.
    """
    path = Path(source)
    if path.suffix.lower() in PICTURE_SUFFIXES and "://" not in source:
        return ArrayPicture(read_rgb(path))
    try:
        config = read_once(source)
    except ConfigError as error:
        msg = f"{redact(source)} is neither a picture nor a stream: {error.problems[0]}"
        raise DataError(msg) from None
    return _read_frame(config, number)


def _read_frame(config: StreamConfig, number: int) -> Picture:
    where = redact(config.url)
    try:
        stream = open_source(config)
    except SourceError as error:
        msg = f"{where} cannot be read: {error}"
        raise DataError(msg) from None
    try:
        for count in range(number):
            try:
                frame = read_sound(stream)
            except SourceError as error:
                if error.reason is not Reason.ENDED:
                    msg = f"{where} cannot be read: {error}"
                    raise DataError(msg) from None
                msg = f"{where} ends after {count} frames; --frame asks for number {number}"
                raise DataError(msg) from None
        return frame.picture
    finally:
        stream.close()
