"""Motion JPEG over HTTP, in all the forms in which devices send it, and single pictures that are requested repeatedly.

The data around the pictures differ between manufacturers: boundaries that are announced differently or not at all;
parts without headers, with wrong lengths, with bare line feeds; no parts at all. The JPEGs themselves do not differ:
they contain their own end (ITU-T T.81, annex B). So the pictures are found by their content, as soon as their last byte
has arrived, and passed to FFmpeg in the parts that it expects.
"""

from __future__ import annotations

import http.client
import re
import time
from collections import deque

from streamdet.capture.sources.http_client import HttpClient, HttpFile, host_of
from streamdet.capture.sources.interrupt import current_interrupt
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


class JpegFinder:
    """Cuts whole JPEGs out of a stream of bytes; bytes between them are skipped."""

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


class MjpegFile(HttpFile):
    """Whole pictures for FFmpeg, each in a part of its own; for one thread.

    An address that sends one picture an answer is asked again and again.

    Args:
        client: that opened it.
        response: the answer, of which `beginning` has been read.
        beginning: its first bytes.
        poll_seconds: from one question to the next where an answer is one picture.
    """

    def __init__(
        self, client: HttpClient, response: http.client.HTTPResponse, beginning: bytes, poll_seconds: float
    ) -> None:
        super().__init__(client, response, beginning)
        self._is_multipart = _kind_of(response).startswith("multipart/")
        self._poll_seconds = poll_seconds
        self._asked_at = time.monotonic()
        self._finder = JpegFinder()
        self._bytes_without_end = 0
        self._parts = deque(map(_part, self._finder.feed(beginning)))
        self._pictures = len(self._parts)

    def seekable(self) -> bool:
        """It is not."""
        return False

    def read(self, size: int) -> bytes:
        """Returns a picture or a part of one, at most `size` bytes; none at the end."""
        while not self._parts:
            data = self._receive()
            if not data:
                if self._asks_again():
                    continue
                return b""
            pictures = self._finder.feed(data)
            self._pictures += len(pictures)
            self._parts.extend(map(_part, pictures))
            self._bytes_without_end = 0 if pictures else self._bytes_without_end + len(data)
            self.waited_for = "whole JPEG picture" if self._bytes_without_end else "data"
            if self._bytes_without_end > _MOST_BYTES:
                where = host_of(self._response.geturl())
                detail = f"{where} sends no whole picture in {_MOST_BYTES >> 20} MiB"
                self.problem = SourceError(Reason.DECODE_ERROR, detail)
                return b""
        part = self._parts.popleft()
        if size < len(part):
            self._parts.appendleft(part[size:])
        return bytes(part[:size])

    def _asks_again(self) -> bool:
        """Asks for the next picture, when it is due, after an answer that was one picture."""
        if self._pictures != 1 or self._is_multipart or self.problem is not None:
            return False
        if current_interrupt().wait(max(0.0, self._asked_at + self._poll_seconds - time.monotonic())):
            self.problem = self._client.timed_out("picture")
            return False
        self._asked_at = time.monotonic()
        self._finder, self._pictures, self._bytes_without_end = JpegFinder(), 0, 0
        self._response.close()
        return self._ask(self._client.address)


def is_mjpeg(response: http.client.HTTPResponse, beginning: bytes) -> bool:
    """Whether pictures should be looked for in an answer.

    Args:
        response: with what the server says that it is.
        beginning: the first bytes of its body.
    """
    kind = _kind_of(response)
    if kind in ("image/jpeg", "image/jpg", "video/x-motion-jpeg", "video/x-mjpeg") or kind.startswith("multipart/"):
        return True
    return _looks_like_mjpeg(beginning)


def beginning_of(response: http.client.HTTPResponse) -> bytes:
    """The first bytes of an answer, as many as show what it is.

    Raises:
        Exception: of `FAILURES`.
    """
    beginning = b""
    while len(beginning) < _SNIFFED_BYTES and not _looks_like_mjpeg(beginning):
        data = response.read1(_SNIFFED_BYTES - len(beginning))
        beginning += data
        if not data or (len(beginning) >= len(_BEGINNING) and not beginning.lstrip().startswith((b"-", b"C", b"c"))):
            break
    return beginning


def _looks_like_mjpeg(beginning: bytes) -> bool:
    names_jpeg = re.search(rb"(?i)content-type\s*:\s*image/jpe?g", beginning) is not None
    return names_jpeg or beginning.startswith(_BEGINNING) or (beginning.startswith(b"--") and _BEGINNING in beginning)


def _kind_of(response: http.client.HTTPResponse) -> str:
    return (response.headers.get("Content-Type") or "").partition(";")[0].strip().lower()


def _part(picture: bytes) -> memoryview:
    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
    return memoryview(head + picture + b"\r\n")
