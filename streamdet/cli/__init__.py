"""The command line: one file per command, loaded only when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import sys

import click
from click.shell_completion import CompletionItem

from streamdet import __version__
from streamdet.cli.group import Group
from streamdet.cli.standard_streams import ending_in_time, open_standard_streams
from streamdet.errors import (
    EXIT_BAD_DATA,
    EXIT_DEVICE_LOST,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    ConfigError,
    StreamdetError,
)
from streamdet.security.command_line import hide_secrets
from streamdet.security.plain_text import plain, plain_lines
from streamdet.security.redact import redact

_COMMANDS = {
    "run": "Detect objects in streams: urls, files, or those of a configuration file.",
    "init": "Write a configuration file for cameras, and try each of them.",
    "demo": "Run a demonstration on this machine: two streams of real video, events, metrics.",
    "check": "Check a configuration file, and with --probe its streams.",
    "discover": "Find the cameras of the local network and their streams (ONVIF).",
    "reload": "Reload the configuration file of a running daemon.",
    "status": "Show whether a running daemon and its streams are well.",
    "streams": "List, add, change, pause and remove the streams of a running daemon.",
    "alerts": "List the alerts of the past, with their pictures.",
    "objects": "List the objects of the past, with their pictures.",
    "rules": "Try rules on events of the past.",
    "watch": "Show the events of a running daemon, live.",
    "web": "Serve a page that shows a running daemon's streams.",
    "bridge": "Carry events elsewhere: web hooks, MQTT, files.",
    "cluster": "Spread the streams over many machines, and move them when one dies.",
    "keys": "Generate, list and revoke the keys of subscribers on other machines.",
    "install-service": "Install the daemon as a systemd service.",
    "dashboards": "Write the Grafana dashboard and Prometheus' alert rules into a folder.",
    "train": "Train or fine-tune a detector on pictures in COCO format.",
    "evaluate": "Measure a detector's accuracy on pictures in COCO format.",
    "engines": "Find the fastest engine on this machine, or show the last result.",
    "bench": "Measure the detector, the daemon, and how many streams this machine can take.",
    "export": "Export a detector for OpenVINO, in fp32 or int8.",
    "trace": "Explain the seven stages of the detector on one picture.",
    "schema": "Print the JSON Schema of the configuration or of the events.",
    "completion": "Print the completion script of a shell.",
    "version": "Show the versions of streamdet, its libraries and this machine.",
    "help": "Show the help of a command.",
}


class _LazyGroup(Group):
    """Imports `streamdet.cli.<command>` when the command is called, so that `watch` never waits for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def load_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002 - as above
        if name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"streamdet.cli.{name.replace('-', '_')}").command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands, without importing them: a shell that completes a line waits."""
        items = [CompletionItem(name, help=text) for name, text in _COMMANDS.items() if name.startswith(incomplete)]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


_EPILOG = f"""\b
Examples:
  streamdet run rtsp://192.0.2.5/stream1
  streamdet init rtsp://192.0.2.5/stream1 && streamdet run streamdet.toml --page
  streamdet help streams add

\b
Exit codes, of all commands:
  0    done, or stopped by a signal
  {EXIT_FAILURE}    failed; the last line says why
  {EXIT_USAGE}    wrong options, configuration, key or password file
  {EXIT_BAD_DATA}   broken data: an event, a data set, a picture
  {EXIT_UNAVAILABLE}   not available: weights, device, memory, address, disk, or no daemon answers
  {EXIT_DEVICE_LOST}   the GPU is lost; the service restarts
  {EXIT_INTERRUPTED}  interrupted by Ctrl-C"""


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_LazyGroup, context_settings=_CONTEXT, epilog=_EPILOG)
@click.version_option(__version__, prog_name="streamdet")
def cli() -> None:
    """Real-time object detection on many live video streams."""


def main() -> None:
    """Runs the command line; a `StreamdetError` becomes one line and an exit code."""
    open_standard_streams()
    hide_secrets()
    try:
        # click gives the code of `ctx.exit(code)` back, and None when a command just returns.
        sys.exit(cli.main(prog_name="streamdet", standalone_mode=False))
    except ConfigError as error:
        click.echo("\n".join(map(plain_lines, error.problems)), err=True)
        sys.exit(error.exit_code)
    except StreamdetError as error:
        click.echo(f"streamdet: {plain_lines(str(error))}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _print_usage_error(error)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        with ending_in_time(EXIT_INTERRUPTED):
            sys.stdout.flush()
        sys.exit(EXIT_INTERRUPTED)
    except MemoryError as error:
        _print_out_of_memory(error)
        sys.exit(EXIT_UNAVAILABLE)
    except UnicodeEncodeError as error:
        _print_what_is_not_utf_8(error)
        sys.exit(EXIT_USAGE)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN):
            raise
        _give_up_output(error)
        sys.exit(EXIT_FAILURE)


def _print_usage_error(error: click.ClickException) -> None:
    """Prints what is wrong with a command line and where to look; the help where no command was given."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = "streamdet" if context is None else context.command_path
    message = " ".join(error.format_message().split()).rstrip(".")
    if "://" in message:
        message = redact(message)
    if isinstance(error, click.NoSuchOption) and context is not None and isinstance(context.command, click.Group):
        message += "; options come after the command"
    if message[1:2].islower():
        message = message[:1].lower() + message[1:]
    click.echo(f"{path}: {message} (see {path} --help)", err=True)


def _print_what_is_not_utf_8(error: UnicodeEncodeError) -> None:
    """Prints which word of the command line cannot be sent or written as UTF-8; raises again where all can."""
    wrong = [word for word in sys.argv[1:] if word != word.encode(errors="replace").decode()]
    if not wrong:
        raise error
    click.echo(f"streamdet: {plain(redact(wrong[0]))}: is not UTF-8; use a terminal with UTF-8", err=True)


def _print_out_of_memory(error: MemoryError) -> None:
    reason = f" ({plain_lines(first)})" if (first := str(error).partition("\n")[0]) else ""
    advice = "free some, or raise the limit of this process, container or service"
    click.echo(f"streamdet: out of memory{reason}; {advice}", err=True)


def _give_up_output(error: OSError) -> None:
    """Discards further output, or Python would try to write it again at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:
        click.echo(f"streamdet: cannot write: {error.strerror}", err=True)
