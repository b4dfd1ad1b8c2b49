"""`streamdet completion`, and what shells are offered: files, and the names of a running daemon's streams."""

from __future__ import annotations

import threading
from pathlib import Path

import click
from click.shell_completion import CompletionItem

SHELLS = ("bash", "zsh", "fish")
# A shell that completes a line waits for it.
_ANSWER_SECONDS = 0.2


@click.command(
    epilog="""\b
Examples:
  streamdet completion bash > ~/.local/share/bash-completion/completions/streamdet
  streamdet completion zsh > ~/.zsh/completions/_streamdet        # a folder of $fpath
  streamdet completion fish > ~/.config/fish/completions/streamdet.fish
  source <(streamdet completion bash)                             # in this shell alone

\b
`streamdet install-service` installs all three for all users."""
)
@click.argument("shell", type=click.Choice(SHELLS), metavar="SHELL")
def command(shell: str) -> None:
    """Print the completion script of SHELL: bash, zsh or fish.

    It completes commands, options, files, and the names of the streams of the daemon that runs.
    """
    from streamdet.service.install.completion import script

    click.echo(script(shell), nl=False)


def offer_files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Lets the shell complete the name of a file."""
    return [CompletionItem(incomplete, type="file")]


def offer_streams(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The streams of the daemon that the command line means; none if it does not answer at once."""
    from streamdet.client.control import ask, find_socket
    from streamdet.errors import StreamdetError

    found: list[CompletionItem] = []

    def ask_daemon() -> None:
        socket_path, config_path = _daemon_of(context)
        try:
            answer = ask(find_socket(socket_path, config_path), "GET", "/v1/streams", timeout_seconds=_ANSWER_SECONDS)
            streams = [(str(stream["name"]), str(stream["state"])) for stream in answer["streams"]]
        except (StreamdetError, OSError, KeyError, TypeError):
            return  # a shell has no place for a message
        found.extend(CompletionItem(name, help=state) for name, state in streams if name.startswith(incomplete))

    # Whatever it waits for, the shell does not wait longer; the thread ends with the process.
    asking = threading.Thread(target=ask_daemon, daemon=True)
    asking.start()
    asking.join(_ANSWER_SECONDS)
    return found if not asking.is_alive() else []


def _daemon_of(context: click.Context) -> tuple[Path | None, Path | None]:
    """The socket and the configuration file that were given before, as for any other use of the command."""
    given: dict[str, object] = {}
    here: click.Context | None = context
    while here is not None:
        given = {**here.params, **given}
        here = here.parent
    socket_path, config_path = given.get("socket_path"), given.get("config_path")
    return (
        socket_path if isinstance(socket_path, Path) else None,
        config_path if isinstance(config_path, Path) else None,
    )
