"""Types of single values as people write them: numbers, switches, durations, sizes."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

DURATION_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
NUMBER_PATTERN = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"

_WITH_UNIT = re.compile(rf"\s*({NUMBER_PATTERN})\s*([A-Za-z]+)\s*")
_NUMBER = re.compile(rf"\s*([+-]?{NUMBER_PATTERN}(?:[eE][+-]?[0-9]{{1,3}})?)\s*")


class KeyProblemError(ValueError):
    """A problem that a check of a whole table found.

    Attributes:
        key: of the table, which the problem is about.
    """

    def __init__(self, problem: str, key: str) -> None:
        super().__init__(problem)
        self.key = key


def refuse(problem: str, *, key: str | None = None) -> NoReturn:
    """Raises ValueError without a cause, which could quote a secret.

    Args:
        problem: what is wrong, and what would be right.
        key: where the check of a whole table found it.
    """
    raise (ValueError(problem) if key is None else KeyProblemError(problem, key)) from None


class Substituted(str):
    """A string of which a part came from the environment or from a credential file.

    Only such a string is accepted as a number or a switch.

    Attributes:
        written: the text in the file, without the value that was inserted.
    """

    __slots__ = ("written",)
    written: str

    def __new__(cls, value: str, written: str) -> Self:
        """Keeps both the value and how it was written."""
        text = super().__new__(cls, value)
        text.written = written
        return text


def nearest_or(name: str, known: Sequence[str], otherwise: str) -> str:
    """The end of a message about an unknown name: the known one that is most like it, else `otherwise`."""
    near = difflib.get_close_matches(name, known, 1)
    return f'did you mean "{near[0]}"?' if near else otherwise


def _number(value: object) -> object:
    if isinstance(value, bool):
        refuse("must be a number")
    if not isinstance(value, str):
        return value
    match = _NUMBER.fullmatch(value)
    if match is None:
        refuse("must be a number")
    if not isinstance(value, Substituted):
        refuse("must be a number without quotes")
    return float(match[1])


def _whole_number(value: object) -> object:
    number = _number(value)
    if isinstance(number, float):
        if not number.is_integer():
            refuse("must be a whole number")
        return int(number)
    return number


def _switch(value: object) -> object:
    if isinstance(value, bool):
        return value
    if isinstance(value, Substituted) and value.strip() in ("true", "false"):
        return value.strip() == "true"
    refuse("must be true or false, without quotes")


def _with_unit(value: object, units: dict[str, float], example: str) -> object:
    if not isinstance(value, str) or (isinstance(value, Substituted) and _NUMBER.fullmatch(value)):
        return _number(value)
    match = _WITH_UNIT.fullmatch(value)
    if match is None or match[2] not in units:
        refuse(f"must be a number, or one with a unit, {', '.join(units)}: {example}")
    return float(match[1]) * units[match[2]]


def parse_seconds(value: object) -> object:
    """A duration in seconds: a number of seconds, or a string such as "500 ms", "10 s", "2 min", "1 h".

    Raises:
        ValueError: it is a string, and none of these.
    """
    return _with_unit(value, DURATION_UNITS, '10, "10 s" or "2 min"')


def in_words(seconds: float) -> str:
    """A duration as people read it: 3.2 s, 41 s, 5 min 20 s, 2 h 10 min, or 3 days."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if not minutes:
        return f"{rest} s"
    if not hours:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    return f"{hours} h {minutes_left} min" if minutes_left else f"{hours} h"


def parse_bytes(value: object) -> object:
    """A size in bytes: a number of bytes, or a string such as "64 KiB" (65,536) or "10 MB" (10,000,000).

    Raises:
        ValueError: it is a string, and none of these, or not a whole number of bytes.
    """
    number = _with_unit(value, {**SIZE_UNITS}, '65536, "64 KiB" or "10 MB"')
    if isinstance(number, float):
        if not math.isfinite(number) or not number.is_integer():
            refuse("must be a whole number of bytes")
        return int(number)
    return number


AS_NUMBER = BeforeValidator(_number)
Number = Annotated[float, AS_NUMBER]
AS_WHOLE_NUMBER = BeforeValidator(_whole_number)
WholeNumber = Annotated[int, AS_WHOLE_NUMBER]
Switch = Annotated[bool, BeforeValidator(_switch)]
Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]

Threshold = Annotated[float, Field(ge=0, le=1), AS_NUMBER]


TAKES_EFFECT = "x-takes-effect"
ON_RELOAD: dict[str, Any] = {TAKES_EFFECT: "on reload"}
"""Marks a key whose change takes effect on reload although the others of its table need a restart."""


def table(takes_effect: Literal["on reload", "at a restart"]) -> ConfigDict:
    """The settings of a table and when its changes take effect; unknown keys and infinite numbers are errors."""
    return ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        json_schema_extra={TAKES_EFFECT: takes_effect},
    )


def takes_effect(model: type[BaseModel], key: str) -> str:
    """When a change of this key takes effect: "on reload" or "at a restart"."""
    of_table, of_key = model.model_config.get("json_schema_extra"), model.model_fields[key].json_schema_extra
    own = of_key.get(TAKES_EFFECT) if isinstance(of_key, dict) else None
    return str(own or (of_table.get(TAKES_EFFECT) if isinstance(of_table, dict) else "at a restart"))
