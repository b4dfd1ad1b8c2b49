"""The configuration: what the file may contain, and what it means.

In the order of the data: `toml` reads the file and finds the line of every key, `substitute` inserts the values of
`${NAME}`, `models`, `stream` and `rules` define what is allowed, `checks` and `bridge_checks` look at the files that
are named and at what does not fit together, `explain` puts errors into words, and `load` brings all of this together.
`schema` describes it for editors and for the reference; `last_good` keeps the last configuration that worked.

The names below are imported when they are first used: a command that only looks for a daemon does not wait for
the models.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from streamdet.config.bridges import BridgesConfig, WebhookConfig
    from streamdet.config.load import load_all, load_bridges, load_config
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
    "load_all",
    "load_bridges",
    "load_config",
]

_HOMES = {
    "bridges": ("BridgesConfig", "WebhookConfig"),
    "load": ("load_all", "load_bridges", "load_config"),
    "models": (
        "ClipsConfig",
        "Config",
        "ControlConfig",
        "DetectorConfig",
        "LogConfig",
        "MetricsConfig",
        "PicturesConfig",
        "PublisherConfig",
        "ReplayConfig",
        "SpoolConfig",
        "TracingConfig",
    ),
    "rules": ("RuleConfig",),
    "stream": ("StreamConfig",),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    import importlib  # noqa: PLC0415 - only where a name is used for the first time

    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            return value
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
