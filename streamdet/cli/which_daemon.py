"""The options that say which running daemon a command is for; without them, the only one that is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

_CONFIG = click.option(
    "--config", "-c", "config_path", type=click.Path(path_type=Path),
    help="Use the daemon that runs this configuration file.",
)  # fmt: skip
_SOCKET = click.option(
    "--socket", "socket_path", type=click.Path(path_type=Path), envvar="STREAMDET_SOCKET", show_envvar=True,
    help="Use the daemon with this control socket.",
)  # fmt: skip


def which_daemon(command: _Command) -> _Command:
    """Adds `--config` and `--socket`, which are passed as `config_path` and `socket_path`, for `find_socket`."""
    return _CONFIG(_SOCKET(command))
