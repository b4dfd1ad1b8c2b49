"""`streamdet dashboards`: the dashboard of Grafana, and the alert rules and scrape job of Prometheus, as files."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from streamdet.errors import StreamdetError
from streamdet.security.files import write_atomically


@click.command(
    epilog="""\b
Examples:
  streamdet dashboards --out monitoring
  sudo streamdet dashboards --out /etc/streamdet/monitoring --force

\b
docs/monitoring.md says where Grafana, Prometheus and Alertmanager read them.
Exit codes: 0 written, 1 a file is in the way or cannot be written."""
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True,
    help="Write into this folder, which is created if it does not exist.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that differ.")
def command(*, out: Path, force: bool) -> None:
    """Write the Grafana dashboard, and Prometheus' alert rules and scrape job, into a folder.

    Files that are there and differ are yours: then nothing is written, unless you use --force.
    """
    shipped = resources.files("streamdet.monitoring")
    files = {out / path: text for folder in ("grafana", "prometheus") for path, text in _files(shipped, Path(folder))}
    try:
        there = {path: path.read_text("utf-8", "replace") for path in files if path.exists()}
        differing = [path for path, text in there.items() if text != files[path]]
        if differing and not force:
            message = f"{differing[0]} differs{_and_others(differing)}: use --force to replace, or another folder"
            raise StreamdetError(message)
        for path, text in files.items():
            if there.get(path) == text:
                click.echo(f"unchanged  {path}")
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode(), mode=0o644)
            click.echo(f"{'replaced' if path in there else 'created':9}  {path}")
    except OSError as error:
        message = f"{error.filename or out}: {error.strerror or error}"
        raise StreamdetError(message) from error


def _files(shipped: Traversable, folder: Path) -> Iterator[tuple[Path, str]]:
    for entry in sorted(shipped.joinpath(folder.as_posix()).iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(shipped, folder / entry.name)
        else:
            yield folder / entry.name, entry.read_text("utf-8")


def _and_others(paths: list[Path]) -> str:
    return f", and {len(paths) - 1} more" if len(paths) > 1 else ""
