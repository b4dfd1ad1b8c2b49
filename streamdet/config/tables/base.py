"""What all tables share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from streamdet.config.values import AS_NUMBER

Threshold = Annotated[float, Field(ge=0, le=1), AS_NUMBER]


def table(takes_effect: Literal["on reload", "at a restart"]) -> ConfigDict:
    """Settings of a table whose changes take effect then: unknown keys and infinite numbers are errors."""
    return ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        json_schema_extra={"x-takes-effect": takes_effect},
    )
