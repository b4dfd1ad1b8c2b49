"""`[publisher]`."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field, field_validator, model_validator

from streamdet.config.addresses import publisher_socket, refuse_others_without_keys
from streamdet.config.tables.base import table
from streamdet.config.values import Number, Seconds, WholeNumber, refuse


class PublisherConfig(BaseModel):
    """Where the events go."""

    model_config = table("at a restart")

    endpoint: str = Field(
        "tcp://127.0.0.1:5555",
        description="Where subscribers connect: tcp://HOST:PORT (port 0 takes any free one), or ipc://PATH. Other "
        "machines can connect only where the two keys that begin with curve_ are set: then 0.0.0.0 is every address "
        "of this machine.",
        examples=["tcp://127.0.0.1:5555", "tcp://[::1]:5555", "ipc:///run/streamdet/events"],
    )
    group: str | None = Field(
        None,
        min_length=1,
        description="A group of this machine whose members may use an ipc:// endpoint; without it, the daemon's own.",
        examples=["streamdet"],
    )
    curve_server_key_file: str | None = Field(
        None,
        min_length=1,
        description="The daemon's secret key, made by `streamdet keys generate --server`: from then on everything is "
        "encrypted, and only allowed clients get anything. Relative to this file.",
        examples=["keys/server.key_secret"],
    )
    curve_allowed_clients_directory: str | None = Field(
        None,
        min_length=1,
        description="The directory with the public keys (NAME.key) of the clients that are let in. Files that come "
        "and go count at once: no restart, no reload. Relative to this file.",
        examples=["clients"],
    )
    high_water_mark_events: WholeNumber = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Events that wait for one slow subscriber at most; what comes after is dropped for it alone.",
        examples=[1000],
    )
    state_interval_seconds: Seconds = Field(
        10.0,
        ge=0.01,
        le=3600,
        description="How often the state of every stream is repeated, for those who subscribe late.",
        examples=["10 s", "1 min"],
    )
    preview_width: WholeNumber = Field(
        640,
        ge=32,
        le=1920,
        description="Pixels of a preview's longer side at most; larger pictures are made smaller.",
        examples=[640],
    )
    preview_quality: WholeNumber = Field(
        75, ge=1, le=100, description="Quality of the JPEG pictures of previews.", examples=[75]
    )
    preview_max_fps: Number = Field(
        5.0,
        gt=0,
        le=60,
        description="Previews of one stream per second at most; none are made while nobody subscribes to them.",
        examples=[5],
    )

    @field_validator("endpoint")
    @classmethod
    def _is_endpoint(cls, endpoint: str) -> str:
        publisher_socket(endpoint)
        return endpoint

    @model_validator(mode="after")
    def _is_closed(self) -> Self:
        if (self.curve_server_key_file is None) != (self.curve_allowed_clients_directory is None):
            refuse("curve_server_key_file and curve_allowed_clients_directory go together; set both or neither")
        if self.curve_server_key_file is None:
            refuse_others_without_keys(self.endpoint)
        return self
