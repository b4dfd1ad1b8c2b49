"""What every bridge needs: a thread that hands on each event once and keeps its position, metrics, and the process.

The daemon's spool is the queue of a bridge: what is kept is only the position in it, after each event that was handed
on. An event that waits for its receiver is asked of the daemon again after a restart, and those behind it as well.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from streamdet import wire
from streamdet.client import Gap, Restart, Subscription, subscribe
from streamdet.client.recovery import Position
from streamdet.config import Config
from streamdet.config.listening import parse_host_port
from streamdet.errors import EXIT_UNAVAILABLE, ConfigError, StreamdetError, WireError
from streamdet.http.access import Door, Guard
from streamdet.http.server import HttpServer, HttpThread, Limits, listen, url_of
from streamdet.monitoring import systemd
from streamdet.monitoring.bridge_metrics import BridgeMetrics, TargetMetrics
from streamdet.monitoring.log import LogThrottle
from streamdet.security.endpoints import parse_endpoint
from streamdet.security.files import lock_directory, remove_leftovers, stage
from streamdet.security.limits import FairRate
from streamdet.wire import Event, Kind
from streamdet.wire.limits import MAX_INTEGER
from streamdet.worker import Wakeup, Worker

_TURN_SECONDS = 0.5
# Of the position after events that the receiver does not get: after a kill they are read once more, and left out again.
_SAVE_SECONDS = 10.0
# Topics and epochs are much shorter; a request for events that holds one must be below its limit.
_MAX_NAME_BYTES = 1024
_STOP_SECONDS = 5.0
_LIMITS = Limits(connections=32, waiting_per_address=16, answering=8, connections_per_second=50)
_REQUESTS_PER_SECOND = 20
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - compared, not listened at

_log = logging.getLogger(__name__)
_throttle = LogThrottle()


class BridgeError(StreamdetError):
    """A bridge cannot keep or read its position."""

    exit_code = EXIT_UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Source:
    """Where a bridge gets its events.

    Attributes:
        endpoint: of the daemon.
        replay_endpoint: where it answers requests; None for the one beside it.
        server_key_file: the daemon's public key; None where it asks for none.
        client_key_file: the bridge's own keys.
    """

    endpoint: str
    replay_endpoint: str | None = None
    server_key_file: str | None = None
    client_key_file: str | None = None

    @classmethod
    def of(cls, config: Config) -> Source:
        """As the configuration says.

        Raises:
            ConfigError: the daemon keeps nothing that could be asked for.
        """
        keys = config.bridges.server_key_file, config.bridges.client_key_file
        if config.bridges.endpoint != "auto":
            return cls(config.bridges.endpoint, None, *keys)
        if config.replay.endpoint == "off":
            raise ConfigError(['replay.endpoint: is "off", but bridges ask for what they have missed; delete it'])
        replay = None if config.replay.endpoint == "auto" else _to_connect(config.replay.endpoint)
        return cls(_to_connect(config.publisher.endpoint), replay, *keys)

    def subscribe(
        self,
        kinds: Sequence[Kind],
        resume: Position | None,
        streams: Sequence[str] | None = None,
        high_water_mark_events: int = 1000,
    ) -> Subscription:
        """Subscribes, and goes on where an earlier subscription has stopped."""
        return subscribe(
            self.endpoint,
            streams,
            kinds,
            high_water_mark_events=high_water_mark_events,
            replay=True,
            resume=resume,
            replay_endpoint=self.replay_endpoint,
            server_key=self.server_key_file,
            client_key_file=self.client_key_file,
        )

    def follow_states(self) -> Subscription:
        """Subscribes to states alone, without replay: it yields also those that are repeated."""
        return subscribe(
            self.endpoint, kinds=["state"], server_key=self.server_key_file, client_key_file=self.client_key_file
        )


def _to_connect(endpoint: str) -> str:
    """The endpoint by which this machine reaches what listens at one."""
    parse_endpoint(endpoint)
    for every, loopback in _EVERY_ADDRESS.items():
        endpoint = endpoint.replace(f"//{every}:", f"//{loopback}:")
    return endpoint


class Ages:
    """How old events are, also after the clock was set: no event is older than it can be.

    A machine without a battery for its clock starts with a wrong time, and sets it when the network comes up. What was
    published before that looks days old; but an event that was published since this began is not older than that.

    Args:
        wall: Unix time in seconds, which can be set.
        steady: seconds that go on evenly, also while the machine sleeps.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._wall, self._steady = wall, steady
        self._began_at, self._began_steady = wall(), steady()

    def seconds(self, event: Event) -> float:
        """The age of an event; 0 where its time lies ahead."""
        before_seconds = max(0.0, self._began_at - event.published_at)
        at_most = before_seconds + self._steady() - self._began_steady
        return max(0.0, min(self._wall() - event.published_at, at_most))


class PositionFile:
    """Keeps a position in a file, as a whole or not at all, also over a power failure.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved: dict[str, tuple[str, int]] | None = None

    def load(self) -> Position:
        """The position; empty where none was ever kept.

        Raises:
            BridgeError: the file cannot be read, or is none of ours.
        """
        try:
            content: Any = json.loads(self._path.read_bytes())
            return {_name(topic): (_name(epoch), _seq(seq)) for topic, (epoch, seq) in content["position"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            message = f"{self._path} holds no position ({error}); delete it to begin with what is published from now on"
            raise BridgeError(message) from None

    def save(self, position: dict[str, tuple[str, int]]) -> None:
        """Keeps a position, unless it is kept already.

        Args:
            position: how far all has been handed on.

        Raises:
            BridgeError: it cannot be written.
        """
        if position == self._saved:
            return
        try:
            content = json.dumps({"version": 1, "position": position}).encode()
            stage(self._path, content, makes_folder=True).commit()
        except OSError as error:
            message = f"{self._path} cannot be written: {error.strerror}"
            raise BridgeError(message) from error
        self._saved = position


class KeepsPosition(Protocol):
    """Keeps the position of a bridge: a `PositionFile`, or what a bridge writes."""

    def load(self) -> Position:
        """The position; empty where none was ever kept."""

    def save(self, position: dict[str, tuple[str, int]]) -> None:
        """Keeps a position, so that it survives a power failure."""


def _name(value: object) -> str:
    """A topic or an epoch of a position, if it can be one."""
    name = str(value)
    if not 0 < len(name.encode()) <= _MAX_NAME_BYTES:
        message = "a name has a wrong length"
        raise ValueError(message)
    return name


def _seq(value: Any) -> int:  # noqa: ANN401 - any JSON
    """The number of an event of a position; 0 for none yet."""
    seq = int(value)
    if not 0 <= seq < MAX_INTEGER:
        message = f"{seq} is no number of an event"
        raise ValueError(message)
    return seq


def begin(
    file: KeepsPosition, source: Source, kinds: Sequence[Kind], is_stopping: Callable[[], bool]
) -> Position | None:
    """Where a bridge goes on; a new one begins with what is published once the daemon has answered, and keeps that.

    The newest state of each stream lies behind the first position, so that a receiver need not wait for the next one.

    Args:
        file: keeps the position.
        source: where events come from.
        kinds: that the bridge needs.
        is_stopping: asked again and again while the daemon does not answer.

    Returns:
        The position, which is kept; None if a stop was asked for before there was one.

    Raises:
        BridgeError: the position cannot be read or written. Nothing must be handed on then: it would be again at each
            start.
    """
    position = file.load()
    file.save(dict(position))
    if position:
        return position
    _log.info("this is the first start: it begins with what is published once the daemon has answered")
    with source.subscribe(kinds, {}) as events:
        while not is_stopping():
            try:
                item = events.receive(_TURN_SECONDS)
            except WireError:
                continue  # the next subscription reports it
            reached = events.position()
            if item is not None and not isinstance(item, Gap | Restart):
                reached[wire.topic_of(item)] = (item.epoch, item.seq - 1)
            if reached:
                position = {
                    topic: (epoch, max(0, seq - 1) if topic.startswith("state/") else seq)
                    for topic, (epoch, seq) in reached.items()
                }
                file.save(position)
                return position
    return None


class Forwarder(Worker):
    """Hands on events to one receiver, one after the other, in a thread of its own.

    A new one begins with what is published once the daemon has answered; one with a position goes on there.

    Args:
        target: name of the receiver, and of the file of its position.
        source: where events come from.
        kinds: that are needed.
        directory: of the position.
        metrics: of this receiver.
        on_error: called when the thread ends with an error.
    """

    join_timeout_seconds = _STOP_SECONDS

    def __init__(
        self,
        target: str,
        source: Source,
        kinds: Sequence[Kind],
        directory: Path,
        metrics: TargetMetrics,
        on_error: Callable[[Worker], None] | None = None,
    ) -> None:
        super().__init__(f"to {target}", on_error)
        self.metrics = metrics
        self.ages = Ages()
        self._target = target
        self._source = source
        # States list every stream: so its first alert is found even if it came while the bridge was down.
        self._kinds: Sequence[Kind] = sorted({*kinds, "state"})
        self._file = PositionFile(directory / f"{target}.json")
        self._saved_at = 0.0

    @abstractmethod
    def is_wanted(self, event: Event) -> bool:
        """Whether the receiver gets this event."""

    @abstractmethod
    def deliver(self, event: Event, events: Subscription) -> bool:
        """Hands on one event, or gives it up for good; repeats while that fails.

        Args:
            event: one that is wanted.
            events: where its picture can be fetched.

        Returns:
            False if a stop was asked for before; it is delivered again after the next start.
        """

    def run(self) -> None:
        """Hands on events until asked to stop."""
        position = begin(self._file, self._source, self._kinds, self._is_stopping)
        if position is None:
            return
        with self._source.subscribe(self._kinds, position) as events:
            while not self._is_stopping():
                if not self._next(events):
                    return  # an event is left to do: the position stays before it
            self._file.save(events.position())

    def _is_stopping(self) -> bool:
        self.beat()
        return self.stopping

    def _next(self, events: Subscription) -> bool:
        try:
            item = events.receive(_TURN_SECONDS)
        except WireError as error:
            _throttle.log(_log, logging.WARNING, "%s: dropped a message that is not an event: %s", self._target, error)
            return True
        # After the first event, which may wait for its receiver for hours.
        self.metrics.daemon_connected.set(events.is_connected)
        if isinstance(item, Gap):
            self._note_gap(item)
        elif isinstance(item, Restart):
            if not item.is_complete and not item.topic.startswith("state/"):
                _log.warning("%s: events of %s may be lost: the daemon has crashed", self._target, item.topic)
        elif item is not None and self.is_wanted(item):
            waiting = 1 + events.waiting_items
            self.metrics.queue_events.set(waiting)
            self.metrics.lag_seconds.set_function(lambda: self.ages.seconds(item))
            is_done = self.deliver(item, events)
            self.metrics.lag_seconds.set_function(lambda: 0.0)
            self.metrics.queue_events.set(waiting - is_done)
            if is_done:
                self._file.save(events.position())
            return is_done
        if time.monotonic() - self._saved_at >= _SAVE_SECONDS:
            self._saved_at = time.monotonic()
            self._file.save(events.position())
        return True

    def _note_gap(self, gap: Gap) -> None:
        if gap.topic.startswith("state/"):
            return
        self.metrics.lost.inc(gap.count)
        _log.warning(
            "%s: %d events of %s are lost: the daemon no longer keeps them", self._target, gap.count, gap.topic
        )


def run_bridge(
    metrics: BridgeMetrics,
    metrics_endpoint: str,
    directory: Path | None,
    forwarders: Callable[[Callable[[Worker], None]], Sequence[Worker]],
) -> None:
    """Runs until SIGTERM or SIGINT; main thread only.

    systemd's watchdog is fed only while no forwarder is stuck, such as in a disk that does not answer.

    Args:
        metrics: that the page shows.
        metrics_endpoint: HOST:PORT of the page.
        directory: of the positions; used by this process alone. None for a bridge that keeps its position elsewhere.
        forwarders: makes them, given what to call when one ends by an error; each must beat.

    Raises:
        BridgeError: the directory cannot be used.
        EndpointError: the port of the metrics is taken, or the daemon answers no requests for replay.
    """
    wakeup = Wakeup()
    stopping: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopping.append(number)
        wakeup.wake()

    with ExitStack() as stack:
        stack.callback(wakeup.close)
        if directory is not None:
            stack.callback(os.close, _locked(directory))
            remove_leftovers(directory)
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, stop))
        page = stack.enter_context(_page(metrics, metrics_endpoint, lambda _worker: wakeup.wake()))
        workers: list[Worker] = [page, *forwarders(lambda _worker: wakeup.wake())]
        for worker in workers[1:]:
            stack.enter_context(worker)
        systemd.ready()
        pause_seconds = (systemd.watchdog_interval_seconds() or 20.0) / 2
        while not stopping and not any(worker.error for worker in workers):
            _feed_watchdog(workers[1:])
            wakeup.wait(pause_seconds)
        systemd.stopping()
        for worker in workers[1:]:
            worker.stop()  # all at once, before the first is waited for
        # What has not ended then, such as a wait for a name server, ends with the process; as after a kill, the event
        # that was under way comes again.
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in workers[1:]:
            worker.join_timeout_seconds = max(0.0, deadline - time.monotonic())
            worker.join()
            worker.join_timeout_seconds = 0.0
    for worker in workers:
        if worker.error is not None:
            raise worker.error


def _feed_watchdog(forwarders: Sequence[Worker]) -> None:
    """Feeds it unless a forwarder is stuck; then systemd kills this process and starts it again."""
    stuck = [worker for worker in forwarders if worker.is_stuck()]
    if not stuck:
        systemd.watchdog()
    for worker in stuck:
        message = "%s has made no progress for %.0f s: systemd's watchdog is not fed"
        _throttle.log(_log, logging.ERROR, message, worker.name, worker.quiet_seconds)


def _locked(directory: Path) -> int:
    try:
        return lock_directory(directory)
    except OSError as error:
        message = f"{directory} cannot be used: {error.strerror}"
        raise BridgeError(message) from error


def _page(metrics: BridgeMetrics, endpoint: str, on_error: Callable[[Worker], None]) -> HttpThread:
    """Serves /metrics and /healthz on loopback."""
    host, port = parse_host_port(endpoint)
    guard, rate = Guard(frozenset({host}), None), FairRate(_REQUESTS_PER_SECOND, _LIMITS.connections)

    async def refusal(request: Request) -> Response | None:
        refused = await guard.refusal(request, rate)
        return refused and PlainTextResponse(f"{refused.why}\n", refused.status, refused.headers)

    async def show(_request: Request) -> Response:
        # Not as `media_type`, to which the framework would add a second character set.
        content_type = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return Response(generate_latest(metrics.registry), headers=content_type)

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    app = Starlette(routes=[Route("/metrics", show), Route("/healthz", healthz)])
    listener = listen("metrics:", host, port, "endpoint")
    _log.info("metrics are at %s/metrics", url_of(listener, None))
    return HttpThread("metrics", [HttpServer(Door(app, refusal), listener, _LIMITS)], on_error)
