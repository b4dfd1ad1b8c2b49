"""Reads a stream that comes at run time by the rules of the file, and tells what is wrong with it in the same words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from streamdet.config.addresses import UrlKind, kind_of_url
from streamdet.config.explain import explain
from streamdet.config.load import with_defaults
from streamdet.config.locate import Path as KeyPath
from streamdet.config.models import StreamConfig
from streamdet.config.paths import missing_files, resolve_paths
from streamdet.config.substitute import Substitution
from streamdet.errors import ConfigError
from streamdet.security.redact import redact

_STREAM: KeyPath = ("streams", 0)


def read_stream(
    values: Mapping[str, Any], base: Mapping[str, Any], folder: Path, environ: Mapping[str, str] = os.environ
) -> StreamConfig:
    """A stream out of what somebody wrote, and what was known about it before.

    Args:
        values: by key, as they would stand in the file: with units and `${NAME}`.
        base: values that hold where `values` has none: of the stream until now, or the defaults of all streams.
        folder: where relative paths begin.
        environ: where `${NAME}` is looked up, and CREDENTIALS_DIRECTORY with it.

    Raises:
        ConfigError: with everything that is wrong, a line each, without secrets.
    """
    substitution = Substitution(environ)
    known = substitution.apply(dict(values))
    problems = {(*_STREAM, *path): problem for path, problem in substitution.problems.items()}
    tables = resolve_paths({"streams": [with_defaults(known, dict(base))]}, folder)
    config: StreamConfig | None = None
    try:
        config = StreamConfig.model_validate(tables["streams"][0])
    except ValidationError as error:
        for path, problem in explain(error, _STREAM):
            problems.setdefault(path, problem)
    for path, problem in missing_files(tables):
        problems.setdefault(path, problem)
    if problems or config is None:
        raise ConfigError([_line(values.get("name", base.get("name")), *item) for item in problems.items()])
    return config


def read_once(source: str) -> StreamConfig:
    """A stream of which a command takes some frames: a video as fast as it can be read, whatever is live as it comes.

    Args:
        source: path of a video, or the URL of a stream.

    Raises:
        ConfigError: it is neither, in one problem.
    """
    try:
        config = StreamConfig(name="frames", url=source)
    except ValidationError as error:
        raise ConfigError([redact(problem) for _, problem in explain(error, _STREAM)[:1]]) from None
    return config.model_copy(update={"pace": "fastest"}) if kind_of_url(config.url) is UrlKind.FILE else config


def _line(name: object, path: KeyPath, problem: str) -> str:
    keys = "".join(f".{part}" if isinstance(part, str) else f"[#{part + 1}]" for part in path[len(_STREAM) :])
    line = f"streams[{str(name)[:64]}]{keys[:200]}: {problem}"
    return redact(line).replace("\n", "\\n").replace("\r", "\\r")
