"""`streamdet watch`: the events of a running daemon, live."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from streamdet import wire
from streamdet.cli.standard_streams import ending_in_time
from streamdet.cli.watch_seen import Seen
from streamdet.client.subscription import Gap, Restart, Subscription, subscribe
from streamdet.errors import StreamdetError
from streamdet.security.plain_text import plain_json
from streamdet.types import DetectionEvent

_REFRESH_SECONDS = 0.25
_LINE_CHARACTERS = 160


_FILE = click.Path(path_type=Path, dir_okay=False)
_EXAMPLES = """\b
Examples:
  streamdet watch
  streamdet watch ipc:///run/streamdet/events --stream front-door
  streamdet watch --heal --json > events.jsonl
  streamdet watch tcp://192.0.2.9:5555 --server-key server.key --client-key alice.key_secret
  streamdet watch --label person --json | jq .frame.captured_at
  streamdet watch --label person --count 1 --seconds 60 && echo "somebody is there"
"""


@click.command("watch", epilog=_EXAMPLES)
@click.argument("endpoint", default="tcp://127.0.0.1:5555")
@click.option("--stream", "streams", multiple=True, metavar="NAME", help="Only this stream; may be given again.")
@click.option(
    "--label", "labels", multiple=True, metavar="LABEL", help="Only events with such an object; again for more."
)
@click.option("--heal", is_flag=True, help="Ask the daemon for what is lost; begin with the newest event of each.")
@click.option("--replay", "replay_endpoint", metavar="ENDPOINT", help="Where to ask, if not beside ENDPOINT.")
@click.option("--server-key", type=_FILE, help="The daemon's public key, where it asks for keys.")
@click.option("--client-key", type=_FILE, help="Your own key file, NAME.key_secret.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, for programs.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), metavar="N", help="End after N seconds.")
def command(
    *,
    endpoint: str,
    streams: tuple[str, ...],
    labels: tuple[str, ...],
    heal: bool,
    replay_endpoint: str | None,
    server_key: Path | None,
    client_key: Path | None,
    as_json: bool,
    count: int | None,
    seconds: float | None,
) -> None:
    """Shows the events of a running daemon, live, until Ctrl-C.

    ENDPOINT is the daemon's [publisher] endpoint, tcp://127.0.0.1:5555 if left out. On a terminal there is a
    table of the streams, elsewhere a line per event. Ends with code 1 if no event came at all.
    """
    console = _Console(highlight=False, width=None if sys.stdout.isatty() else _LINE_CHARACTERS)
    seen = Seen(endpoint)
    view: _View = _JsonLines() if as_json else _Table(console) if console.is_terminal else _Lines(console)
    try:
        subscription = subscribe(
            endpoint, streams or None, labels=labels or None, heal=heal, replay_endpoint=replay_endpoint,
            server_key=server_key, client_key_file=client_key,
        )  # fmt: skip
        with subscription as events, view:
            _follow(events, view, seen, only_found=bool(labels), count=count, seconds=seconds)
    except KeyboardInterrupt:
        # How a person ends it, perhaps because who reads our lines stands still.
        with ending_in_time(130):
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our lines has seen enough; the interpreter must not complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if not seen.shown:
        doubt = ", and is your key allowed" if client_key else ""
        message = (
            f"no event came from {endpoint} within {seen.elapsed_seconds:.1f} s; does the daemon publish there{doubt}?"
        )
        raise StreamdetError(message)
    (Console(stderr=True, highlight=False) if as_json else console).print(seen.summary())


def _follow(
    events: Subscription, view: _View, seen: Seen, *, only_found: bool, count: int | None, seconds: float | None
) -> None:
    deadline = None if seconds is None else time.monotonic() + seconds
    while count is None or seen.shown < count:
        left = _REFRESH_SECONDS if deadline is None else min(_REFRESH_SECONDS, deadline - time.monotonic())
        if left <= 0:
            return
        item = events.receive(left)
        if item is not None:
            note = seen.add(item)
            if isinstance(item, Gap | Restart):
                view.show(item, note)
            elif not only_found or (isinstance(item, DetectionEvent) and item.detections):
                seen.shown += 1
                view.show(item, note)
        view.refresh(seen)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to `command` to end in peace; rich would end with code 1."""
        raise BrokenPipeError


class _View:
    """A way to show events."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def show(self, item: wire.Event | Gap | Restart, line: Text | None) -> None:
        """Tells one event."""

    def refresh(self, seen: Seen) -> None:
        """Tells how things stand now."""


class _JsonLines(_View):
    def show(self, item: wire.Event | Gap | Restart, line: Text | None) -> None:  # noqa: ARG002 - lines are for people
        if isinstance(item, Gap | Restart):
            value = {"type": type(item).__name__.lower(), **asdict(item)}
        else:
            value = wire.to_dict(item)
        click.echo(plain_json(json.dumps(value, ensure_ascii=False, separators=(",", ":"))))


class _Lines(_View):
    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, item: wire.Event | Gap | Restart, line: Text | None) -> None:  # noqa: ARG002 - it is told in the line
        if line is not None:
            self._console.print(line, soft_wrap=True)


class _Table(_View):
    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._refreshed = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def refresh(self, seen: Seen) -> None:
        now = time.monotonic()
        if now - self._refreshed >= _REFRESH_SECONDS:
            self._refreshed = now
            self._live.update(seen.live(), refresh=True)
