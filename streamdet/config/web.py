"""The page: `[web]`, what its users may do. The daemon does not read it."""

from __future__ import annotations

from pydantic import BaseModel, Field

from streamdet.config.values import Switch, table

WEB_TABLES = ("web",)
"""The tables that only the page reads."""


class WebConfig(BaseModel):
    """What `streamdet web --config` and `streamdet run --page` serve; the daemon does not read it."""

    model_config = table("at a restart")

    allow_changes: Switch = Field(
        default=False,
        description="Whether operators who have logged in may change streams and rules in the browser. The page then "
        "uses the control socket of the daemon that runs this file.",
        examples=[True],
    )
    password_file: str | None = Field(
        None,
        min_length=1,
        description="A login is needed: the users, or one password, of this file, relative to this one. "
        "`streamdet web --set-password FILE --user NAME --role operator` makes it.",
        examples=["page.users"],
    )
