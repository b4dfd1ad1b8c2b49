"""`streamdet keys`: keys for encryption and login."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

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


@click.group("keys", epilog="Exit codes: 0 done, 2 wrong options, or a file that cannot be used; a line says why.")
def command() -> None:
    """Make, list and revoke the keys by which daemon and subscribers know each other.

    Off this machine the daemon publishes only with keys (CURVE): everything is encrypted, the daemon shows who it is,
    and only clients whose public key lies in its directory of allowed clients get anything.
    """


@command.command(
    "generate",
    epilog="""\b
Examples:
  streamdet keys generate /etc/streamdet/keys --name server --server
  streamdet keys generate ~/streamdet-keys --name alice --allow /etc/streamdet/clients

\b
NAME.key is public. NAME.key_secret is secret: it has mode 0600 and never needs to leave its machine.""",
)
@click.argument("directory", type=_FOLDER)
@click.option("--name", required=True, help="Name of the files, and of a client in the daemon's log.")
@click.option("--server", "is_server", is_flag=True, help="Keys of a daemon; without it, of a client.")
@click.option("--allow", "clients", type=_FOLDER, metavar="DIRECTORY", help="Let this client in at once.")
@click.option("--force", is_flag=True, help="Replace keys of this name for good.")
def _generate(*, directory: Path, name: str, is_server: bool, clients: Path | None, force: bool) -> None:
    """Make a key pair in DIRECTORY: NAME.key and NAME.key_secret."""
    if is_server and clients is not None:
        message = "--allow lets a client in; leave it out for --server"
        raise click.UsageError(message)
    kind: Kind = "server" if is_server else "client"
    public_file, secret_file = generate(directory, name, kind, force=force)
    click.echo(f"wrote {secret_file}, readable by you only, and {public_file}, which may be shown to anyone")
    if is_server:
        click.echo("In the daemon's configuration, and then restart it:")
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
@click.option("--force", is_flag=True, help="Replace a key of this name.")
def _allow(*, directory: Path, public_file: Path, force: bool) -> None:
    """Let the client in whose public key PUBLIC_FILE holds; a running daemon applies it at once."""
    click.echo(f"let in: {allow(public_file, directory, force=force)}")


@command.command("list", epilog="\b\nExamples:\n  streamdet keys list /etc/streamdet/clients")
@click.argument("directory", type=_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="A JSON list, for programs.")
def _list(*, directory: Path, as_json: bool) -> None:
    """List the clients that DIRECTORY lets in."""
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
    """Let a client in no more: a running daemon ends its connections within two seconds, and those of no one else."""
    click.echo(f"removed {revoke(directory, name)}")


def _row(path: Path) -> dict[str, str | None]:
    since = time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
    row: dict[str, str | None] = {"name": path.name.removesuffix(PUBLIC_SUFFIX), "since": since}
    try:
        return {**row, "public_key": read_public(path).decode(), "problem": None}
    except KeyFileError as error:
        return {**row, "public_key": None, "problem": str(error)}
