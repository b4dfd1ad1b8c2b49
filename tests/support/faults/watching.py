"""The real daemon in a process of its own, and everything that can be seen of it from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

from streamdet.client.cluster import subscribe
from streamdet.client.subscription import Gap
from streamdet.types import DetectionEvent, State, StateEvent
from support.ports import free_port
from support.waiting import join, wait_until

_SAMPLE_SECONDS = 0.5
_END_SECONDS = 20.0
_START_SECONDS = 60.0

Streams = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Seen:
    """One frame's event.

    Attributes:
        at: Unix time in seconds at which it was published.
        captured_at: Unix time in seconds, by whatever clock.
        number: of the event in its topic, without gaps at the sender.
        seq: of the frame.
        width: of the frame.
        pts_seconds: of the frame.
    """

    at: float
    captured_at: float
    number: int
    seq: int
    width: int
    pts_seconds: float | None


@dataclass(frozen=True)
class Sample:
    """The metrics page, as it was between two moments of Unix time.

    Attributes:
        asked: before it was asked for.
        got: after it had come.
        values: by name and labels, such as ("streamdet_frames_dropped_total", "stale") for each stream.
    """

    asked: float
    got: float
    values: dict[str, dict[tuple[str, ...], float]]


@dataclass
class Watched:
    """What was seen of a daemon.

    Attributes:
        states: events of each stream, without repetitions.
        frames: events of each stream.
        samples: of the metrics page.
        gaps: events that were lost on the way here.
        said: everything that the daemon said: its log, its events and its pages.
        peak_bytes: memory at the most.
        threads: at the most.
        descriptors: open files at the most.
        cpu_seconds: computing time.
        exit_code: of the process.
        end_seconds: how long the end took.
    """

    states: dict[str, list[StateEvent]] = field(default_factory=dict)
    frames: dict[str, list[Seen]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    gaps: int = 0
    said: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    threads: int = 0
    descriptors: int = 0
    cpu_seconds: float = 0.0
    exit_code: int | None = None
    end_seconds: float = 0.0


class DaemonProcess:
    """Runs while it is entered.

    Args:
        folder: for its files.
        streams: tables of the configuration, by name.
        defaults: for all streams.
        command: what comes before Python, such as another network.
    """

    def __init__(self, folder: Path, streams: Streams, defaults: Mapping[str, Any], *command: str) -> None:
        self.seen = Watched()
        self._folder = folder
        self._streams = streams
        # Nothing happens before everything is seen.
        self._defaults = {**defaults, "paused": True}
        self._command = command
        self._events = f"ipc://{folder}/events"
        self._metrics = f"127.0.0.1:{free_port()}"
        self._done = threading.Event()
        self._subscribed = threading.Event()
        self._threads = [
            threading.Thread(target=self._subscribe, daemon=True),
            threading.Thread(target=self._scrape, daemon=True),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def status(self, stream: str) -> tuple[State, str]:
        """State and reason of the newest event."""
        events = self.seen.states.get(stream)
        return (events[-1].state, events[-1].reason or "") if events else (State.CONNECTING, "")

    def published(self, stream: str) -> int:
        """How many events of frames there have been, by their own number."""
        frames = self.seen.frames.get(stream)
        return frames[-1].number if frames else 0

    def check_alive(self) -> None:
        """Fails with the end of the log where the daemon has ended."""
        assert self._process is not None
        assert self._process.poll() is None, f"the daemon has ended: {self._log()[-2000:]}"

    def pause(self, *, paused: bool) -> None:
        """All streams: so that none begins unseen, and that every frame is accounted for in the end."""
        self._defaults["paused"] = paused
        self._write()
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def __enter__(self) -> Self:
        self._write()
        self._threads[0].start()
        assert self._subscribed.wait(30)
        daemon = [sys.executable, "-m", "streamdet.bench.stand_in", str(self._folder / "streamdet.toml")]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, *daemon], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._threads[1].start()
        try:
            wait_until(lambda: self.check_alive() or self.seen.states.keys() == self._streams.keys(), "all streams", 60)
        except AssertionError:
            self.__exit__(None, None, None)
            raise
        self.pause(paused=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._done.set()
        for thread in self._threads:
            join(thread)
        started = time.monotonic()
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.seen.exit_code = self._process.wait(_END_SECONDS)
        self.seen.end_seconds = time.monotonic() - started
        self.seen.said.append(self._log())

    def _write(self) -> None:
        tables: dict[str, Mapping[str, Any]] = {
            "[publisher]": {
                "endpoint": self._events,
                "high_water_mark_events": 100_000,
                "state_interval_seconds": 0.5,
            },
            "[replay]": {"endpoint": "off"},
            "[metrics]": {"endpoint": self._metrics},
            "[control]": {"path": "off"},
            "[log]": {"level": "debug", "format": "json"},
            "[stream_defaults]": self._defaults,
        }
        lines = [f"{table}\n{_toml(values)}" for table, values in tables.items()]
        lines += [f"[[streams]]\n{_toml({'name': name, **values})}" for name, values in self._streams.items()]
        (self._folder / "streamdet.toml").write_text("\n".join(lines), "utf-8")

    def _log(self) -> str:
        return (self._folder / "log").read_text("utf-8", "replace")

    def _subscribe(self) -> None:
        with subscribe(self._events, high_water_mark_events=100_000) as events:
            self._subscribed.set()
            while not self._done.is_set():
                self._take(events.receive(0.2))

    def _take(self, event: object) -> None:
        if isinstance(event, Gap):
            self.seen.gaps += event.count
        elif isinstance(event, StateEvent):
            states = self.seen.states.setdefault(event.stream, [])
            if not states or (states[-1].since, states[-1].state) != (event.since, event.state):
                states.append(event)
                self.seen.said.append(repr(event))
        elif isinstance(event, DetectionEvent):
            frame = event.frame
            seen = Seen(event.published_at, frame.captured_at, event.seq, frame.seq, frame.width, frame.pts_seconds)
            self.seen.frames.setdefault(event.stream, []).append(seen)

    def _scrape(self) -> None:
        started = time.monotonic()
        while not self._done.wait(_SAMPLE_SECONDS):
            try:
                self.sample()
            except OSError:
                # Before it is ready there is no page; later there must be one.
                assert not self.seen.samples or self._done.is_set(), "the metrics page is gone"
                assert time.monotonic() - started < _START_SECONDS

    def sample(self) -> Sample:
        """Takes one more look at the metrics page and the process."""
        asked = time.time()
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=30) as page:
            text = page.read().decode()
        sample = Sample(asked, time.time(), _by_stream(text))
        self.seen.samples.append(sample)
        if len(self.seen.samples) % 10 == 1:
            self.seen.said.append(text)
        self._look_at_process()
        return sample

    def _look_at_process(self) -> None:
        fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        self.seen.peak_bytes = int(fields["VmHWM"].split()[0]) * 1024
        self.seen.threads = max(self.seen.threads, int(fields["Threads"]))
        self.seen.descriptors = max(self.seen.descriptors, len(list(Path(f"/proc/{self.pid}/fd").iterdir())))
        times = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        self.seen.cpu_seconds = (int(times[11]) + int(times[12])) / 100


def _by_stream(page: str) -> dict[str, dict[tuple[str, ...], float]]:
    values: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            stream = sample.labels.get("stream")
            if stream is not None and not sample.name.endswith(("_bucket", "_sum")):
                others = tuple(value for label, value in sample.labels.items() if label != "stream")
                values.setdefault(stream, {})[(sample.name, *others)] = sample.value
    return values


def _toml(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items()) + "\n"
