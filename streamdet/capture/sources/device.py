"""V4L2 devices, read by OpenCV: its wait for the next frame can be interrupted, and it gives back a device at once."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from streamdet.capture.sources import SourceFrame, SourceInfo
from streamdet.capture.sources.connections import timed_out
from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.capture.sources.picture import BgrPicture, check_size
from streamdet.config import StreamConfig
from streamdet.errors import SourceError
from streamdet.types import Reason

# Its warnings go to standard error.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_POLL_NANOSECONDS = 200_000_000


class DeviceSource:
    """A V4L2 device, read as BGR.

    Args:
        config: of the stream.

    Attributes:
        info: what was found at opening.

    Raises:
        SourceError: it cannot be opened.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._stall_seconds = config.stall_seconds
        self._capture = _open(config.url)
        self.info = self._describe()

    def read(self) -> SourceFrame:
        """Waits for the next frame, in short steps, since a device that hangs cannot be interrupted."""
        give_up_at = time.monotonic() + self._stall_seconds
        ready: Sequence[int] = ()
        while len(ready) == 0:  # an array that holds the index 0 alone is false
            if current_interrupt().is_set() or time.monotonic() > give_up_at:
                raise timed_out(self._stall_seconds, "frame")
            try:
                _, ready = cv2.VideoCapture.waitAny([self._capture], _POLL_NANOSECONDS)
            except cv2.error:
                # What OpenCV raises when the device is unplugged.
                raise SourceError(Reason.ENDED, "the device gives no more frames") from None
        if not self._capture.grab():
            raise SourceError(Reason.ENDED, "the device gives no more frames")
        started = time.perf_counter()
        try:
            good, bgr = self._capture.retrieve()
        except cv2.error:
            good = False
        if not good:
            raise SourceError(Reason.DECODE_ERROR, "a frame cannot be decoded")
        decode_seconds = time.perf_counter() - started
        check_size(bgr.shape[1], bgr.shape[0])
        pts_seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return SourceFrame(BgrPicture(np.asarray(bgr, np.uint8)), pts_seconds, time.time(), "daemon", decode_seconds)

    def close(self) -> None:
        """Releases the device."""
        self._capture.release()

    def _describe(self) -> SourceInfo:
        fourcc = int(self._capture.get(cv2.CAP_PROP_FOURCC))
        codec = fourcc.to_bytes(4, "little", signed=fourcc < 0).decode("ascii", "replace").strip("\0 ").lower()
        width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        return SourceInfo(codec or "raw", width, height, None, "opencv")


def _open(url: str) -> cv2.VideoCapture:
    path = Path(f"/dev/video{url}" if re.fullmatch(r"[0-9]+", url) else url)
    if not path.exists():
        raise SourceError(Reason.NOT_FOUND, f"there is no device {path}")
    try:
        path.open("rb").close()
    except PermissionError:
        detail = f"{path} may not be opened; the user must belong to the group video"
        raise SourceError(Reason.UNAUTHORIZED, detail) from None
    except OSError as error:
        raise SourceError(Reason.REFUSED, f"{path} cannot be opened: {error.strerror}") from None
    capture = cv2.VideoCapture(str(path), cv2.CAP_V4L2)
    if not capture.isOpened():
        capture.release()
        raise SourceError(Reason.NO_VIDEO, f"{path} gives no video, or another program uses it")
    return capture
