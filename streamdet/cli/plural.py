"""How a number of things is written."""

from __future__ import annotations

from collections.abc import Mapping

from streamdet.security.plain_text import plain

_LONGEST_LABEL = 64
# Of the labels of the embedded weights; others may be of any language. The page has the same.
_PLURALS = {
    "person": "people", "bicycle": "bicycles", "car": "cars", "motorcycle": "motorcycles", "bus": "buses",
    "truck": "trucks",
}  # fmt: skip


def counted(number: int, noun: str) -> str:
    """Such as "1 stream" or "3 streams"; the noun takes an s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def several(number: int, label: str) -> str:
    """Such as "1 person", "3 people" or "3 x gate", for any label of a detector."""
    if number != 1 and label in _PLURALS:
        return f"{number} {_PLURALS[label]}"
    return f"{number} {'' if number == 1 else 'x '}{plain(label, _LONGEST_LABEL)}"


def all_of(by_label: Mapping[str, int]) -> str:
    """Such as "3 people, 1 car", the most frequent first; empty where there is nothing."""
    found = sorted(by_label.items(), key=lambda item: -item[1])
    return ", ".join(several(number, label) for label, number in found if number)
