"""`streamdet run`: the daemon."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from streamdet.config import Config, load_config
from streamdet.config.last_good import last_good
from streamdet.errors import ConfigError
from streamdet.monitoring.log import configure_logging
from streamdet.service.restart_delay import RestartDelay

_log = logging.getLogger(__name__)


@click.command(
    epilog="""\b
Examples:
  streamdet run --config /etc/streamdet/streamdet.toml
  streamdet run --config clips.toml --until-ended

\b
Signals: SIGTERM and SIGINT publish what is in flight and stop (a second one stops at once); SIGHUP reloads the file.
Exit codes: 0 stopped, 1 failed, 2 the configuration is wrong, 69 weights or a port not available, 70 GPU lost."""
)
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path, readable=False),
    default=Path("/etc/streamdet/streamdet.toml"), show_default=True, help="Read this configuration file (TOML).",
)  # fmt: skip
@click.option(
    "--or-last-good", is_flag=True,
    help="If the file is wrong, log it as an error and run the last configuration that worked (as a service only).",
)  # fmt: skip
@click.option("--until-ended", is_flag=True, help="Stop when every file has been played to its end.")
def command(config_path: Path, *, or_last_good: bool, until_ended: bool) -> None:
    """Detect objects in the streams of a configuration file until stopped by a signal."""
    config, problems = _config(config_path, or_last_good=or_last_good)
    configure_logging(config.log)
    for problem in problems:
        _log.error("%s", problem)
    if problems:
        _log.error("%s is wrong: running the last configuration that worked instead", config_path)
    restart_delay = RestartDelay()
    restart_delay.wait()
    from streamdet.service.daemon import Daemon  # after the configuration: it takes torch seconds to load

    daemon = Daemon(config, config_path, stop_when_ended=until_ended)
    with daemon.signals():
        code = daemon.run()
    if code == 0:
        restart_delay.forget()
    daemon.exit(code)


def _config(path: Path, *, or_last_good: bool) -> tuple[Config, list[str]]:
    """The configuration to run, and what is wrong with the file if it is the last good one instead.

    Raises:
        ConfigError: the file is wrong; the message says how to go back to the last good one, if there is one.
    """
    try:
        return load_config(path), []
    except ConfigError as error:
        kept = last_good(path)
        if kept is None:
            raise
        if not or_last_good:
            raise ConfigError([*error.problems, *kept.offer()]) from None
        try:
            return kept.load(), error.problems
        except ConfigError:
            raise error from None
