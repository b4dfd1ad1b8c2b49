"""What `streamdet alerts` and `streamdet objects` share: a beginning and an end of each, from the control API."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import click
from rich.progress import track
from rich.table import Table
from rich.text import Text

from streamdet.cli.completion import offer_streams
from streamdet.cli.refresh import console
from streamdet.cli.times import Time, local_time
from streamdet.cli.which_daemon import which_daemon
from streamdet.client.control import ask as ask_daemon
from streamdet.client.control import fetch, find_socket
from streamdet.errors import ControlError, Refusal, StreamdetError
from streamdet.security.plain_text import plain, plain_json

Json = dict[str, Any]

_PAGE_EVENTS = 500
# What is left out of the name of a file.
_OTHERS = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Span:
    """An alert or an object.

    Attributes:
        begin: the event of its beginning.
        end: the event of its end; None while it lasts.
    """

    begin: Json
    end: Json | None

    @property
    def newest(self) -> Json:
        """The event that has the most to say."""
        return self.end or self.begin


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options choose.

    Attributes:
        socket_path: of the daemon; None for the only one, or the one that runs `config_path`.
        config_path: that the daemon runs.
        since: earliest beginning, Unix time in seconds.
        until: beginnings before this time.
        stream: only this stream.
        limit: at most so many, the newest.
        pictures: the folder to save pictures in.
        as_json: whether events are printed as they were published.
    """

    socket_path: Path | None
    config_path: Path | None
    since: float | None
    until: float | None
    stream: str | None
    limit: int
    pictures: Path | None
    as_json: bool


def options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of both commands."""
    for option in reversed((
        click.option(
            "--since", type=Time(), help="Show only what began at this time or later: 2026-11-29T06:00, or '2 h ago'."
        ),
        click.option("--until", type=Time(), help="Show only what began before this time."),
        click.option("--stream", metavar="NAME", shell_complete=offer_streams, help="Show only this stream."),
        click.option(
            "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Show the newest so many."
        ),
        click.option(
            "--pictures", type=click.Path(path_type=Path, file_okay=False), metavar="DIRECTORY",
            help="Save the pictures here as well; created if it is missing.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print events as published, one JSON object a line."),
        which_daemon,
    )):  # fmt: skip
        command = option(command)
    return command


class PastEvents:
    """Events of one kind that a daemon keeps on disk.

    Args:
        kind: "alerts" or "objects".
        wanted: what the options choose.
    """

    def __init__(self, kind: str, wanted: Wanted) -> None:
        self._kind, self._wanted = kind, wanted
        self._socket = find_socket(wanted.socket_path, wanted.config_path)

    def spans(self, phases: tuple[str, str], name: str, **conditions: str | None) -> Iterator[Span]:
        """Every one that began in the wanted time, the newest first.

        Args:
            phases: of the events of a beginning and of an end.
            name: the path of what identifies one, such as "alert_id", in the field of the kind.
            conditions: further ones, which beginning and end share.
        """
        field, wanted = self._kind.removesuffix("s"), self._wanted
        both = {"stream": wanted.stream, **conditions}
        begins = self._events(phase=phases[0], since=wanted.since, until=wanted.until, **both)
        ends = self._events(phase=phases[1], since=wanted.since, **both)
        ended: dict[str, Json] = {}
        end = next(ends, None)
        for begin in begins:
            # What ends, ends after it began.
            while end is not None and end["published_at"] >= begin["published_at"]:
                ended[end[field][name]] = end
                end = next(ends, None)
            yield Span(begin, ended.pop(begin[field][name], None))

    def show(self, spans: Iterator[Span], columns: tuple[str, ...], row: Callable[[Span], tuple[str, ...]]) -> None:
        """Prints the newest ones in the order in which they began, and saves their pictures."""
        shown = sorted(islice(spans, self._wanted.limit), key=_began_at)
        if self._wanted.as_json:
            for span in shown:
                click.echo(plain_json(json.dumps(span.newest, ensure_ascii=False)))
        elif not shown:
            click.echo(f"there are no such {self._kind}")
        else:
            table = Table("began", "stream", *columns, box=None, pad_edge=False)
            for span in shown:
                cells = (local_time(_began_at(span)), span.begin["stream"], *row(span))
                table.add_row(*(Text(plain(cell)) for cell in cells))
            console().print(table)
        if self._wanted.pictures is not None:
            try:
                self._save_pictures(shown, self._wanted.pictures)
            except OSError as error:
                message = f"{error.filename or self._wanted.pictures} cannot be written: {error.strerror}"
                raise StreamdetError(message) from None

    def _events(self, **conditions: str | float | None) -> Iterator[Json]:
        """The events that meet the conditions, the newest first; asks for a page when it is needed."""
        given = {key: value for key, value in conditions.items() if value is not None}
        after: str | None = None
        while True:
            query = {**given, "limit": _PAGE_EVENTS, **({"after": after} if after else {})}
            page = ask_daemon(self._socket, "GET", f"/v1/{self._kind}?{urlencode(query)}")
            yield from page["events"]
            after = page["next"]
            if after is None:
                return

    def _save_pictures(self, spans: list[Span], folder: Path) -> None:
        ids = [str(picture["picture_id"]) for span in spans if (picture := _picture(span)) is not None]
        folder.mkdir(parents=True, exist_ok=True)
        saved = 0
        for picture_id in track(ids, "saving pictures", console=console(error=True), transient=True):
            try:
                jpeg = fetch(self._socket, f"/v1/pictures/{quote(picture_id, safe='')}")
            except ControlError as error:
                if error.code != Refusal.NOT_FOUND:
                    raise
                continue
            (folder / f"{_OTHERS.sub('_', picture_id)}.jpg").write_bytes(jpeg)
            saved += 1
        click.echo(f"saved {saved} of {len(ids)} pictures in {folder}", err=True)


def _began_at(span: Span) -> float:
    event = span.begin
    return float(event["alert"]["raised_at"] if "alert" in event else event["object"]["began_at"])


def _picture(span: Span) -> Json | None:
    """What is known of its picture: alerts have it from their beginning, objects at their end."""
    found = span.newest.get("picture") or span.begin.get("picture")
    return found if isinstance(found, dict) else None


def has_picture(span: Span) -> bool:
    """Whether a picture was kept."""
    return _picture(span) is not None
