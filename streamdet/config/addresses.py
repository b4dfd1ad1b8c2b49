"""The urls of streams: parses them, and reports what is wrong with one."""

from __future__ import annotations

import difflib
import re
from enum import StrEnum
from urllib.parse import unquote, urlsplit

from streamdet.config.values import refuse


class UrlKind(StrEnum):
    """What a stream's url names; the value is its scheme, or a word."""

    RTSP = "rtsp"
    RTSPS = "rtsps"
    HTTP = "http"
    HTTPS = "https"
    FILE = "file"
    DEVICE = "device"


URL_KEYS = ("url", "detect_url")
"""Keys of a stream that hold an address."""
MAX_URL_CHARACTERS = 4096
"""FFmpeg's own bound."""
_SCHEMES = ("rtsp", "rtsps", "http", "https", "file")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# rtsp:/host, rtsps//host, http;//host, rtsp:\\host: a typing error, not the name of a file.
_ALMOST_A_SCHEME = re.compile(r"(?:rtsps?|https?|file)(?::|[^\w/\\]{0,2}[/\\]{2})", re.IGNORECASE)
# White space, and characters that are not seen at all.
_BLANK = "\\s\u200b-\u200f\u2060\ufeff"
_AROUND = re.compile(f"^[{_BLANK}]+|[{_BLANK}]+$")
# {NAME}, {{ name }}, $NAME, %(NAME)s, <password>, !secret name
_PLACEHOLDER = re.compile(
    r"(?<!\$)\{\{?\s*[A-Za-z_][\w.-]*\s*\}|\$[A-Z][A-Z0-9_]{2,}|%\([A-Za-z_]\w*\)s"
    r"|<[A-Za-z_][\w -]*>|^!(?:secret|env)\w*\s"
)
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?")
_DEVICE = re.compile(r"/dev/[\w.@:/-]+|[0-9]{1,3}")
_HOST_AND_PORT = re.compile(r"[\w.-]+:[0-9]+(?:/.*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_WAYS = "rtsp://host/path, http://host/path, a file, /dev/video0, or the number of a device"


def kind_of_url(url: str) -> UrlKind:
    """What a stream's url names.

    Raises:
        ValueError: it is not valid; the message does not repeat the url, which may hold a password.
    """
    if not _AROUND.sub("", url):
        refuse(f"is empty; must be {_WAYS}")
    if len(url) > MAX_URL_CHARACTERS:
        refuse(f"has more than {MAX_URL_CHARACTERS:,} characters, which FFmpeg does not accept")
    scheme = _SCHEME.match(url)
    # A control character that is written as %00 reaches the file system or the server as such.
    if _CONTROL.search(url if scheme is None else unquote(url)):
        refuse(f"contains a line break or another control character; must be {_WAYS}")
    if _DEVICE.fullmatch(url):
        return UrlKind.DEVICE
    if scheme is None:
        return _kind_of_path(url)
    name = scheme[1].lower()
    if name not in _SCHEMES:
        near = difflib.get_close_matches(name, _SCHEMES, 1)
        meant = f'; did you mean "{near[0]}://"?' if near else f"; must be {_WAYS}"
        refuse(f'begins with "{name}://", which is not supported{meant}')
    kind = UrlKind(name)
    if kind is UrlKind.FILE:
        if not url[len("file") :].startswith(":///"):
            refuse("needs three slashes and a whole path: file:///folder/clip.mp4")
    else:
        _check_network(url)
    return kind


def file_path(url: str) -> str:
    """The path of a file that is configured as a path or as file://."""
    return unquote(urlsplit(url).path) if url.lower().startswith("file://") else url


def with_small_scheme(url: str) -> str:
    """The same address with its scheme in small letters, which FFmpeg needs."""
    scheme = _SCHEME.match(url)
    return url if scheme is None else scheme[1].lower() + url[scheme.end(1) :]


def has_control(text: str) -> bool:
    """Whether there are control characters in a text, or others that end a line."""
    return _CONTROL.search(text) is not None


def doubt_of_url(url: str) -> str:
    """What is allowed in an address but probably a mistake; empty if there is nothing.

    Args:
        url: as it is written in the file, with `${NAME}`.
    """
    if _PLACEHOLDER.search(url):
        # It is not repeated: it may be a piece of a password.
        return "contains a placeholder of another program, which is not replaced here; streamdet replaces ${NAME}"
    if _AROUND.search(url):
        return "begins or ends with a blank, and is taken for the name of a file"
    return ""


def _kind_of_path(url: str) -> UrlKind:
    bare = _AROUND.sub("", url)
    if bare != url and (_DEVICE.fullmatch(bare) or "://" in bare or _ALMOST_A_SCHEME.match(bare)):
        refuse("begins or ends with a blank; delete it")
    if "://" in url:
        refuse(f"contains an address with something before it; must be {_WAYS}")
    looks_like_login = "@" in url.split("/", 1)[0]
    if _ALMOST_A_SCHEME.match(url) or url.startswith("//") or _HOST_AND_PORT.fullmatch(url) or looks_like_login:
        refuse("looks like a network address without its beginning; write rtsp:// (or http://) before it")
    return UrlKind.FILE


def _check_network(url: str) -> None:
    if re.search(r"\s", url):
        refuse("contains a space; write %20 for it")
    encode = "in a password write @ as %40, / as %2F, : as %3A, # as %23, ? as %3F"
    rest = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)
    if len(rest) > 1 and "@" in rest[1]:
        # What is before that @ may be the rest of a password, and no host.
        refuse(f"has an @ behind its host; {encode}; elsewhere, too, write @ as %40")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # The text of the error may quote a piece of a password.
        refuse(f"has no valid host and port; {encode}")
    if not host:
        refuse("has no host; must be like rtsp://192.0.2.5/stream1")
    if port == 0:
        refuse("has port 0; must be 1 to 65535")
    if not _is_host(host):
        refuse(f"has no valid host; {encode}")


def _is_host(host: str) -> bool:
    """Whether it is an IPv6 address (already checked with its brackets), an IPv4 address or a name."""
    try:
        return ":" in host or _HOST.fullmatch(host.encode("idna").decode()) is not None
    except UnicodeError:
        return False
