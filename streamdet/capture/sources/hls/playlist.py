"""What an HLS playlist may ask of FFmpeg, which by itself follows whatever it says, without any bound (RFC 8216)."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

from streamdet.errors import SourceError
from streamdet.types import Reason

BEGINNING = b"#EXTM3U"
MAX_BYTES = 2 << 20
MAX_PLAYLISTS = 64
# FFmpeg's own memory for all playlists of a stream: a segment takes so much, and its url and its key's besides.
_MAX_MEMORY_BYTES = 64 << 20
_SEGMENT_BYTES = 200
# Initialisation sections are never forgotten: after so much, the stream must begin again.
_MAX_MAPS_BYTES = 64 << 20
_LONGEST_LINE_BYTES = 4096

_LINE_END = re.compile(rb"[\r\n\0]+")  # for FFmpeg, any of them
_OTHER_PLAYLIST = b"#EXT-X-STREAM-INF:", b"#EXT-X-MEDIA:"
_SEGMENT = b"#EXTINF:"
_MAP = b"#EXT-X-MAP:"
_FIRST_NUMBER = b"#EXT-X-MEDIA-SEQUENCE:"
_WITH_URI = b"#EXT-X-KEY:", b"#EXT-X-MAP:", b"#EXT-X-MEDIA:"
_URI = re.compile(rb'(URI=")([^"]*)(")')


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
        sender, lines = urlsplit(asked).netloc, _LINE_END.split(body)
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
