"""Makes text from outside safe to show: one line of limited length, without anything that a terminal would act on.

A camera's status text, a title or a name in an event may hold escape sequences, line ends, or characters that change
the direction of writing, and so make a reader see something else than the text says.
"""

from __future__ import annotations

import re

# Unicode's control characters, line and paragraph separators, marks and overrides of direction, invisible characters,
# and halves of surrogate pairs.
_UNSEEN = (
    r"\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff"
)
UNSEEN = re.compile(f"[{_UNSEEN}]")
_UNSEEN_IN_LINES = re.compile(rf"(?![\n\t])[{_UNSEEN}]")
MAX_CHARACTERS = 300


def plain(text: str, limit: int = MAX_CHARACTERS) -> str:
    """The text with invisible characters escaped as in Python, cut to `limit` characters."""
    # Cut first, so that a long text costs no more than a short one.
    return cut(UNSEEN.sub(_escaped, cut(text, limit)), limit)


def plain_lines(text: str) -> str:
    """The same for a text of several lines: line ends and tabs stay, and nothing is cut."""
    return _UNSEEN_IN_LINES.sub(_escaped, text)


def plain_json(text: str) -> str:
    """JSON text with invisible characters in its strings escaped; its meaning stays the same."""
    return _UNSEEN_IN_LINES.sub(_escaped_for_json, text)


def cut(text: str, limit: int) -> str:
    """The text, with dots for the rest if it is longer."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _escaped(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode()


def _escaped_for_json(character: re.Match[str]) -> str:
    code = ord(character[0])
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
