"""`streamdet demo`: the real daemon on two streams of the sample clip, and what a subscriber sees of it."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from streamdet.assets import sample_clip
from streamdet.cli.beside import WebChild, free_endpoint
from streamdet.cli.numbers import Number
from streamdet.cli.plural import all_of, several
from streamdet.cli.standard_streams import ending_in_time
from streamdet.client.cluster import subscribe
from streamdet.client.subscription import Gap
from streamdet.config import (
    Config,
    ControlConfig,
    DetectorConfig,
    LogConfig,
    MetricsConfig,
    PublisherConfig,
    StreamConfig,
)
from streamdet.config.control_paths import OFF, socket_without_file
from streamdet.detector.memory import use_one_heap
from streamdet.monitoring.log import configure_logging
from streamdet.monitoring.rates import RecentEvents
from streamdet.types import DetectionEvent, Drop, State
from streamdet.worker import Worker

if TYPE_CHECKING:
    from streamdet.service.daemon import Daemon

_STREAMS = ("campus-east", "campus-west")
_NEXT = """next: streamdet run rtsp://192.0.2.5/stream1 shows a camera of yours (a video file will do, too);
      streamdet init rtsp://192.0.2.5/stream1 writes a configuration for it"""
_REFRESH_SECONDS = 0.25
_MAX_LATENCIES = 100_000
_LAST_EVENTS = 8
_LIVE_COLUMNS = ("stream", "state", "fps in", "out", "p50", "p99", "dropped", "in the picture")
_SUMMARY_COLUMNS = ("stream", "captured", "published", "dropped", "fps", "p50", "p99")
_WIDE_ONLY = {"p50", "p99", "in the picture"}
_WIDE_CHARACTERS = 75
_WHY_DROPPED = {Drop.RATE_LIMITED: "by max_fps", Drop.SUPERSEDED: "by overload", Drop.STALE: "by overload"}
_COLOURS = {State.UP: "green", State.CONNECTING: "yellow", State.STALLED: "yellow", State.DOWN: "red"}


@click.command(
    epilog="""\b
Examples:
  streamdet demo
  streamdet demo --no-page
  streamdet demo --seconds 20
  streamdet demo --seconds 20 --json"""
)
@click.option("--seconds", type=Number(min=0, min_open=True), help="Stop after this time and print a summary.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON and nothing else.")
@click.option(
    "--endpoint",
    default="tcp://127.0.0.1:5555",
    show_default=True,
    help="Publish events here, or at a free port.",
)
@click.option(
    "--metrics-endpoint",
    default="127.0.0.1:9095",
    show_default=True,
    help="Serve metrics here, or at a free port.",
)
@click.option(
    "--page",
    default="127.0.0.1:8095",
    show_default=True,
    metavar="HOST:PORT",
    help="Serve the page here, or at a free port.",
)
@click.option("--no-page", is_flag=True, help="Do not serve the page (nor does --json).")
def command(
    *, seconds: float | None, as_json: bool, endpoint: str, metrics_endpoint: str, page: str, no_page: bool
) -> None:
    """Run a demonstration: the daemon detects objects in two streams of real video, in real time."""
    from streamdet.service.daemon import Daemon

    config = demo_config(endpoint, metrics_endpoint)
    use_one_heap()  # the log has the first thread
    configure_logging(config.log)
    console = Console()
    daemon = Daemon(config)
    with contextlib.ExitStack() as stack:
        address = ""
        if not as_json and not no_page:
            child = WebChild(config.publisher.endpoint, config.metrics.endpoint, free_endpoint(page))
            address = stack.enter_context(child).address
        view = DemoView(daemon, seconds, None if as_json else console, address)
        if not as_json:
            console.print("loading the detector ...")

        def on_ready() -> None:
            if address and daemon.addresses is not None:
                daemon.addresses.page = address
            view.start()

        with daemon.signals():
            code = daemon.run(on_ready)
        view.stop()
        view.join()
    if view.error is not None:
        raise view.error
    summary = view.summary()
    with ending_in_time(code):
        if as_json:
            click.echo(json.dumps(summary, indent=2))
        else:
            console.print(summary_table(summary, console.width))
            click.echo(_NEXT)
        sys.stdout.flush()
    daemon.exit(code)


def demo_config(endpoint: str, metrics_endpoint: str) -> Config:
    """Two streams that play the sample clip in a loop in real time, with the embedded weights."""
    socket_path = socket_without_file()
    return Config(
        detector=DetectorConfig(),
        control=ControlConfig(path=OFF if socket_path is None else str(socket_path)),
        publisher=PublisherConfig(endpoint=free_endpoint(endpoint, "tcp://")),
        metrics=MetricsConfig(endpoint=free_endpoint(metrics_endpoint)),
        log=LogConfig(level="warning"),
        streams=tuple(StreamConfig(name=name, url=str(sample_clip()), loop=True) for name in _STREAMS),
    )


class DemoView(Worker):
    """Subscribes to the daemon as any program would, and draws the events.

    Args:
        daemon: what is shown; its ledger and states are read, nothing is written.
        seconds: when to stop the daemon; None for never.
        console: where to draw; None draws nothing.
        page: address of the page in the browser; empty without one.
    """

    # A terminal that takes no output would hold it up.
    join_timeout_seconds = 1.0

    def __init__(self, daemon: Daemon, seconds: float | None, console: Console | None, page: str = "") -> None:
        super().__init__("demo")
        self._daemon = daemon
        self._seconds = seconds
        self._console = console
        self._page = page
        # Streams may be added while it runs: the demonstration is a daemon like any other.
        self._seen: defaultdict[str, _Seen] = defaultdict(_Seen, {s.name: _Seen() for s in daemon.config.streams})
        self._last: deque[Text] = deque(maxlen=_LAST_EVENTS)
        self._gaps = 0
        self._began = time.monotonic()
        self._ended = self._began

    def run(self) -> None:
        """Shows events until `stop` is called."""
        self._began = time.monotonic()
        endpoint = self._daemon.config.publisher.endpoint
        live = Live(console=self._console, auto_refresh=False, screen=False) if self._console else None
        with subscribe(endpoint) as events:
            if live is not None:
                live.start()
            drawn_at = 0.0
            while not self.stopping:
                event = events.receive(_REFRESH_SECONDS)
                if isinstance(event, DetectionEvent):
                    self._note(event)
                elif isinstance(event, Gap):
                    self._gaps += event.count
                now = time.monotonic()
                if live is not None and now - drawn_at >= _REFRESH_SECONDS:
                    live.update(self._draw(), refresh=True)
                    drawn_at = now
                if self._seconds is not None and now - self._began >= self._seconds:
                    self._ended = now
                    self._daemon.stop()
                    break
        self._ended = time.monotonic()
        if live is not None:
            live.stop()
            live.console.print()

    def summary(self) -> dict[str, Any]:
        """The summary, once the daemon has ended and the ledger is final."""
        took = max(self._ended - self._began, 1e-9)
        streams = {}
        for name, ledger in self._daemon.ledger.snapshot().items():
            p50, p99 = _percentiles(self._seen[name].latencies_seconds)
            streams[name] = {
                "captured": ledger.captured,
                "published": ledger.published,
                "dropped": {reason.value: count for reason, count in ledger.dropped.items()},
                "in_flight": ledger.in_flight,
                "fps": round(ledger.published / took, 2),
                "latency_seconds": {"p50": p50, "p99": p99},
            }
        return {
            "streams": streams,
            "detections": _detections_by_label(self._daemon),
            "objects": dict(Counter(label for seen in self._seen.values() for label in seen.objects.values())),
            "epoch": self._daemon.epoch,
            "seconds": round(took, 2),
        }

    def _note(self, event: DetectionEvent) -> None:
        seen = self._seen[event.stream]
        seen.latencies_seconds.append(event.published_at - event.frame.captured_at)
        seen.recent.add(time.monotonic())
        seen.labels = Counter(found.label for found in event.detections)
        seen.objects.update({found.track_id: found.label for found in event.detections if found.track_id is not None})
        line = Text(f"{event.stream:12} frame {event.frame.seq:5}  ", style="dim")
        for label, count in seen.labels.most_common():
            line.append(f"{several(count, label)}  ", style="bold green" if label == "person" else "cyan")
        self._last.append(line)

    def _draw(self) -> RenderableType:
        table, columns = _table(_LIVE_COLUMNS, self._console.width if self._console else _WIDE_CHARACTERS)
        table.expand = True
        now = time.monotonic()
        ledgers = self._daemon.ledger.snapshot()
        statuses = self._daemon.health().streams
        for name, ledger in ledgers.items():
            seen = self._seen[name]
            status = statuses.get(name)
            p50, p99 = _percentiles(seen.latencies_seconds)
            state = status.state if status else State.CONNECTING
            cells: dict[str, str | Text] = {
                "stream": name,
                "state": Text(state.value, style=_COLOURS[state]),
                "fps in": f"{ledger.captured / max(now - self._began, 1e-9):.1f}",
                "out": f"{seen.recent.per_second(now):.1f}",
                "p50": _milliseconds(p50),
                "p99": _milliseconds(p99),
                "dropped": str(sum(ledger.dropped[reason] for reason in Drop)),
                "in the picture": all_of(seen.labels) or "nothing",
            }
            table.add_row(*(cells[column] for column in columns))
        config = self._daemon.config
        where = Text.assemble(
            "events   ", (f"streamdet watch {config.publisher.endpoint}", "bold"),
            "\nmetrics  ", (f"http://{config.metrics.endpoint}/metrics", "bold"),
            "\nend      ", ("Ctrl-C", "bold"),
        )  # fmt: skip
        running, addresses = self._daemon.running, self._daemon.addresses
        if addresses is not None and addresses.control:
            where = Text.assemble("status   ", ("streamdet status", "bold"), "\n") + where
        if running is not None:
            where += Text(f"\nengine   {running.engine} {running.precision} on {running.device}, ")
            where += Text(f"batches of up to {running.max_batch_size}, {running.workers} at a time")
        if self._page:
            where = Text.assemble("page     ", (self._page, "bold green"), "\n") + where
        lines = Group(*self._last)
        return Group(Panel(where, title="streamdet demo", title_align="left"), table, Panel(lines, title="last events"))


@dataclass
class _Seen:
    """The counts of one stream, as the subscriber sees it."""

    latencies_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_LATENCIES))
    recent: RecentEvents = field(default_factory=RecentEvents)
    labels: Counter[str] = field(default_factory=Counter)
    objects: dict[int, str] = field(default_factory=dict)


def summary_table(summary: dict[str, Any], characters: int) -> Table:
    """The summary as a table for a terminal of this width, in characters."""
    detections, objects = sum(summary["detections"].values()), all_of(summary["objects"])
    found = f"{objects or 'no objects'}, in {detections} detections" if detections else "nothing"
    table, columns = _table(_SUMMARY_COLUMNS, characters)
    table.title = (
        f"{summary['seconds']:.0f} seconds; found: {found}{'; p50 and p99 of the latency' * ('p50' in columns)}"
    )
    for name, stream in summary["streams"].items():
        latency = stream["latency_seconds"]
        reasons = _why_dropped(stream["dropped"])
        cells = {
            "stream": name,
            "captured": str(stream["captured"]),
            "published": str(stream["published"]),
            "dropped": (reasons or "0") if "p50" in columns else str(sum(stream["dropped"].values())),
            "fps": f"{stream['fps']:.1f}",
            "p50": _milliseconds(latency["p50"]),
            "p99": _milliseconds(latency["p99"]),
        }
        table.add_row(*(cells[column] for column in columns))
    return table


def _table(columns: tuple[str, ...], characters: int) -> tuple[Table, tuple[str, ...]]:
    """A table with the columns that fit, instead of all columns cut off."""
    is_narrow = characters < _WIDE_CHARACTERS
    if is_narrow:
        columns = tuple(column for column in columns if column not in _WIDE_ONLY)
    table = Table(padding=(0, 0) if is_narrow else (0, 1))
    for column in columns:
        justify: Literal["left", "right"] = "left" if column in {"stream", "state", "in the picture"} else "right"
        table.add_column(column, justify=justify, no_wrap=column not in {"in the picture", "dropped"})
    return table, columns


def _percentiles(values: deque[float]) -> tuple[float | None, float | None]:
    """p50 and p99; None before there are two values."""
    if len(values) < 2:
        return None, None
    cuts = statistics.quantiles(values, n=100)
    return round(cuts[49], 4), round(cuts[98], 4)


def _detections_by_label(daemon: Daemon) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for metric in daemon.metrics.registry.collect():
        for sample in metric.samples:
            if sample.name == "streamdet_detections_total":
                totals[sample.labels["label"]] += int(sample.value)
    return dict(totals)


def _why_dropped(dropped: dict[str, int]) -> str:
    """As in "90 by max_fps, 2 by overload": the one is as it was configured, the other is not."""
    words: Counter[str] = Counter()
    for reason, count in dropped.items():
        words[_WHY_DROPPED.get(Drop(reason), reason)] += count
    return ", ".join(f"{count} {why}" for why, count in words.items() if count)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.0f} ms"
