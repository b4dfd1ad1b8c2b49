"""Records events as Parquet and JSONL files: `streamdet bridge files`. docs/bridges.md is the reference.

`tables.py` makes rows of events, `parquet.py` and `jsonl.py` files of rows; `recording.py` finishes files together with
the position that they reach; `retention.py` deletes the oldest. Here is the thread that reads events. Another one
writes, so that a slow disk holds up no reading as long as there is room in memory.

There is one way out of every fault, be it a full disk or a kill: the files that were not finished are given up, and
their events are asked for again, from the daemon's spool.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from streamdet import wire
from streamdet.bridges.files.recording import Recording
from streamdet.bridges.files.retention import Retention
from streamdet.bridges.files.tables import Buffer
from streamdet.bridges.process import BridgeError, Source, begin, run_bridge
from streamdet.client import Gap, Restart, Subscription
from streamdet.client.gaps import Item
from streamdet.config import Config
from streamdet.config.files import FilesConfig
from streamdet.errors import ConfigError, WireError
from streamdet.extras import how_to_install
from streamdet.monitoring.bridge_metrics import BridgeMetrics, TargetMetrics
from streamdet.monitoring.log import FailureLog, LogThrottle
from streamdet.types import PreviewEvent
from streamdet.wire import Kind
from streamdet.worker import Worker

_TURN_SECONDS = 0.5
# How many items are read between two looks at the time.
_ITEMS_PER_TURN = 200
# Rows that wait in memory at most; as many again may be being written.
_MAX_BUFFER_BYTES = 48 << 20
_MAX_OPEN_FILES = 10_000
_MIN_RETRY_SECONDS = 1.0
_MAX_RETRY_SECONDS = 30.0
# Events that wait for this process in memory: many streams send thousands a second.
_HIGH_WATER_MARK_EVENTS = 20_000
_KINDS: dict[str, Kind] = {"detections": "detections", "objects": "objects", "alerts": "alerts", "states": "state"}

_log = logging.getLogger(__name__)
_throttle = LogThrottle()


def run_files(config: Config, config_path: Path, *, from_start: bool = False) -> None:
    """Records events until a signal ends it; main thread only.

    Args:
        config: what to record, and where.
        config_path: the file that it is from.
        from_start: whether the first start begins with all that the daemon keeps of its present epoch.

    Raises:
        ConfigError: there is no directory, or a part of the installation is missing.
        StreamdetError: the daemon's replay, the port of the metrics or the directory cannot be used.
    """
    files = config.files
    if files.directory is None:
        raise ConfigError([f"{config_path}: has no directory in [files]; docs/bridges.md shows what it looks like"])
    if files.needs_pyarrow and importlib.util.find_spec("pyarrow") is None:
        what = f"[files] {files.needs_pyarrow} needs pyarrow: {how_to_install('files')}"
        raise ConfigError([f"{config_path}: {what}"])
    source, metrics = Source.of(config), BridgeMetrics("files")

    def threads(on_error: Callable[[Worker], None]) -> Sequence[Worker]:
        directory, target = Path(files.directory or ""), metrics.of("directory")
        return [FilesThread(files, directory, source, target, on_error, from_start=from_start)]

    run_bridge(metrics, files.metrics_endpoint, None, threads)


class FilesThread(Worker):
    """Records events in a directory.

    Args:
        config: what to record, and how.
        directory: where.
        source: where events come from.
        metrics: of the directory.
        on_error: called when the thread ends with an error.
        from_start: whether a new recording begins with all that the daemon keeps of its present epoch.
    """

    join_timeout_seconds = 5.0

    def __init__(
        self,
        config: FilesConfig,
        directory: Path,
        source: Source,
        metrics: TargetMetrics,
        on_error: Callable[[Worker], None] | None = None,
        *,
        from_start: bool = False,
    ) -> None:
        super().__init__("to files", on_error)
        # A slow disk takes its time for a large file.
        self.quiet_seconds = 300.0
        self._from_start = from_start
        self._config = config
        self._directory = directory
        self._source = source
        self._metrics = metrics
        self._failures = FailureLog(_log, "{} tries failed")
        self._retry_seconds = _MIN_RETRY_SECONDS
        retention = Retention(directory, config.max_bytes, config.max_age_seconds)
        self._recording = Recording(directory, config.formats, config.compression, retention)

    def run(self) -> None:
        """Records until asked to stop; after an error of the disk, again from the newest position."""
        try:
            self._recording.open()
        except OSError as error:
            reason = "it is no directory" if isinstance(error, FileExistsError) else error.strerror
            message = f"{self._directory} cannot be used: {reason}"
            raise BridgeError(message) from error
        try:
            while not self.stopping:
                try:
                    self._record()
                except OSError as error:
                    self._note_failure(error)
                    self._open_again()
        finally:
            self._recording.close()

    def _open_again(self) -> None:
        """Tries until it succeeds, or a stop is asked for."""
        while not self.sleep(self._retry_seconds):
            self.beat()
            self._retry_seconds = min(2 * self._retry_seconds, _MAX_RETRY_SECONDS)
            try:
                self._recording.open()
            except OSError as error:
                self._note_failure(error)
            else:
                return

    def _note_failure(self, error: OSError) -> None:
        self._metrics.failed()
        self._failures.failed(f"{self._directory} cannot be written: {error.strerror or error}; it is tried again")

    def _is_stopping(self) -> bool:
        self.beat()
        return self.stopping

    def _record(self) -> None:
        """Records events from the newest position on, until asked to stop.

        Raises:
            OSError: the directory cannot be written.
        """
        config = self._config
        recorded = {_KINDS[kind] for kind in config.kinds}
        kinds = sorted({"state", *recorded})  # states list every stream, so that no topic of one is missed
        is_new = not self._recording.position
        position = begin(self._recording, self._source, kinds, self._is_stopping)
        if position is None:
            return
        if is_new and self._from_start:
            position = {topic: (epoch, 0) for topic, (epoch, _) in position.items()}
            self._recording.save(position)
        with (
            self._source.subscribe(kinds, position, config.streams or None, _HIGH_WATER_MARK_EVENTS) as events,
            ThreadPoolExecutor(1, "writes files") as pool,
        ):
            session = _Session(events, self._recording, pool, self._metrics, recorded, config)
            self._metrics.lag_seconds.set_function(session.lag_seconds)
            self._metrics.queue_events.set_function(session.waiting)
            try:
                while not self._is_stopping():
                    self._metrics.daemon_connected.set(events.is_connected)
                    if session.turn():
                        self._retry_seconds = _MIN_RETRY_SECONDS
                        self._failures.works(f"{self._directory} is written again")
                session.finish()
            finally:
                self._metrics.queue_events.set_function(lambda: 0.0)


class _Session:
    """From a position until the first error: reads events, and hands their rows to the thread that writes.

    Args:
        events: with replay.
        recording: that is open.
        pool: of one thread, which writes.
        metrics: what has been finished, and what is lost.
        kinds: that are recorded, as in topics.
        config: how often files are finished.
    """

    def __init__(
        self,
        events: Subscription,
        recording: Recording,
        pool: ThreadPoolExecutor,
        metrics: TargetMetrics,
        kinds: set[Kind],
        config: FilesConfig,
    ) -> None:
        self._events = events
        self._recording = recording
        self._pool = pool
        self._metrics = metrics
        self._kinds = kinds
        self._config = config
        self._buffer = Buffer()
        self._writing: Future[None] | None = None
        self._finishes = False  # whether what is being written finishes the files
        self._unfinished_events = 0  # of those that were handed to the thread that writes
        self._unfinished_since: float | None = None  # Unix time at which the oldest of them was published
        self._finish_at = time.monotonic() + config.rotate_seconds

    def waiting(self) -> float:
        """Events that are in no finished file."""
        return self._buffer.events + self._unfinished_events + self._events.waiting_items

    def lag_seconds(self) -> float:
        """Age of the oldest of them, less the time that they are to wait for the end of their file."""
        since = [at for at in (self._buffer.oldest_at, self._unfinished_since) if at is not None]
        return max(0.0, time.time() - min(since) - self._config.rotate_seconds) if since else 0.0

    def turn(self) -> bool:
        """Reads what has come, for half a second at most; whether files have been finished since the turn before.

        Raises:
            OSError: the directory cannot be written.
        """
        wait_seconds = _TURN_SECONDS
        for _ in range(_ITEMS_PER_TURN):
            item = self._receive(wait_seconds)
            if item is None:
                break
            self._add(item)
            wait_seconds = 0.0
        has_finished = self._writing is not None and self._writing.done() and self._await()
        recording = self._recording
        is_due = (
            time.monotonic() >= self._finish_at
            or recording.largest_bytes >= self._config.rotate_bytes
            or recording.open_files >= _MAX_OPEN_FILES
        )
        if is_due or self._buffer.size_bytes >= _MAX_BUFFER_BYTES:
            has_finished |= self._write(finishes=is_due)
        return has_finished

    def finish(self) -> None:
        """Finishes all files.

        Raises:
            OSError: the directory cannot be written.
        """
        self._write(finishes=True)
        self._await()

    def _write(self, *, finishes: bool) -> bool:
        has_finished = self._await()
        self._unfinished_events += self._buffer.events
        since = [at for at in (self._buffer.oldest_at, self._unfinished_since) if at is not None]
        self._unfinished_since = min(since, default=None)
        position = self._events.position() if finishes else None
        self._writing = self._pool.submit(self._recording.write, self._buffer.take(), position)
        self._finishes = finishes
        if finishes:
            self._finish_at = time.monotonic() + self._config.rotate_seconds
        return has_finished

    def _await(self) -> bool:
        """Waits for what is being written; whether it has finished files."""
        if self._writing is None:
            return False
        writing, self._writing = self._writing, None
        writing.result()
        if self._finishes:
            self._metrics.handed_on(self._unfinished_events)
            self._unfinished_events, self._unfinished_since = 0, None
        return self._finishes

    def _receive(self, wait_seconds: float) -> Item | None:
        try:
            return self._events.receive(wait_seconds)
        except WireError as error:
            _throttle.log(_log, logging.WARNING, "dropped a message that is not an event: %s", error)
            return None

    def _add(self, item: Item) -> None:
        if isinstance(item, Gap | Restart):
            self._add_gap(item)
            return
        if isinstance(item, PreviewEvent) or wire.kind_of(item) not in self._kinds:
            return
        if not self._buffer.add(item):
            self._metrics.dead_letters.inc()
            _throttle.log(_log, logging.WARNING, "an event is not recorded: %.100s is too long a name", item.stream)

    def _add_gap(self, item: Gap | Restart) -> None:
        is_state = item.topic.startswith("state/")
        if isinstance(item, Gap):
            epoch = self._events.position().get(item.topic, ("", 0))[0]
            if not is_state:
                self._metrics.lost.inc(item.count)
            _log.warning("%d events of %s are lost: the daemon no longer keeps them", item.count, item.topic)
        elif item.is_complete:
            return
        else:
            epoch = item.before
            if not is_state:
                _log.warning("events of %s may be lost: the daemon has crashed", item.topic)
        if item.topic.partition("/")[0] in self._kinds:
            self._buffer.add_gap(item, epoch, time.time())
