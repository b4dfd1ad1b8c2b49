"""`[metrics]`."""

from __future__ import annotations

import re
from typing import Self

from pydantic import BaseModel, Field, field_validator, model_validator

from streamdet.config.addresses import is_loopback, metrics_socket
from streamdet.config.tables.base import table
from streamdet.config.values import Switch, refuse

_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")


class MetricsConfig(BaseModel):
    """Where Prometheus reads, and where /healthz and /readyz are."""

    model_config = table("at a restart")

    endpoint: str = Field(
        "127.0.0.1:9095",
        description="HOST:PORT of the metrics page (port 0 takes any free one). Where other machines can reach it, a "
        "certificate and a password are needed.",
        examples=["127.0.0.1:9095", "[::1]:9095"],
    )
    tls_certificate_file: str | None = Field(
        None,
        min_length=1,
        description="Certificate (PEM, with those between it and the authority) to serve https:// with. Relative to "
        "this file.",
        examples=["metrics.pem"],
    )
    tls_key_file: str | None = Field(
        None,
        min_length=1,
        description="The key of that certificate (PEM, without a password). Relative to this file.",
        examples=["metrics.key"],
    )
    username: str = Field(
        "streamdet", min_length=1, description="The name that belongs to the password.", examples=["streamdet"]
    )
    password_file: str | None = Field(
        None,
        min_length=1,
        description="The password, as `streamdet web --set-password FILE` stores it: only a hash. Relative to this "
        "file.",
        examples=["metrics.password"],
    )
    hosts: list[str] = Field(
        [],
        max_length=100,
        description="Names, besides `localhost` and addresses, under which the pages may be called. Empty: on "
        "loopback no others, so that no web site reads them through a browser of this machine (DNS rebinding); "
        "elsewhere any.",
        examples=[["metrics.example.org"]],
    )
    insecure: Switch = Field(
        default=False,
        description="Whether other machines may read the page without encryption or password: whoever reaches the "
        "port sees the streams' names and states.",
        examples=[False],
    )

    @field_validator("endpoint")
    @classmethod
    def _is_endpoint(cls, endpoint: str) -> str:
        metrics_socket(endpoint)
        return endpoint

    @field_validator("username")
    @classmethod
    def _is_username(cls, username: str) -> str:
        if ":" in username or not username.isascii() or not username.isprintable() or len(username) > 100:
            refuse("must be up to 100 letters, digits and signs without a colon")
        return username

    @field_validator("hosts")
    @classmethod
    def _are_names(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if _HOST_NAME.fullmatch(host) is None:
                refuse("must be names of machines, without http:// and port, like metrics.example.org")
        return hosts

    @model_validator(mode="after")
    def _is_closed(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            refuse("tls_certificate_file and tls_key_file go together; set both or neither")
        closed = self.tls_key_file is not None and self.password_file is not None
        if not closed and not self.insecure and not is_loopback(metrics_socket(self.endpoint).host):
            refuse(
                "endpoint would let other machines in, whoever they are: set tls_certificate_file, tls_key_file and "
                "password_file (streamdet web --set-password FILE makes one), or use 127.0.0.1:9095 or [::1]:9095"
            )
        return self
