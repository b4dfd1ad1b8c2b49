"""Describes validation errors: what is wrong, and what would be correct."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from streamdet.config.bridges import WebhookConfig
from streamdet.config.models import Config
from streamdet.config.naming import slug
from streamdet.config.rules import RuleConfig
from streamdet.config.schema import range_in_words
from streamdet.config.stream import SHAPES, StreamConfig, StreamDefaults
from streamdet.config.toml import KeyPath
from streamdet.config.values import KeyProblemError, Substituted

_LONGEST_SHOWN = 40
MAX_PROBLEMS = 100
"""More are counted only: a file of a megabyte can have a hundred thousand, and each takes time."""
TABLES: dict[str, type[BaseModel]] = {
    "stream_defaults": StreamDefaults,
    "streams": StreamConfig,
    **{key: type(field.default) for key, field in Config.model_fields.items() if isinstance(field.default, BaseModel)},
    "rules": RuleConfig,
    "webhooks": WebhookConfig,
}
# The tables of which there may be several, and what each of them needs.
_LISTS = {"streams": "name and url", "rules": "name and a condition", "webhooks": "name and url"}
_SHAPE = {
    "zones": '{ name = "door", polygon = [[0.1, 0.5], [0.4, 0.5], [0.4, 1.0]] }',
    "lines": '{ name = "gate", points = [[0.0, 0.75], [1.0, 0.75]] }',
    "masks": '{ name = "street", polygon = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.2]] }',
}
_TABLE = {
    **_SHAPE,
    "headers": '{ Priority = "high" }',
    "fields": '{ camera = "stream", what = "alert.rule" }',
}
# What would be right, by the type of the error and, where it matters, the key.
_WORDS = {
    ("string_type", ""): "must be a text in quotes",
    ("string_unicode", ""): "must be UTF-8; give the file or folder another name",
    ("string_too_short", "secret"): "is too short; must be a text of 8 characters or more",
    ("string_too_long", ""): "is too long",
    ("too_long", "webhooks"): "are more than 64; leave some out",
    ("too_long", ""): "has too many values",
    ("string_too_short", ""): "is empty; must be a text, or leave the line out",
    ("tuple_type", "streams"): "must be written with two brackets, [[streams]], once for every stream",
    ("tuple_type", "webhooks"): "must be written with two brackets, [[webhooks]], once for every receiver",
    ("tuple_type", "rules"): "must be written with two brackets, [[rules]], once for every rule",
    **{
        ("tuple_type", key): f"must be a list of tables, such as {key} = [{example}]" for key, example in _SHAPE.items()
    },
    ("tuple_type", "polygon"): "must be a list of points, such as [[0.1, 0.5], [0.4, 0.5], [0.4, 1.0]]",
    ("tuple_type", "points"): "must be a list of two points, such as [[0.0, 0.75], [1.0, 0.75]]",
    ("tuple_type", "rules.streams"): 'must be a list of names, such as streams = ["yard", "dock-*"]',
    ("tuple_type", "formats"): 'must be a list of words, such as formats = ["parquet", "jsonl"]',
    ("tuple_type", "kinds"): 'must be a list of words, such as kinds = ["objects", "alerts"]',
    ("tuple_type", "events"): 'must be a list of words, such as events = ["raised", "cleared"]',
    ("tuple_type", "webhooks.streams"): 'must be a list of names, such as streams = ["yard", "gate"]',
    ("tuple_type", "webhooks.rules"): 'must be a list of names, such as rules = ["person at the door"]',
    ("tuple_type", "dwell_seconds"): "must be a list of durations, such as [10, 60]",
    ("tuple_type", ""): 'must be a list of words, such as labels = ["person", "car"]',
}


def explain(error: ValidationError, prefix: KeyPath = ()) -> list[tuple[KeyPath, str]]:
    """Lists what is wrong: the path of each value in the file, beginning with `prefix`, and one sentence.

    The first `MAX_PROBLEMS` are explained; one more line gives the number of the others.
    """
    problems: dict[tuple[KeyPath, str], None] = {}
    details = error.errors(include_url=False)
    for detail in details[:MAX_PROBLEMS]:
        path = (*prefix, *_path(detail["loc"]))
        sentence = _sentence(path, detail)
        cause = detail.get("ctx", {}).get("error")
        problems[(*path, cause.key) if isinstance(cause, KeyProblemError) else path, sentence] = None
    if len(details) > MAX_PROBLEMS:
        path = (*prefix, *_path(details[MAX_PROBLEMS]["loc"]))
        problems[path, f"is wrong as well, and so are {len(details) - MAX_PROBLEMS - 1} more values"] = None
    return list(problems)


def explain_options(error: ValidationError) -> list[str]:
    """Explains errors in a table `[detector]` that was given as options of a command, a line each."""
    return [f"--{str(path[-1]).replace('_', '-')}: {problem}" for path, problem in explain(error, ("detector",))]


def _path(loc: Sequence[str | int]) -> KeyPath:
    # pydantic adds parts of its own, such as "[key]".
    return tuple(part for part in loc if part not in {"[key]", "[auto]", "[number]"})


def _sentence(path: KeyPath, detail: ErrorDetails) -> str:
    kind, value, key = detail["type"], detail["input"], str(path[-1])
    if kind == "extra_forbidden":
        return _unknown_key(path, key)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return _wants_table(path, value)
    expectation = _expectation(path, detail)
    is_secret = key in ("url", "detect_url", "secret") or "headers" in path
    shows_value = not is_secret and expectation.startswith("must")
    return f"{_shown(value) if shows_value else ''}{expectation}"


def _expectation(path: KeyPath, detail: ErrorDetails) -> str:
    kind, key = detail["type"], str(path[-1])
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "literal_error":
        return f"must be one of {', '.join(_choices(path))}"
    if kind == "missing":
        (example, *_) = _table(path).model_fields[key].examples or [""]
        if not isinstance(example, str):
            return f"is missing; add {key} = {example}"
        return f'is missing; add a line such as {key} = "{example}"'
    if kind == "string_pattern_mismatch":
        return _pattern_in_words(key, detail["input"])
    of_table = f"{path[0]}.{key}"
    words = next((_WORDS[kind, name] for name in (of_table, key, "") if (kind, name) in _WORDS), "")
    return words or f"must be {range_in_words(_table(path), _field(path))}"


def _pattern_in_words(key: str, value: str) -> str:
    """What a text that does not fit its pattern must be."""
    if key == "device":
        return 'must be "auto", "cpu", "cuda" or "cuda:1"'
    near = "" if isinstance(value, Substituted) else slug(value)
    meant = f'; for example "{near}"' if near else ""
    return f"must be 1 to 64 small letters, digits, - _ . and begin with a letter or digit{meant}"


def _unknown_key(path: KeyPath, key: str) -> str:
    known = list(TABLES) if len(path) == 1 else list(_table(path).model_fields)
    near = difflib.get_close_matches(key.lower(), known, 1, cutoff=0.6)
    if near:
        return f'is not a known key; did you mean "{near[0]}"?'
    homes = [_header(name) for name, table in TABLES.items() if key in table.model_fields]
    if homes:
        return f"is not a key of this table; it belongs to {_one_of(homes)}"
    return f"is not a known key; known keys: {', '.join(known)}"


def _one_of(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _header(name: str) -> str:
    return f"[[{name}]]" if name in _LISTS else f"[{name}]"


def _wants_table(path: KeyPath, value: object) -> str:
    if path[0] in _LISTS and len(path) == 2:
        return f"{_shown(value)}must be a table; write [[{path[0]}]], and {_LISTS[str(path[0])]} below it"
    if len(path) == 1:
        return f"{_shown(value)}must be a table; write [{path[0]}], and its keys below it"
    example = next((_TABLE[str(part)] for part in path if part in _TABLE), "{ person = 0.4 }")
    return (
        f"{_shown(value)}must be a table, such as {example if isinstance(path[-1], int) else f'{path[-1]} = {example}'}"
    )


def _table(path: KeyPath) -> type[BaseModel]:
    shape = next((SHAPES[str(part)] for part in path[1:-1] if part in SHAPES), None)
    return shape or (TABLES.get(str(path[0]), Config) if len(path) > 1 else Config)


def _field(path: KeyPath) -> str:
    """The key of the table, also for a value below it: score_thresholds of score_thresholds.person."""
    keys = [part for part in path[1:] if isinstance(part, str)]
    return next((key for key in keys if key not in SHAPES), keys[0] if keys else "")


def _choices(path: KeyPath) -> list[str]:
    annotation = _table(path).model_fields[_field(path)].annotation
    options = [option for option in get_args(annotation) if option not in (type(None), ...)]
    # `Literal[...] | None` wraps the literal.
    flat = [inner for option in options for inner in (get_args(option) or (option,))]
    return [f'"{option}"' for option in flat]


def _shown(value: object) -> str:
    """The value as it is written in the file, shortened; a substituted one is not shown, it may be a secret."""
    if isinstance(value, Substituted):
        return f"(from {value.written[:_LONGEST_SHOWN]}) "
    if isinstance(value, dict | list | tuple):
        return ""
    if isinstance(value, bool):
        return f"is {str(value).lower()}; "
    if isinstance(value, str):
        text = f'"{value[:_LONGEST_SHOWN]}{"..." if len(value) > _LONGEST_SHOWN else ""}"'
        return f"is {text}; "
    if isinstance(value, int) and value.bit_length() > 64:
        return "is a very large number; "
    return f"is {value}; "
