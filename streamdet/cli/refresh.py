"""Shows something again and again until it is stopped: in place in a terminal, one after the other in a pipe."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


def fitting(to: Console, shown: RenderableType) -> RenderableType:
    """The same, without lines from its middle where the terminal has fewer: the first and last lines say most."""
    from rich.console import Group
    from rich.segment import Segments
    from rich.text import Text

    lines = to.render_lines(shown, pad=False, new_lines=True)
    if len(lines) <= to.height:
        return shown
    first = to.height // 2
    last = len(lines) - (to.height - first - 1)
    parts = [[segment for line in some for segment in line] for some in (lines[:first], lines[last:])]
    return Group(Segments(parts[0]), Text(f"... {last - first} more lines"), Segments(parts[1]))


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM interrupts the block as Ctrl-C does, so that a terminal gets its cursor back."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def show_until_interrupted(draw: Callable[[], RenderableType], interval_seconds: float = INTERVAL_SECONDS) -> None:
    """Shows what `draw` returns, now and every so often; returns after Ctrl-C or SIGTERM."""
    from rich.live import Live

    to = console()
    with suppress(KeyboardInterrupt), stopped_by_signals():
        if not to.is_terminal:
            while True:
                to.print(draw())
                to.print()
                sys.stdout.flush()
                time.sleep(interval_seconds)
        with Live(console=to, auto_refresh=False) as live:
            while True:
                live.update(fitting(to, draw()), refresh=True)
                time.sleep(interval_seconds)


def print_until_interrupted(line: Callable[[], str], interval_seconds: float = INTERVAL_SECONDS) -> None:
    """Prints a line of JSON for programs, now and every so often; returns after Ctrl-C or SIGTERM."""
    with suppress(KeyboardInterrupt), stopped_by_signals():
        while True:
            click.echo(line())
            sys.stdout.flush()
            time.sleep(interval_seconds)
