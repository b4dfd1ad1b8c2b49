"""Which hardware can decode here."""

from __future__ import annotations

import functools
import logging

import av
from av.codec.hwaccel import HWAccel, hwdevices_available

_log = logging.getLogger(__name__)


def find_hwaccel(wanted: str, stream: str) -> HWAccel | None:
    """The hardware to decode with; None for software, said in one line where hardware was wanted.

    Args:
        wanted: "none", "auto" or a name that FFmpeg knows.
        stream: name of the stream, for the log.
    """
    if wanted == "none":
        return None
    names = hwdevices_available() if wanted == "auto" else [wanted]
    for name in names:
        if _works(name):
            return HWAccel(name, allow_software_fallback=True)
    what = "hardware decoding" if wanted == "auto" else f"hardware decoding by {wanted}"
    _log.warning("%s is not available here; decoding in software", what, extra={"stream": stream})
    return None


@functools.cache
def _works(name: str) -> bool:
    """Whether the device can be opened; H.264 stands for all codecs, since whatever decodes has it."""
    if name not in hwdevices_available():
        return False
    try:
        HWAccel(name).create(av.Codec("h264", "r"))
    except (av.FFmpegError, NotImplementedError):
        return False
    return True
