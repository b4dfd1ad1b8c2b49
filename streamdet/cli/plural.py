"""How a number of things is written."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Such as "1 stream" or "3 streams"; the noun takes an s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
