"""Carries objects and alerts to an MQTT broker, and shows streams in Home Assistant. docs/bridges.md is the reference.

`messages.py` makes messages of events, `home_assistant.py` the configurations of its entities; `retained.py` follows
what the broker retains; `session.py` is one connection to the broker. Here is the way of an event: it is published in
a session, it has arrived when the broker has acknowledged all of its messages, and the position is that of the last
event before which all have arrived. What was not acknowledged when a session ends is published again in the next one.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamdet import __version__
from streamdet.bridges.mqtt.messages import Message, Topics, alert_message, gap_message, object_message
from streamdet.bridges.mqtt.retained import RetainedTopics
from streamdet.bridges.mqtt.session import BrokerAddress, MqttError, Session
from streamdet.bridges.process import Ages, BridgeError, PositionFile, Source, begin, run_bridge
from streamdet.client import Gap, Restart, Subscription
from streamdet.client.gaps import Item
from streamdet.config import Config
from streamdet.config.mqtt import MqttConfig
from streamdet.errors import ConfigError, StreamdetError, WireError
from streamdet.extras import how_to_install
from streamdet.monitoring.bridge_metrics import BridgeMetrics, TargetMetrics
from streamdet.monitoring.log import LogThrottle
from streamdet.security.files import stage
from streamdet.types import AlertEvent, ObjectEvent, StateEvent
from streamdet.wire import Kind
from streamdet.worker import Worker

log = logging.getLogger(__name__)
_throttle = LogThrottle()

_KINDS: tuple[Kind, ...] = ("objects", "alerts", "state")
_MAX_UNACKNOWLEDGED = 100
# Of pictures, mostly: what waits in memory, and how long a slow line takes before the broker is answered again.
_MAX_UNACKNOWLEDGED_BYTES = 1_048_576
_WAIT_SECONDS = 0.25
_MIN_RETRY_SECONDS = 1.0
_MAX_RETRY_SECONDS = 30.0
# After an alert at once: what a kill leaves unsaved is published twice.
_SAVE_SECONDS = 0.5
_PICTURE_TIMEOUT_SECONDS = 5.0
# A picture that the broker takes for too large ends each session that sends it; the alert itself is sent on.
_MAX_PICTURE_ATTEMPTS = 3
# After the daemon has gone: a restart takes less, and its streams need not be shown as unavailable.
_DAEMON_AWAY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """What the bridge publishes, and where.

    Attributes:
        broker: where to connect.
        prefix: the first levels of all topics.
        discovery_prefix: where Home Assistant finds entities; None for no discovery.
        labels: that each stream has a presence topic for from its beginning; others follow when they are first seen.
        object_updates: whether events of objects between their begin and their end are published.
        late_after_seconds: an event that is older is marked as late, and no retained topic shows it.
        forget_after_seconds: a stream whose state was not repeated for so long is removed.
    """

    broker: BrokerAddress
    prefix: str = "streamdet"
    discovery_prefix: str | None = "homeassistant"
    labels: tuple[str, ...] = ()
    object_updates: bool = True
    late_after_seconds: float = 60.0
    forget_after_seconds: float = 300.0


@dataclass(slots=True)
class _Pending:
    """An item, and what is missing until it has arrived.

    Attributes:
        item: as the daemon sent it.
        position: to go on from once it has arrived.
        is_sent: whether all of its messages were sent on the present connection.
        numbers: of its messages that are not acknowledged.
        attempts: how often it was published.
    """

    item: Item
    position: dict[str, tuple[str, int]]
    is_sent: bool = False
    numbers: set[int] = field(default_factory=set)
    attempts: int = 0


class MqttBridge:
    """Publishes what a subscription yields.

    Args:
        settings: what is published, and where.
        events: objects, alerts and states, with replay.
        states: states without replay, which yields their repetitions.
        saved: what the process before has given to `save`; None for the first one.
        save: keeps the position, None where it is the same, and what else the next process must know.
        metrics: what has arrived, and what was given up.
    """

    def __init__(
        self,
        settings: MqttSettings,
        events: Subscription,
        states: Subscription,
        saved: object,
        save: Callable[[dict[str, tuple[str, int]] | None, Mapping[str, Any]], None],
        metrics: TargetMetrics,
    ) -> None:
        self._settings = settings
        self._events, self._states = events, states
        self._save, self._metrics = save, metrics
        self._ages = Ages()
        self._topics = Topics(settings.prefix)
        self._retained = RetainedTopics(self._topics, settings.discovery_prefix, __version__, settings.labels)
        try:
            self._retained.from_dict({} if saved is None else saved)
        except ValueError:
            log.warning("what the process before has saved about retained topics makes no sense, and is not used")
        self._pending: deque[_Pending] = deque()  # published on the present connection, oldest first
        self._again: deque[_Pending] = deque()  # to be published again
        self._session: Session | None = None
        self._is_online: bool | None = None  # as published on the present connection
        self._daemon_since: float | None = None
        self._daemon_seen = -math.inf
        self._retry_at, self._retry_seconds = 0.0, _MIN_RETRY_SECONDS
        self._last_problem: str | None = None
        self._unsaved: dict[str, tuple[str, int]] | None = None
        self._is_retained_unsaved = False
        self._save_at = 0.0

    def run(self, stopping: Callable[[], bool]) -> None:
        """Publishes until it is asked to stop; errors of the broker and its connection are logged and tried again."""
        try:
            while not stopping():
                try:
                    self._step()
                except MqttError as error:
                    self._end_session(error)
        finally:
            if self._session is not None:
                self._session.close(Message(self._topics.availability, b"offline", retain=True))
                self._settle(0.0, is_ended=True)

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest event that has not arrived at the broker; 0 if all have."""
        try:
            item = (self._pending or self._again)[0].item
        except IndexError:
            return 0.0
        return 0.0 if isinstance(item, Gap | Restart) else self._ages.seconds(item)

    @property
    def is_connected(self) -> bool:
        """Whether there is a session with the broker."""
        return self._session is not None

    @property
    def waiting(self) -> int:
        """Events that have not arrived at the broker."""
        return len(self._pending) + len(self._again)

    def _step(self) -> None:
        """Waits a moment for what comes next, and handles it."""
        if self._session is None:
            wait_seconds = self._retry_at - time.monotonic()
            if wait_seconds > 0:
                self._metrics.daemon_connected.set(self._events.is_connected)
                time.sleep(min(wait_seconds, _WAIT_SECONDS))
                return
            self._begin_session()
        self._settle(_WAIT_SECONDS if self._is_full else 0.0)
        self._note_states()
        self._note_daemon()
        if self._is_full:
            return
        if self._again:
            pending = self._again.popleft()
        else:
            # From here until it is among the pending ones nothing may raise: it would be lost.
            item = self._receive(self._events, _WAIT_SECONDS)
            if item is None:
                self._publish_retained()
                return
            pending = _Pending(item, self._events.position())
        self._pending.append(pending)
        pending.is_sent = False
        self._publish_item(pending)
        pending.is_sent = True

    @property
    def _is_full(self) -> bool:
        """Whether as much is on its way to the broker as may be."""
        sent_bytes = 0 if self._session is None else self._session.unacknowledged_bytes
        return len(self._pending) >= _MAX_UNACKNOWLEDGED or sent_bytes >= _MAX_UNACKNOWLEDGED_BYTES

    def _begin_session(self) -> None:
        last_will = Message(self._topics.availability, b"offline", retain=True)
        self._session = Session(self._settings.broker, last_will)
        self._is_online = None
        self._metrics.receiver_up.set(1)
        self._retained.republish()
        self._retry_seconds, self._last_problem = _MIN_RETRY_SECONDS, None
        log.info("connected to the broker %s:%d", self._settings.broker.host, self._settings.broker.port)
        if not self._session.retains:
            log.warning("the broker retains nothing: who subscribes later finds no states, nor does Home Assistant")

    def _end_session(self, error: MqttError) -> None:
        if str(error) != self._last_problem:
            log.warning("%s; trying again", error)
        self._last_problem = str(error)
        if self._session is not None:
            self._settle(0.0, is_ended=True)
            self._session.close()
            self._session = None
        self._again.extendleft(reversed(self._pending))
        self._pending.clear()
        self._metrics.failed()
        self._retry_at = time.monotonic() + self._retry_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - only a delay
        self._retry_seconds = min(2 * self._retry_seconds, _MAX_RETRY_SECONDS)

    def _settle(self, timeout_seconds: float, *, is_ended: bool = False) -> None:
        """Takes the answers of the broker; the position follows the events that have arrived.

        Raises:
            MqttError: the session has ended.
        """
        if self._session is None:
            return
        is_alert = False
        for number, refusal in self._session.acknowledged(timeout_seconds):
            if refusal is not None:
                self._metrics.dead_letters.inc()
                _throttle.log(log, logging.WARNING, "the broker refuses a message: %s", refusal)
            for pending in self._pending:
                pending.numbers.discard(number)
        while self._pending and self._pending[0].is_sent and not self._pending[0].numbers:
            arrived = self._pending.popleft()
            self._metrics.handed_on()
            self._unsaved = arrived.position
            is_alert = is_alert or isinstance(arrived.item, AlertEvent)
        if is_ended or is_alert or time.monotonic() >= self._save_at:
            self._save_position()
        if self._session.problem is not None and not is_ended:
            raise MqttError(self._session.problem)

    def _save_position(self) -> None:
        if self._unsaved is not None or self._is_retained_unsaved:
            self._save(self._unsaved, self._retained.to_dict())
            self._unsaved, self._is_retained_unsaved = None, False
        self._save_at = time.monotonic() + _SAVE_SECONDS

    def _publish_item(self, pending: _Pending) -> None:
        pending.numbers.clear()
        pending.attempts += 1
        item = pending.item
        # Gaps are late, too: what follows them comes from the past.
        late = isinstance(item, Gap | Restart) or self._ages.seconds(item) > self._settings.late_after_seconds
        if isinstance(item, ObjectEvent):
            self._retained.object_event(item)
            if self._is_wanted(item):
                self._publish(object_message(self._topics, item, late=late), pending)
        elif isinstance(item, AlertEvent) and self._is_wanted(item):
            alert = alert_message(self._topics, item, late=late)
            self._publish(alert, pending)
            if item.phase == "raised" and not late:
                last_alert = Message(self._topics.of(item.stream, "last_alert"), alert.payload, retain=True)
                self._keep(item.stream, last_alert, pending)
                self._publish_picture(item, pending)
        elif isinstance(item, StateEvent):
            self._retained.state_event(item, time.monotonic())
        elif isinstance(item, Gap):
            if pending.attempts == 1 and not item.topic.startswith("state/"):
                self._metrics.lost.inc(item.count)
            log.warning("%d events of %s are lost: the daemon no longer keeps them", item.count, item.topic)
            self._publish(gap_message(self._topics, item), pending)
            self._note_lost(item)
        elif isinstance(item, Restart) and not item.is_complete:
            self._note_lost(item)
        if not late:
            self._publish_retained(pending)

    def _is_wanted(self, event: ObjectEvent | AlertEvent) -> bool:
        is_update = isinstance(event, ObjectEvent) and event.phase == "update"
        return self._settings.object_updates or not is_update

    def _note_lost(self, item: Gap | Restart) -> None:
        if item.topic.startswith("objects/"):
            self._retained.events_lost(item.stream)

    def _publish_picture(self, event: AlertEvent, pending: _Pending) -> None:
        """Publishes the picture of an alert, after the alert; one that cannot be had is left out."""
        if event.picture is None or pending.attempts > _MAX_PICTURE_ATTEMPTS:
            return
        jpeg = event.picture.jpeg
        try:
            # While the daemon is away, alerts are not held up by the wait for their pictures.
            if jpeg is None and self._events.is_connected:
                jpeg = self._events.picture(event, _PICTURE_TIMEOUT_SECONDS)
        except (StreamdetError, TimeoutError) as error:
            _throttle.log(log, logging.WARNING, "the picture %s cannot be fetched: %s", event.picture.picture_id, error)
        if jpeg is None:
            self._metrics.dead_letters.inc()
            return
        self._keep(event.stream, Message(self._topics.of(event.stream, "picture"), jpeg, retain=True), pending)

    def _keep(self, stream: str, message: Message, pending: _Pending) -> None:
        self._publish(message, pending)
        self._retained.keep(stream, message)

    def _publish_retained(self, pending: _Pending | None = None) -> None:
        for message in self._retained.messages():
            self._publish(message, pending)
            self._is_retained_unsaved = True

    def _publish(self, message: Message, pending: _Pending | None = None) -> None:
        if self._session is None:
            return
        number = self._session.publish(message)
        if number is None:
            self._metrics.dead_letters.inc()
            _throttle.log(
                log,
                logging.WARNING,
                "%s: %d bytes are more than the broker allows",
                message.topic,
                len(message.payload),
            )
        elif pending is not None:
            pending.numbers.add(number)

    def _note_states(self) -> None:
        """Takes the repetitions of states: streams of which none come any more are removed."""
        now = time.monotonic()
        while (item := self._receive(self._states, 0.0)) is not None:
            if isinstance(item, StateEvent):
                self._retained.state_event(item, now, is_live=True)
        if self._daemon_since is not None and now - self._daemon_since > self._settings.forget_after_seconds:
            for stream in self._retained.forget_silent(now - self._settings.forget_after_seconds):
                log.info("stream %s is gone", stream)

    @staticmethod
    def _receive(subscription: Subscription, timeout_seconds: float) -> Item | None:
        try:
            return subscription.receive(timeout_seconds)
        except WireError as error:
            _throttle.log(log, logging.WARNING, "dropped a message that is not an event: %s", error)
            return None

    def _note_daemon(self) -> None:
        """Shows all as unavailable while the daemon is away."""
        now = time.monotonic()
        if not self._events.is_connected:
            self._daemon_since = None
        elif self._daemon_since is None:
            self._daemon_since = now
            self._retained.daemon_connected(now)
        if self._daemon_since is not None:
            self._daemon_seen = now
        self._metrics.daemon_connected.set(self._daemon_since is not None)
        is_online = now - self._daemon_seen < _DAEMON_AWAY_SECONDS
        if is_online is not self._is_online:
            self._publish(Message(self._topics.availability, b"online" if is_online else b"offline", retain=True))
            self._is_online = is_online


class _MqttThread(Worker):
    """Runs a bridge, with what it has saved, in a thread of its own.

    Args:
        settings: what is published, and where.
        source: where events come from.
        directory: of the position, and of what the broker retains.
        metrics: of the broker.
        on_error: called when the thread ends with an error.
    """

    join_timeout_seconds = 5.0

    def __init__(
        self,
        settings: MqttSettings,
        source: Source,
        directory: Path,
        metrics: TargetMetrics,
        on_error: Callable[[Worker], None] | None = None,
    ) -> None:
        super().__init__("to broker", on_error)
        self.quiet_seconds = 120.0  # a connection to a broker whose name no server resolves takes long
        self._settings, self._source, self._metrics = settings, source, metrics
        self._position = PositionFile(directory / "position.json")
        self._retained = directory / "retained.json"

    def run(self) -> None:
        """Publishes until asked to stop."""
        position = begin(self._position, self._source, _KINDS, self._is_stopping)
        if position is None:
            return
        with (
            self._source.subscribe(_KINDS, position) as events,
            self._source.follow_states() as states,
        ):
            bridge = MqttBridge(self._settings, events, states, self._load(), self._save, self._metrics)
            self._metrics.lag_seconds.set_function(lambda: bridge.lag_seconds)
            self._metrics.queue_events.set_function(lambda: bridge.waiting + events.waiting_items)
            bridge.run(self._is_stopping)

    def _is_stopping(self) -> bool:
        self.beat()
        return self.stopping

    def _load(self) -> object:
        try:
            saved: object = json.loads(self._retained.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            log.warning("%s cannot be read, and is not used: %s", self._retained, error)
            return None
        return saved

    def _save(self, position: dict[str, tuple[str, int]] | None, retained: Mapping[str, Any]) -> None:
        """Keeps what is retained first: events that come again change nothing in it."""
        try:
            stage(self._retained, json.dumps(retained).encode(), sync=False, makes_folder=True).commit()
        except OSError as error:
            message = f"{self._retained} cannot be written: {error.strerror}"
            raise BridgeError(message) from error
        if position is not None:
            self._position.save(position)


def run_mqtt(config: Config, config_path: Path) -> None:
    """Publishes events until a signal ends it; main thread only.

    Raises:
        ConfigError: there is no broker, or a part of the installation is missing.
        StreamdetError: the daemon's replay, the port of the metrics or the state directory cannot be used.
    """
    mqtt = config.mqtt
    if mqtt.broker is None:
        raise ConfigError([f"{config_path}: has no broker in [mqtt]; docs/bridges.md shows what it looks like"])
    if importlib.util.find_spec("paho") is None:
        raise ConfigError([f"{config_path}: [mqtt] needs paho-mqtt: {how_to_install('mqtt')}"])
    mqtt.remember_secrets()
    source = Source.of(config)
    directory = config.bridges.directory_of("mqtt", config_path)
    metrics = BridgeMetrics("mqtt")

    def threads(on_error: Callable[[Worker], None]) -> Sequence[Worker]:
        return [_MqttThread(_settings_of(mqtt), source, directory, metrics.of("broker"), on_error)]

    run_bridge(metrics, mqtt.metrics_endpoint, directory, threads)


def _settings_of(mqtt: MqttConfig) -> MqttSettings:
    host, port = mqtt.address
    broker = BrokerAddress(
        host,
        port,
        mqtt.client_id or f"streamdet-{mqtt.prefix}",
        mqtt.protocol,
        mqtt.is_tls,
        _path(mqtt.ca_file),
        _path(mqtt.certificate_file),
        _path(mqtt.key_file),
        mqtt.username,
        mqtt.password,
    )
    return MqttSettings(
        broker,
        mqtt.prefix,
        mqtt.discovery_prefix if mqtt.home_assistant else None,
        mqtt.labels,
        mqtt.object_updates,
        mqtt.late_after_seconds,
        mqtt.forget_after_seconds,
    )


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None
