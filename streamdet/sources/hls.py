"""Fetches everything that an HLS stream consists of, for FFmpeg, which by itself knows no bounds.

FFmpeg follows playlists wherever they lead, as far and as often as they say, and verifies the server of a playlist, but
not those of its pieces. So every playlist, segment and key is fetched here: looked at, counted, verified, in time.

A file that cannot be had is empty, as seen by FFmpeg: it then goes on with the next one or comes to its end, and
`problem` says why.
"""

from __future__ import annotations

import http.client
import io
import ssl
import time
import urllib.error
import urllib.request
from contextlib import closing
from typing import IO, Protocol
from urllib.parse import unquote, urlsplit

from streamdet.errors import SourceError
from streamdet.sources.aes import DecryptedFile
from streamdet.sources.connection import failure_of_connection, failure_of_status
from streamdet.sources.interrupt import current_interrupt
from streamdet.sources.patience import Patience, handlers
from streamdet.sources.playlist import BEGINNING, MAX_BYTES, Playlists, absolute, is_complete
from streamdet.types import Reason

# Enough for the playlists, keys and first segments of everything that a stream may consist of.
_CONNECTIONS_AT_ONCE = 200
_CONNECTIONS_PER_SECOND = 10
_USER_AGENT = "streamdet"
_READ_BYTES = 1 << 16
# What urllib's parsers raise where an answer makes no sense.
_SENSELESS = (http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError)
_CRYPTO = ("crypto+", "crypto:")


class _File(Protocol):
    def read(self, size: int) -> bytes: ...

    def close(self) -> None: ...


class HlsFiles:
    """Opens files for FFmpeg; `av.open(..., io_open=HlsFiles(...))`; for one thread.

    Args:
        url: of the playlist; its login is given to its own server, and to no other.
        context: how servers are verified.
        needs_tls: whether everything must be encrypted.
        wait_seconds: for all that is needed to open the stream.

    Attributes:
        is_complete: whether the newest playlist of segments is that of a film, from its beginning to its end.
        problem: why the newest file could not be had; None when it could.
        opened: what FFmpeg has not closed yet.
    """

    def __init__(self, url: str, context: ssl.SSLContext, *, needs_tls: bool, wait_seconds: float) -> None:
        self._patience = Patience(time.monotonic() + wait_seconds, _CONNECTIONS_AT_ONCE, _CONNECTIONS_PER_SECOND)
        self._schemes = ("https",) if needs_tls else ("http", "https")
        self._wait_seconds = wait_seconds
        self._playlists = Playlists()
        self._has_begun = self._is_over = False
        self.is_complete = False
        self.opened: set[_HlsFile] = set()
        self.problem: SourceError | None = None
        answers = [_CloseAnswer(), _Redirections(self._schemes), *_logins(url)]
        self._opener = urllib.request.build_opener(*handlers(self._patience, context), *answers)
        self._opener.addheaders = [("User-Agent", _USER_AGENT)]

    def wait_at_most(self, seconds: float) -> None:
        """From now on, for whatever comes next."""
        self._wait_seconds = seconds
        self._patience.give_up_at = time.monotonic() + seconds

    def __call__(self, url: str, _flags: int, options: dict[str, str]) -> _File:
        """Opens one file; an empty one where it cannot be had."""
        if not self._is_over:
            try:
                return self._opened(url, options)
            except ValueError:
                self.problem = SourceError(Reason.DECODE_ERROR, "the playlist leads to an address that is none")
        return io.BytesIO()

    def close(self) -> None:
        """Ends the connections that FFmpeg has not closed itself."""
        for file in list(self.opened):
            file.close()

    def failed(self, error: Exception, where: str) -> None:
        """Remembers why a file could not be had."""
        if isinstance(error, TimeoutError):
            text = "interrupted" if current_interrupt().is_set() else f"no answer within {self._wait_seconds:g} s"
            self.problem = SourceError(Reason.TIMEOUT, text)
        elif isinstance(error, SourceError):
            self.problem = error
        elif isinstance(error, OSError):
            self.problem = failure_of_connection(error, where)
        else:
            self.problem = SourceError(Reason.REFUSED, f"{where} answers, but not in HTTP")

    def _opened(self, url: str, options: dict[str, str]) -> _File:
        for prefix in _CRYPTO:
            if url.startswith(prefix) and options.keys() >= {"key", "iv"}:
                file = self._file(url.removeprefix(prefix), options)
                return DecryptedFile(file, bytes.fromhex(options["key"]), bytes.fromhex(options["iv"]))
        file = self._file(url, options)
        beginning = file.read_all(len(BEGINNING))
        if beginning == BEGINNING:
            with closing(file):
                body = beginning + file.read_all(MAX_BYTES + 1 - len(beginning))
                return self._playlist(_without_login(url), file.url, body)
        if not self._has_begun and self.problem is None:
            self._end(SourceError(Reason.DECODE_ERROR, f"{_host_of(url)} sends no playlist"))
            file.close()
            return io.BytesIO()
        file.put_back(beginning)
        return file

    def _playlist(self, asked: str, found: str, body: bytes) -> _File:
        self._has_begun = True
        try:
            self._playlists.admit(asked, found, body)
        except SourceError as error:
            self._end(error)
            return io.BytesIO()
        if (complete := is_complete(body)) is not None:
            self.is_complete = complete
        return io.BytesIO(body if found == asked else absolute(body, found))

    def _end(self, problem: SourceError) -> None:
        """Nothing more is fetched."""
        self._is_over = True
        self.problem = problem

    def _file(self, url: str, options: dict[str, str]) -> _HlsFile:
        where = _host_of(url)
        response = None
        try:
            response = self._response(_without_login(url), options)
            self.problem = None
        except urllib.error.HTTPError as error:
            error.close()
            self.problem = failure_of_status(error.code, error.reason, where)
        except urllib.error.URLError as error:
            self.failed(error.reason if isinstance(error.reason, Exception) else error, where)
        except (SourceError, OSError, *_SENSELESS) as error:
            self.failed(error, where)
        return _HlsFile(self, url, response)

    def _response(self, address: str, options: dict[str, str]) -> http.client.HTTPResponse:
        _require(self._schemes, address)
        request = urllib.request.Request(address)  # noqa: S310 - the scheme is one of these
        begin, end = int(options.get("offset", 0)), int(options.get("end_offset", 0))
        if begin or end:
            request.add_header("Range", f"bytes={begin}-{end - 1 if end else ''}")
        response: http.client.HTTPResponse = self._opener.open(request)
        if response.status == http.HTTPStatus.OK:
            _skip(response, begin)
        return response


class _HlsFile:
    """One file on its way."""

    def __init__(self, files: HlsFiles, url: str, response: http.client.HTTPResponse | None) -> None:
        self.url = url if response is None else response.geturl()
        self._files = files
        self._response = response
        self._first = b""
        files.opened.add(self)

    def read(self, size: int) -> bytes:
        """What there is, at most so many bytes; none at the end."""
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data
        if self._response is None:
            return b""
        try:
            return self._response.read1(size)
        except (OSError, *_SENSELESS) as error:
            self._files.failed(error, _host_of(self.url))
            return b""

    def read_all(self, size: int) -> bytes:
        """So many bytes, fewer only at the end."""
        data = bytearray()
        while len(data) < size and (more := self.read(min(_READ_BYTES, size - len(data)))):
            data += more
        return bytes(data)

    def put_back(self, data: bytes) -> None:
        """Has `read` begin with it."""
        self._first = data + self._first

    def close(self) -> None:
        """Ends its connection."""
        self._files.opened.discard(self)
        if self._response is not None:
            self._response.close()


def _skip(response: http.client.HTTPResponse, count: int) -> None:
    """Reads past the beginning of a whole file of which only a part was asked for."""
    while count > 0 and (data := response.read1(min(_READ_BYTES, count))):
        count -= len(data)


def _without_login(url: str) -> str:
    return urlsplit(url)._replace(netloc=_host_of(url)).geturl()


def _host_of(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _logins(url: str) -> list[urllib.request.BaseHandler]:
    parts = urlsplit(url)
    if parts.username is None:
        return []
    logins = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    server = f"{parts.scheme}://{_host_of(url)}/"
    logins.add_password(None, server, unquote(parts.username), unquote(parts.password or ""))
    return [urllib.request.HTTPBasicAuthHandler(logins), urllib.request.HTTPDigestAuthHandler(logins)]


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows none to an address that must not be asked.

    Args:
        schemes: that may be asked.
    """

    def __init__(self, schemes: tuple[str, ...]) -> None:
        self._schemes = schemes

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _require(self._schemes, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _CloseAnswer(urllib.request.BaseHandler):
    """Closes the answer that asks for a login, or leads elsewhere, before that is done: urllib would read all of it."""

    handler_order = 100

    def http_error_401(
        self, _request: urllib.request.Request, answer: IO[bytes], _code: int, _text: str, _headers: object
    ) -> None:
        answer.close()

    http_error_301 = http_error_302 = http_error_303 = http_error_307 = http_error_308 = http_error_401


def _require(schemes: tuple[str, ...], address: str) -> None:
    scheme = urlsplit(address).scheme
    if scheme in schemes or scheme == "data":
        return
    if scheme == "http":
        raise SourceError(Reason.TLS, "the playlist leads to an address without encryption")
    raise SourceError(Reason.DECODE_ERROR, f"the playlist leads to an address that is no web server's: {scheme}://")
