"""The configuration: what the file may contain, and what it means.

In the order of the data: `toml` reads the file and finds the line of every key, `substitute` inserts the values of
`${NAME}`, `models`, `stream` and `rules` define what is allowed, `checks` looks at the files that are named and at
what does not fit together, `explain` puts errors into words, and `load` brings all of this together. `schema` describes
it for editors and for the reference; `last_good` keeps the last configuration that worked.
"""

from streamdet.config.bridges import BridgesConfig, WebhookConfig
from streamdet.config.load import load_bridges, load_config, load_config_and_warnings
from streamdet.config.models import (
    ClipsConfig,
    Config,
    ControlConfig,
    DetectorConfig,
    LogConfig,
    MetricsConfig,
    PicturesConfig,
    PublisherConfig,
    ReplayConfig,
    SpoolConfig,
    TracingConfig,
)
from streamdet.config.rules import RuleConfig
from streamdet.config.stream import StreamConfig

__all__ = [
    "BridgesConfig",
    "ClipsConfig",
    "Config",
    "ControlConfig",
    "DetectorConfig",
    "LogConfig",
    "MetricsConfig",
    "PicturesConfig",
    "PublisherConfig",
    "ReplayConfig",
    "RuleConfig",
    "SpoolConfig",
    "StreamConfig",
    "TracingConfig",
    "WebhookConfig",
    "load_bridges",
    "load_config",
    "load_config_and_warnings",
]
