"""Opens an http:// or https:// url and finds out what it leads to: pictures, a playlist, a live stream, or a file.

FFmpeg's HTTP supports Digest with MD5 only, accepts pictures only in the form that it expects, and fails for good if a
slow stream delays the opening. So streamdet sends the requests, and FFmpeg reads the answers.
"""

from __future__ import annotations

import http.client
import re
import time

from streamdet.capture.sources.connections import ConnectionBudget
from streamdet.capture.sources.hls.playlist import BEGINNING
from streamdet.capture.sources.http_client import FAILURES, HttpClient, HttpFile, host_of
from streamdet.capture.sources.mjpeg import MjpegFile, beginning_of, is_mjpeg
from streamdet.config import StreamConfig
from streamdet.errors import SourceError
from streamdet.types import Reason

# One stream is one answer, and what leads to it: redirections, logins, seeking in a film, and pictures one by one.
_CONNECTIONS_AT_ONCE = 20
_CONNECTIONS_PER_SECOND = 5
_POLL_SECONDS = 1.0
_ADVICE = "open the url in a browser: it may be a login page, or a page around the video"


class HttpStream:
    """The answer to the url of a stream.

    Args:
        config: of a stream behind http:// or https://.

    Attributes:
        is_playlist: HLS, which is opened otherwise.
        file: what FFmpeg is to read; None for a playlist.
        container_format: of `file`; None where FFmpeg finds that out.

    Raises:
        SourceError: it cannot be read.
    """

    def __init__(self, config: StreamConfig) -> None:
        self.is_playlist = False
        self.file: HttpFile | None = None
        self.container_format: str | None = None
        self._config = config
        where = host_of(config.url)
        client = HttpClient(config, ConnectionBudget(time.monotonic(), _CONNECTIONS_AT_ONCE, _CONNECTIONS_PER_SECOND))
        try:
            response = client.open(client.address)
            try:
                self._look_at(client, response, where)
            finally:
                if self.file is None:
                    response.close()
        except FAILURES as error:
            raise client.failure(error, where) from None
        # What has begun may be slow: FFmpeg looks at two pictures.
        client.wait_at_most(2 * config.stall_seconds)

    def _look_at(self, client: HttpClient, response: http.client.HTTPResponse, where: str) -> None:
        beginning = beginning_of(response)
        if beginning.startswith(BEGINNING):
            self.is_playlist = True
        elif is_mjpeg(response, beginning):
            # A longer wait would be a stall.
            poll_seconds = min(self._config.stall_seconds / 2, 1 / (self._config.max_fps or 1 / _POLL_SECONDS))
            self.file = MjpegFile(client, response, beginning, max(1 / _CONNECTIONS_PER_SECOND, poll_seconds))
            self.container_format = "mpjpeg"
        elif (text := _text_in(beginning)) is not None:
            raise SourceError(Reason.DECODE_ERROR, f"{where} sends {text}, not a video; {_ADVICE}")
        else:
            self.file = HttpFile(client, response, beginning)


def _text_in(beginning: bytes) -> str | None:
    """What kind of text an answer begins as; None where it may be a video."""
    start = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) or b"<html" in start[:1024]:
        return "a web page (HTML)"
    if start.startswith(b"<"):
        return "XML"
    if re.match(rb"[{\[]\s*[\"{\[}\]]", start):
        return "JSON"
    return None
