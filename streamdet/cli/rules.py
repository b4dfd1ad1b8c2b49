"""`streamdet rules`: tries rules on events of the past, and puts rules in force in a running daemon."""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from streamdet import wire
from streamdet.analytics.past import Past, PastAlert, relaxed
from streamdet.cli.group import Group
from streamdet.cli.plural import counted
from streamdet.cli.refresh import console
from streamdet.cli.times import Time
from streamdet.cli.which_daemon import which_daemon
from streamdet.client.control import ask, find_socket
from streamdet.config import RuleConfig, StreamConfig
from streamdet.config.load import load_rules
from streamdet.config.secrets import environ_for
from streamdet.config.toml import as_json_value, parse, read_text
from streamdet.errors import ConfigError, DataError, SpoolError, WireError
from streamdet.security.plain_text import plain, plain_json
from streamdet.types import DetectionEvent, ObjectEvent, StateEvent

_SPOOL_FILE = "events.sqlite"
# The daemon cannot shorten its log while another program reads, so rows are taken a few at a time.
_ROWS_AT_ONCE = 1000
_BUSY_SECONDS = 10.0
_KINDS: tuple[wire.Kind, ...] = ("detections", "objects", "state")
# Gaps and restarts, which `watch` prints between events, have types of their own.
_OTHER_TYPES = {"alerts", "preview", "gap", "restart"}
_MAX_NAMES = 10
_EXAMPLES = """\b
Examples:
  streamdet rules test streamdet.toml --spool /var/lib/streamdet/streamdet/spool
  streamdet rules test rules.toml --spool spool --since '12 h ago' --stream yard
  streamdet watch --json > events.jsonl
  streamdet rules test rules.toml --events events.jsonl --json | jq '.alerts[].rule'
  streamdet rules set rules.toml --persist
  streamdet rules reset
"""

_Event = DetectionEvent | ObjectEvent | StateEvent
OnProgress = Callable[[int, int], None]
"""Takes how much is done, and how much there is."""


@click.group("rules", cls=Group, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Try rules on events of the past, and change those of a running daemon."""


_persist = click.option("--persist", is_flag=True, help="Keep this over restarts.")


@command.command(
    "set",
    epilog="""\b
Examples:
  streamdet rules set rules.toml --try-only
  streamdet rules set rules.toml --persist""",
)
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@click.option("--try-only", is_flag=True, help="Check the rules, and change nothing.")
@_persist
@which_daemon
def set_rules(file: Path, *, try_only: bool, persist: bool, config_path: Path | None, socket_path: Path | None) -> None:
    """Put the rules of FILE in force, in place of all others.

    FILE is a configuration, or a file that contains only [[rules]].
    """
    written = parse(file, read_text(file)).get("rules", [])
    tables = [rule for rule in written if isinstance(rule, dict)] if isinstance(written, list) else []
    if not tables:
        message = f"{file} has no [[rules]]; to have those of the daemon's file: streamdet rules reset"
        raise ConfigError([message])
    rules = [as_json_value(rule) for rule in tables]
    query = f"?persist={str(persist).lower()}&try_only={str(try_only).lower()}"
    ask(find_socket(socket_path, config_path), "PUT", f"/v1/rules{query}", {"rules": rules})
    kept = f"and stay{'s' * (len(rules) == 1)} so over restarts" if persist else "until the next restart"
    what = "can be put in force" if try_only else f"{'is' if len(rules) == 1 else 'are'} in force, {kept}"
    click.echo(f"{counted(len(rules), 'rule')} {what}")


@command.command(
    epilog="""\b
Examples:
  streamdet rules reset --persist"""
)
@_persist
@which_daemon
def reset(*, persist: bool, config_path: Path | None, socket_path: Path | None) -> None:
    """Put the rules of the daemon's configuration file in force again."""
    path = f"/v1/rules/reset?persist={str(persist).lower()}"
    rules = ask(find_socket(socket_path, config_path), "POST", path)["rules"]
    click.echo(f"{counted(len(rules), 'rule')} of the file: in force")


@command.command(
    epilog=f"""{_EXAMPLES}
\b
Exit codes: 0 done, 2 FILE or an option is wrong, 65 an event cannot be read, 69 the spool cannot
be read."""
)
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--spool", type=click.Path(path_type=Path), metavar="DIR", help="Read events from this directory of [spool]."
)
@click.option(
    "--events", type=click.File("rb"), metavar="FILE",
    help="Read events from this file, one JSON object a line, as `watch --json` prints them; - for standard input.",
)  # fmt: skip
@click.option("--stream", "streams", multiple=True, metavar="NAME", help="Read only this stream; may be repeated.")
@click.option("--since", type=Time(), help="Read only events from this time on: 2026-11-29T06:00, or '2 h ago'.")
@click.option("--until", type=Time(), help="Read only events up to this time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def test(
    file: Path,
    *,
    spool: Path | None,
    events: IO[bytes] | None,
    streams: tuple[str, ...],
    since: float | None,
    until: float | None,
    as_json: bool,
) -> None:
    """Print when rules would have raised alerts.

    FILE is a configuration, or a file that contains only [[rules]]. Zones and lines are those of the configuration, so
    that new ones can be tried as well; without streams in FILE, they are taken as they were published. Objects have
    the track ids that were published. The spool is only read, also while a daemon writes it.
    """
    rules, configs = load_rules(file, environ_for(file))
    wanted = _Wanted(frozenset(streams), since, until)
    easier = {rule.name: relaxed(rule) for rule in rules}
    past = Past([*rules, *(other for others in easier.values() for other in others.values())], configs)
    with _bar("reading events") as on_progress:
        if spool is not None and events is None:
            source = _from_spool(spool, wanted, on_progress)
        elif events is not None and spool is None:
            source = _from_lines(events, wanted, on_progress)
        else:
            message = "give either --spool or --events"
            raise click.UsageError(message)
        for event in source:
            past.see(event)
    tried = _Tried(rules, easier, past)
    if as_json:
        click.echo(plain_json(json.dumps(tried.to_dict(), ensure_ascii=False, indent=2)))
    else:
        tried.show({config.name: config for config in configs or ()})


class _Wanted(NamedTuple):
    """Which events are read: of these streams, or of all; published between these times."""

    streams: frozenset[str]
    since: float | None
    until: float | None

    def has_topic(self, topic: str) -> bool:
        kind, _, rest = topic.partition("/")
        return kind in _KINDS and (not self.streams or rest.rstrip("/") in self.streams)

    def has(self, event: _Event) -> bool:
        if self.streams and event.stream not in self.streams:
            return False
        return (self.since or 0.0) <= event.published_at <= (math.inf if self.until is None else self.until)


def _from_spool(directory: Path, wanted: _Wanted, on_progress: OnProgress) -> Iterator[_Event]:
    """The events of a spool, in the order in which they were published.

    Raises:
        SpoolError: it cannot be read.
        DataError: one of its events cannot be read.
    """
    path = directory / _SPOOL_FILE
    if not path.is_file():
        message = f"there is no {_SPOOL_FILE} in {directory}; give the directory of [spool]"
        raise SpoolError(message)
    try:
        database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
        with closing(database):
            yield from _rows(database, path, wanted, on_progress)
    except sqlite3.Error as error:
        message = f"{path} cannot be read: {error}; may this user read and write the directory?"
        raise SpoolError(message) from None


def _rows(database: sqlite3.Connection, path: Path, wanted: _Wanted, on_progress: OnProgress) -> Iterator[_Event]:
    first, last = database.execute("SELECT min(id), max(id) FROM records").fetchone()
    if first is None:
        return
    topics = [number for number, topic in database.execute("SELECT id, topic FROM topics") if wanted.has_topic(topic)]
    select = (
        "SELECT id, payload FROM records WHERE id > ? AND id <= ? AND kept_at >= ? "
        "AND topic_id IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?"
    )
    at, rest = first - 1, (last, wanted.since or 0.0, json.dumps(topics), _ROWS_AT_ONCE)
    while rows := database.execute(select, (at, *rest)).fetchall():
        for number, payload in rows:
            event = _decoded(payload, f"{path}: event {number}")
            if event is not None and wanted.has(event):
                yield event
        at = rows[-1][0]
        on_progress(at - first, last - first)


def _from_lines(file: IO[bytes], wanted: _Wanted, on_progress: OnProgress) -> Iterator[_Event]:
    """The events of a file with one JSON object in each line.

    Raises:
        DataError: a line is something else.
    """
    name, read_bytes, size_bytes = getattr(file, "name", "-"), 0, 0
    with suppress(OSError):
        size_bytes = os.fstat(file.fileno()).st_size  # 0 of a pipe
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            return  # it is still being written
        read_bytes += len(line)
        if size_bytes and number % _ROWS_AT_ONCE == 0:
            on_progress(read_bytes, size_bytes)
        if line.strip():
            event = _decoded(line, f"{name}:{number}")
            if event is not None and wanted.has(event):
                yield event


def _decoded(payload: bytes, where: str) -> _Event | None:
    """An event; None for one of another kind."""
    try:
        event = None if _type_of(payload) in _OTHER_TYPES else wire.decode(payload)
    except WireError as error:
        message = f"{where}: {error}"
        raise DataError(message) from None
    return event if isinstance(event, DetectionEvent | ObjectEvent | StateEvent) else None


def _type_of(payload: bytes) -> str:
    found = re.search(rb'"type"\s*:\s*"([a-z]+)"', payload[:200])
    return found[1].decode() if found else ""


@contextmanager
def _bar(what: str) -> Iterator[OnProgress]:
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Tried:
    """What became of rules that were tried.

    Args:
        rules: those of the file.
        easier: by the name of each, its variants with one condition fewer.
        past: which has seen all events, with both.
    """

    def __init__(self, rules: Sequence[RuleConfig], easier: Mapping[str, Mapping[str, RuleConfig]], past: Past) -> None:
        names = {rule.name for rule in rules}
        self._past = past
        self._counts = Counter(found.alert.rule for found in past.alerts())
        self._alerts = [found for found in past.alerts() if found.alert.rule in names]
        self._alerts.sort(key=lambda found: found.alert.raised_at)
        self._rules = rules
        self._easier = easier

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "events": self._past.events,
            "streams": self._past.streams,
            "alerts": [_as_json(found) for found in self._alerts],
            "rules": [
                {
                    "rule": rule.name,
                    "alerts": self._counts[rule.name],
                    "suppressed": self._past.suppressed[rule.name],
                    "hint": self._hint(rule),
                }
                for rule in self._rules
            ],
        }

    def show(self, configs: Mapping[str, StreamConfig]) -> None:
        """For people."""
        to = console()
        if self._alerts:
            table = Table("raised at", "rule", "stream", "what", "after", "lasted", box=None, pad_edge=False)
            for found in self._alerts:
                config = configs.get(found.stream)
                zone = ZoneInfo(config.time_zone) if config is not None and config.time_zone else None
                table.add_row(*map(Text, _row(found, zone)))
            to.print(table)
            to.print()
        summary = Table("rule", "alerts", "suppressed", box=None, pad_edge=False)
        for rule in self._rules:
            counts = (str(self._counts[rule.name]), str(self._past.suppressed[rule.name]))
            summary.add_row(*map(Text, (plain(rule.name), *counts)))
        to.print(summary)
        streams = self._past.streams
        to.print(f"{self._past.events} frames of {counted(len(streams), 'stream')}")
        for rule in self._rules:
            if hint := self._hint(rule):
                to.print(Text(f"{plain(rule.name)}: {hint}", style="yellow"), soft_wrap=True)

    def _hint(self, rule: RuleConfig) -> str | None:
        """Why a rule has raised no alert."""
        if self._counts[rule.name]:
            return None
        streams = self._past.streams
        if not streams:
            return "there are no events of its streams; check --spool, --events, --stream and --since"
        if not any(map(rule.applies_to, streams)):
            shown = [*map(plain, streams[:_MAX_NAMES]), *(["..."] if len(streams) > _MAX_NAMES else [])]
            return f"raises no alert: it applies to none of these streams: {', '.join(shown)}"
        found = {words: self._counts[other.name] for words, other in self._easier[rule.name].items()}
        alerts = [f"{count} {words}" for words, count in found.items() if count]
        if alerts:
            return f"raises no alert; alerts with one condition fewer: {', '.join(alerts)}"
        return "raises no alert, not even with any one condition fewer"


def _as_json(found: PastAlert) -> dict[str, Any]:
    alert = {key: value for key, value in asdict(found.alert).items() if value is not None and key != "alert_id"}
    alert["seconds"] = round(found.alert.seconds, 3)
    return {
        "stream": found.stream,
        "epoch": found.epoch,
        "frame_seq": found.frame_seq,
        **alert,
        "track_ids": found.track_ids,
        "cleared_at": found.cleared_at,
        "cleared_seconds": None if found.cleared_seconds is None else round(found.cleared_seconds, 3),
    }


def _row(found: PastAlert, zone: ZoneInfo | None) -> tuple[str, ...]:
    alert = found.alert
    at = datetime.fromtimestamp(alert.raised_at, zone) if zone else datetime.fromtimestamp(alert.raised_at).astimezone()
    if alert.count is not None:
        what = f"{alert.count} at once"
    elif alert.label is None:
        what = "none"
    else:
        what = f"{plain(alert.label)} #{found.track_ids[0]}"
    if alert.line is not None:
        what += f" {alert.direction} over {plain(alert.line)}"
    lasted = "-" if found.cleared_seconds is None else f"{found.cleared_seconds:.1f} s"
    when = f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03}"
    return when, plain(alert.rule), plain(found.stream), what, f"{alert.seconds:.1f} s", lasted
