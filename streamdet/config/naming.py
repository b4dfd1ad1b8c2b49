"""Names for streams that are given by their urls alone."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import PurePath
from urllib.parse import unquote

from streamdet.config.addresses import UrlKind, kind_of_url

_LONGEST = 64
_NUMERIC_HOST = re.compile(r"[0-9.]+|\[.*\]")


# Letters that are no other letter with a mark.
_SPELLED_OUT = str.maketrans({
    "ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th",
    "\N{LATIN SMALL LETTER DOTLESS I}": "i",
})  # fmt: skip


def slug(text: str) -> str:
    """The nearest valid name of a stream, without accents; empty if no character is left."""
    letters = (each for each in unicodedata.normalize("NFKD", text) if not unicodedata.category(each).startswith("M"))
    plain = "".join(letters).lower().translate(_SPELLED_OUT)
    return re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-._")[:_LONGEST].rstrip("-._")


def names_of(urls: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """A name for each stream, all different: short where that distinguishes it, such as `front-door`.

    A file is named after itself, a device `video0`, and a stream of the network after its host; where several come from
    one host, also after the end of its path, then after all of it. What is still the same is numbered.

    Args:
        urls: valid ones, which may contain `${NAME}`. No part of a login is in a name.
        taken: names of other streams.
    """
    urls = [re.sub(r"\$\{([^}]*)\}", r"\1", url) for url in urls]
    ways: tuple[Callable[[str], str], ...] = (_short, _with_end_of_path, _with_path)
    names = [""] * len(urls)
    for way in ways:
        counts = Counter(names)
        names = [way(url) if counts[name] > 1 or not name else name for name, url in zip(names, urls, strict=True)]
    used = set(taken)
    for position, name in enumerate(names):
        number, free = 1, name
        while free in used or (number > 1 and free in names):
            number += 1
            free = f"{name[: _LONGEST - 5]}-{number}"
        used.add(free)
        names[position] = free
    return names


def _short(url: str) -> str:
    kind = kind_of_url(url)
    if kind is UrlKind.DEVICE:
        return slug(f"video{url}" if url.isdecimal() else PurePath(url).name) or "device"
    if kind is UrlKind.FILE:
        return slug(PurePath(unquote(url) if "://" in url else url).stem) or "file"
    host, _path = _host_and_path(url)
    return slug(host if _NUMERIC_HOST.fullmatch(host) else host.split(".")[0]) or "stream"


def _with_end_of_path(url: str) -> str:
    if kind_of_url(url) in (UrlKind.DEVICE, UrlKind.FILE):
        return _with_path(url)
    end = PurePath(_host_and_path(url)[1]).name
    return slug(f"{_short(url)}-{end}")


def _with_path(url: str) -> str:
    if kind_of_url(url) in (UrlKind.DEVICE, UrlKind.FILE):
        path = PurePath(url)
        return slug(f"{path.parent.name}-{path.stem}") or _short(url)
    return slug(f"{_short(url)}-{_host_and_path(url)[1].strip('/')}")


def _host_and_path(url: str) -> tuple[str, str]:
    """The host without login and port, and the path without the query, where tokens stand."""
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    path = re.split(r"[?#]", rest[len(authority) :], maxsplit=1)[0]
    host_and_port = authority.rpartition("@")[2]
    return re.sub(r":[0-9]*$", "", host_and_port), unquote(path)
