"""Opens what an http:// or https:// url leads to, and finds out what it is: pictures, a playlist, or a file.

FFmpeg's own HTTP knows Digest with MD5 only, and takes pictures over HTTP only where they come in the form that it
expects; so streamdet asks first. What FFmpeg reads best by itself, such as a film in which it goes back and forth, is
left to it.
"""

from __future__ import annotations

import http.client
import time
from functools import partial
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from streamdet.capture.sources.connections import ConnectionBudget, timed_out
from streamdet.capture.sources.diagnosis import tls_context
from streamdet.capture.sources.hls.playlist import BEGINNING
from streamdet.capture.sources.http_client import FAILURES, HttpClient, host_of, without_login
from streamdet.capture.sources.mjpeg import MjpegFile, beginning_of, is_mjpeg
from streamdet.config import StreamConfig
from streamdet.config.addresses import UrlKind, kind_of_url
from streamdet.errors import SourceError
from streamdet.types import Reason

# One stream is one answer, and what leads to it: redirections, logins, and seeking in a film.
_CONNECTIONS_AT_ONCE = 20
_CONNECTIONS_PER_SECOND = 5
_READ_BYTES = 1 << 16
# What can be nothing else is left to FFmpeg at once.
_FILMS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".flv", ".mpg", ".mpeg", ".nut"})
# What FFmpeg gives when asked for a login, besides nothing.
_METHODS_OF_FFMPEG = ("", "MD5", "BASIC")


class HttpStream:
    """The answer to the url of a stream.

    Args:
        config: of a stream behind http:// or https://.

    Attributes:
        is_playlist: HLS, which is opened otherwise.
        file: what FFmpeg is to read; None where it should ask the server itself.
        container_format: of `file`; None where FFmpeg finds that out.

    Raises:
        SourceError: it cannot be had.
    """

    def __init__(self, config: StreamConfig) -> None:
        self.is_playlist = False
        self.file: MjpegFile | HttpFile | None = None
        self.container_format: str | None = None
        wait_seconds = config.connect_timeout_seconds
        patience = ConnectionBudget(time.monotonic() + wait_seconds, _CONNECTIONS_AT_ONCE, _CONNECTIONS_PER_SECOND)
        verified = kind_of_url(config.url) is UrlKind.HTTPS and config.tls_verify
        where = host_of(config.url)
        client = HttpClient(config.url, partial(tls_context, config), patience, needs_tls=verified)
        try:
            response = client.open(without_login(config.url))
            try:
                self._look_at(client, patience, response, where)
            finally:
                if self.file is None:
                    response.close()
        except FAILURES as error:
            raise client.failure(error, where, wait_seconds) from None

    def _look_at(
        self, client: HttpClient, patience: ConnectionBudget, response: http.client.HTTPResponse, where: str
    ) -> None:
        beginning = beginning_of(response)
        if beginning.startswith(BEGINNING):
            self.is_playlist = True
        elif is_mjpeg(response.headers.get("Content-Type") or "", beginning):
            self.file = MjpegFile(client, patience, response, beginning, where)
            self.container_format = "mpjpeg"
        elif client.login is not None and client.login.method not in _METHODS_OF_FFMPEG:
            self.file = HttpFile(client, patience, response, beginning, where)


def is_left_to_ffmpeg(url: str) -> bool:
    """Whether an address is that of a film, by its name."""
    return PurePosixPath(urlsplit(url).path).suffix.lower() in _FILMS


class HttpFile:
    """A file behind HTTP for FFmpeg, which asks for the rest of it from another place where that is needed.

    Args:
        client: that opened it.
        patience: of its connections.
        response: the answer, of which `beginning` has been read.
        beginning: its first bytes.
        where: host and port, for people.

    Attributes:
        has_end: whether the server says how long it is.
        problem: why nothing more can be had; None at an orderly end.
    """

    def __init__(
        self,
        client: HttpClient,
        patience: ConnectionBudget,
        response: http.client.HTTPResponse,
        beginning: bytes,
        where: str,
    ) -> None:
        self.has_end = "Content-Length" in response.headers
        self.problem: SourceError | None = None
        self._client = client
        self._patience = patience
        self._response = response
        self._first = beginning
        self._where = where
        self._wait_seconds = round(max(0.0, patience.give_up_at - time.monotonic()), 1)
        self._at = 0
        self._knows_ranges = response.headers.get("Accept-Ranges", "").strip().lower() == "bytes"

    def wait_at_most(self, seconds: float) -> None:
        """From now on, for whatever comes next."""
        self._wait_seconds = round(seconds, 1)
        self._patience.give_up_at = time.monotonic() + seconds

    def seekable(self) -> bool:
        """Whether the server sends parts."""
        return self._knows_ranges

    def tell(self) -> int:
        """Where the next byte stands."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Goes to another place, counted from the beginning (0) or from here (1).

        Raises:
            OSError: from anywhere else, or the server does not send it.
        """
        at = offset + (self._at if whence == 1 else 0)
        if whence not in (0, 1) or at < 0:
            raise OSError(0, "the place is not known")
        if at != self._at:
            self._response.close()
            self._first = b""
            try:
                self._response = self._client.open(self._response.geturl(), {"Range": f"bytes={at}-"})
            except FAILURES as error:
                self.problem = self._client.failure(error, self._where, self._wait_seconds)
                raise OSError(0, "the place cannot be had") from None
            if self._response.status != http.HTTPStatus.PARTIAL_CONTENT:
                raise OSError(0, "the server does not send parts")
            self._at = at
        return at

    def read(self, size: int) -> bytes:
        """What there is, so many bytes at the most; none at the end."""
        data, self._first = self._first[:size], self._first[size:]
        if not data:
            try:
                data = self._response.read1(min(size, _READ_BYTES))
            except http.client.IncompleteRead:
                data = b""
            except ConnectionError:
                self.problem = SourceError(Reason.ENDED, "the connection was closed")
            except TimeoutError:
                self.problem = timed_out(self._wait_seconds, "data")
            except FAILURES as error:
                self.problem = self._client.failure(error, self._where, self._wait_seconds)
        self._at += len(data)
        return data

    def close(self) -> None:
        """Ends the connection."""
        self._response.close()
