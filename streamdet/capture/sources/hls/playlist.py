"""HLS playlists (RFC 8216): limits what they may make FFmpeg fetch, and follows FFmpeg's position in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from streamdet.errors import SourceError
from streamdet.types import Reason

BEGINNING = b"#EXTM3U"
MAX_BYTES = 2 << 20
MAX_PLAYLISTS = 64
MAX_MAP_BYTES = 1 << 20
# FFmpeg's own memory for all playlists of a stream: a segment takes so much, and its url and its key's besides.
_MAX_MEMORY_BYTES = 64 << 20
_SEGMENT_BYTES = 200
# Initialisation sections are never forgotten: after so much, the stream must begin again.
_MAX_MAPS_BYTES = 64 << 20
_LONGEST_LINE_BYTES = 4096

_LINE_END = re.compile(rb"[\r\n\0]+")  # for FFmpeg, any of them
_OTHER_PLAYLIST = b"#EXT-X-STREAM-INF:", b"#EXT-X-MEDIA:"
_SEGMENT, _RANGE = b"#EXTINF:", b"#EXT-X-BYTERANGE:"
_MAP = b"#EXT-X-MAP:"
_FIRST_NUMBER = b"#EXT-X-MEDIA-SEQUENCE:"
_OF_ONE_SEGMENT = (_SEGMENT, _RANGE, b"#EXT-X-DISCONTINUITY", b"#EXT-X-PROGRAM-DATE-TIME:", b"#EXT-X-GAP")
_WITH_URI = b"#EXT-X-KEY:", _MAP, b"#EXT-X-MEDIA:"
_NUMBER = re.compile(_FIRST_NUMBER + rb"\s*([0-9]{1,15})[^\r\n\0]*")
# As many as FFmpeg begins with.
_NEWEST_SEGMENTS = 3
_URI = re.compile(rb'(URI=")([^"]*)(")')
_RANGE_OF_MAP = re.compile(rb'BYTERANGE="[0-9]+@([0-9]+)"')
_LENGTH_AND_BEGIN = re.compile(rb"\s*([0-9]{1,15})(?:@([0-9]{1,15}))?")

Place = tuple[str, int]
"""An address, and where in that file it begins."""


class _Segment(NamedTuple):
    number: int
    place: Place
    section: Place | None
    lines: list[bytes]


class _Numbering(NamedTuple):
    """The newest playlist: the number of its first segment for FFmpeg, its segments, and what was added to that."""

    first: int
    names: list[bytes]
    added: int


class Playlists:
    """Counts what the playlists of one stream have asked for so far."""

    def __init__(self) -> None:
        self._memory_bytes: dict[str, int] = {}
        self._maps_bytes = 0

    def admit(self, asked: str, found: str, body: bytes) -> None:
        """Looks at a playlist before FFmpeg sees it.

        Args:
            asked: its address; the first playlist may name others.
            found: where it is, after redirections.
            body: all of it, and one byte more than `MAX_BYTES` where it is larger.

        Raises:
            SourceError: decode_error: FFmpeg must not see it.
        """
        sender, lines = urlsplit(asked).netloc or "it", _LINE_END.split(body)
        longest = max(len(found), *map(len, lines))
        others, segments = (sum(line.startswith(tag) for line in lines) for tag in (_OTHER_PLAYLIST, _SEGMENT))
        is_first = not self._memory_bytes
        self._memory_bytes[asked] = len(body) + segments * (_SEGMENT_BYTES + 2 * longest)
        self._maps_bytes += sum(_SEGMENT_BYTES + len(line) + len(found) for line in lines if line.startswith(_MAP))
        problems = {
            f"a playlist of more than {MAX_BYTES >> 20} MiB": len(body) > MAX_BYTES,
            f"a playlist with a line or an address of more than {_LONGEST_LINE_BYTES} bytes":
                longest > _LONGEST_LINE_BYTES,
            "a playlist that is no text": not _is_text(body),
            "playlists that lead to further playlists": others > 0 and not is_first,
            f"more than {MAX_PLAYLISTS} playlists":
                others > MAX_PLAYLISTS or len(self._memory_bytes) > MAX_PLAYLISTS + 1,
            "playlists of more segments than a stream needs":
                sum(self._memory_bytes.values()) > _MAX_MEMORY_BYTES or self._maps_bytes > _MAX_MAPS_BYTES,
        }  # fmt: skip
        for problem, is_there in problems.items():
            if is_there:
                raise SourceError(Reason.DECODE_ERROR, f"{sender} sends {problem}")


class Position:
    """Where in the playlists of a stream of fragments (fMP4) FFmpeg is, so that it can go on where the format changes.

    Each segment of such a stream belongs to an initialisation section (`EXT-X-MAP`, 4.3.2.5), which says how it is
    coded. FFmpeg's demuxer takes the first one for all: pictures that come after another one would be decoded with the
    old parameters. So when another section comes, the stream ends for FFmpeg, and is opened again from that segment on.

    Args:
        before: of the same stream, until its format changed; what that has read is left out of the playlists.
    """

    def __init__(self, before: Position | None = None) -> None:
        self._after: dict[str, int] = {} if before is None else dict(before._last)  # noqa: SLF001 - its own class
        self._last: dict[str, int] = dict(self._after)
        self._numbering: dict[str, _Numbering] = {}
        if before is not None:
            self._numbering |= before._numbering  # noqa: SLF001 - its own class
        self._segments: dict[str, list[_Segment]] = {}
        self._sections: dict[str, bytes] = {}

    def cut(self, asked: str, found: str, body: bytes) -> bytes:
        """Reads a playlist, and returns it as FFmpeg is to see it.

        Segments read before the format changed are removed, and numbers do not start again.

        Args:
            asked: its address, by which it is known.
            found: what its addresses are relative to.
            body: all of it.
        """
        body = self._renumbered(asked, body)
        if _MAP not in body:
            return body
        header, segments, end = _read(body, found)
        self._segments[asked] = segments
        after = self._after.get(asked)
        if after is None or not any(segment.number <= after for segment in segments):
            return body
        kept = [segment for segment in segments if segment.number > after]
        lines = [line for line in header if not line.startswith(_FIRST_NUMBER)]
        lines.append(_FIRST_NUMBER + b"%d" % (after + 1))
        for segment in segments:
            if segment.number <= after:
                lines += [line for line in segment.lines if line.startswith(b"#") and not _is_of_one(line)]
        for segment in kept:
            lines += [_with_begin(line, segment) if segment is kept[0] else line for line in segment.lines]
        return b"\n".join([*lines, *end, b""])

    def _renumbered(self, asked: str, body: bytes) -> bytes:
        """The playlist with numbers that go on where those of the server start again (its encoder was restarted).

        FFmpeg would wait until they had caught up.
        """
        names = [line for line in _lines(body) if not line.startswith(b"#")]
        if _SEGMENT not in body or not names:
            return body
        found = _NUMBER.search(body)
        number, count = int(found[1]) if found else 0, len(names)
        before = self._numbering.get(asked, _Numbering(0, [], 0))
        added = before.added
        if number + added + count <= before.first:
            known = [n for n, name in enumerate(names) if before.names.count(name) == 1]
            if known:
                added = before.first + before.names.index(names[known[-1]]) - number - known[-1]
            else:
                # On with the newest segments, as at the beginning.
                added = before.first + len(before.names) - max(number, number + count - _NEWEST_SEGMENTS)
        first = max(0, number + added)
        self._numbering[asked] = _Numbering(first, names, added)
        if not added:
            return body
        line = _FIRST_NUMBER + b"%d" % first
        return _NUMBER.sub(line, body, count=1) if found else body.replace(BEGINNING, BEGINNING + b"\n" + line, 1)

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


def absolute(body: bytes, url: str) -> bytes:
    """The same playlist with whole addresses, so that it can be read as if it lay anywhere.

    Args:
        body: all of it.
        url: what its addresses are relative to.
    """
    lines = []
    for line in _LINE_END.split(body):
        if line and not line.startswith(b"#"):
            lines.append(_joined(url, line))
        elif line.startswith(_WITH_URI):
            lines.append(_URI.sub(lambda found: found[1] + _joined(url, found[2]) + found[3], line))
        else:
            lines.append(line)
    return b"\n".join(lines) + b"\n"


def is_complete(body: bytes) -> bool | None:
    """Whether a playlist is that of a film: all of it from the first segment on, and no more will come.

    The last playlist of a live stream that has ended begins with a later segment.

    Args:
        body: all of it.

    Returns:
        None for a playlist that only names others.
    """
    if _SEGMENT not in body:
        return None
    lines = _LINE_END.split(body)
    first = next((line for line in lines if line.startswith(_FIRST_NUMBER)), b"")
    begins_at_first = re.fullmatch(rb"\s*[01]?\s*", first.removeprefix(_FIRST_NUMBER)) is not None
    return b"#EXT-X-ENDLIST" in lines and (begins_at_first or b"#EXT-X-PLAYLIST-TYPE:VOD" in lines)


def _joined(base: str, address: bytes) -> bytes:
    try:
        return urljoin(base, address.decode()).encode()
    except ValueError:
        return address  # none, and FFmpeg will find that out


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeError:
        return False
    return True


def _read(body: bytes, base: str) -> tuple[list[bytes], list[_Segment], list[bytes]]:
    """Lines before the first segment, the segments, and lines behind the last."""
    header: list[bytes] = []
    segments: list[_Segment] = []
    number, section, end = 0, None, 0
    pending: list[bytes] = []
    for line in _lines(body):
        pending.append(line)
        if line.startswith(_FIRST_NUMBER):
            number = int(re.sub(rb"[^0-9]", b"", line)[:15] or b"0")
        elif line.startswith(_MAP) and (uri := _URI.search(line)):
            begin = _RANGE_OF_MAP.search(line)
            section = (_whole(base, uri[2]), int(begin[1]) if begin else 0)
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
