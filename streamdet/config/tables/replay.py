"""`[replay]`."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator

from streamdet.config.addresses import publisher_socket
from streamdet.config.tables.base import table
from streamdet.config.values import Bytes, WholeNumber


class ReplayConfig(BaseModel):
    """What subscribers may ask again: the newest event of everything, and what they have lost."""

    model_config = table("at a restart")

    endpoint: str = Field(
        "auto",
        min_length=1,
        description='Where it is asked for: tcp://HOST:PORT or ipc://PATH, as for `[publisher]`; "off"; or "auto": the '
        "port after that of `[publisher]`, or its path with -replay behind it, where that can be had.",
        examples=["auto", "off", "tcp://127.0.0.1:5556"],
    )
    max_events: WholeNumber = Field(
        10_000,
        ge=1,
        le=10_000_000,
        description="Events that are kept in memory at most, of all streams together; the oldest make room.",
        examples=[100_000],
    )
    max_bytes: Bytes = Field(
        32 * 2**20,
        ge=2**20,
        le=2**36,
        description="And so many bytes of events at most.",
        examples=["64 MiB"],
    )

    @field_validator("endpoint")
    @classmethod
    def _is_endpoint(cls, endpoint: str) -> str:
        if endpoint not in ("auto", "off"):
            publisher_socket(endpoint)
        return endpoint
