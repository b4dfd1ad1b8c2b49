"""`streamdet run`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from streamdet.config import load_config
from streamdet.log import configure_logging
from streamdet.restart_delay import RestartDelay


@click.command(
    epilog="""\b
Examples:
  streamdet run --config /etc/streamdet/streamdet.toml
  streamdet run --config clips.toml --until-ended

\b
Signals: SIGTERM and SIGINT finish what is on its way and stop (a second one at once); SIGHUP reads the file again.
Exit codes: 0 stopped, 1 unexpected error, 2 bad configuration, 69 weights or port not available, 70 GPU lost."""
)
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path, readable=False),
    default=Path("/etc/streamdet/streamdet.toml"), show_default=True, help="The configuration, a TOML file.",
)  # fmt: skip
@click.option("--until-ended", is_flag=True, help="Stop when every stream (then: every file) has come to its end.")
def command(config_path: Path, *, until_ended: bool) -> None:
    """Detect objects in the streams of a configuration file, until told to stop."""
    config = load_config(config_path)
    configure_logging(config.log)
    restart_delay = RestartDelay()
    restart_delay.wait()
    from streamdet.daemon import Daemon  # noqa: PLC0415 - a bad configuration should be told before torch loads

    daemon = Daemon(config, config_path, stop_when_ended=until_ended)
    with daemon.signals():
        code = daemon.run()
    if code == 0:
        restart_delay.forget()
    sys.exit(code)
