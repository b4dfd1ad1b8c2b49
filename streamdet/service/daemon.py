"""The life of the process: `Daemon.run` builds everything, runs the main loop, and stops everything.

The main thread builds and changes things; signals, errors of workers and control requests only set a flag or queue a
request, and wake it.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import NoReturn

import cv2

from streamdet import __version__
from streamdet.capture.gate import Gates
from streamdet.config import Config
from streamdet.config.control_paths import AUTO, changes_file_of_daemon, socket_of_daemon
from streamdet.delivery.clips import Clips
from streamdet.delivery.file_store import FileStore, StoreLimits
from streamdet.delivery.history import History
from streamdet.delivery.publisher import Publisher
from streamdet.delivery.snapshots import Snapshots
from streamdet.delivery.spool import Spool
from streamdet.detector.load import load_real_detector
from streamdet.detector.pool import DetectorPool, Running
from streamdet.detector.state import Interrupted
from streamdet.errors import EXIT_FAILURE, ApplyError, ConfigError, ControlError, EndpointError, StreamdetError
from streamdet.inference.batch_queue import BatchQueue
from streamdet.inference.thread import InferenceGroup
from streamdet.monitoring import systemd
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.opentelemetry import Tracer
from streamdet.monitoring.rates import Rates
from streamdet.security.redact import redact
from streamdet.service.control.api import ControlServer
from streamdet.service.control.operations import Operation, Operations
from streamdet.service.housekeeping import Housekeeping, stuck_after_seconds
from streamdet.service.live_config import LiveConfig
from streamdet.service.pages import HealthServer, HealthSnapshot
from streamdet.service.streams import Streams
from streamdet.wire import MAX_MESSAGE_BYTES
from streamdet.worker import Wakeup, Worker

_log = logging.getLogger(__name__)

# SIGTERM must end the daemon in 5 s: captures may take 2, and publishing the remaining events at most 2 more.
_DRAIN_SECONDS = 1.0
# What a library cannot interrupt while it loads is left behind after this time.
_LOADER_JOIN_SECONDS = 0.5

LoadDetector = Callable[[Config, Metrics], DetectorPool]


@dataclass(slots=True)
class Addresses:
    """Where a daemon can be reached.

    Attributes:
        events: the ZeroMQ endpoint of the publisher, with the real port.
        replay: the same for requests; None where they are not answered.
        metrics: the URL of the metrics page.
        control: of the control API: the path of the Unix socket, and the URL.
        page: the URL of the page in the browser; None where the daemon's own command does not serve it.
    """

    events: str
    replay: str | None
    metrics: str
    control: list[str]
    page: str | None = None


class Daemon:
    """Everything that runs in one process.

    Args:
        config: what to do.
        config_path: the file that `reload` reads; None for a daemon that cannot reload.
        load: makes the detectors; the configured ones when not given.
        stop_when_ended: whether it stops when every stream has ended.

    Attributes:
        epoch: identifies this start of the daemon in every event.
        ledger: what became of every frame.
        metrics: what the metrics page shows.
        running: what detects; None until it is loaded, and for a stand-in.
        addresses: where it can be reached; None before it listens.
    """

    def __init__(
        self,
        config: Config,
        config_path: Path | None = None,
        *,
        load: LoadDetector | None = None,
        stop_when_ended: bool = False,
    ) -> None:
        self.epoch = secrets.token_hex(8)
        self.running: Running | None = None
        self.addresses: Addresses | None = None
        self._started_at = time.time()
        self._stopped_while_loading = False
        self._signal = ""
        self.ledger = Ledger()
        self.metrics = Metrics(self.ledger)
        self._gates = Gates(self.metrics)
        self.metrics.healthy.set_function(lambda: float(self.health().healthy))
        changes_path = changes_file_of_daemon(config.control.changes_file, config_path)
        self._in_force = LiveConfig(config, config_path, changes_path, self.metrics)
        self._rates = Rates(self.ledger)
        self._requests: SimpleQueue[Operation] = SimpleQueue()
        self._operations: Operations | None = None
        self._stop_requested = False
        self._load = load or functools.partial(load_real_detector, stopping=lambda: self._stop_requested)
        self._stop_when_ended = stop_when_ended
        self._ready = False
        self._reload_requested = False
        self._failed: Worker | None = None
        self._streams: Streams | None = None
        self._inference: InferenceGroup | None = None
        # Threads that OpenCV wakes for a small picture wait actively, and take cores from captures.
        cv2.setNumThreads(1)
        self._wakeup = Wakeup()

    @property
    def config(self) -> Config:
        """What is in force."""
        return self._in_force.config

    def run(self, on_ready: Callable[[], None] | None = None) -> int:
        """Runs until a stop.

        Args:
            on_ready: called once, when the detector is warm and the streams are being connected.

        Returns:
            The exit code.

        Raises:
            StreamdetError: a port is in use, weights do not load, and the like; no stream has been started.
        """
        with ExitStack() as stack:
            stack.callback(self._wakeup.close)
            health = HealthServer(
                self.config.metrics, self.metrics.registry, self.health, self._on_error, self.metrics.unexpected
            )
            stack.callback(health.close)
            tracer = self._tracer(stack)
            spool = self._spool(stack)
            picture_store, clips = self._picture_store(stack), self._clips(stack)
            history = None if spool is None else History(spool.path, self._on_error, self.metrics.unexpected)
            publisher = Publisher(
                self.config.publisher, self.epoch, self.metrics, self._on_error, tracer, self.config.replay, spool,
                pictures=self.config.pictures, picture_store=picture_store, clips=clips, history=history,
                gates=self._gates,
            )  # fmt: skip
            stack.callback(publisher.close)
            control = self._control_server(picture_store, clips, history, publisher.snapshots)
            self.addresses = Addresses(
                publisher.endpoint, publisher.replay_endpoint or None, f"{health.url}/metrics",
                [] if control is None else control.urls,
            )  # fmt: skip
            # From here on both answer whether the daemon is ready; what else is asked for waits until it is.
            stack.enter_context(health)
            if history is not None:
                stack.enter_context(history)
            if control is not None:
                stack.enter_context(control)
            detectors = self._load_detectors()
            if detectors is None:
                return 0

            self.running = running = detectors.running
            if running is not None:
                self.metrics.engine(running.facts())
            # Downstream first: leaving the block stops captures, then inference, then the publisher.
            if spool is not None:
                stack.enter_context(spool)
            if picture_store is not None:
                stack.enter_context(picture_store)
            if clips is not None:
                stack.enter_context(clips)
            stack.enter_context(publisher)
            queue = BatchQueue(
                self.config.detector.largest_batch if running is None else running.max_batch_size,
                self.config.detector.max_batch_delay_seconds,
                self.metrics.frame_dropped,
                prepare=detectors.prepare,
            )
            self._streams = Streams(
                queue, publisher, self.metrics, self.ledger, detectors.labels, self._on_error, clips, self._gates
            )
            inference = InferenceGroup(
                queue,
                detectors,
                publisher.put_detections,
                self.metrics,
                self._on_error,
                stuck_after_seconds=stuck_after_seconds(),
                tracer=tracer,
                on_unusable=self._streams.take_down,
            )
            self._inference = inference
            stack.enter_context(inference)
            stack.callback(self._drain, queue)
            stack.callback(self._streams.stop)
            stack.enter_context(detectors)
            # A capture that waits to put a frame of a file must not delay the end.
            stack.callback(queue.close)
            self._in_force.start(self._streams)
            self._operations = Operations(self._in_force, self._streams, self._rates, self.metrics, running)
            self._ready = True
            systemd.ready()
            count = len(self.config.streams)
            _log.info("ready: %d stream%s, events at %s", count, "s" * (count != 1), publisher.endpoint)
            if on_ready is not None:
                on_ready()
            self._watch(Housekeeping(self._rates, self._streams, inference, detectors.cores, detectors.trim))
            systemd.stopping()
            self._ready = False
        return self._exit_code()

    def stop(self) -> None:
        """Asks for the end; from any thread or signal handler."""
        self._stop_requested = True
        self._wakeup.wake()

    def _why_it_ends(self) -> str:
        if self._failed is not None:
            return f"{self._failed.name} has failed"
        if self._stop_requested:
            return f"signal {self._signal}" if self._signal else "as asked"
        return "every file has been played"

    def reload(self) -> None:
        """Asks for the configuration to be read again; from any thread or signal handler."""
        self._reload_requested = True
        self._wakeup.wake()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop (the second one at once), SIGHUP reloads; main thread only.

        A SIGHUP that was held back until now is handled, too. Without a file to read again, it means what it means to
        any program: its terminal is gone, and it stops.
        """

        def stop(number: int, _frame: FrameType | None) -> None:
            if self._stop_requested:
                # What delays the orderly end would delay any other unwinding, too.
                os._exit(128 + number)
            self._signal = signal.Signals(number).name
            self.stop()

        def reload(number: int, _frame: FrameType | None) -> None:
            if self._in_force.path is None:
                self._signal = signal.Signals(number).name
                self.stop()
            else:
                self.reload()

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def exit(self, code: int) -> NoReturn:
        """Ends the process after `run`.

        After a stop while the detector was loading that happens at once: a library that still loads cannot be
        interrupted, and the interpreter's own end would wait for it and clean up all that was imported.
        """
        if self._stopped_while_loading:
            logging.shutdown()
            os._exit(code)
        sys.exit(code)

    def health(self) -> HealthSnapshot:
        """What /healthz and /readyz say."""
        problem = ""
        if self._failed is not None:
            problem = f"{self._failed.name} ended: {redact(str(self._failed.error))}"
        elif self._inference is not None and self._inference.is_stuck():
            problem = "frames are due and the detector yields none"
        return HealthSnapshot(
            healthy=not problem,
            ready=self._ready,
            streams=self._streams.statuses() if self._streams else {},
            last_frame_at=self.metrics.last_frame_at(),
            problem=problem,
            engine=None if self.running is None else self.running.to_dict(),
        )

    def _tracer(self, stack: ExitStack) -> Tracer | None:
        """What traces single frames; None where that is not configured."""
        if self.config.tracing.endpoint is None:
            return None
        tracer = Tracer(self.config.tracing.endpoint, self.config.tracing.sample_ratio, self.epoch)
        stack.callback(tracer.close)
        self.metrics.follow_stages(tracer.stage)
        return tracer

    def _spool(self, stack: ExitStack) -> Spool | None:
        if self.config.spool.directory is None:
            return None
        spool = Spool(self.config.spool, self.epoch, self.metrics.delivery, self._on_error, self.metrics.unexpected)
        stack.callback(spool.close)
        return spool

    def _picture_store(self, stack: ExitStack) -> FileStore | None:
        """What keeps pictures of objects and alerts; None where that is not configured."""
        config = self.config.pictures
        if config.directory is None:
            return None
        limits = StoreLimits(config.max_bytes, config.max_age_seconds, MAX_MESSAGE_BYTES)
        store = FileStore(
            "pictures", Path(config.directory), ".jpg", limits, self.metrics.pictures, self._on_error,
            self.metrics.unexpected,
        )  # fmt: skip
        stack.callback(store.close)
        return store

    def _clips(self, stack: ExitStack) -> Clips | None:
        if self.config.clips.directory is None:
            return None
        clips = Clips(self.config.clips, self.metrics, self._on_error)
        stack.callback(clips.close)
        return clips

    def _control_server(
        self, pictures: FileStore | None, clips: Clips | None, history: History | None, snapshots: Snapshots
    ) -> ControlServer | None:
        """The control API; None where it is off, or "auto" finds no place for its socket."""
        control = self.config.control
        path = socket_of_daemon(control.path, self._in_force.path)
        if path is None and control.listen is None:
            return None
        serve = functools.partial(
            ControlServer,
            on_operation=self._on_operation,
            about=self._about,
            health=self.health,
            group=control.group,
            endpoint=control.listen,
            access=self.config.metrics,
            on_error=self._on_error,
            unexpected=self.metrics.unexpected,
            on_answer=self.metrics.control_request,
            pictures=pictures,
            clips=clips,
            history=history,
            snapshots=snapshots,
        )
        try:
            return serve(path)
        except EndpointError as error:
            if control.path != AUTO or control.group is not None:
                raise
            # The configuration does not ask for the socket: detection goes on without it.
            without = None if control.listen is None else serve(None)
            _log.warning("%s; streamdet reload and streams cannot reach this daemon", error)
            return without

    def _about(self) -> dict[str, object]:
        """What /v1/about says."""
        path, changes_path = self._in_force.path, self._in_force.changes_path
        return {
            "version": __version__,
            "epoch": self.epoch,
            "pid": os.getpid(),
            "started_at": self._started_at,
            "config": None if path is None else str(path.resolve()),
            "config_in_force": None if path is None else self._in_force.is_file_in_force,
            "changes_file": None if changes_path is None else str(changes_path),
            "engine": None if self.running is None else self.running.to_dict(),
            "addresses": None if self.addresses is None else asdict(self.addresses),
        }

    def _load_detectors(self) -> DetectorPool | None:
        """Loads and warms up the detectors in another thread, so that a stop ends the wait; None after a stop."""
        loader = _Loader(lambda: self._load(self.config, self.metrics), self._wakeup)
        loader.start()
        while not loader.is_done and not self._stop_requested:
            self._wakeup.wait(1.0)
        loader.stop()
        loader.join()
        self._stopped_while_loading = self._stop_requested
        if self._stop_requested or isinstance(loader.error, Interrupted):
            return None
        if loader.error is not None:
            raise loader.error
        return loader.detectors

    def _watch(self, housekeeping: Housekeeping) -> None:
        """The main loop: sleeps until a signal, an error, an operation or the next beat."""
        beat_at = time.monotonic()
        while not self._stop_requested and self._failed is None:
            self._wakeup.wait(max(beat_at - time.monotonic(), 0.0))
            if self._reload_requested:
                self._reload_requested = False
                # Why it failed has been logged, and everything is as before.
                with suppress(ConfigError, ControlError, ApplyError):
                    self._in_force.reload()
            self._carry_out_operations()
            if time.monotonic() >= beat_at:
                # What it costs grows with the number of streams, and operations may come a hundred times in a second.
                self._end_leases()
                housekeeping.beat()
                beat_at = time.monotonic() + housekeeping.tick_seconds
            if self._stop_when_ended and self._streams is not None and self._streams.all_ended():
                break
        _log.info("stopping: %s", self._why_it_ends())

    def _on_operation(self, operation: Operation) -> None:
        self._requests.put(operation)
        self._wakeup.wake()

    def _carry_out_operations(self) -> None:
        """Carries out what came through the control API, in the thread that owns what it changes."""
        while self._operations is not None and not self._requests.empty():
            self._operations.carry_out(self._requests.get_nowait())

    def _end_leases(self) -> None:
        try:
            self._in_force.end_leases()
        except ApplyError as error:
            _log.error("%s", error)

    def _on_error(self, worker: Worker) -> None:
        self._failed = self._failed or worker
        self._wakeup.wake()

    def _drain(self, queue: BatchQueue) -> None:
        """Lets the inference thread finish what waits, for a while; the rest is dropped and counted."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while any(queue.pending().values()) and time.monotonic() < deadline:
            time.sleep(0.01)
        queue.discard()

    def _exit_code(self) -> int:
        if self._failed is None:
            return 0
        error = self._failed.error
        if isinstance(error, StreamdetError):
            _log.error("%s", error, exc_info=error)
            return error.exit_code
        _log.error("%s ended unexpectedly: %s", self._failed.name, error, exc_info=error)
        return EXIT_FAILURE


class _Loader(Worker):
    """Loads detectors and warms them up.

    Args:
        load: makes the detectors.
        wakeup: woken at the end, whatever it is.

    Attributes:
        detectors: once they are warm.
        is_done: whether they are, or `error` is set.
    """

    join_timeout_seconds = _LOADER_JOIN_SECONDS

    def __init__(self, load: Callable[[], DetectorPool], wakeup: Wakeup) -> None:
        super().__init__("load")
        self.detectors: DetectorPool | None = None
        self.is_done = False
        self._load = load
        self._wakeup = wakeup

    def run(self) -> None:
        """Loads; warms up unless a stop was asked for meanwhile."""
        try:
            detectors = self._load()
            if not self.stopping:
                detectors.warm_up()
                self.detectors = detectors
        finally:
            self.is_done = True
            self._wakeup.wake()
