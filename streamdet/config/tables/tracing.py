"""`[tracing]`."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator

from streamdet.config.tables.base import table
from streamdet.config.values import AS_NUMBER, refuse


class TracingConfig(BaseModel):
    """Traces of single frames, from capture to publication, for an OpenTelemetry collector. Needs `streamdet[otel]`."""

    model_config = table("at a restart")

    endpoint: str | None = Field(
        None,
        description="Where traces go: the http:// or https:// address of a collector that speaks OTLP; without it "
        "nothing is traced. Headers for a login come from OTEL_EXPORTER_OTLP_HEADERS.",
        examples=["http://127.0.0.1:4318/v1/traces"],
    )
    sample_ratio: Annotated[float, Field(ge=0, le=1), AS_NUMBER] = Field(
        0.001, description="Share of the detected frames that are traced, chosen by chance.", examples=[0.01]
    )

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        try:
            parts = urlsplit(endpoint)
            well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            well_formed = False
        if not well_formed:
            refuse("must be the address of a collector, such as http://127.0.0.1:4318/v1/traces")
        if parts.username or parts.password:
            refuse("must not hold a login; put it into the environment variable OTEL_EXPORTER_OTLP_HEADERS")
        return endpoint
