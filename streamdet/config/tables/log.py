"""`[log]`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from streamdet.config.tables.base import table


class LogConfig(BaseModel):
    """What the log says, on standard error."""

    model_config = table("on reload")

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lines of less weight are left out.", examples=["warning"]
    )
    format: Literal["auto", "text", "json"] = Field(
        "auto",
        description='"text" for people, "json" for programs (one object per line), "auto": text. Lines on their way '
        "to systemd's journal bear no time, for it has its own, and begin with their priority as sd-daemon(3) says.",
        examples=["json"],
    )
