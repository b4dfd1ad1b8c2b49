"""Makes broken input from good input: bytes that are damaged, and JSON that says something else."""

from __future__ import annotations

import json
import random
from typing import Any

_ODD_BYTES = (b"", b"\0", b"\xff", b'"', b"\\", b"{", b"}", b"[", b"]", b"\r\n", b"\n", b"\xed\xa0\x80", b"1e999")
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 2**31, 2**53, -(2**63), 2**64, 10**400, 1e308,
    float("inf"), float("nan"), "", "x", "a/b", "\0", "\n", "ä", "\U0001f600", "\ud800", "x" * 600, "a" * 5000,
    [], {}, [[]], {"": {}}, [None] * 20,
)  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Some bytes of it changed, taken away, repeated or put in."""
    text = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(text) + 1)
        end = min(len(text), at + chance.choice((0, 1, 1, 2, 4, 16, 100)))
        match chance.randrange(5):
            case 0:
                text[at:end] = chance.randbytes(end - at)
            case 1:
                del text[at:end]
            case 2:
                text[at:at] = text[at:end] * chance.choice((1, 2, 50))
            case 3:
                text[at:end] = chance.choice(_ODD_BYTES)
            case _:
                del text[at:]
    return bytes(text)


def changed(value: Any, chance: random.Random) -> Any:
    """JSON in which one value, somewhere, is another one, or missing, or there once more under another name."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.2:
        return chance.choice(_ODD_VALUES)
    if isinstance(value, list):
        at = chance.randrange(len(value))
        if chance.random() < 0.1:
            return value * chance.choice((0, 2, 100))
        return [*value[:at], changed(value[at], chance), *value[at + 1 :]]
    key = chance.choice(list(value))
    match chance.randrange(8):
        case 0:
            return {other: value[other] for other in value if other != key}
        case 1:
            return {**value, chance.choice(("", "x", "seq", "\ud800")): value[key]}
        case _:
            return {**value, key: changed(value[key], chance)}


def changed_json(data: bytes, chance: random.Random) -> bytes:
    """A document of JSON in which one to three values are others; now and then with damaged bytes."""
    value = json.loads(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        value = changed(value, chance)
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    return damaged(text, chance) if chance.random() < 0.1 else text
