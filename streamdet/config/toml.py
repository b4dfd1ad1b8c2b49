"""Reads a TOML file into tables, and finds the line of every key, which tomllib does not report."""

from __future__ import annotations

import codecs
import datetime as dt
import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from streamdet.errors import ConfigError
from streamdet.security.redact import redact

Tables = dict[str, Any]

KeyPath = tuple[str | int, ...]

# Ten thousand streams fit.
MAX_FILE_BYTES = 1024 * 1024
# The deepest value of a configuration is at 4: streams, number, key, element.
MAX_DEPTH = 32

# tomllib takes quadratic time for a key of many parts, so they are counted first.
_TEXT_OR_COMMENT = re.compile(
    r'"""(?:\\.|[^\\])*?"""' r"|'''.*?'''" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'" r"|#[^\n]*", re.DOTALL
)
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:[A-Za-z0-9_-]+[ \t]*\.[ \t]*){{{MAX_DEPTH}}}")

_POSITION = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Multi-line strings may end in up to two more quotes, which belong to them.
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})' r"|'''.*?'''(?:'{0,2})" r'|"(?:\\.|[^"\\])*"' r"|'[^']*'",
    re.DOTALL,
)
_PLAIN = re.compile(r"[^,\]}\n#]+")


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ConfigError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        if path.is_dir():
            _refuse(f"{path}: is a folder; name the file in it, such as {path / 'streamdet.toml'}")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        near = near_file(path)
        meant = f"did you mean {near}?" if near else "give the path of a configuration file"
        _refuse(f"{path}: there is no such file; {meant}")
    except PermissionError:
        _refuse(f"{path}: may not be read by this user; change its owner or mode")
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        _refuse(f"{path}: cannot be read: {reason}; give the path of a configuration file")
    if len(data) > MAX_FILE_BYTES:
        _refuse(f"{path}: is larger than 1 MiB; a configuration is a few lines per stream")
    if data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        _refuse(f"{path}:1: begins with a byte order mark; save the file as UTF-8 without one")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _refuse(f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8")


def near_file(path: Path) -> str:
    """The file beside a path that has the most similar name; empty if there is none."""
    try:
        names = [each.name for each in path.parent.iterdir() if each.is_file()]
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(path.name, names, 1, cutoff=0.75)
    return str(path.with_name(near[0])) if near else ""


def parse(path: Path, text: str) -> Tables:
    """The tables in a text.

    Raises:
        ConfigError: it is not TOML; with line and column.
    """
    too_deep = f"{path}: is nested too deeply; a configuration has tables and lists, not trees"
    if _LONG_KEY.search(_TEXT_OR_COMMENT.sub(lambda found: "" if found[0].startswith("#") else "x", text)):
        _refuse(too_deep)
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        tables = None
    except ValueError as error:
        match = _POSITION.fullmatch(str(error))
        if match is None:
            _refuse(f"{path}: is not TOML: {error}")
        at_end = match[2] is None
        line, column = (text.count("\n") + 1, 1) if at_end else (int(match[2]), int(match[3]))
        place = f"{path}:{line}" if at_end else f"{path}:{line}:{column}"
        _refuse(f"{place}: is not TOML: {match[1]}{_hint(match[1])}")
    # Dotted keys nest without recursion in tomllib.
    if tables is None or is_nested_deeper(tables, MAX_DEPTH):
        _refuse(too_deep)
    return tables


def as_json_value(value: object) -> object:
    """A value of TOML as JSON has it, which knows no dates and times: they become text."""
    if isinstance(value, dict):
        return {key: as_json_value(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_json_value(each) for each in value]
    if isinstance(value, dt.time):
        return str(value).removesuffix(":00")
    return str(value) if isinstance(value, dt.date) else value


def is_nested_deeper(value: object, levels: int) -> bool:
    """Whether tables and lists, or objects and arrays of JSON, are nested deeper than `levels`."""
    level = [value]
    for _ in range(levels):
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [each for item in inner for each in (item.values() if isinstance(item, dict) else item)]
    return any(isinstance(item, dict | list) for item in level)


def lines_of_keys(text: str) -> dict[KeyPath, int]:
    """Maps the path of every key, table and element to its line, counted from 1.

    Args:
        text: valid TOML. A path names keys and, for arrays, indices: `("streams", 0, "url")`.
    """
    return _Locator(text).locate()


def _refuse(problem: str) -> NoReturn:
    """Raises one line, even if the name of the file has several, without a cause that could quote a secret."""
    raise ConfigError([redact(problem).replace("\n", "\\n")]) from None


def _hint(problem: str) -> str:
    """What to write instead, for the usual mistakes."""
    if problem == "Invalid value":
        return '; a text needs quotes, such as name = "front-door"'
    if problem == "Cannot overwrite a value":
        return "; a table can have each key only once"
    if problem.startswith("Expected newline"):
        return "; write each key on a line of its own, and text in quotes"
    if problem.startswith(("Expected '='", "Invalid statement")):
        return "; a line is key = value, [table] or [[streams]]"
    if "declare" in problem:
        return "; each table can be defined only once"
    return ""


class _Locator:
    """Goes through a text once; `_at` only grows."""

    def __init__(self, text: str) -> None:
        # tomllib reads CRLF as LF; positions count the same lines.
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._line = 1
        self._line_at = 0
        self._lines: dict[KeyPath, int] = {}
        self._lengths: dict[KeyPath, int] = {}

    def locate(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self._lines

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _next_is(self, mark: str) -> bool:
        return self._text.startswith(mark, self._at)

    def _note(self, path: KeyPath) -> None:
        """Notes the line of a path, and of the tables that it implies, once each."""
        self._line += self._text.count("\n", self._line_at, self._at)
        self._line_at = self._at
        for end in range(1, len(path) + 1):
            self._lines.setdefault(path[:end], self._line)

    def _header(self) -> KeyPath:
        is_array = self._next_is("[[")
        self._at += 2 if is_array else 1
        begin, keys = self._at, self._keys()
        after, self._at = self._at, begin
        path: KeyPath = ()
        for number, key in enumerate(keys, 1):
            path = (*path, key)
            if is_array and number == len(keys):
                self._lengths[path] = self._lengths.get(path, 0) + 1
            if path in self._lengths:
                path = (*path, self._lengths[path] - 1)
        self._note(path)
        self._at = after + (2 if is_array else 1)
        return path

    def _keys(self) -> list[str]:
        """Reads a key, dotted or not, with the blanks around its parts."""
        keys = []
        while True:
            self._skip(_SPACE)
            bare = self._skip(_BARE_KEY)
            keys.append(bare or self._quoted_key())
            self._skip(_SPACE)
            if not self._next_is("."):
                return keys
            self._at += 1

    def _quoted_key(self) -> str:
        (key,) = tomllib.loads(f"{self._skip(_STRING)} = 0")
        return key

    def _pair(self, table: KeyPath) -> None:
        begin, keys = self._at, self._keys()
        after, self._at = self._at, begin
        path = (*table, *keys)
        self._note(path)
        self._at = after + len("=")
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip(_SPACE)
        if self._next_is("["):
            self._elements(path, "]")
        elif self._next_is("{"):
            self._elements(path, "}")
        elif self._text[self._at] in "\"'":
            self._skip(_STRING)
        else:
            self._skip(_PLAIN)

    def _elements(self, path: KeyPath, end: str) -> None:
        """Goes through an array or an inline table."""
        self._at += 1
        number = 0
        self._skip(_BLANK)
        while not self._next_is(end):
            if end == "]":
                self._note((*path, number))
                self._value((*path, number))
            else:
                self._pair(path)
            number += 1
            self._skip(_BLANK)
            if self._next_is(","):
                self._at += 1
                self._skip(_BLANK)
        self._at += 1
