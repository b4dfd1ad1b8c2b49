"""`streamdet bridge`: carries events elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from streamdet.config import load_bridges
from streamdet.config.bridges import BRIDGES
from streamdet.config.secrets import environ_for
from streamdet.monitoring.log import configure_logging


@click.command(
    "bridge",
    epilog="""\b
Examples:
  streamdet bridge webhook --config /etc/streamdet/streamdet.toml
  streamdet bridge mqtt
  streamdet bridge files --config streamdet.toml

\b
Exit codes: 0 stopped by a signal, 2 the configuration is wrong, 69 no replay, port taken, state
not writable.""",
)
@click.argument("name", type=click.Choice(BRIDGES), metavar="NAME")
@click.option(
    "--config", "-c", "config_path", type=click.Path(path_type=Path, readable=False),
    default=Path("/etc/streamdet/streamdet.toml"), show_default=True, help="Read this configuration file (TOML).",
)  # fmt: skip
@click.option(
    "--from-start", is_flag=True,
    help="With files, at its very first start: begin with all that the daemon keeps of its present run.",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="Log more, for finding faults.")
def command(*, name: str, config_path: Path, from_start: bool, verbose: bool) -> None:
    """Carry events elsewhere until stopped by a signal.

    NAME is webhook, which posts alerts to the receivers in [[webhooks]]; mqtt, which publishes to the broker of [mqtt];
    or files, which records events as Parquet or JSONL files in the directory of [files].

    A process of its own beside the daemon: it may be stopped and started at any time, and goes on where it has stopped.
    """
    if from_start and name != "files":
        message = f"--from-start goes with files; the bridge {name} hands on nothing of the past"
        raise click.UsageError(message)
    config = load_bridges(config_path, environ_for(config_path, of_bridges=True))
    configure_logging(config.log.model_copy(update={"level": "debug"}) if verbose else config.log)
    if name == "mqtt":
        from streamdet.bridges.mqtt import run_mqtt

        run_mqtt(config, config_path)
        return
    if name == "files":
        from streamdet.bridges.files import run_files

        run_files(config, config_path, from_start=from_start)
        return
    from streamdet.bridges.webhook import run_webhooks

    run_webhooks(config, config_path)
