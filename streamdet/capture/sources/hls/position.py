"""Where in its playlists a stream of fragments (fMP4) is, so that it can be opened again where its format changes.

Each segment of such a stream belongs to an initialisation section (`EXT-X-MAP`, RFC 8216 4.3.2.5), which says how it is
coded. FFmpeg's demuxer takes the first one for all: pictures that come after another one would be decoded with the old
parameters. So when another section comes, the stream ends for FFmpeg, and is opened again from that segment on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urljoin

MAX_MAP_BYTES = 1 << 20
_LINE_END = re.compile(rb"[\r\n\0]+")
_MAP, _RANGE, _NUMBER = b"#EXT-X-MAP:", b"#EXT-X-BYTERANGE:", b"#EXT-X-MEDIA-SEQUENCE:"
_OF_ONE_SEGMENT = (b"#EXTINF:", _RANGE, b"#EXT-X-DISCONTINUITY", b"#EXT-X-PROGRAM-DATE-TIME:", b"#EXT-X-GAP")
_URI = re.compile(rb'URI="([^"]*)"')
_RANGE_OF_MAP = re.compile(rb'BYTERANGE="[0-9]+@([0-9]+)"')
_LENGTH_AND_BEGIN = re.compile(rb"\s*([0-9]{1,15})(?:@([0-9]{1,15}))?")

Place = tuple[str, int]
"""An address, and where in that file it begins."""


class _Segment(NamedTuple):
    number: int
    place: Place
    section: Place | None
    lines: list[bytes]


class Position:
    """Follows which segments are read.

    Args:
        before: of the same stream, until its format changed; what that has read is left out of the playlists.
    """

    def __init__(self, before: Position | None = None) -> None:
        self._after: dict[str, int] = {} if before is None else dict(before._last)  # noqa: SLF001 - its own class
        self._last: dict[str, int] = dict(self._after)
        self._segments: dict[str, list[_Segment]] = {}
        self._sections: dict[str, bytes] = {}

    def cut(self, asked: str, found: str, body: bytes) -> bytes:
        """Reads a playlist; it without what was read before the format changed.

        Args:
            asked: its address, by which it is known.
            found: what its addresses are relative to.
            body: all of it.
        """
        if _MAP not in body:
            return body
        header, segments, end = _read(body, found)
        self._segments[asked] = segments
        after = self._after.get(asked)
        if after is None or not any(segment.number <= after for segment in segments):
            return body
        kept = [segment for segment in segments if segment.number > after]
        lines = [line for line in header if not line.startswith(_NUMBER)]
        lines.append(_NUMBER + b"%d" % (after + 1))
        for segment in segments:
            if segment.number <= after:
                lines += [line for line in segment.lines if line.startswith(b"#") and not _is_of_one(line)]
        for segment in kept:
            lines += [_with_begin(line, segment) if segment is kept[0] else line for line in segment.lines]
        return b"\n".join([*lines, *end, b""])

    def opens(self, place: Place) -> str | None:
        """Notes what FFmpeg is about to read.

        Returns:
            The playlist of which it is an initialisation section; None for everything else.
        """
        for playlist, segments in self._segments.items():
            last = self._last.get(playlist, -1)
            number = next((s.number for s in segments if s.place == place and s.number > last), None)
            if number is not None:
                self._last[playlist] = number
                return None
            if any(segment.section == place for segment in segments):
                return playlist
        return None

    def is_other_format(self, playlist: str, section: bytes) -> bool:
        """Whether an initialisation section is another one than that with which the playlist was begun."""
        return self._sections.setdefault(playlist, section) != section


def _read(body: bytes, base: str) -> tuple[list[bytes], list[_Segment], list[bytes]]:
    """Lines before the first segment, the segments, and lines behind the last."""
    header: list[bytes] = []
    segments: list[_Segment] = []
    number, section, end = 0, None, 0
    pending: list[bytes] = []
    for line in _lines(body):
        pending.append(line)
        if line.startswith(_NUMBER):
            number = int(re.sub(rb"[^0-9]", b"", line)[:15] or b"0")
        elif line.startswith(_MAP) and (uri := _URI.search(line)):
            begin = _RANGE_OF_MAP.search(line)
            section = (_whole(base, uri[1]), int(begin[1]) if begin else 0)
        elif not line.startswith(b"#"):
            place, end = _place(pending, _whole(base, line), segments, end)
            if not segments:
                first = next((n for n, tag in enumerate(pending) if _is_of_one(tag)), len(pending) - 1)
                header, pending = pending[:first], pending[first:]
            segments.append(_Segment(number, place, section, pending))
            number += 1
            pending = []
    return header, segments, pending


def _place(lines: list[bytes], url: str, segments: list[_Segment], end: int) -> tuple[Place, int]:
    """Where a segment lies, and where it ends."""
    for line in lines:
        if line.startswith(_RANGE) and (found := _LENGTH_AND_BEGIN.match(line.removeprefix(_RANGE))):
            goes_on = bool(segments) and segments[-1].place[0] == url
            begin = int(found[2]) if found[2] else end * goes_on
            return (url, begin), begin + int(found[1])
    return (url, 0), 0


def _with_begin(line: bytes, segment: _Segment) -> bytes:
    return line + b"@%d" % segment.place[1] if line.startswith(_RANGE) and b"@" not in line else line


def _is_of_one(line: bytes) -> bool:
    return line.startswith(_OF_ONE_SEGMENT) and not line.startswith(b"#EXT-X-DISCONTINUITY-SEQUENCE")


def _lines(body: bytes) -> Iterator[bytes]:
    return (line.strip() for line in _LINE_END.split(body) if line.strip())


def _whole(base: str, address: bytes) -> str:
    try:
        return urljoin(base, address.decode())
    except ValueError:
        return ""  # none, and FFmpeg will find that out
