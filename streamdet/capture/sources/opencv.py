"""OpenCV: V4L2 devices, and whatever else it can read."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from streamdet.capture.sources import SourceFrame, SourceInfo
from streamdet.capture.sources.av import AvSource
from streamdet.capture.sources.clocks import FileClock, Pacer
from streamdet.capture.sources.connections import timed_out
from streamdet.capture.sources.diagnosis import look_up_name, refuse_text
from streamdet.capture.sources.ffmpeg import limit_allocations
from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.capture.sources.picture import BgrPicture, check_size
from streamdet.config import StreamConfig
from streamdet.config.addresses import UrlKind, kind_of_url
from streamdet.errors import SourceError
from streamdet.types import Reason

# Its warnings go to standard error and may show URLs.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

for _extension in Path(cv2.__file__).parent.glob("cv2*.so"):
    limit_allocations(str(_extension))

# A network read cannot be interrupted, only time out; a stop must not take longer.
_LONGEST_NETWORK_READ_SECONDS = 1.5
_DEVICE_POLL_NANOSECONDS = 200_000_000


class OpenCvSource:
    """A V4L2 device, file or network stream, read by OpenCV as BGR.

    Known limits of OpenCV: RTSP over TCP only; no TLS, because its OpenSSL is no longer maintained; a gap of 1.5 s in a
    network stream counts as its end; a change of size within a stream is scaled to
    the first size; no HLS, because its FFmpeg would follow playlists without any bounds.

    Args:
        config: of the stream.

    Attributes:
        info: what was found at opening.

    Raises:
        SourceError: it cannot be opened.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._kind = kind_of_url(config.url)
        self._is_file = self._kind is UrlKind.FILE
        self._frames_of_round = 0
        self._capture = self._open()
        try:
            self.info = self._describe()
        except SourceError:
            self.close()
            raise
        self._clock = FileClock(self.info.fps)
        self._pacer = Pacer(config.stall_seconds / 2) if self._is_file and config.pace == "realtime" else None

    def read(self) -> SourceFrame:
        """The next frame; a file in real time waits until it is due."""
        self._wait_for_device()
        started = time.perf_counter()
        if not self._capture.grab():
            if not (self._is_file and self._config.loop and self._frames_of_round):
                raise self._end()
            self.close()
            self._capture = self._open()
            self._clock.begin_again()
            self._frames_of_round = 0
            if not self._capture.grab():
                raise self._end()
        # In a network stream the grab is mostly waiting, which is not decoding.
        return self._retrieve(started if self._is_file else time.perf_counter())

    def close(self) -> None:
        """Releases the device or connection."""
        self._capture.release()

    def _retrieve(self, started: float) -> SourceFrame:
        try:
            good, bgr = self._capture.retrieve()
        except cv2.error:
            good = False
        if not good:
            raise SourceError(Reason.DECODE_ERROR, "a frame cannot be decoded")
        decode_seconds = time.perf_counter() - started
        self._frames_of_round += 1
        pts_seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self._is_file:
            pts_seconds = self._clock.at(pts_seconds)
        if self._pacer is not None and self._pacer.wait(pts_seconds):
            raise SourceError(Reason.TIMEOUT, "interrupted")
        check_size(bgr.shape[1], bgr.shape[0])
        picture = BgrPicture(np.asarray(bgr, np.uint8), self._pixel_aspect())
        return SourceFrame(picture, pts_seconds, time.time(), "daemon", decode_seconds)

    def _pixel_aspect(self) -> float:
        across, down = (self._capture.get(key) for key in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN))
        return across / down if across > 0 and down > 0 else 1.0

    def _wait_for_device(self) -> None:
        """Waits in short steps, since a device that hangs cannot be interrupted."""
        if self._kind is not UrlKind.DEVICE:
            return
        give_up_at = time.monotonic() + self._config.stall_seconds
        ready: Sequence[int] = ()
        while len(ready) == 0:  # an array that holds the index 0 alone is false
            if current_interrupt().is_set() or time.monotonic() > give_up_at:
                raise timed_out(self._config.stall_seconds, "frame")
            try:
                _, ready = cv2.VideoCapture.waitAny([self._capture], _DEVICE_POLL_NANOSECONDS)
            except cv2.error:
                # What OpenCV raises when the device is unplugged.
                raise self._end() from None

    def _open(self) -> cv2.VideoCapture:
        if self._kind is UrlKind.DEVICE:
            return self._open_device()
        parameters = [cv2.CAP_PROP_N_THREADS, 1]
        if not self._is_file:
            look_up_name(self._config)
            open_seconds = self._config.connect_timeout_seconds
            read_seconds = min(self._config.stall_seconds, _LONGEST_NETWORK_READ_SECONDS)
            parameters += [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, math.ceil(open_seconds * 1000)]
            parameters += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, math.ceil(read_seconds * 1000)]
        capture = cv2.VideoCapture(self._location(), cv2.CAP_FFMPEG, parameters)
        if capture.isOpened():
            return capture
        capture.release()
        # OpenCV does not say why. PyAV does: if it fails as well, it is for the same reason.
        AvSource(self._config).close()
        raise SourceError(Reason.UNSUPPORTED_CODEC, 'OpenCV cannot read it; use backend = "av"')

    def _open_device(self) -> cv2.VideoCapture:
        url = self._config.url
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

    def _location(self) -> str:
        url = self._config.url
        return unquote(urlsplit(url).path) if url.lower().startswith("file://") else url

    def _describe(self) -> SourceInfo:
        fourcc = int(self._capture.get(cv2.CAP_PROP_FOURCC))
        codec = fourcc.to_bytes(4, "little", signed=fourcc < 0).decode("ascii", "replace").strip("\0 ").lower()
        refuse_text(codec)
        width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        fps = self._capture.get(cv2.CAP_PROP_FPS) if self._is_file else 0
        return SourceInfo(codec or "raw", width, height, fps if fps > 0 else None, "opencv", live=not self._is_file)

    def _end(self) -> SourceError:
        if self._kind is UrlKind.DEVICE:
            return SourceError(Reason.ENDED, "the device gives no more frames")
        if not self._is_file:
            return SourceError(Reason.ENDED, "no more frames: the stream has ended or stands still")
        if self._frames_of_round:
            return SourceError(Reason.ENDED, "the end of the file", is_final=True)
        return SourceError(Reason.DECODE_ERROR, 'OpenCV finds no picture in it that it can decode; try backend = "av"')
