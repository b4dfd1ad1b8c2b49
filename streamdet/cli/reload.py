"""`streamdet reload`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from streamdet.cli.which_daemon import which_daemon
from streamdet.client.control import ask, find_socket
from streamdet.errors import ConfigError
from streamdet.security.plain_text import plain_json


@click.command(
    epilog="""\b
Examples:
  streamdet reload
  streamdet reload --config /etc/streamdet/streamdet.toml
  streamdet reload --socket /run/streamdet/control.sock --json

\b
Exit codes: 0 the file is in force, 1 the daemon could not apply it, 2 the file is wrong (nothing
changed), 69 no daemon answers."""
)
@which_daemon
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def command(config_path: Path | None, socket_path: Path | None, *, as_json: bool) -> None:
    """Make a running daemon read its configuration file again, and print what changed.

    The whole file takes effect, or nothing. Without options, the only daemon of this user or of the system is used.
    """
    body = {} if config_path is None else {"config": str(config_path.resolve())}
    try:
        result = ask(find_socket(socket_path, config_path), "POST", "/v1/reload", body)
    except ConfigError as error:
        if not as_json:
            click.echo("nothing was changed:", err=True)
            raise
        click.echo(plain_json(json.dumps({"ok": False, "problems": error.problems}, ensure_ascii=False, indent=2)))
        sys.exit(error.exit_code)
    if as_json:
        click.echo(plain_json(json.dumps({"ok": True, **result}, ensure_ascii=False, indent=2)))
        return
    words = {"added": "added", "reconnected": "reconnected", "updated": "changed", "removed": "removed"}
    for key, word in words.items():
        if names := result["streams"][key]:
            click.echo(f"{word}: {', '.join(names)}")
    for note in result["notes"]:
        click.echo(f"note: {note}")
    if result["needs_restart"]:
        click.echo(f"changed, but applied only after a restart: {', '.join(result['needs_restart'])}")
    click.echo(f"{result['config']} is in force")
