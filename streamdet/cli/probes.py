"""How the results of trying streams are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from streamdet.capture.probe import Probe


def print_probes(probes: Sequence[Probe]) -> None:
    """Prints a table, and how many streams can be read."""
    from rich.table import Table
    from rich.text import Text

    from streamdet.cli.refresh import console

    table = Table("stream", "codec", "size", "fps", "first frame", "read by", "problem", box=None, pad_edge=False)
    for probe in probes:
        table.add_row(*map(Text, _row(probe)), style="red" if probe.reason else "green")
    console().print(table)
    good = sum(probe.reason is None for probe in probes)
    click.echo(f"{good} of {len(probes)} streams can be read")


def _row(probe: Probe) -> tuple[str, ...]:
    info = probe.info
    if info is None:
        return (probe.stream, "", "", "", "", "", f"{probe.reason}: {probe.detail}")
    fps = f"{probe.fps:.4g}" if probe.fps else "?"
    way = [part for part in (info.backend, info.transport, info.hwaccel) if part]
    size = f"{info.width}x{info.height}"
    return (probe.stream, info.codec, size, fps, f"{probe.first_frame_seconds:.2f} s", " ".join(way), "")
