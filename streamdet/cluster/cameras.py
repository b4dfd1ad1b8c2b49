"""Reads the file with the streams of a cluster, which has the tables `[[streams]]` and `[stream_defaults]` alone.

`${NAME}` stays as it is: each node replaces it from its own environment or credentials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamdet.config.load import load_config, with_defaults
from streamdet.config.toml import parse, read_text
from streamdet.errors import ConfigError

_TABLES = ("streams", "stream_defaults")
# What stands for ${NAME} while the file is checked; a host, a port, a login and a number may be so.
_ANYTHING = "8554"


@dataclass(frozen=True, slots=True)
class Camera:
    """One stream of a cluster.

    Attributes:
        fps: frames per second that it takes from a node's capacity: its `max_fps`; with tiles, all that these cost.
        values: the keys of `[[streams]]`, with the defaults of the file.
    """

    fps: float
    values: Mapping[str, Any]


class _AnyName(Mapping[str, str]):
    """An environment in which every name has a value."""

    def __getitem__(self, name: str) -> str:
        if name == "CREDENTIALS_DIRECTORY":
            raise KeyError(name)
        return _ANYTHING

    def __contains__(self, name: object) -> bool:
        return name != "CREDENTIALS_DIRECTORY"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def read_cameras(path: Path, text: str | None = None) -> dict[str, Camera]:
    """The streams of a file, by name.

    Args:
        path: of the file.
        text: of the file; read from it if left out.

    Raises:
        ConfigError: with everything that is wrong, a line each.
    """
    text = read_text(path) if text is None else text
    written = parse(path, text)
    others = [table for table in written if table not in _TABLES]
    problems = [
        f"{path}: [{table}] does not belong here: each node has its own streamdet.toml; here stand [[streams]] and "
        "[stream_defaults]"
        for table in others
    ]
    if problems:
        raise ConfigError(problems)
    config = load_config(path, _AnyName(), text=text)
    defaults = written.get("stream_defaults", {})
    cameras: dict[str, Camera] = {}
    tables = [table for table in written.get("streams", ()) if table]
    for stream, table in zip(config.streams, tables, strict=True):
        # Which defaults fit depends on the kind of the url, which may not be known with ${NAME} in it.
        merged = with_defaults({**table, "url": stream.url}, defaults)
        values = {**merged, "url": table["url"]} if isinstance(merged, dict) else {}
        if stream.max_fps is None or not isinstance(values.get("max_fps"), int | float):
            problems.append(
                f"{path}: streams[{stream.name}].max_fps: must be given as a number, here or in [stream_defaults]: "
                "streams are spread by it"
            )
        else:
            cameras[stream.name] = Camera(stream.max_fps * stream.looks, values)
    if problems:
        raise ConfigError(problems)
    return cameras
