"""The streams that run: which there are, what they do, and how the next configuration replaces them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from streamdet.capture.thread import Capture
from streamdet.config import StreamConfig
from streamdet.config.stream import keeps_connection
from streamdet.delivery.publisher import Publisher
from streamdet.errors import ApplyError, SourceError
from streamdet.inference.batch_queue import BatchQueue
from streamdet.monitoring.metrics import Metrics
from streamdet.security.redact import redact
from streamdet.service.status_log import StatusLog
from streamdet.types import Frame, Reason, State, StreamStatus
from streamdet.worker import Worker

_log = logging.getLogger(__name__)

# A line that names what a reload did names so many streams of each kind, and shows values of so many characters.
_MOST_NAMES = 20
_LONGEST_VALUE = 40
# A stream that comes back goes on counting its frames, unless so many others have gone after it.
_MAX_GONE_STREAMS = 1000


@dataclass(frozen=True, slots=True)
class Applied:
    """What the next configuration made of the streams: their names.

    Attributes:
        added: are new.
        reconnected: run on with another connection; also those that were paused or resumed.
        updated: run on with the same connection and other rules.
        removed: are gone.
    """

    added: list[str] = field(default_factory=list)
    reconnected: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


class _WaitingCapture(Capture):
    """A capture whose thread is there before it may begin: nothing is given up for a thread that cannot be had."""

    def __init__(
        self,
        config: StreamConfig,
        put: Callable[[Frame], None],
        on_status: Callable[[StreamStatus], None],
        metrics: Metrics,
        on_error: Callable[[Worker], None],
    ) -> None:
        super().__init__(config, put, on_status, metrics, on_error=on_error)
        self._may_begin = threading.Event()

    def begin(self, last_seq: int) -> None:
        """Lets it connect; its frames are numbered from the one after `last_seq` on."""
        self.last_seq = last_seq
        self._may_begin.set()

    def wake(self) -> None:
        """Ends the wait for the beginning, or for the next frame."""
        self._may_begin.set()
        super().wake()

    def run(self) -> None:
        """Waits for `begin`, then captures."""
        self._may_begin.wait()
        if not self.stopping:
            super().run()


class Streams:
    """One capture per stream that is not paused. One thread, the main one, changes them.

    Args:
        queue: where captures put frames.
        publisher: where states go.
        metrics: gets and loses the series of each stream.
        labels: of the detections that a stream may yield.
        on_error: told of a capture that ended unexpectedly.
    """

    def __init__(
        self,
        queue: BatchQueue,
        publisher: Publisher,
        metrics: Metrics,
        labels: Iterable[str],
        on_error: Callable[[Worker], None],
    ) -> None:
        self._queue = queue
        self._publisher = publisher
        self._metrics = metrics
        self._labels = tuple(labels)
        self._on_error = on_error
        self._captures: dict[str, _WaitingCapture] = {}
        self._configs: dict[str, StreamConfig] = {}
        # Also of streams that are gone: subscribers must not see the number of a frame twice.
        self._last_seqs: dict[str, int] = {}
        self._statuses: dict[str, StreamStatus] = {}
        self._lock = threading.Lock()
        self._status_log = StatusLog()

    def apply(self, configs: Iterable[StreamConfig]) -> Applied:
        """Makes the running streams those of `configs`; a stream that did not change keeps its connection.

        Everything that may fail is done first, while the streams of before run on untouched.

        Raises:
            ApplyError: a thread, memory or a file descriptor cannot be had; the streams are those of before.
        """
        wanted = {config.name: config for config in configs}
        plan = self._plan(wanted)
        waiting = self._prepare(wanted, plan)
        self._stop_captures([*plan.removed, *plan.reconnected])
        for name in plan.removed:
            self._remove(name)
        changes = {name: _differences(self._configs[name], wanted[name]) for name in [*plan.reconnected, *plan.updated]}
        for name in [*plan.added, *plan.reconnected, *plan.updated]:
            self._configs[name] = wanted[name]
            self._publisher.set_stream(wanted[name])
            self._set_stream(wanted[name])
        for name in [*plan.added, *plan.reconnected]:
            self._begin(name, waiting.get(name))
        if plan != Applied():
            changed = [f"{name} ({what})" for name, what in changes.items()]
            named = {"added": plan.added, "changed": changed, "removed": plan.removed}
            _log.info("streams: %s", "; ".join(f"{what}: {_some(names)}" for what, names in named.items() if names))
        return plan

    def settle_log(self) -> None:
        """Has the log say what it left out, of streams that went to and fro and do so no more."""
        self._status_log.settle()

    def take_down(self, frame: Frame, failure: SourceError) -> None:
        """Has the connection closed that a frame came from, and opened again later; from any thread."""
        capture = self._captures.get(frame.stream)
        if capture is not None:
            capture.take_down(frame.seq, failure)

    def stop(self) -> None:
        """Ends every capture, all at the same time."""
        self._stop_captures(list(self._captures))

    def statuses(self) -> dict[str, StreamStatus]:
        """What each stream is doing."""
        with self._lock:
            return dict(self._statuses)

    def cpu_seconds(self) -> float:
        """CPU time that the captures which run now have used: receiving and decoding."""
        return sum(capture.cpu_seconds() for capture in list(self._captures.values()))

    def all_ended(self) -> bool:
        """Whether every stream has come to its end, and nothing of them is on its way."""
        statuses = self.statuses()
        ended = all(s.state is State.DOWN and s.reason is Reason.ENDED for s in statuses.values())
        return ended and not any(ledger.in_flight for ledger in self._metrics.ledger.snapshot().values())

    def _plan(self, wanted: dict[str, StreamConfig]) -> Applied:
        plan = Applied(
            added=[name for name in wanted if name not in self._configs],
            removed=[name for name in self._configs if name not in wanted],
        )
        for name, config in wanted.items():
            before = self._configs.get(name)
            if before is not None and before != config:
                (plan.updated if keeps_connection(before, config) else plan.reconnected).append(name)
        return plan

    def _prepare(self, wanted: dict[str, StreamConfig], plan: Applied) -> dict[str, _WaitingCapture]:
        """Everything that may fail: threads that wait for their beginning, and places for new streams."""
        waiting: dict[str, _WaitingCapture] = {}
        try:
            for name in [*plan.added, *plan.reconnected]:
                if not wanted[name].paused:
                    capture = self._capture(wanted[name])
                    capture.start()
                    waiting[name] = capture
            for name in plan.added:
                self._set_stream(wanted[name])
        except (RuntimeError, OSError, MemoryError) as error:
            self._join(list(waiting.values()))
            for name in plan.added:
                self._queue.remove_stream(name)
                self._metrics.remove_stream(name)
            message = f"the streams cannot be changed now, and run as before: {error or type(error).__name__}"
            raise ApplyError(message) from error
        return waiting

    def _set_stream(self, config: StreamConfig) -> None:
        """Makes the place and the series of a stream, or changes them."""
        zones, lines = [zone.name for zone in config.zones], [line.name for line in config.lines]
        self._metrics.set_stream(config.name, self._labels, zones, lines)
        self._queue.set_stream(config)

    def _capture(self, config: StreamConfig) -> _WaitingCapture:
        return _WaitingCapture(config, self._queue.put, self._on_status, self._metrics, self._on_error)

    def _begin(self, name: str, capture: _WaitingCapture | None) -> None:
        if capture is None:
            status = StreamStatus(name, State.DOWN, Reason.PAUSED, "until it is resumed", time.time())
            self._metrics.status(status)
            self._on_status(status)
            return
        self._captures[name] = capture
        capture.begin(self._last_seqs.get(name, 0))

    def _remove(self, name: str) -> None:
        self._queue.remove_stream(name)
        self._publisher.remove_stream(name)
        self._metrics.remove_stream(name)
        self._status_log.forget(name)
        del self._configs[name]
        with self._lock:
            self._statuses.pop(name, None)

    def _stop_captures(self, names: Iterable[str]) -> None:
        stopping = {name: self._captures.pop(name) for name in names if name in self._captures}
        self._join(list(stopping.values()))
        self._last_seqs.update({name: capture.last_seq for name, capture in stopping.items()})
        for name in [name for name in self._last_seqs if name not in self._configs][:-_MAX_GONE_STREAMS]:
            del self._last_seqs[name]

    @staticmethod
    def _join(captures: list[_WaitingCapture]) -> None:
        """Ends captures, all within the time that one may take."""
        for capture in captures:
            capture.stop()
        deadline = time.monotonic() + Capture.join_timeout_seconds
        for capture in captures:
            capture.join_timeout_seconds = max(deadline - time.monotonic(), 0.01)
            if not capture.join():
                _log.error("the capture of %s does not end", capture.name)

    def _on_status(self, status: StreamStatus) -> None:
        if status.stream not in self._configs:
            return  # it was removed while a library still held its capture
        with self._lock:
            self._statuses[status.stream] = status
        self._publisher.put_status(status)
        self._status_log.changed(status)


def _differences(before: StreamConfig, after: StreamConfig) -> str:
    """What has changed of a stream, as in "max_fps 5 -> 10, zones"; without secrets."""
    differences = []
    for key in StreamConfig.model_fields:
        old, new = _shown(getattr(before, key)), _shown(getattr(after, key))
        if getattr(before, key) != getattr(after, key):
            differences.append(f"{key} {old} -> {new}" if old and new and old != new else key)
    return ", ".join(differences)


def _shown(value: object) -> str:
    """A plain value as it stands in the file; empty for one that a line has no room for."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    text = redact(f"{value:g}" if isinstance(value, float) else str(value))
    return text if isinstance(value, str | int | float) and len(text) <= _LONGEST_VALUE else ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
