"""`streamdet check`: what is wrong with a configuration file, and with --probe whether its streams can be read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamdet.cli.plural import counted
from streamdet.cli.probes import print_probes
from streamdet.config import Config, load_all
from streamdet.config.secrets import SERVICE_FOLDER, environ_for
from streamdet.detector.missing import missing_parts
from streamdet.errors import EXIT_FAILURE, ConfigError
from streamdet.security.plain_text import plain_json

if TYPE_CHECKING:
    from streamdet.capture.probe import Probe

_DEFAULT_FILE = SERVICE_FOLDER / "streamdet.toml"
# Reading it finds out whether it may be read, and reports that like every other problem of a configuration.
_FILE = click.Path(path_type=Path, readable=False)


@click.command(
    epilog="""\b
Examples:
  streamdet check streamdet.toml
  streamdet check streamdet.toml --probe
  streamdet check --probe --json | jq '.streams[] | select(.reason)'

\b
Exit codes: 0 valid, 1 a stream cannot be read, 2 the configuration is wrong."""
)
@click.argument("file", type=_FILE, required=False)
@click.option("--config", "-c", "config_path", type=_FILE, help="Name the file by an option, as in other commands.")
@click.option("--probe", is_flag=True, help="Connect to all streams at once and show what each one sends.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: Path | None, config_path: Path | None, *, probe: bool, as_json: bool) -> None:
    """Check a configuration file, and with --probe its streams.

    FILE is /etc/streamdet/streamdet.toml if left out. ${NAME} in it is an environment variable or, as for the daemon, a
    file in the folder FILE.secrets (without .toml) beside it; for /etc/streamdet/streamdet.toml in secrets.
    """
    if file is not None and config_path is not None:
        message = "FILE and --config name the same thing; give one of them"
        raise click.UsageError(message)
    file = file or config_path or _DEFAULT_FILE
    try:
        is_of_service = file.absolute().parent == SERVICE_FOLDER
        config, warnings = load_all(
            file, environ_for(file), environ_for(file, of_bridges=True), for_service=is_of_service
        )
    except ConfigError as error:
        if not as_json:
            raise
        _print_json({"valid": False, "problems": error.problems})
        sys.exit(error.exit_code)
    warnings = [*warnings, *missing_parts(config.detector)]
    probes: list[Probe] | None = None
    if probe:
        from streamdet.capture.probe import probe_all  # without --probe no video library is needed

        probes = probe_all(config.streams)
        warnings += _missing_clips(config, probes)
    if as_json:
        _print_json(_as_json([stream.name for stream in config.streams], warnings, probes))
    else:
        _print(file, config, warnings, probes)
    if probes and any(result.reason for result in probes):
        sys.exit(EXIT_FAILURE)


def _missing_clips(config: Config, probes: list[Probe]) -> list[str]:
    """Streams that rules with clips apply to, and whose codec has none."""
    from streamdet.capture.sources.packets import CODECS  # imported by probing already

    codecs = {probe.stream: probe.info.codec for probe in probes if probe.info}
    return [
        f"rules[{rule.name}].clip_seconds: alerts of {stream.name} have no clip: its video is {codec}, "
        "but clips need H.264 or H.265"
        for rule in config.rules if rule.clip_seconds is not None
        for stream in config.streams if rule.applies_to(stream.name)
        if (codec := codecs.get(stream.name)) and codec not in CODECS
    ]  # fmt: skip


def _as_json(names: list[str], warnings: list[str], probes: list[Probe] | None) -> dict[str, Any]:
    streams = [{"name": name} for name in names] if probes is None else [probe.to_dict() for probe in probes]
    return {"valid": True, "problems": [], "warnings": warnings, "streams": streams}


def _print_json(value: dict[str, Any]) -> None:
    click.echo(plain_json(json.dumps(value, ensure_ascii=False, indent=2)))


def _print(file: Path, config: Config, warnings: list[str], probes: list[Probe] | None) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    counts = [counted(len(config.streams), "stream"), *([counted(len(config.rules), "rule")] if config.rules else [])]
    click.echo(f"{file} is valid: {', '.join(counts)}")
    if probes is None:
        return
    print_probes(probes)
