"""Runs the real daemon in a separate process and measures its events, latency, CPU time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from streamdet.bench.frames import Clip
from streamdet.bench.machine import cpu_seconds, resident_bytes
from streamdet.client.cluster import subscribe
from streamdet.client.subscription import Gap, Subscription
from streamdet.errors import StreamdetError
from streamdet.types import DetectionEvent

_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_SETTLE_SECONDS = 1.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Load:
    """The load of a daemon.

    Attributes:
        clip: plays in every stream, without end.
        streams: how many.
        detector: the table `[detector]`.
        realtime: as cameras would send it; otherwise as fast as detection goes, losing nothing.
    """

    clip: Clip
    streams: int
    detector: dict[str, Any]
    realtime: bool = True

    def to_toml(self, endpoint: str, metrics_endpoint: str) -> str:
        """The configuration file."""
        url = json.dumps(str(self.clip.path))  # a string of JSON is one of TOML too
        pace = "realtime" if self.realtime else "fastest"
        lines = ["[detector]", *(f"{key} = {json.dumps(value)}" for key, value in self.detector.items())]
        lines += ["[publisher]", f"endpoint = {json.dumps(endpoint)}"]
        lines += ["[metrics]", f"endpoint = {json.dumps(metrics_endpoint)}"]
        lines += ["[control]", 'path = "off"']  # it is not used, and a daemon of the user may be running
        lines += ["[log]", 'level = "warning"', 'format = "text"']
        lines += ["[stream_defaults]", "loop = true", f'pace = "{pace}"']
        for number in range(self.streams):
            lines += ["[[streams]]", f'name = "s{number}"', f"url = {url}"]
        return "\n".join(lines) + "\n"


@dataclass
class _Seen:
    """The measurements of the subscriber."""

    latencies_seconds: list[float] = field(default_factory=list)
    frames: Counter[str] = field(default_factory=Counter)
    lost: int = 0


class DaemonUnderTest:
    """Starts with the `with` statement, and is stopped at its end.

    Args:
        load: what it does.
        folder: for its files.
        stand_in: give it a detector that costs nothing.
        metrics_endpoint: HOST:PORT, free.

    Raises:
        StreamdetError: it does not start, or no events come.
    """

    def __init__(self, load: Load, folder: Path, metrics_endpoint: str, *, stand_in: bool = False) -> None:
        self._load = load
        self._folder = folder
        self._metrics_endpoint = metrics_endpoint
        self._module = ["streamdet.bench.stand_in"] if stand_in else ["streamdet", "run", "--config"]
        self._endpoint = f"ipc://{folder}/events"
        self._log = folder / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.children_seconds = 0.0

    def __enter__(self) -> Self:
        config = self._folder / "streamdet.toml"
        config.write_text(self._load.to_toml(self._endpoint, self._metrics_endpoint), "utf-8")
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C reaches us, and we stop it.
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-P", "-m", *self._module, str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process = self._running()
        if process.poll() is None:
            self.children_seconds += cpu_seconds(process.pid)
            process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def measure(self, seconds: float, on_share: Callable[[float], None] = lambda _share: None) -> dict[str, Any]:
        """Waits until every stream has an event, then counts for a while.

        Args:
            seconds: how long to count.
            on_share: called with the share of that which is over, 0 to 1.

        Raises:
            StreamdetError: it has ended, or no events come.
        """
        process = self._running()
        with subscribe(self._endpoint) as events:
            self._wait_for_events(events)
            self._receive(events, _SETTLE_SECONDS, lambda _share: None)
            before, cpu, began = self._new_counts(events), cpu_seconds(process.pid), time.monotonic()
            seen = self._receive(events, seconds, on_share)
            after, cpu, took = self._new_counts(events), cpu_seconds(process.pid) - cpu, time.monotonic() - began
            memory = resident_bytes(process.pid)
        if after["captured"] == before["captured"]:
            msg = f"the daemon captured no frame within {took:.0f} s; {self._last_line()}"
            raise StreamdetError(msg)
        return _summary(self._load, after - before, seen, took, cpu) | {"memory_megabytes": round(memory / 1e6, 1)}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            msg = "the daemon was not started"
            raise StreamdetError(msg)
        return self._process

    def _wait_for_events(self, events: Subscription) -> None:
        waiting = {f"s{number}" for number in range(self._load.streams)}
        deadline = time.monotonic() + _START_SECONDS
        while waiting:
            event = events.receive(_POLL_SECONDS)
            if isinstance(event, DetectionEvent):
                waiting.discard(event.stream)
            self._check_alive()
            if time.monotonic() > deadline:
                msg = f"no event of {len(waiting)} streams within {_START_SECONDS:g} s; {self._last_line()}"
                raise StreamdetError(msg)

    def _receive(self, events: Subscription, seconds: float, on_share: Callable[[float], None]) -> _Seen:
        """Reads events for a while, and until there is at least one: on a busy machine a single one may take longer."""
        seen, began = _Seen(), time.monotonic()
        while True:
            elapsed = time.monotonic() - began
            if elapsed >= (seconds if seen.latencies_seconds else _START_SECONDS):
                return seen
            event = events.receive(min(_POLL_SECONDS, max(seconds - elapsed, 0.01)))
            if isinstance(event, DetectionEvent):
                seen.latencies_seconds.append(time.time() - event.frame.captured_at)
                seen.frames[event.stream] += 1
            elif isinstance(event, Gap):
                seen.lost += event.count
            elif event is None:
                self._check_alive()
            on_share(min(elapsed / seconds, 1.0))

    def _check_alive(self) -> None:
        code = self._running().poll()
        if code is not None:
            msg = f"the daemon ended with code {code}: {self._last_line()}"
            raise StreamdetError(msg)

    def _last_line(self) -> str:
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _new_counts(self, events: Subscription) -> Counter[str]:
        """The present counts: a page is shown for a while once it is made. Events during the wait are left out.

        Raises:
            StreamdetError: they stay as they are.
        """
        shown, deadline = self._counts(), time.monotonic() + _START_SECONDS
        while (counts := self._counts()) == shown:
            if time.monotonic() > deadline:
                msg = f"no frame was counted within {_START_SECONDS:g} s; {self._last_line()}"
                raise StreamdetError(msg)
            self._receive(events, _POLL_SECONDS, lambda _share: None)
        return counts

    def _counts(self) -> Counter[str]:
        """Frames "captured", "published", and by the reason of their drop, of all streams together."""
        with urllib.request.urlopen(f"http://{self._metrics_endpoint}/metrics", timeout=10) as page:
            text = page.read().decode()
        counts: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            name = family.name.removeprefix("streamdet_frames_")
            if name in ("captured", "published", "dropped"):
                for sample in family.samples:
                    counts[sample.labels.get("reason", name)] += round(sample.value)
        return counts


def _summary(load: Load, counts: Counter[str], seen: _Seen, took: float, cpu: float) -> dict[str, Any]:
    captured, published = counts.pop("captured", 0), counts.pop("published", 0)
    latencies = seen.latencies_seconds
    of_streams = [seen.frames[f"s{number}"] for number in range(load.streams)]
    shares = (0.5, 0.95, 0.99) if latencies else ()
    marks = {f"p{round(100 * share)}": round(1000 * float(np.quantile(latencies, share)), 2) for share in shares}
    return {
        "streams": load.streams,
        "width": load.clip.size[0],
        "height": load.clip.size[1],
        "fps": round(load.clip.fps, 3) if load.realtime else None,
        "seconds": round(took, 2),
        "frames_captured": captured,
        "frames_published": published,
        "frames_dropped": dict(counts),
        "fps_captured": round(captured / took, 2),
        "fps_published": round(published / took, 2),
        "events_received": len(latencies),
        "events_lost": seen.lost,
        "events_of_a_stream": [min(of_streams), max(of_streams)],
        "latency_ms": marks or None,
        "cpu_ms_per_frame": round(1000 * cpu / captured, 3) if captured else None,
        "cpu_cores": round(cpu / took, 3),
    }
