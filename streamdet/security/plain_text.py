"""Text of strangers as people may read it: one line, of a stated length, with nothing that a terminal would obey.

A camera's status text, a title, or a name in someone's event may hold escape sequences, line ends, and characters that
turn the direction of writing, so that what is read is not what is there.
"""

from __future__ import annotations

import re

# Of Unicode: control characters, line and paragraph separators, marks and overrides of direction, what is not seen at
# all, and halves of pairs.
_UNSEEN = (
    r"\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff"
)
UNSEEN = re.compile(f"[{_UNSEEN}]")
_UNSEEN_IN_LINES = re.compile(rf"(?![\n\t])[{_UNSEEN}]")
MAX_CHARACTERS = 300


def plain(text: str, limit: int = MAX_CHARACTERS) -> str:
    """The text with what is not seen escaped as in Python, cut to so many characters."""
    # Cut first: what is longer than anyone reads need not be looked through.
    return cut(UNSEEN.sub(_escaped, cut(text, limit)), limit)


def plain_lines(text: str) -> str:
    """The same with line ends and tabs as they are, and not cut."""
    return _UNSEEN_IN_LINES.sub(_escaped, text)


def plain_json(text: str) -> str:
    """JSON that was made without escapes, with those that a terminal needs; it means the same."""
    return _UNSEEN_IN_LINES.sub(_escaped_for_json, text)


def cut(text: str, limit: int) -> str:
    """The text, with dots for the rest where it is longer."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _escaped(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode()


def _escaped_for_json(character: re.Match[str]) -> str:
    code = ord(character[0])
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
