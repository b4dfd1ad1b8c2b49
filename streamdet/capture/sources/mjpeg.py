"""Motion JPEG over HTTP, in all the ways in which devices send it.

What stands around the pictures differs from maker to maker: boundaries that are announced otherwise than they are sent,
or not at all; parts without headers, with wrong lengths, with bare line feeds; no parts at all. What a JPEG is does not
differ: it says itself where it ends (ITU-T T.81, annex B). So the pictures are found by what they are, as soon as their
last byte is there, and handed to FFmpeg in parts as it knows them.
"""

from __future__ import annotations

import http.client
import re
import time
from collections import deque

from streamdet.capture.sources.connections import ConnectionBudget, timed_out
from streamdet.capture.sources.http_client import FAILURES, HttpClient
from streamdet.errors import SourceError
from streamdet.types import Reason

_BEGINNING = b"\xff\xd8\xff"
_END = b"\xff\xd9"
# Within the coded pixels, 0xff is followed by 0 or is a restart marker; anything else ends them.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_RESTARTS = range(0xD0, 0xD8)
# Markers that may follow the pixels of one scan: tables, further scans, application data, comments.
_BETWEEN_SCANS = frozenset({0xC4, 0xCC, _SOS, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE})
# The largest cameras' pictures have about 20 MB.
_MOST_BYTES = 32 << 20
_SNIFFED_BYTES = 4096
_READ_BYTES = 1 << 16


class JpegFinder:
    """Cuts whole JPEGs out of a stream of bytes; what is between them is left out."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._at = 0
        self._in_picture = self._in_pixels = False

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the next bytes; the pictures that they complete."""
        self._bytes += data
        pictures = []
        while (picture := self._next()) is not None:
            pictures.append(picture)
        return pictures

    def _next(self) -> bytes | None:
        while True:
            if not self._in_picture and not self._begin():
                return None
            if self._in_pixels:
                match = _MARKER.search(self._bytes, self._at)
                if match is None:
                    # The last byte may be the first half of a marker.
                    self._at = max(self._at, len(self._bytes) - 1)
                    return None
                self._at, marker = match.start(), self._bytes[match.start() + 1]
                if marker == _EOI:
                    return self._cut(self._at + len(_END), b"")
                if marker == _SOI:
                    # The next one begins: the sender of this one left its end out.
                    return self._cut(self._at, _END)
                if marker in _BETWEEN_SCANS:
                    self._in_pixels = False
                else:
                    self._at += 1  # damage
            elif not self._pass_segment():
                return None

    def _begin(self) -> bool:
        """Drops what stands before a picture; false where none begins yet."""
        at = self._bytes.find(_BEGINNING)
        if at < 0:
            del self._bytes[: -(len(_BEGINNING) - 1)]
            return False
        del self._bytes[:at]
        self._at, self._in_picture, self._in_pixels = 2, True, False
        return True

    def _pass_segment(self) -> bool:
        """Passes over one segment of the header; false where it is not all there."""
        head = self._bytes[self._at : self._at + 4]
        if len(head) < 2:
            return False
        marker = head[1]
        if head[0] != 0xFF or marker in (0, _SOI, _EOI):
            # No picture after all: one may begin within it.
            del self._bytes[:2]
            self._in_picture = False
        elif marker == 0xFF:
            self._at += 1  # a fill byte
        elif marker == _TEM or marker in _RESTARTS:
            self._at += 2
        elif len(head) < 4:
            return False
        else:
            size = 2 + int.from_bytes(head[2:4], "big")
            if len(self._bytes) < self._at + size:
                return False
            self._at += max(4, size)
            self._in_pixels = marker == _SOS
        return True

    def _cut(self, end: int, missing: bytes) -> bytes:
        picture = bytes(self._bytes[:end]) + missing
        del self._bytes[:end]
        self._in_picture = self._in_pixels = False
        return picture


class MjpegFile:
    """What FFmpeg reads: each picture in a part of its own; for one thread.

    Args:
        client: that opened it.
        patience: of its connections.
        response: the answer, of which `beginning` has been read.
        beginning: its first bytes.
        where: host and port, for people.

    Attributes:
        problem: why there are no more pictures; None at an orderly end.
    """

    def __init__(
        self,
        client: HttpClient,
        patience: ConnectionBudget,
        response: http.client.HTTPResponse,
        beginning: bytes,
        where: str,
    ) -> None:
        self.problem: SourceError | None = None
        self._client = client
        self._patience = patience
        self._response = response
        self._where = where
        self._wait_seconds = round(max(0.0, patience.give_up_at - time.monotonic()), 1)
        self._finder = JpegFinder()
        self._bytes_without_end = 0
        self._parts = deque(_part(picture) for picture in self._finder.feed(beginning))

    def wait_at_most(self, seconds: float) -> None:
        """From now on, for whatever comes next."""
        self._wait_seconds = round(seconds, 1)
        self._patience.give_up_at = time.monotonic() + seconds

    def read(self, size: int) -> bytes:
        """So many bytes at the most, of one part; none at the end."""
        while not self._parts:
            data = self._read_some()
            if not data:
                return b""
            pictures = self._finder.feed(data)
            self._parts.extend(map(_part, pictures))
            self._bytes_without_end = 0 if pictures else self._bytes_without_end + len(data)
            if self._bytes_without_end > _MOST_BYTES:
                detail = f"{self._where} sends no whole picture in {_MOST_BYTES >> 20} MiB"
                self.problem = SourceError(Reason.DECODE_ERROR, detail)
                return b""
        part = self._parts.popleft()
        if size < len(part):
            self._parts.appendleft(part[size:])
        return bytes(part[:size])

    def close(self) -> None:
        """Ends the connection."""
        self._response.close()

    def _read_some(self) -> bytes:
        try:
            return self._response.read1(_READ_BYTES)
        except http.client.IncompleteRead:
            return b""
        except ConnectionError:
            self.problem = SourceError(Reason.ENDED, "the connection was closed")
            return b""
        except TimeoutError:
            self.problem = timed_out(self._wait_seconds, "whole JPEG picture" if self._bytes_without_end else "data")
            return b""
        except FAILURES as error:
            self.problem = self._client.failure(error, self._where, self._wait_seconds)
            return b""


def is_mjpeg(content_type: str, beginning: bytes) -> bool:
    """Whether pictures should be looked for in an answer.

    Args:
        content_type: as the server states it; "" where it does not.
        beginning: the first bytes of its body.
    """
    if beginning.startswith(_BEGINNING):
        return True
    kind = content_type.partition(";")[0].strip().lower()
    if kind in ("image/jpeg", "image/jpg", "video/x-motion-jpeg", "video/x-mjpeg"):
        return True
    # Nothing says what it is but the first lines of its first part.
    names_jpeg = re.search(rb"(?i)content-type\s*:\s*image/jpe?g", beginning) is not None
    return kind.startswith("multipart/") or names_jpeg or (beginning.startswith(b"--") and _BEGINNING in beginning)


def beginning_of(response: http.client.HTTPResponse) -> bytes:
    """The first bytes of an answer, as many as show what it is.

    Raises:
        Exception: of `FAILURES`.
    """
    beginning = b""
    while len(beginning) < _SNIFFED_BYTES and not is_mjpeg("", beginning):
        data = response.read1(_SNIFFED_BYTES - len(beginning))
        beginning += data
        if not data or (len(beginning) >= len(_BEGINNING) and not beginning.lstrip().startswith((b"-", b"C", b"c"))):
            break
    return beginning


def _part(picture: bytes) -> memoryview:
    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
    return memoryview(head + picture + b"\r\n")
