"""`streamdet help`."""

from __future__ import annotations

import click


@click.command(
    epilog="""\b
Examples:
  streamdet help
  streamdet help run
  streamdet help streams add"""
)
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command, or the list of all commands."""
    shown = context.find_root()
    for word in words:
        if not isinstance(shown.command, click.Group):
            shown.fail(f"there is no {word[:40]!r} of this command")
        inner = shown.command.get_command(shown, word)
        if inner is not None:  # of a word that is none, it has reported that
            shown = click.Context(inner, parent=shown, info_name=word)
    click.echo(shown.get_help())
