"""Fetches all files of an HLS stream for FFmpeg, which has no limits of its own.

FFmpeg follows playlists to any address and any number of times, and verifies the server of a playlist, but not those
of its segments and keys. So every playlist, segment and key is fetched here, with checks, limits, verification and
deadlines. The playlist may be a file of this machine, and may then refer to files only.

A file that cannot be read is empty for FFmpeg, which then continues with the next one or ends; `problem` holds the
reason.
"""

from __future__ import annotations

import http.client
import io
import time
from contextlib import closing
from typing import Protocol

from streamdet.capture.sources.connections import ConnectionBudget
from streamdet.capture.sources.hls.decrypt import DecryptedFile
from streamdet.capture.sources.hls.playlist import (
    BEGINNING,
    MAX_BYTES,
    MAX_MAP_BYTES,
    Playlists,
    Position,
    absolute,
    is_complete,
)
from streamdet.capture.sources.http_client import FAILURES, HttpClient, host_of, without_login
from streamdet.capture.sources.soundness import note_join
from streamdet.config import StreamConfig
from streamdet.errors import SourceError
from streamdet.types import Reason

# Enough for the playlists, keys and first segments of everything that a stream may consist of.
_CONNECTIONS_AT_ONCE = 200
_CONNECTIONS_PER_SECOND = 10
_READ_BYTES = 1 << 16
_CRYPTO = ("crypto+", "crypto:")


class _File(Protocol):
    def read(self, size: int) -> bytes: ...

    def close(self) -> None: ...


class HlsFiles:
    """Opens files for FFmpeg; `av.open(..., io_open=HlsFiles(...))`; for one thread.

    Args:
        config: of the stream; its login is given to its own server, and to no other.
        before: what has read the same stream until its format changed; this goes on there.

    Attributes:
        address: of the first playlist, for FFmpeg.
        has_other_format: whether the stream has ended for FFmpeg because its format has changed.
        is_complete: whether the newest playlist of segments is that of a film, from its beginning to its end.
        problem: why the newest file could not be fetched; None if it could.
        opened: what FFmpeg has not closed yet.
    """

    def __init__(self, config: StreamConfig, before: HlsFiles | None = None) -> None:
        if before is None:
            budget, position = ConnectionBudget(time.monotonic(), _CONNECTIONS_AT_ONCE, _CONNECTIONS_PER_SECOND), None
        else:
            budget, position = before._client.budget, before._position  # noqa: SLF001 - its own class
        self._client: HttpClient = HttpClient(config, budget)
        self.address = self._client.address
        self._position: Position = Position(position)
        self.has_other_format = False
        self._playlists = Playlists()
        self._has_begun = self._is_over = self._was_cut = False
        self.is_complete = False
        self.opened: set[_HlsFile] = set()
        self.problem: SourceError | None = None

    def wait_at_most(self, seconds: float) -> None:
        """Limits the time of all waits from now on."""
        self._client.wait_at_most(seconds)

    def __call__(self, url: str, _flags: int, options: dict[str, str]) -> _File:
        """Opens one file; an empty one if it cannot be fetched."""
        if not self._is_over:
            try:
                return self._opened(url, options)
            except ValueError:
                self.problem = SourceError(Reason.DECODE_ERROR, "the playlist leads to an address that is not valid")
        return io.BytesIO()

    def close(self) -> None:
        """Ends the connections that FFmpeg has not closed itself."""
        for file in list(self.opened):
            file.close()

    def failed(self, error: Exception, where: str) -> None:
        """Remembers why a file could not be fetched."""
        self.problem = self._client.failure(error, where)

    def was_cut(self) -> None:
        """Remembers that a file has ended too early."""
        self._was_cut = True

    def _opened(self, url: str, options: dict[str, str]) -> _File:
        file = self._opened_whole(url, options)
        plain_url = url
        for prefix in _CRYPTO:
            plain_url = plain_url.removeprefix(prefix)
        playlist = self._position.opens((without_login(plain_url), int(options.get("offset", 0))))
        if playlist is None:
            return file
        with closing(file):
            end = int(options.get("end_offset", 0))
            section = _read_all(file, end - int(options.get("offset", 0)) if end else MAX_MAP_BYTES)
        if self.problem is None and self._position.is_other_format(playlist, section):
            self.has_other_format = True
            self._end(SourceError(Reason.ENDED, "the stream goes on in another format"))
            return io.BytesIO()
        return io.BytesIO(section)

    def _opened_whole(self, url: str, options: dict[str, str]) -> _File:
        for prefix in _CRYPTO:
            if url.startswith(prefix) and options.keys() >= {"key", "iv"}:
                file = self._file(url.removeprefix(prefix), options)
                self._begin_segment()
                return DecryptedFile(file, bytes.fromhex(options["key"]), bytes.fromhex(options["iv"]))
        file = self._file(url, options)
        beginning = _read_all(file, len(BEGINNING))
        if beginning == BEGINNING:
            with closing(file):
                body = beginning + _read_all(file, MAX_BYTES + 1 - len(beginning))
                return self._playlist(without_login(url), file.url, body)
        if not self._has_begun and self.problem is None:
            self._end(SourceError(Reason.DECODE_ERROR, f"{host_of(url) or 'it'} sends no playlist"))
            file.close()
            return io.BytesIO()
        file.put_back(beginning)
        self._begin_segment()
        return file

    def _begin_segment(self) -> None:
        if not self._was_cut:
            note_join()
        self._was_cut = False

    def _playlist(self, asked: str, found: str, body: bytes) -> _File:
        self._has_begun = True
        try:
            self._playlists.admit(asked, found, body)
        except SourceError as error:
            self._end(error)
            return io.BytesIO()
        if (complete := is_complete(body)) is not None:
            self.is_complete = complete
        body = self._position.cut(asked, found, body)
        return io.BytesIO(body if found == asked else absolute(body, found))

    def _end(self, problem: SourceError) -> None:
        """Nothing more is fetched."""
        self._is_over = True
        self.problem = problem

    def _file(self, url: str, options: dict[str, str]) -> _HlsFile:
        where = host_of(url)
        response = None
        try:
            response = self._response(without_login(url), options)
            self.problem = None
        except FAILURES as error:
            self.failed(error, where)
        return _HlsFile(self, url, response)

    def _response(self, address: str, options: dict[str, str]) -> http.client.HTTPResponse:
        begin, end = int(options.get("offset", 0)), int(options.get("end_offset", 0))
        part = {"Range": f"bytes={begin}-{end - 1 if end else ''}"} if begin or end else {}
        response = self._client.open(address, part)
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            _skip(response, begin)
        return response


class _HlsFile:
    """One file that is being fetched."""

    def __init__(self, files: HlsFiles, url: str, response: http.client.HTTPResponse | None) -> None:
        is_elsewhere = response is not None and not response.geturl().startswith("file:")
        self.url = response.geturl() if response is not None and is_elsewhere else url
        self._files = files
        self._response = response
        self._first = b""
        files.opened.add(self)

    def read(self, size: int) -> bytes:
        """Returns the available bytes, at most `size`; b"" at the end."""
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data
        if self._response is None:
            return b""
        try:
            data = self._response.read1(size)
        except FAILURES as error:
            self._files.was_cut()
            self._files.failed(error, host_of(self.url))
            # Another read would fail with an error that says less: after a time-out Python reads no more.
            self._response.close()
            self._response = None
            return b""
        if not data and isinstance(self._response, http.client.HTTPResponse) and self._response.length:
            self._files.was_cut()
        return data

    def put_back(self, data: bytes) -> None:
        """Makes `read` begin with it."""
        self._first = data + self._first

    def close(self) -> None:
        """Ends its connection."""
        self._files.opened.discard(self)
        if self._response is not None:
            self._response.close()


def _read_all(file: _File, most: int) -> bytes:
    """Reads this number of bytes, fewer only at the end."""
    data = bytearray()
    while len(data) < most and (more := file.read(min(_READ_BYTES, most - len(data)))):
        data += more
    return bytes(data)


def _skip(response: http.client.HTTPResponse, count: int) -> None:
    """Reads past the beginning of a whole file of which only a part was asked for."""
    while count > 0 and (data := response.read1(min(_READ_BYTES, count))):
        count -= len(data)
