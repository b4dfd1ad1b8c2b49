"""Streams that are named on a command line: urls, video files and devices, each with or without a name before it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from streamdet.config.addresses import UrlKind, file_path, kind_of_url
from streamdet.config.naming import names_of, slug
from streamdet.config.toml import near_file
from streamdet.errors import ConfigError
from streamdet.security.files import is_there
from streamdet.security.redact import redact

_NAMED = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})=(.+)", re.DOTALL)
_PASSWORD = re.compile(r"[^/]*://[^/?#@]*:(?!\$\{)[^/?#@]+@")
_LINE_BYTES = 8192
_MOST_FROM_STDIN = 1000
# Configuration files of other programs, which people try here.
_OTHER_CONFIGURATIONS = (".yaml", ".yml", ".json", ".ini", ".conf")
# "192.0.2.5/stream1": the part before the slash is an address or ends like a name of the network.
_HOST_WITHOUT_SCHEME = re.compile(
    r"(?:(?:\d{1,3}\.){3}\d{1,3}|[\w-]+(?:\.[\w-]+)*\.(?:local|lan|home|com|net|org))(?:/.*)?"
)


class Given(NamedTuple):
    """A stream as it was typed.

    Attributes:
        name: given, or made from the url.
        url: with `${NAME}` as it was typed; the path of a file is absolute.
    """

    name: str
    url: str


def has_password(url: str) -> bool:
    """Whether a password itself, and not a reference to one, stands in a url."""
    return _PASSWORD.match(re.sub(r"\$\{[^}]*\}", "${", url)) is not None


def warn_of_passwords(urls: Sequence[str]) -> None:
    """Prints one line if a password was typed into the command line."""
    if any(map(has_password, urls)):
        why = "a password on the command line stays in your shell's history, and other users could see it for a moment"
        click.echo(f"warning: {why}; write ${{NAME}} for it, or use --url-from-stdin", err=True)


def urls_from_stdin() -> list[str]:
    """Urls from standard input, one a line, up to its end; a terminal is asked for one, which it does not show.

    Raises:
        click.UsageError: there is none.
    """
    if sys.stdin.isatty():
        words = [click.prompt("URL (not shown)", hide_input=True, err=True)]
    else:
        lines = (sys.stdin.readline(_LINE_BYTES) for _ in range(_MOST_FROM_STDIN))
        words = [line.strip() for line in iter(lambda: next(lines, ""), "") if line.strip()]
    if not words:
        problem = "standard input has no url; write one a line, such as rtsp://192.0.2.5/stream1"
        raise click.UsageError(problem)
    return words


def read_sources(words: Sequence[str]) -> list[Given]:
    """The streams that were typed, with a name each.

    Raises:
        ConfigError: a word names no stream, or a name is given twice; a line for each, without passwords.
    """
    given: list[tuple[str, str]] = []
    problems: list[str] = []
    for word in words:
        named = None if is_there(Path(word)) else _NAMED.fullmatch(word)
        name, url = (named[1], named[2]) if named else ("", word)
        before, equals, _ = word.partition("://")[0].partition("=")
        if named is None and equals and "://" in word and "?" not in before:
            meant = f", such as {slug(before)}" * bool(slug(before))
            problems.append(
                f"{before[:80]}=: a name has small letters, digits, - _ . and begins with one of the first{meant}"
            )
            continue
        if problem := _problem_of(url):
            problems.append(redact(f"{url[:200]}: {problem}"))
            continue
        is_file = kind_of_url(_filled(url)) is UrlKind.FILE and "://" not in url and "${" not in url
        given.append((name, str(Path(url).absolute()) if is_file else url))
    twice = {name for name, _ in given if name and [other for other, _ in given].count(name) > 1}
    problems += [f"{name}: two streams are to have this name; every stream needs a name of its own" for name in twice]
    if problems:
        raise ConfigError(problems)
    made = iter(names_of([url for name, url in given if not name], taken=[name for name, _ in given if name]))
    return [Given(name or next(made), url) for name, url in given]


def _filled(url: str) -> str:
    """The url with a word for each `${NAME}`, so that its kind can be seen."""
    return re.sub(r"\$\{([A-Za-z_][\w.-]*)\}", r"\1", url)


def _problem_of(url: str) -> str:
    """What is wrong with a url or path, as far as can be seen without opening it; empty if nothing is."""
    try:
        kind = kind_of_url(_filled(url))
    except ValueError as error:
        return str(error)
    return _problem_of_file(url) if kind is UrlKind.FILE and "${" not in url else ""


def _problem_of_file(url: str) -> str:
    path = Path(file_path(url))
    if is_there(path) and path.is_dir():
        return "is a folder; name the video files in it, such as FOLDER/*.mp4"
    if path.suffix.lower() in _OTHER_CONFIGURATIONS:
        return "is no video; a configuration of streamdet is TOML, FILE.toml (`streamdet init` writes one)"
    if is_there(path):
        return ""
    if _HOST_WITHOUT_SCHEME.fullmatch(url):
        return f"there is no such file; for a camera, write rtsp://{url} (or http://)"
    near = near_file(path)
    return f"there is no such file{f'; did you mean {near}?' if near else ''}"
