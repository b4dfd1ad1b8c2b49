"""The configuration as tables for people; `docs/configuration.md` holds them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from streamdet.config.models import (
    ControlConfig,
    DetectorConfig,
    LogConfig,
    MetricsConfig,
    PublisherConfig,
    ReplayConfig,
    SpoolConfig,
    StreamConfig,
    TracingConfig,
)
from streamdet.config.schema import range_in_words
from streamdet.config.shapes import SHAPES
from streamdet.config.stream import KEEPS_CONNECTION
from streamdet.config.values import DURATION_UNITS

_TABLES: dict[str, type[BaseModel]] = {
    "[detector]": DetectorConfig,
    "[publisher]": PublisherConfig,
    "[replay]": ReplayConfig,
    "[spool]": SpoolConfig,
    "[metrics]": MetricsConfig,
    "[log]": LogConfig,
    "[control]": ControlConfig,
    "[tracing]": TracingConfig,
    "[[streams]]": StreamConfig,
}


def markdown_tables() -> str:
    """One section per table of the file: every key with what it accepts, its default and its meaning."""
    return "\n".join(line for header, table in _TABLES.items() for line in _section(header, table))


def _section(header: str, table: type[BaseModel]) -> Iterator[str]:
    extra = table.model_config.get("json_schema_extra")
    takes_effect = extra["x-takes-effect"] if isinstance(extra, dict) else ""
    yield f"## `{header}`\n"
    yield f"{(table.__doc__ or '').strip()} A change takes effect {takes_effect}.\n"
    yield "| Key | Accepts | Default | Takes effect | Meaning |"
    yield "|---|---|---|---|---|"
    for key, field in table.model_fields.items():
        when = _takes_effect(table, field, str(takes_effect))
        yield f"| `{key}` | {accepts(table, key)} | {_default(field)} | {when} | {field.description} |"
    yield ""


def _takes_effect(table: type[BaseModel], field: FieldInfo, of_table: str) -> str:
    if table is not StreamConfig:
        return of_table
    keeps = isinstance(field.json_schema_extra, dict) and KEEPS_CONNECTION in field.json_schema_extra
    return f"{of_table}, {'keeps the connection' if keeps else 'connects anew'}"


def accepts(table: type[BaseModel], key: str) -> str:
    """What may stand behind a key, in words."""
    annotation = table.model_fields[key].annotation
    options = [annotation, *get_args(annotation)]
    literal = next((option for option in options if get_origin(option) is Literal), None)
    if literal is not None:
        return ", ".join(f'`"{choice}"`' for choice in get_args(literal))
    if key in SHAPES:
        points = "points" if key == "lines" else "polygon"
        return f"a list of tables with `name`, `{points}` and, if wanted, `labels`"
    if get_origin(annotation) is tuple:
        return "a list of words"
    words = range_in_words(table, key)
    if get_origin(annotation) is dict:
        return f"a table of words, each with {words}"
    if key.endswith("_seconds"):
        return f"{words}, or a text with a unit ({', '.join(DURATION_UNITS)})"
    return words or "a text"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    return "none" if field.default is None else f"`{toml_value(field.default)}`"


def toml_value(value: object) -> str:
    """A default as it would stand in the file."""
    if value in ({}, ()):
        return "{}" if value == {} else "[]"
    return json.dumps(value)
