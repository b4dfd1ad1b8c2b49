"""`[spool]`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from streamdet.config.tables.base import table
from streamdet.config.values import Bytes, Seconds


class SpoolConfig(BaseModel):
    """Events on disk, so that subscribers can ask again also after a restart of the daemon."""

    model_config = table("at a restart")

    directory: str | None = Field(
        None,
        min_length=1,
        description="A directory of this daemon alone, relative to this file; made if it is missing. Without it "
        "nothing is kept on disk.",
        examples=["/var/lib/streamdet/spool"],
    )
    max_bytes: Bytes = Field(
        2**30,
        ge=2**25,
        le=2**43,
        description="What it takes on disk at most; the oldest events make room.",
        examples=["10 GiB"],
    )
    max_age_seconds: Seconds = Field(
        86400.0,
        ge=60,
        le=31_536_000,
        description="Older events are deleted.",
        examples=["24 h", "1 h"],
    )
