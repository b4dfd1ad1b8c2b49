"""Times as people type them, and as they are shown."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import click

from streamdet.config.values import parse_seconds


class Time(click.ParamType):  # type: ignore[type-arg] # generic in newer versions of click only
    """A time, or how long ago it was; Unix time in seconds, 0 for all that is earlier."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - click's
        """The time that was typed."""
        if isinstance(value, float):
            return value
        ago = re.fullmatch(r"(.+?)\s+ago", str(value).strip())
        try:
            if ago is None:
                return max(datetime.fromisoformat(value).astimezone().timestamp(), 0.0)
            seconds = parse_seconds(ago[1])
        except (ValueError, OverflowError, OSError):
            seconds = None
        if not isinstance(seconds, float):
            self.fail(f'{value!r} is neither a time, 2026-11-29T06:00, nor a duration, "2 h ago"', param, ctx)
        return max(datetime.now().astimezone().timestamp() - seconds, 0.0)


def local_time(at: float) -> str:
    """A Unix time in seconds as date and time of this machine."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
