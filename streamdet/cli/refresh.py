"""Shows something again and again until Ctrl-C: in place in a terminal, one after the other in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

INTERVAL_SECONDS = 2.0
LINE_CHARACTERS = 160


def console(*, error: bool = False) -> Console:
    """Standard output, or that of errors: as wide as the terminal, or wide enough for a pipe."""
    from rich.console import Console

    is_wide = (sys.stderr if error else sys.stdout).isatty()
    return Console(width=None if is_wide else LINE_CHARACTERS, highlight=False, stderr=error)


def show_until_interrupted(draw: Callable[[], RenderableType], interval_seconds: float = INTERVAL_SECONDS) -> None:
    """Shows what `draw` returns, now and every so often; returns after Ctrl-C."""
    from rich.live import Live

    to = console()
    try:
        if not to.is_terminal:
            while True:
                to.print(draw())
                to.print()
                sys.stdout.flush()
                time.sleep(interval_seconds)
        with Live(console=to, auto_refresh=False) as live:
            while True:
                live.update(draw(), refresh=True)
                time.sleep(interval_seconds)
    except KeyboardInterrupt:
        return


def print_until_interrupted(line: Callable[[], str], interval_seconds: float = INTERVAL_SECONDS) -> None:
    """Prints a line of JSON for programs, now and every so often; returns after Ctrl-C."""
    try:
        while True:
            click.echo(line())
            sys.stdout.flush()
            time.sleep(interval_seconds)
    except KeyboardInterrupt:
        return
