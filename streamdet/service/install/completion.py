"""The completion scripts of shells, and where shells look for those of all users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from streamdet.service.install.steps import File, Remove, Step

# Beside /usr/local/bin/streamdet; below XDG_DATA_DIRS for bash and fish, in $fpath for zsh.
PATHS = {
    "bash": Path("usr/local/share/bash-completion/completions/streamdet"),
    "zsh": Path("usr/local/share/zsh/site-functions/_streamdet"),
    "fish": Path("usr/local/share/fish/vendor_completions.d/streamdet.fish"),
}
SHELLS = tuple(PATHS)


def script(shell: str) -> str:
    """The completion script of a shell, one of `SHELLS`: it asks `streamdet` itself for what fits."""
    kind = get_completion_class(shell)
    if kind is None:
        message = f"click does not know the shell {shell}"
        raise LookupError(message)
    # Its command is used by the program that is asked, and not for the script.
    completion = kind(click.Command("streamdet"), {}, "streamdet", "_STREAMDET_COMPLETE")
    # Not its `source()`, which runs the shell to ask for its version.
    return f"{completion.source_template % completion.source_vars()}\n"


def install_steps(root: Path) -> Iterator[Callable[[], Step]]:
    """The steps that install the scripts for all users of a system."""
    for shell, path in PATHS.items():
        yield partial(File, root / path, script(shell))


def uninstall_steps(root: Path) -> Iterator[Callable[[], Step]]:
    """The steps that remove them; their folders stay, which shells share."""
    for path in PATHS.values():
        yield partial(Remove, root / path)
