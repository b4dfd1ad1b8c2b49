"""The configuration: what may stand in the file, and what it means.

In the order of the data: `load` reads the file (TOML), `locate` finds the line of every key, `substitute` puts in
what stands elsewhere (`${NAME}`), `models` says what is allowed, `explain` tells people what is wrong, and `schema`
tells it to editors.
"""

from streamdet.config.load import load_config, load_config_and_warnings
from streamdet.config.models import (
    Config,
    ControlConfig,
    DetectorConfig,
    LogConfig,
    MetricsConfig,
    PublisherConfig,
    ReplayConfig,
    SpoolConfig,
    StreamConfig,
    TracingConfig,
)

__all__ = [
    "Config",
    "ControlConfig",
    "DetectorConfig",
    "LogConfig",
    "MetricsConfig",
    "PublisherConfig",
    "ReplayConfig",
    "SpoolConfig",
    "StreamConfig",
    "TracingConfig",
    "load_config",
    "load_config_and_warnings",
]
