"""`streamdet keys`: the key files of the daemon and its clients, for encryption and login."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import click

from streamdet.cli.group import Group
from streamdet.security.curve import (
    PUBLIC_SUFFIX,
    KeyFileError,
    Kind,
    allow,
    generate,
    public_files,
    read_public,
    revoke,
)

_FOLDER = click.Path(path_type=Path, file_okay=False)
_EXAMPLES = """\b
Examples:
  streamdet keys generate /etc/streamdet/keys --name server --server
  streamdet keys generate ~/streamdet-keys --name alice
  streamdet keys allow /etc/streamdet/clients alice.key
  streamdet keys list /etc/streamdet/clients
  streamdet keys revoke /etc/streamdet/clients alice"""


@click.group("keys", cls=Group, epilog=_EXAMPLES)
def command() -> None:
    """Generate, list and revoke the keys of the daemon and its subscribers.

    Other machines can subscribe only with keys (CURVE): the connection is encrypted, the daemon proves its identity,
    and only clients whose public key is in its directory of allowed clients are let in.
    """


@command.command(
    "generate",
    epilog="""\b
Examples:
  streamdet keys generate /etc/streamdet/keys --name server --server
  streamdet keys generate ~/streamdet-keys --name alice --allow /etc/streamdet/clients

\b
NAME.key is public. NAME.key_secret is secret: it has mode 0600 and should not leave its machine.""",
)
@click.argument("directory", type=_FOLDER)
@click.option("--name", required=True, help="Name the files, and the client in the daemon's log.")
@click.option("--server", "is_server", is_flag=True, help="Generate keys for a daemon instead of a client.")
@click.option("--allow", "clients", type=_FOLDER, metavar="DIRECTORY", help="Allow this client at once.")
@click.option("--force", is_flag=True, help="Overwrite keys of this name.")
def _generate(*, directory: Path, name: str, is_server: bool, clients: Path | None, force: bool) -> None:
    """Generate a key pair in DIRECTORY: NAME.key and NAME.key_secret."""
    if is_server and clients is not None:
        message = "--allow is for clients; leave it out with --server"
        raise click.UsageError(message)
    kind: Kind = "server" if is_server else "client"
    public_file, secret_file = generate(directory, name, kind, force=force)
    click.echo(f"wrote {secret_file}, readable by you only, and {public_file}, which is public")
    if is_server:
        click.echo("Add to the daemon's configuration, and restart it:")
        click.echo(f'  [publisher]\n  curve_server_key_file = "{secret_file.absolute()}"')
        click.echo('  curve_allowed_clients_directory = "/etc/streamdet/clients"')
        click.echo(f"Give {public_file} to every client.")
    elif clients is not None:
        click.echo(f"let in: {allow(public_file, clients, force=force)}")
    else:
        click.echo(f"To let it in: streamdet keys allow DIRECTORY {public_file}")


@command.command("allow", epilog="\b\nExamples:\n  streamdet keys allow /etc/streamdet/clients alice.key")
@click.argument("directory", type=_FOLDER)
@click.argument("public_file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Overwrite a key of this name.")
def _allow(*, directory: Path, public_file: Path, force: bool) -> None:
    """Allow the client with the public key in PUBLIC_FILE; a running daemon accepts it at once."""
    click.echo(f"let in: {allow(public_file, directory, force=force)}")


@command.command("list", epilog="\b\nExamples:\n  streamdet keys list /etc/streamdet/clients")
@click.argument("directory", type=_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def _list(*, directory: Path, as_json: bool) -> None:
    """List the clients that DIRECTORY allows."""
    rows = [_row(path) for path in public_files(directory)]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo(f"{row['name']:<24} {row['public_key'] or row['problem']}  {row['since']}")
    click.echo(f"{len(rows)} clients", err=True)


@command.command("revoke", epilog="\b\nExamples:\n  streamdet keys revoke /etc/streamdet/clients alice")
@click.argument("directory", type=_FOLDER)
@click.argument("name")
def _revoke(*, directory: Path, name: str) -> None:
    """Revoke a client: a running daemon closes its connections, and no others, within two seconds."""
    click.echo(f"removed {revoke(directory, name)}")


def _row(path: Path) -> dict[str, str | None]:
    since = ""
    with suppress(OSError):  # a link to nothing, or revoked just now: its problem says so
        since = time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
    row: dict[str, str | None] = {"name": path.name.removesuffix(PUBLIC_SUFFIX), "since": since}
    try:
        return {**row, "public_key": read_public(path).decode(), "problem": None}
    except KeyFileError as error:
        return {**row, "public_key": None, "problem": str(error)}
