"""The whole configuration of one daemon, made of its tables.

The descriptions of the keys are what editors show and what the reference in `docs/configuration.md` says.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from streamdet.config.shapes import NAME_PATTERN
from streamdet.config.stream import KEY_FITS, StreamConfig, StreamDefaults
from streamdet.config.tables.base import table
from streamdet.config.tables.control import ControlConfig
from streamdet.config.tables.detector import DetectorConfig
from streamdet.config.tables.log import LogConfig
from streamdet.config.tables.metrics import MetricsConfig
from streamdet.config.tables.publisher import PublisherConfig
from streamdet.config.tables.replay import ReplayConfig
from streamdet.config.tables.spool import SpoolConfig
from streamdet.config.tables.tracing import TracingConfig

__all__ = [
    "KEY_FITS",
    "NAME_PATTERN",
    "Config",
    "ControlConfig",
    "DetectorConfig",
    "LogConfig",
    "MetricsConfig",
    "PublisherConfig",
    "ReplayConfig",
    "SpoolConfig",
    "StreamConfig",
    "StreamDefaults",
    "TracingConfig",
]


class Config(BaseModel):
    """The whole configuration of one daemon, with the defaults of all streams already in every stream."""

    model_config = table("on reload")

    detector: DetectorConfig = Field(DetectorConfig(), description="What finds the objects.")
    publisher: PublisherConfig = Field(PublisherConfig(), description="Where the events go.")
    replay: ReplayConfig = Field(ReplayConfig(), description="What subscribers may ask again.")
    spool: SpoolConfig = Field(SpoolConfig(), description="Events on disk.")
    metrics: MetricsConfig = Field(MetricsConfig(), description="Where Prometheus reads.")
    log: LogConfig = Field(LogConfig(), description="What the log says.")
    control: ControlConfig = Field(ControlConfig(), description="Where the running daemon is reached.")
    tracing: TracingConfig = Field(TracingConfig(), description="Where traces of single frames go.")
    stream_defaults: dict[str, Any] = Field(
        {}, repr=False, description="Defaults for all streams, which are in every one already; for those of run time."
    )
    streams: tuple[StreamConfig, ...] = Field((), description="The streams, one table [[streams]] each.")
