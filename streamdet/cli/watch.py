"""`streamdet watch`: the events of a running daemon, live."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

import click
from click.core import ParameterSource
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streamdet import wire
from streamdet.cli.completion import offer_streams
from streamdet.cli.numbers import Number
from streamdet.cli.plural import all_of, several
from streamdet.cli.refresh import LINE_CHARACTERS, fitting, stopped_by_signals
from streamdet.cli.standard_streams import ending_in_time
from streamdet.client.cluster import ClusterSubscription, subscribe
from streamdet.client.nodes import Late, Moved
from streamdet.client.subscription import DEFAULT_KINDS, Gap, Restart, Subscription
from streamdet.errors import EXIT_INTERRUPTED, StreamdetError
from streamdet.monitoring.rates import RecentEvents
from streamdet.security.plain_text import plain, plain_json
from streamdet.types import (
    AlertEvent,
    Crossing,
    Detection,
    DetectionEvent,
    EndReason,
    ObjectEvent,
    PreviewEvent,
    Reason,
    State,
    StateEvent,
    ZoneChange,
)

_NOTES = 5
# Bounds what another program at the endpoint may send.
_MOST_STREAMS = 10_000
_LONGEST_NAME = 64
_LONGEST_PROBLEM = 300
_COLOURS = {State.UP: "green", State.CONNECTING: "yellow", State.STALLED: "yellow", State.DOWN: "red"}
_LIVE_COLUMNS: tuple[tuple[str, JustifyMethod], ...] = (
    ("stream", "left"),
    ("state", "left"),
    ("fps", "right"),
    ("latency", "right"),
    ("lost", "right"),
    ("in the newest frame", "left"),
)
_SUMMARY_COLUMNS: tuple[tuple[str, JustifyMethod], ...] = (
    ("stream", "left"),
    ("state", "left"),
    ("frames", "right"),
    ("fps", "right"),
    ("lost", "right"),
    ("objects", "left"),
    ("detections", "left"),
    ("alerts", "right"),
)
# Previews are pictures, which are not shown.
_KINDS = [kind for kind in wire.KINDS if kind != "preview"]
# So many objects of a stream are remembered, so that each is counted once.
_MOST_KNOWN_OBJECTS = 10_000

_REFRESH_SECONDS = 0.25

_FILE = click.Path(path_type=Path, dir_okay=False)
# `--replay` without an endpoint: the daemon's default, next to that of the events.
_BESIDE = "auto"
_EXAMPLES = """\b
Examples:
  streamdet watch
  streamdet watch ipc:///run/streamdet/events --stream front-door
  streamdet watch --replay --json > events.jsonl
  streamdet watch tcp://192.0.2.9:5555 --server-key server.key --client-key alice.key_secret
  streamdet watch --label person --json | jq .frame.captured_at
  streamdet watch --kind objects --kind alerts
  streamdet watch --kind alerts --json | jq .alert.rule
  streamdet watch --cluster head.example --head-ca ca.pem --head-token reader.token --replay
  streamdet watch --label person --count 1 --seconds 60 && echo "someone is there"

\b
Exit codes: 0 events came, 1 no event came, 2 wrong options or keys, 69 not an endpoint.
"""


@click.command("watch", epilog=_EXAMPLES)
@click.argument("endpoint", default="tcp://127.0.0.1:5555")
@click.option(
    "--stream",
    "streams",
    multiple=True,
    metavar="NAME",
    shell_complete=offer_streams,
    help="Show only this stream; may be repeated.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(_KINDS),
    default=DEFAULT_KINDS,
    show_default=True,
    help="Show events of this kind; may be repeated.",
)
@click.option(
    "--label", "labels", multiple=True, metavar="LABEL", help="Show only events with this label; may be repeated."
)
@click.option(
    "--replay",
    is_flag=False,
    flag_value=_BESIDE,
    metavar="[ENDPOINT]",
    help="Begin with the newest event of each topic, and ask for lost events, at ENDPOINT if it is not the usual one.",
)
@click.option(
    "--cluster", metavar="HEAD", help="Show the events of all nodes of the cluster with this head, HOST[:PORT]."
)
@click.option("--head-ca", type=_FILE, help="Expect a certificate that the cluster's ca.pem has signed.")
@click.option("--head-token", type=_FILE, help="Show the head this token, the cluster's reader.token.")
@click.option("--heal", is_flag=True, hidden=True, deprecated="use --replay", help="The former name of --replay.")
@click.option(
    "--server-key", type=click.Path(path_type=Path),
    help="Expect this public key of the daemon; of a cluster, also a folder with NODE.key.",
)  # fmt: skip
@click.option("--client-key", type=_FILE, help="Log in with this key file, NAME.key_secret.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N events.")
@click.option("--seconds", type=Number(min=0, min_open=True), metavar="N", help="Stop after N seconds.")
@click.pass_context
def command(
    context: click.Context,
    *,
    endpoint: str,
    streams: tuple[str, ...],
    kinds: tuple[wire.Kind, ...],
    labels: tuple[str, ...],
    replay: str | None,
    cluster: str | None,
    head_ca: Path | None,
    head_token: Path | None,
    heal: bool,
    server_key: Path | None,
    client_key: Path | None,
    as_json: bool,
    count: int | None,
    seconds: float | None,
) -> None:
    """Show the events of a running daemon, live, until Ctrl-C.

    ENDPOINT is the daemon's [publisher] endpoint, tcp://127.0.0.1:5555 if left out. With --cluster each stream is
    shown from the node that owns it, and moves are shown, too. A terminal shows a table of the
    streams, a pipe or file gets one line per event, of objects only where something has happened.
    """
    console = _Console(highlight=False, width=None if sys.stdout.isatty() else LINE_CHARACTERS)
    if cluster is None and (head_ca or head_token):
        message = "--head-ca and --head-token belong to --cluster HEAD"
        raise click.UsageError(message)
    if cluster is not None:
        given = context.get_parameter_source("endpoint") is ParameterSource.COMMANDLINE
        if given or replay not in (None, _BESIDE):
            message = "with --cluster the head names the endpoints; give none"
            raise click.UsageError(message)
        endpoint = f"the cluster of {plain(cluster, _LONGEST_NAME)}"
    seen = Seen(endpoint)
    view: _View = _JsonLines() if as_json else _Table(console) if console.is_terminal else _Lines(console)
    with ExitStack() as ending:
        ending.enter_context(stopped_by_signals())
        try:
            is_healed = heal or replay is not None
            subscription = (
                subscribe(
                    endpoint, streams or None, kinds, labels or None,
                    replay=is_healed, replay_endpoint=None if replay == _BESIDE else replay,
                    server_key=server_key, client_key_file=client_key,
                )
                if cluster is None
                else subscribe(
                    cluster=cluster, head_ca_file=head_ca, head_token_file=head_token, streams=streams or None,
                    kinds=kinds, labels=labels or None, replay=is_healed, server_key=server_key,
                    client_key_file=client_key,
                )
            )  # fmt: skip
            with subscription as events, view:
                try:
                    _follow(events, view, seen, only_found=bool(labels), count=count, seconds=seconds)
                except KeyboardInterrupt:
                    # The usual way to stop it. All that is still written may meet a pipe whose reader has stopped.
                    ending.enter_context(ending_in_time(EXIT_INTERRUPTED))
                    raise
        except KeyboardInterrupt:
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader of the pipe has seen enough; Python must not complain about it when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        if not seen.shown and isinstance(subscription, ClusterSubscription):
            why = seen.problem or "no node has sent one; streamdet cluster status shows what the nodes do"
            message = f"no event came from {endpoint} within {seen.elapsed_seconds:.1f} s: {why}"
            raise StreamdetError(message)
        if not seen.shown:
            doubt = ", and is your key allowed" if client_key else ""
            waited = f"{seen.elapsed_seconds:.1f} s"
            message = f"no event came from {endpoint} within {waited}; does the daemon publish there{doubt}?"
            raise StreamdetError(message)
        (Console(stderr=True, highlight=False) if as_json else console).print(seen.summary())


def _follow(
    events: Subscription | ClusterSubscription,
    view: _View,
    seen: Seen,
    *,
    only_found: bool,
    count: int | None,
    seconds: float | None,
) -> None:
    deadline = None if seconds is None else time.monotonic() + seconds
    while count is None or seen.shown < count:
        left = _REFRESH_SECONDS if deadline is None else min(_REFRESH_SECONDS, deadline - time.monotonic())
        if left <= 0:
            return
        item = events.receive(left)
        if isinstance(events, ClusterSubscription):
            seen.problem = events.problem
        if item is not None:
            note = seen.add(item)
            if isinstance(item, Gap | Restart | Moved):
                view.show(item, note)
            elif not only_found or _is_about_labels(item):
                seen.shown += 1
                view.show(item, note)
        view.refresh(seen)


def _is_about_labels(item: wire.Event | Late) -> bool:
    """Whether an event is about the chosen labels: a state never is, and a frame may have no detection left."""
    if isinstance(item, Late):
        item = item.event
    return isinstance(item, ObjectEvent | AlertEvent) or (isinstance(item, DetectionEvent) and bool(item.detections))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves the exit to `command`; rich would exit with code 1."""
        raise BrokenPipeError


class _View:
    """One way to show events."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def show(self, item: wire.Event | Gap | Restart | Moved | Late, line: Text | None) -> None:
        """Shows one event."""

    def refresh(self, seen: Seen) -> None:
        """Shows the state of all streams now."""


class _JsonLines(_View):
    def show(self, item: wire.Event | Gap | Restart | Moved | Late, line: Text | None) -> None:  # noqa: ARG002 - lines are for people
        if isinstance(item, Gap | Restart | Moved):
            value = {"type": type(item).__name__.lower(), **asdict(item)}
        elif isinstance(item, Late):
            value = {**wire.to_dict(item.event), "late": True}
        else:
            value = wire.to_dict(item)
        click.echo(plain_json(json.dumps(value, ensure_ascii=False, separators=(",", ":"))))


class _Lines(_View):
    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, item: wire.Event | Gap | Restart | Moved | Late, line: Text | None) -> None:  # noqa: ARG002 - the line says it
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
            self._live.update(fitting(self._live.console, seen.live()), refresh=True)


class Seen:
    """The events since the start, per stream.

    Attributes:
        endpoint: where it comes from.
        shown: events that were shown.
        problem: with the head of a cluster or one of its nodes; empty while all is well.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._began = time.monotonic()
        self._streams: dict[str, _Stream] = {}
        self._notes: deque[Text] = deque(maxlen=_NOTES)
        self.shown = 0
        self.problem = ""

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def add(self, item: wire.Event | Gap | Restart | Moved | Late) -> Text | None:
        """Adds an event; returns the line that shows it, None if nothing has changed since the last one."""
        name = plain(item.stream, _LONGEST_NAME)
        stream = self._streams.setdefault(name, _Stream())
        if len(self._streams) > _MOST_STREAMS:
            del self._streams[next(other for other in self._streams if other != name)]
        if isinstance(item, Gap):
            stream.lost += item.count
            return self._note(
                name, Text(f"lost {item.count} {plain(item.topic.split('/')[0], _LONGEST_NAME)} events", style="red")
            )
        if isinstance(item, Restart):
            stream.epoch = item.epoch
            words = "the daemon was started again" + ("" if item.is_complete else "; what came last before is unknown")
            return self._note(name, Text(words, style="yellow"))
        if isinstance(item, Moved):
            # The next node has an epoch of its own.
            stream.epoch = ""
            nodes = " to ".join(plain(owner.node, _LONGEST_NAME) for owner in (item.before, item.owner))
            return self._note(
                name, Text(f"moved from {nodes}, {item.gap_seconds:.1f} s without events", style="yellow")
            )
        if isinstance(item, Late):
            words = (
                f"an event of {item.event.owner.node if item.event.owner else 'a node'} from before a move came late"
            )
            return self._note(name, Text(plain(words), style="dim"))
        if stream.epoch not in ("", item.epoch):
            self._note(name, Text("the daemon was started again", style="yellow"))
        stream.epoch = item.epoch
        if isinstance(item, DetectionEvent):
            return self._add_detections(name, stream, item)
        said = stream.add(item)
        return None if said is None else self._note(name, said)

    def _add_detections(self, name: str, stream: _Stream, event: DetectionEvent) -> Text:
        latency_seconds = time.time() - event.frame.captured_at
        stream.recent.add(time.monotonic(), latency_seconds)
        stream.count(event)
        stream.found = _found(event)
        for crossing in event.crossings:
            what = plain(crossing.label, _LONGEST_NAME)
            self._note(name, Text(f"{what} #{crossing.track_id} {_crossed(crossing)}", style="cyan"))
        number = f"#{event.frame.seq:<6} {latency_seconds * 1000:6.0f} ms  "
        return _line(name, Text.assemble((number, "dim"), stream.found))

    def live(self) -> RenderableType:
        """The present state of the streams, and below it the newest lines."""
        now = time.monotonic()
        table = Table(box=None, pad_edge=False)
        for title, justify in _LIVE_COLUMNS:
            table.add_column(title, justify=justify, no_wrap=title != "in the newest frame")
        for name, stream in sorted(self._streams.items()):
            if stream.is_removed:
                continue
            fps, latencies = stream.recent.per_second(now), stream.recent.values()
            latency = f"{median(latencies) * 1000:.0f} ms" if latencies else "-"
            lost = Text(str(stream.lost), style="red" if stream.lost else "dim")
            state = Text("-", style="dim") if stream.state is None else _state(stream.state, with_detail=False)
            table.add_row(Text(plain(name), style="bold"), state, f"{fps:.1f}", latency, lost, stream.found)
        heading = Text(f"{self.endpoint}  ", style="bold") + Text(
            f"{self.elapsed_seconds:.0f} s, Ctrl-C ends", style="dim"
        )
        if self.problem:
            heading += Text(f"\n{plain(self.problem, _LONGEST_PROBLEM)}", style="yellow")
        if not self._streams:
            return Group(heading, Text("nothing came yet; does the daemon publish there?", style="yellow"))
        return Group(heading, Text(), table, Text(), *self._notes)

    def summary(self) -> Table:
        """The events so far, as a table with a row per stream."""
        table = Table(
            title=f"{self.elapsed_seconds:.1f} s of {self.endpoint}",
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
        )
        for title, justify in _SUMMARY_COLUMNS:
            table.add_column(title, justify=justify)
        for name, stream in sorted(self._streams.items()):
            objects, detections = (all_of(counts) or "-" for counts in (stream.objects, stream.labels))
            fps = stream.frames / max(self.elapsed_seconds, 1e-3)
            state = "-" if stream.state is None else _word(stream.state)
            table.add_row(
                Text(plain(name)),
                state,
                str(stream.frames),
                f"{fps:.1f}",
                str(stream.lost),
                Text(objects),
                Text(detections),
                str(stream.alerts),
            )
        return table

    def _note(self, stream: str, text: Text) -> Text:
        line = _line(stream, text)
        self._notes.append(line)
        return line


@dataclass
class _Stream:
    """One stream; arrivals and latencies only of the last seconds."""

    state: StateEvent | None = None
    epoch: str = ""
    found: Text = field(default_factory=lambda: Text("-", style="dim"))
    frames: int = 0
    lost: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)
    known_objects: dict[tuple[str, int], None] = field(default_factory=dict)
    alerts: int = 0
    recent: RecentEvents = field(default_factory=RecentEvents)

    @property
    def is_removed(self) -> bool:
        """Whether it is no longer one of the daemon's streams."""
        return self.state is not None and self.state.reason is Reason.REMOVED

    def add(self, event: StateEvent | ObjectEvent | AlertEvent | PreviewEvent) -> Text | None:
        """Adds an event; returns the text that reports it, None if nothing has changed."""
        match event:
            case StateEvent():
                old, self.state = self.state, event
                if old is not None and (old.state, old.reason, old.since) == (event.state, event.reason, event.since):
                    return None
                return _state(event, with_detail=True)
            case ObjectEvent():
                if event.reason is not EndReason.RESTART:  # an object of the previous run
                    self._count_track(event.epoch, event.object.track_id, event.object.label)
                return _object(event)
            case AlertEvent():
                self.alerts += event.phase == "raised"
                return _alert(event)
            case PreviewEvent():
                return None

    def count(self, event: DetectionEvent) -> None:
        """Counts the boxes of a frame, and each tracked object once."""
        self.frames += 1
        self.labels.update(found.label for found in event.detections)
        for found in event.detections:
            if found.track_id is not None:
                self._count_track(event.epoch, found.track_id, found.label)

    def _count_track(self, epoch: str, track_id: int, label: str) -> None:
        """Counts an object once, whether its detections come, its own events, or both."""
        if (epoch, track_id) not in self.known_objects:
            self.known_objects[epoch, track_id] = None
            self.objects[label] += 1
        while len(self.known_objects) > _MOST_KNOWN_OBJECTS:
            del self.known_objects[next(iter(self.known_objects))]


def _line(stream: str, text: Text) -> Text:
    now = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
    name = f"{plain(stream):<16}"
    return Text.assemble((now, "dim"), "  ", (name, "bold"), "  ", text, no_wrap=True, overflow="ellipsis")


def _word(event: StateEvent) -> str:
    return Reason.REMOVED.value if event.reason is Reason.REMOVED else event.state.value


def _state(event: StateEvent, *, with_detail: bool) -> Text:
    if event.reason is Reason.REMOVED:
        return Text(_word(event), style="dim")
    because = [event.reason.value if event.reason else "", event.detail if with_detail else ""]
    text = plain(": ".join(filter(None, because)))
    return Text.assemble((_word(event), _COLOURS[event.state]), f"  {text}" if text else "")


def _found(event: DetectionEvent) -> Text:
    if not event.detections:
        return Text("-", style="dim")
    by_label: dict[str, list[Detection]] = {}
    for found in event.detections:
        by_label.setdefault(found.label, []).append(found)
    shown = Text(", ").join(
        Text.assemble(
            f"{several(len(alike), label)} {alike[0].score:.2f}",
            *((f" {_identity(found)}", "dim") for found in alike if found.track_id is not None or found.zones),
        )
        for label, alike in by_label.items()
    )
    for crossing in event.crossings:
        shown.append(f"  #{crossing.track_id} {_crossed(crossing)}", "cyan")
    return shown


def _object(event: ObjectEvent) -> Text | None:
    """Such as `person #7 left door after 10.0 s, ended after 21.0 s (lost)`; None if nothing has changed."""
    said = ["began"] if event.phase == "begin" else []
    said += [_crossed(crossing) for crossing in event.crossings]
    said += [_changed(change) for change in event.changes]
    if event.phase == "end":
        reason = event.reason.value if event.reason else "unknown"
        said.append(f"ended after {event.object.seconds:.1f} s ({reason})")
    if not said:
        return None
    label = plain(event.object.label, _LONGEST_NAME)
    return Text(f"{label} #{event.object.track_id} {', '.join(said)}", style="cyan")


def _changed(change: ZoneChange) -> str:
    zone, seconds = plain(change.zone, _LONGEST_NAME), f"{change.seconds:.1f} s"
    match change.change:
        case "enter":
            return f"entered {zone}"
        case "leave":
            return f"left {zone} after {seconds}"
        case "dwell":
            return f"has been in {zone} for {seconds}"
        case "loiter":
            return f"loiters in {zone} for {seconds}"


def _crossed(crossing: Crossing) -> str:
    return f"went {crossing.direction} over {plain(crossing.line, _LONGEST_NAME)}"


def _alert(event: AlertEvent) -> Text:
    """Such as `alert at the door raised: person in door for 10.0 s`."""
    alert = event.alert
    if alert.label is not None:
        said = [plain(alert.label, _LONGEST_NAME)]
    else:
        said = [f"{alert.count} at once" if alert.count else "none"]
    if alert.line is not None:
        said.append(f"went {alert.direction} over {plain(alert.line, _LONGEST_NAME)}")
    if alert.zone is not None:
        said.append(f"in {plain(alert.zone, _LONGEST_NAME)}")
    if alert.seconds > 0:
        said.append(f"for {alert.seconds:.1f} s")
    rule, style = plain(alert.rule, _LONGEST_NAME), "red" if event.phase == "raised" else "green"
    return Text(f"alert {rule} {event.phase}: {' '.join(said)}", style=style)


def _identity(found: Detection) -> str:
    """`#7@door+path`: the track id and the zones."""
    number = "" if found.track_id is None else f"#{found.track_id}"
    return number + ("@" + plain("+".join(found.zones)) if found.zones else "")
