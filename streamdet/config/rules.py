"""Rules: `[[rules]]`, the conditions that raise alerts, and whether a stream can have them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from streamdet.config.stream import LineConfig, StreamConfig, ZoneConfig
from streamdet.config.values import AS_WHOLE_NUMBER, Seconds, Switch, nearest_or, parse_seconds, refuse, table
from streamdet.types import Direction
from streamdet.wire import MAX_RULE_CHARACTERS

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MAX_RULES = 256
MAX_CLIP_SECONDS = 300.0
_MAX_SECONDS = 7 * 24 * 3600
_DAY_MINUTES = 24 * 60
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")
_TIME_SCHEMA = {"type": "string", "pattern": f"^(?:{_TIME.pattern})$"}
_SPAN_SCHEMA = {"type": "array", "items": _TIME_SCHEMA, "minItems": 2, "maxItems": 2}

Span = tuple[str, str]
"""The beginning and the end of a part of the day, "HH:MM"; it crosses midnight if the end is not later."""

ACCEPTS = {
    "between": 'a list of two times of day, such as `["22:00", "06:00"]`, or a list of such lists',
    "days": "a list of " + ", ".join(f'`"{day}"`' for day in DAYS),
    "clip_seconds": f"a list of two numbers from 0 to {MAX_CLIP_SECONDS:g} seconds, or texts with a unit",
}
"""What the keys accept that are neither numbers nor words."""


def minutes_of(time: str) -> int:
    """The minute of the day that a checked time "HH:MM" means, 0 to 1440."""
    return 60 * int(time[:2]) + int(time[3:])


def _spans(value: object) -> tuple[Span, ...]:
    if not isinstance(value, list | tuple):
        refuse('must be a list of two times of day, such as ["22:00", "06:00"], or a list of such lists')
    items = list(value)
    spans = [_span(item) for item in (items if all(isinstance(item, list | tuple) for item in items) else [items])]
    for number, span in enumerate(spans):
        for other in spans[:number]:
            if any(
                begin < end_of and begin_of < end for begin, end in _parts(span) for begin_of, end_of in _parts(other)
            ):
                first, second = (f"{begin} to {end}" for begin, end in (other, span))
                refuse(f"hold times that overlap: {first} and {second}; write them as one")
    return tuple(spans)


def _span(value: list[object] | tuple[object, ...]) -> Span:
    if len(value) != 2:
        refuse(f'has {len(value)} times instead of two: the beginning and the end, such as ["22:00", "06:00"]')
    begin, end = (_time(time) for time in value)
    if begin == "24:00":
        refuse('begins at "24:00"; write "00:00"')
    if begin == end:
        refuse("ends when it begins; for the whole day, leave it out")
    return begin, end


def _time(value: object) -> str:
    if isinstance(value, dt.time) and not value.second and not value.microsecond:
        return f"{value:%H:%M}"  # TOML has times without quotes
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        shown = f'"{value[:20]}"' if isinstance(value, str) else str(value)[:20]
        refuse(f'holds {shown}, which is not a time of day; write it as "06:00" or "22:30"')
    return value


def _parts(span: Span) -> list[tuple[int, int]]:
    """The minutes of one day that a span holds, as ranges without their ends."""
    begin, end = map(minutes_of, span)
    return [(begin, end)] if begin < end else [(begin, _DAY_MINUTES), (0, end)]


def _days(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        refuse('must be a list of days, such as days = ["sat", "sun"]')
    for day in value:
        if day not in DAYS:
            known = ", ".join(f'"{each}"' for each in DAYS)
            begin = day.lower()[:3] if isinstance(day, str) else ""
            refuse(f"hold {_shown(day)}, which is not a day; {nearest_or(begin, DAYS, f'must be some of {known}')}")
    if len(set(value)) < len(value):
        refuse("hold a day twice; write it once")
    return tuple(value)


def _clip(value: object) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        refuse("must be a list of two durations: before the alert and after it, such as [5, 10]")
    seconds: list[float] = []
    for each in value:
        number = parse_seconds(each)
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= MAX_CLIP_SECONDS:
            refuse(f"holds {_shown(each)}; each must be a number from 0 to {MAX_CLIP_SECONDS:g} seconds")
        seconds.append(float(number))
    before, after = seconds
    if before + after == 0:
        refuse("is a clip of 0 seconds; leave it out for no clip")
    return before, after


def _shown(value: object) -> str:
    return f'"{value[:40]}"' if isinstance(value, str) else str(value)[:40]


_Duration = Annotated[float, Field(gt=0, le=_MAX_SECONDS), BeforeValidator(parse_seconds)]


class RuleConfig(BaseModel):
    """A rule: a condition on the objects of some streams, which raises an alert when it becomes true."""

    model_config = table("on reload")

    name: str = Field(
        description="Its name in alerts and metrics: a text of 1 to 64 characters; no two rules may share one. The "
        "name identifies the rule across reloads: an alert that it has raised is not raised again.",
        examples=["loading bay at night"],
        json_schema_extra={"minLength": 1, "maxLength": MAX_RULE_CHARACTERS},
    )
    streams: tuple[str, ...] = Field(
        (),
        description="The streams that it applies to: names, which may contain `*`, `?` and `[...]` as in file names; "
        "empty for all.",
        examples=[["yard", "dock-*"]],
    )
    labels: tuple[str, ...] = Field(
        (), description="Only objects with these labels count; empty for all.", examples=[["person"]]
    )
    zone: str | None = Field(
        None,
        min_length=1,
        description="Only objects in the zone of this name count. Default: the whole picture.",
        examples=["bay"],
    )
    line: str | None = Field(
        None,
        min_length=1,
        description="The condition is true when an object crosses the line of this name.",
        examples=["gate"],
    )
    direction: Direction | None = Field(
        None, description="Only crossings in this direction count. Default: both. Needs `line`.", examples=["in"]
    )
    for_seconds: _Duration | None = Field(
        None,
        description="How long the condition must be true: how long an object stays in the zone or the picture; with "
        "`at_least`, how long that many are present. Default: an alert is raised at once.",
        examples=["10 s"],
    )
    at_least: Annotated[int, Field(ge=1, le=100), AS_WHOLE_NUMBER] | None = Field(
        None,
        description="The condition is true while at least this many objects are present. Default: an alert is raised "
        "for each object.",
        examples=[3],
    )
    none_for_seconds: _Duration | None = Field(
        None,
        description="The condition is true when no object has been present for this long. Time without frames does not "
        "count.",
        examples=["10 min"],
    )
    between: Annotated[
        tuple[Span, ...],
        BeforeValidator(_spans),
        WithJsonSchema({"type": "array", "items": {"anyOf": [_TIME_SCHEMA, _SPAN_SCHEMA]}}),
    ] = Field(
        (),
        description="The condition is true only between these times of day, in the stream's `time_zone`, the second "
        "one excluded. A span whose second time is not later crosses midnight. Default: all day.",
        examples=[["22:00", "06:00"], [["06:00", "08:00"], ["17:00", "19:30"]]],
    )
    days: Annotated[
        tuple[str, ...],
        BeforeValidator(_days),
        WithJsonSchema({"type": "array", "items": {"enum": list(DAYS)}, "uniqueItems": True}),
    ] = Field(
        (),
        description="The condition is true only on these days of the week; a span of `between` that crosses midnight "
        "belongs to the day on which it begins. Empty for all.",
        examples=[["sat", "sun"]],
    )
    cooldown_seconds: Seconds = Field(
        0.0,
        ge=0,
        le=_MAX_SECONDS,
        description="For this long after an alert, the rule raises no other alert on the same stream; suppressed "
        "alerts are counted, and are not raised later.",
        examples=["60 s"],
    )
    picture: Switch = Field(
        False,  # noqa: FBT003 - the default of the field
        description="Whether a picture of the frame that raised the alert is stored. Needs a directory in "
        "`[pictures]`.",
        examples=[True],
    )
    clip_seconds: (
        Annotated[
            tuple[float, float],
            BeforeValidator(_clip),
            WithJsonSchema(
                {
                    "type": "array",
                    "items": {"anyOf": [{"type": "number"}, {"type": "string"}]},
                    "minItems": 2,
                    "maxItems": 2,
                }
            ),
        ]
        | None
    ) = Field(
        None,
        description="How many seconds before and after the alert are stored as a clip. Default: no clip. Needs a "
        "directory in `[clips]`.",
        examples=[[5, 10]],
    )

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not 1 <= len(name) <= MAX_RULE_CHARACTERS or not name.isprintable() or name != name.strip():
            refuse(f"must be a text of 1 to {MAX_RULE_CHARACTERS} characters without blanks around it or line breaks")
        return name

    @field_validator("line")
    @classmethod
    def _is_not_a_zone(cls, line: str | None, info: ValidationInfo) -> str | None:
        if line is not None and info.data.get("zone") is not None:
            refuse("does not go with zone; a rule watches a zone or a line, so write two rules")
        return line

    @field_validator("direction")
    @classmethod
    def _has_a_line(cls, direction: Direction | None, info: ValidationInfo) -> Direction | None:
        if direction is not None and "line" in info.data and info.data["line"] is None:
            refuse('needs a line; add line with the name of one, such as line = "gate", or delete it')
        return direction

    @field_validator("for_seconds", "at_least", "none_for_seconds")
    @classmethod
    def _fits_the_condition(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is None:
            return None
        if info.data.get("line") is not None:
            refuse("does not go with line: a single object crosses it at one moment; delete one of them")
        if info.field_name == "none_for_seconds":
            for key in ("for_seconds", "at_least"):
                if info.data.get(key) is not None:
                    refuse(f"does not go with {key}; use two rules, one for absence and one for presence")
        return value

    def applies_to(self, stream: str) -> bool:
        """Whether a stream of this name has this rule."""
        return not self.streams or any(fnmatchcase(stream, glob) for glob in self.streams)


def rules_of(stream: str, rules: Iterable[RuleConfig]) -> tuple[RuleConfig, ...]:
    """The rules that apply to a stream of this name."""
    return tuple(rule for rule in rules if rule.applies_to(stream))


class Misfit(NamedTuple):
    """Why a stream that a rule applies to can never meet its condition.

    Attributes:
        rule_key: the key of the rule that would have to change.
        stream_key: or that of the stream.
        problem: a sentence that goes on behind the key of the rule.
    """

    rule_key: str
    stream_key: str
    problem: str


def misfits(rule: RuleConfig, stream: StreamConfig) -> Iterator[Misfit]:
    """Finds what does not fit together in a rule and a stream that it applies to."""
    name, lost_seconds = stream.name, stream.track_max_lost_seconds
    if not stream.track:
        problem = f"apply to {name}, which has track = false; set track = true there, or leave it out here"
        yield Misfit("streams", "track", problem)
    elif lost_seconds == 0:
        problem = f"apply to {name}, where track_max_lost_seconds = 0 ends an object that one frame misses; raise that"
        yield Misfit("streams", "track_max_lost_seconds", problem)
    elif stream.max_fps is not None and 1 / stream.max_fps > lost_seconds:
        times = f"max_fps = {stream.max_fps:g} and track_max_lost_seconds = {lost_seconds:g}"
        problem = f"apply to {name}, where {times} end each object before the next frame; raise one of them"
        yield Misfit("streams", "max_fps", problem)
    if rule.clip_seconds is not None and stream.blur:
        why = "clips also contain frames that are not detected, in which nothing can be blurred"
        problem = f"does not go with blur of stream {name}: {why}; leave that stream out here"
        yield Misfit("clip_seconds", "blur", problem)
    for label in rule.labels if stream.labels else ():
        if label not in stream.labels:
            problem = f'hold "{label[:40]}", but {name} publishes only {", ".join(stream.labels)}'
            yield Misfit("labels", "labels", problem)
    yield from _misfits_of_shape("zone", rule.zone, rule, stream, stream.zones)
    yield from _misfits_of_shape("line", rule.line, rule, stream, stream.lines)


def _misfits_of_shape(
    noun: str, wanted: str | None, rule: RuleConfig, stream: StreamConfig, shapes: Sequence[ZoneConfig | LineConfig]
) -> Iterator[Misfit]:
    if wanted is None:
        return
    shape = next((shape for shape in shapes if shape.name == wanted), None)
    if shape is None:
        known = [shape.name for shape in shapes]
        meant = nearest_or(wanted, known, f"it has {', '.join(known)}" if known else "it has none; add one")
        problem = f'is "{wanted[:40]}", and stream {stream.name} has no {noun} of this name; {meant}'
        yield Misfit(noun, f"{noun}s", problem)
        return
    for label in rule.labels:
        if shape.labels and label not in shape.labels:
            counted = ", ".join(shape.labels)
            problem = f'hold "{label[:40]}", but {noun} "{wanted}" of {stream.name} counts only {counted}'
            yield Misfit("labels", f"{noun}s", problem)
