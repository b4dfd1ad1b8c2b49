"""Finds the line of every key in a TOML file, which Python's own reader does not tell.

It only passes over what `tomllib` has already accepted, so it need not find faults, only ends.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Multi-line strings may end in up to two more quotes, which belong to them.
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})' r"|'''.*?'''(?:'{0,2})" r'|"(?:\\.|[^"\\])*"' r"|'[^']*'",
    re.DOTALL,
)
_PLAIN = re.compile(r"[^,\]}\n#]+")


def lines_of_keys(text: str) -> dict[Path, int]:
    """Maps the path of every key, table and element to its line, counted from 1.

    Args:
        text: valid TOML. A path names keys and, for arrays, indices: `("streams", 0, "url")`.
    """
    return _Locator(text).locate()


class _Locator:
    """Walks over a text once; `_at` only ever grows."""

    def __init__(self, text: str) -> None:
        # tomllib reads CRLF as LF; positions count the same lines.
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._line = 1
        self._line_at = 0
        self._lines: dict[Path, int] = {}
        self._lengths: dict[Path, int] = {}

    def locate(self) -> dict[Path, int]:
        table: Path = ()
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

    def _note(self, path: Path) -> None:
        """Notes the line of a path, and of the tables that it makes on its way, once each."""
        self._line += self._text.count("\n", self._line_at, self._at)
        self._line_at = self._at
        for end in range(1, len(path) + 1):
            self._lines.setdefault(path[:end], self._line)

    def _header(self) -> Path:
        is_array = self._next_is("[[")
        self._at += 2 if is_array else 1
        begin, keys = self._at, self._keys()
        after, self._at = self._at, begin
        path: Path = ()
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

    def _pair(self, table: Path) -> None:
        begin, keys = self._at, self._keys()
        after, self._at = self._at, begin
        path = (*table, *keys)
        self._note(path)
        self._at = after + len("=")
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        if self._next_is("["):
            self._elements(path, "]")
        elif self._next_is("{"):
            self._elements(path, "}")
        elif self._text[self._at] in "\"'":
            self._skip(_STRING)
        else:
            self._skip(_PLAIN)

    def _elements(self, path: Path, end: str) -> None:
        """Passes over an array or an inline table."""
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
