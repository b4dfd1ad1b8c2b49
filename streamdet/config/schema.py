"""Describes the configuration file: as a JSON Schema for editors, and as tables for the reference.

Both describe the file as it is written, with units, `${NAME}` and defaults for all streams, not the models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from streamdet.config.bridges import ACCEPTS as ACCEPTS_OF_BRIDGES
from streamdet.config.bridges import BridgesConfig, WebhookConfig
from streamdet.config.files import ACCEPTS_OF_FILES, FilesConfig
from streamdet.config.models import (
    ClipsConfig,
    Config,
    ControlConfig,
    DetectorConfig,
    LogConfig,
    MetricsConfig,
    NodeConfig,
    PicturesConfig,
    PublisherConfig,
    ReplayConfig,
    SpoolConfig,
    TracingConfig,
)
from streamdet.config.mqtt import MqttConfig
from streamdet.config.rules import ACCEPTS, RuleConfig
from streamdet.config.stream import KEEPS_CONNECTION, POINTS, SHAPES, StreamConfig, StreamDefaults
from streamdet.config.values import DURATION_UNITS, NUMBER_PATTERN, SIZE_UNITS, TAKES_EFFECT, takes_effect
from streamdet.config.web import WebConfig

Schema = dict[str, Any]

_REFERENCE: Schema = {
    "type": "string",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_.-]*\}",
    "description": "A value from the environment variable NAME or the file $CREDENTIALS_DIRECTORY/NAME: ${NAME}.",
}
_ABOUT = ("description", "default", "examples", "title", KEEPS_CONNECTION, TAKES_EFFECT)
_UNITS = {"seconds": tuple(DURATION_UNITS), "bytes": tuple(SIZE_UNITS)}

_TABLES: dict[str, type[BaseModel]] = {
    "[detector]": DetectorConfig,
    "[publisher]": PublisherConfig,
    "[replay]": ReplayConfig,
    "[spool]": SpoolConfig,
    "[pictures]": PicturesConfig,
    "[clips]": ClipsConfig,
    "[metrics]": MetricsConfig,
    "[log]": LogConfig,
    "[control]": ControlConfig,
    "[node]": NodeConfig,
    "[tracing]": TracingConfig,
    "[[streams]]": StreamConfig,
    "[[rules]]": RuleConfig,
    "[bridges]": BridgesConfig,
    "[[webhooks]]": WebhookConfig,
    "[mqtt]": MqttConfig,
    "[files]": FilesConfig,
    "[web]": WebConfig,
}
_ACCEPTS: dict[type[BaseModel], dict[str, str]] = {WebhookConfig: ACCEPTS_OF_BRIDGES, FilesConfig: ACCEPTS_OF_FILES}


def config_schema() -> Schema:
    """The JSON Schema (2020-12) of a whole configuration file."""
    in_file = create_model(
        "ConfigFile",
        __base__=Config,
        __doc__="Configuration of streamdet.",
        stream_defaults=(
            StreamDefaults,
            Field(default_factory=StreamDefaults, description="Defaults for all streams; a stream's own values win."),
        ),
    )
    schema = in_file.model_json_schema()
    definitions: dict[str, Schema] = schema["$defs"]
    for table in definitions.values():
        for key, value in table["properties"].items():
            table["properties"][key] = _as_written(key, value)
    # An empty file is a mistake, not a daemon without streams.
    schema["minProperties"] = 1
    for key in Config.model_fields.keys() - {"streams", "stream_defaults"}:
        schema["properties"][key].pop("default", None)
    schema.pop(TAKES_EFFECT, None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "streamdet configuration"}


def markdown_tables() -> str:
    """One section per table of the file: every key with what it accepts, its default and its meaning."""
    sections: dict[str, type[BaseModel]] = {**_TABLES, **SHAPES}
    return "\n".join(line for header, table in sections.items() for line in _section(header, table))


def accepts(table: type[BaseModel], key: str) -> str:
    """What a key accepts, in words."""
    in_words = _ACCEPTS.get(table, ACCEPTS)
    if key in in_words:
        return in_words[key]
    annotation = table.model_fields[key].annotation
    options = [annotation, *get_args(annotation)]
    literal = next((option for option in options if get_origin(option) is Literal), None)
    if literal is not None:
        return ", ".join(f'`"{choice}"`' for choice in get_args(literal))
    if key in SHAPES:
        return f"a list of tables, see [{key}](#{key})"
    words = range_in_words(table, key)
    if key.endswith("_seconds"):
        words += f", or a text with a unit ({', '.join(DURATION_UNITS)})"
    if get_origin(annotation) is tuple:
        return f"a list, each {words}" if words else f"a list of {'points' if key in POINTS else 'words'}"
    if get_origin(annotation) is dict:
        return f"a table of words, each with {words}"
    return words or "a text"


def range_in_words(table: type[BaseModel], key: str) -> str:
    """The range of a key in words, such as "a number from 0 to 1"; empty if it has none."""
    value = table.model_json_schema()["properties"].get(key, {})
    value = _nullable_removed(value)
    value = value.get("additionalProperties", value)
    value = value.get("items", value)
    either = '"auto" or ' * ("oneOf" in value)
    value = next((option for option in value.get("oneOf", []) if "const" not in option), value)
    kind = value.get("type")
    if kind not in ("number", "integer"):
        return "true or false" if kind == "boolean" else ""
    low, above, high = value.get("minimum"), value.get("exclusiveMinimum"), value.get("maximum")
    begins = f"from {low:,}" if low is not None else f"above {above:,}"
    joined = "to" if low is not None else "and at most"
    noun = "a whole number" if kind == "integer" else "a number"
    unit = " seconds" if key.endswith("_seconds") else ""
    return f"{either}{noun} {begins} {joined} {high:,}{unit}"


def toml_value(value: object) -> str:
    """A default as it would be written in the file."""
    if value in ({}, ()):
        return "{}" if value == {} else "[]"
    return json.dumps(value)


def _as_written(key: str, value: Schema) -> Schema:
    """Adds the other spellings of a value: with a unit, or as `${NAME}`."""
    about = {k: v for k, v in value.items() if k in _ABOUT}
    constraints = _nullable_removed({k: v for k, v in value.items() if k not in about})
    if about.get("default", 0) is None:
        # TOML has no null: the key is left out.
        del about["default"]
    about.pop("title", None)
    if constraints.get("type") == "array":
        if _units_of(key) and "items" in constraints:
            constraints["items"] = _as_written(key, constraints["items"])
        return {**about, **constraints}
    if constraints.get("type") == "object":
        single = {"anyOf": [constraints["additionalProperties"], _REFERENCE]}
        return {**about, **constraints, "additionalProperties": single}
    if constraints.get("type") == "string" and not constraints.keys() & {"pattern", "enum"}:
        return {**about, **constraints}
    spellings = constraints.pop("oneOf", None) or [constraints]
    units = _units_of(key)
    if units:
        spellings.append({"type": "string", "pattern": rf"^\s*{NUMBER_PATTERN}\s*({'|'.join(units)})\s*$"})
    return {**about, "anyOf": [*spellings, _REFERENCE]}


def _units_of(key: str) -> tuple[str, ...]:
    """The units in which a value may be written."""
    return _UNITS.get(key.rpartition("_")[2], ())


def _nullable_removed(schema: Schema) -> Schema:
    """`X | None` as X."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    first: Schema = options[0]
    return first


def _section(header: str, table: type[BaseModel]) -> Iterator[str]:
    moments = sorted({takes_effect(table, key) for key in table.model_fields})
    either = "" if len(moments) == 1 else ", as the table says"
    yield f"## `{header}`\n"
    yield f"{(table.__doc__ or '').strip()} A change takes effect {' or '.join(moments)}{either}.\n"
    yield "| Key | Accepts | Default | Takes effect | Meaning |"
    yield "|---|---|---|---|---|"
    for key, field in table.model_fields.items():
        when = _takes_effect(table, key)
        yield f"| `{key}` | {accepts(table, key)} | {_default(field)} | {when} | {field.description} |"
    yield ""


def _takes_effect(table: type[BaseModel], key: str) -> str:
    when = takes_effect(table, key)
    if table in SHAPES.values():
        return f"{when}, keeps the connection"
    if table is not StreamConfig:
        return when
    extra = table.model_fields[key].json_schema_extra
    keeps = isinstance(extra, dict) and KEEPS_CONNECTION in extra
    return f"{when}, {'keeps the connection' if keeps else 'reconnects'}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    return "none" if field.default is None else f"`{toml_value(field.default)}`"
