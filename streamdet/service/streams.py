"""The streams that run: one capture for each, and how the next configuration replaces them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from pydantic import BaseModel

from streamdet.capture.gate import Gates
from streamdet.capture.packet_reader import PacketReader
from streamdet.capture.thread import Capture
from streamdet.config import DetectorConfig, RuleConfig, StreamConfig
from streamdet.config.rules import rules_of
from streamdet.config.stream import keeps_connection
from streamdet.config.values import takes_effect
from streamdet.delivery.clips import Clips
from streamdet.delivery.publisher import Publisher
from streamdet.errors import ApplyError, SourceError
from streamdet.inference.batch_queue import BatchQueue
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.security.redact import redact
from streamdet.service.statuses import StreamStatuses
from streamdet.types import Frame, Owner, Reason, State, StreamStatus
from streamdet.worker import Worker

_log = logging.getLogger(__name__)

# The line about a reload names this many streams of each kind, and shows values of this many characters.
_MAX_NAMES = 20
_MAX_VALUE_CHARACTERS = 40
# A stream that comes back goes on counting its frames, unless this many others were removed after it.
_MAX_GONE_STREAMS = 1000
_DEFAULT_DETECTOR = DetectorConfig()
_NO_OWNERS: Mapping[str, Owner] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Applied:
    """What a configuration changed: names of streams.

    Attributes:
        added: are new.
        reconnected: run on with another connection; also those that were paused or resumed.
        updated: run on with the same connection and another configuration, other settings of the detector, or by
            another grant of their claim.
        removed: are gone.
    """

    added: list[str] = field(default_factory=list)
    reconnected: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


class Streams:
    """One capture for each stream that is not paused. One thread, the main one, changes them.

    Args:
        queue: where captures put frames.
        publisher: where states go.
        metrics: has series for each stream.
        ledger: says whether frames are on their way.
        labels: that the weights of the detector know.
        on_error: called when a capture has ended unexpectedly.
        clips: gets the packets of all streams; None where no clips are kept.
        gates: the motion gates; None for gates of its own, which hear nothing of what was detected.

    Attributes:
        labels: as given.
    """

    def __init__(
        self,
        queue: BatchQueue,
        publisher: Publisher,
        metrics: Metrics,
        ledger: Ledger,
        labels: Iterable[str],
        on_error: Callable[[Worker], None],
        clips: Clips | None = None,
        gates: Gates | None = None,
    ) -> None:
        self._clips = clips
        self._gates = gates or Gates(metrics)
        self._queue = queue
        self._publisher = publisher
        self._metrics = metrics
        self._ledger = ledger
        self.labels = tuple(labels)
        self._on_error = on_error
        self._statuses = StreamStatuses(publisher.put_status)
        self._captures: dict[str, Capture] = {}
        self._readers: dict[str, PacketReader] = {}
        self._configs: dict[str, StreamConfig] = {}
        self._owners: Mapping[str, Owner] = _NO_OWNERS
        self._rules: tuple[RuleConfig, ...] = ()
        self._detector = DetectorConfig()
        # Also of streams that are gone: subscribers must not see the number of a frame twice.
        self._last_seqs: dict[str, int] = {}

    def apply(
        self,
        configs: Iterable[StreamConfig],
        rules: Sequence[RuleConfig] = (),
        detector: DetectorConfig = _DEFAULT_DETECTOR,
        owners: Mapping[str, Owner] = _NO_OWNERS,
    ) -> Applied:
        """Makes the running streams those of `configs`; a stream that did not change keeps its connection.

        Everything that may fail is done first, while the streams run on as they were.

        Args:
            configs: of all streams.
            rules: of the configuration.
            detector: what counts as a detection in the frames of streams that do not say so themselves.
            owners: of the streams that belong to a cluster, by name.

        Raises:
            ApplyError: there is no thread, memory or file descriptor left; nothing has changed.
        """
        wanted = {config.name: config for config in configs}
        plan = self.plan(wanted.values(), detector, owners)
        captures = self._prepare(wanted, plan, detector)
        self._stop_captures([*plan.removed, *plan.reconnected])
        if self._clips is not None:
            for name in plan.reconnected:
                self._clips.clear(name)
        for name in plan.removed:
            self._remove_stream(name)
        self._set_rules(wanted, rules)
        changes = {name: _differences(self._configs[name], wanted[name]) for name in [*plan.reconnected, *plan.updated]}
        for name in plan.updated:
            if self._owners.get(name) != owners.get(name):
                changes[name] = ", ".join(filter(None, [changes[name], "claim"]))
        if of_detector := _differences(self._detector, detector, on_reload=True):
            _log.info("detector: %s", of_detector)
        self._detector, self._owners = detector, owners
        for name in [*plan.added, *plan.reconnected, *plan.updated]:
            self._set_stream(wanted[name])
        for name in [*plan.added, *plan.reconnected]:
            self._begin(name, captures.get(name))
        if plan != Applied():
            changed = [f"{name} ({what or '[detector]'})" for name, what in changes.items()]
            named = {"added": plan.added, "changed": changed, "removed": plan.removed}
            _log.info("streams: %s", _listed(named))
        return plan

    def take_down(self, frame: Frame, why: str) -> None:
        """Closes the connection that a frame came from, which the detector could not use; from any thread.

        It is opened again later.
        """
        capture = self._captures.get(frame.stream)
        if capture is not None:
            capture.take_down(frame.seq, SourceError(Reason.DECODE_ERROR, why))

    def stop(self) -> None:
        """Ends every capture, all at the same time."""
        self._stop_captures(list(self._captures))

    def statuses(self) -> dict[str, StreamStatus]:
        """What each stream is doing."""
        return self._statuses.snapshot()

    def clip_missing(self, name: str) -> str | None:
        """Why alerts of a stream have no clips; None where they may have, it is not known yet, or none are kept."""
        return None if self._clips is None else self._clips.missing_of(name)

    def settle_log(self) -> None:
        """Logs states that were left out while they changed all the time, and have lasted since."""
        self._statuses.settle()

    def cpu_seconds(self) -> float:
        """CPU time that the captures which run now have used: receiving and decoding."""
        return sum(worker.cpu_seconds() for worker in [*self._captures.values(), *self._readers.values()])

    def all_ended(self) -> bool:
        """Whether every stream has come to its end, and none of its frames is on its way."""
        statuses = self.statuses().values()
        ended = sum(status.state is State.DOWN and status.reason is Reason.ENDED for status in statuses)
        in_flight = any(counts.in_flight for counts in self._ledger.snapshot().values())
        return ended == len(self._configs) and not in_flight

    def plan(
        self,
        configs: Iterable[StreamConfig],
        detector: DetectorConfig,
        owners: Mapping[str, Owner] = _NO_OWNERS,
    ) -> Applied:
        """What `apply` would do; arguments as there."""
        wanted = {config.name: config for config in configs}
        plan = Applied(
            added=[name for name in wanted if name not in self._configs],
            removed=[name for name in self._configs if name not in wanted],
        )
        for name, config in wanted.items():
            before = self._configs.get(name)
            if before is None:
                continue
            is_other = before != config or self._detector.settings_for(before) != detector.settings_for(config)
            if is_other or self._owners.get(name) != owners.get(name):
                (plan.updated if keeps_connection(before, config) else plan.reconnected).append(name)
        return plan

    def _prepare(self, wanted: dict[str, StreamConfig], plan: Applied, detector: DetectorConfig) -> dict[str, Capture]:
        """Everything that may fail: captures whose threads wait, and the slots and series of new streams."""
        captures: dict[str, Capture] = {}
        try:
            for name in [*plan.added, *plan.reconnected]:
                if not wanted[name].paused:
                    capture = self._new_capture(wanted[name])
                    capture.start()
                    captures[name] = capture
            for name in plan.added:
                self._make_room(wanted[name], detector)
        except (RuntimeError, OSError, MemoryError) as error:
            self._join(list(captures.values()))
            for name in plan.added:
                self._queue.remove_stream(name)
                self._metrics.remove_stream(name)
                if self._clips is not None:
                    self._clips.remove_stream(name)
            message = f"the streams cannot be changed now, and run as before: {error or type(error).__name__}"
            raise ApplyError(message) from error
        return captures

    def _new_capture(self, config: StreamConfig) -> Capture:
        return Capture(
            config,
            self._put,
            self._statuses.put,
            self._metrics,
            on_error=self._on_error,
            waits=True,
            packets=None if self._clips is None or config.detect_url else self._clips.ring(config.name),
            demand=self._queue.demand(config.name),
        )

    def _put(self, frame: Frame) -> None:
        """Takes a captured frame."""
        self._queue.put(self._gates.judged(frame, self._publisher.is_watched))

    def _make_room(self, config: StreamConfig, detector: DetectorConfig) -> None:
        """Makes the slot and the series of a stream, or changes them."""
        zones, lines = [zone.name for zone in config.zones], [line.name for line in config.lines]
        settings = detector.settings_for(config)
        has_gate = config.gate != "off"
        self._metrics.set_stream(config.name, settings.labels or self.labels, zones, lines, has_gate=has_gate)
        self._queue.set_stream(config, settings)

    def _set_stream(self, config: StreamConfig) -> None:
        self._configs[config.name] = config
        self._statuses.set_stream(config.name)
        self._publisher.set_stream(config, self._owners.get(config.name))
        self._gates.set_stream(config)
        if self._clips is not None:
            self._clips.set_stream(config)
        self._make_room(config, self._detector)

    def _set_rules(self, streams: Iterable[str], rules: Sequence[RuleConfig]) -> None:
        before, self._rules = self._rules, tuple(rules)
        self._metrics.set_rules([(rule.name, stream) for stream in streams for rule in rules_of(stream, rules)])
        if self._rules != before:
            self._publisher.set_rules(self._rules)
            if self._clips is not None:
                self._clips.set_rules(self._rules)
            old, new = ({rule.name: rule for rule in of} for of in (before, self._rules))
            named = {
                "added": [name for name in new if name not in old],
                "changed": [name for name in new if name in old and old[name] != new[name]],
                "removed": [name for name in old if name not in new],
            }
            _log.info("rules: %s", _listed(named) or "in another order")

    def _begin(self, name: str, capture: Capture | None) -> None:
        if capture is None:
            status = StreamStatus(name, State.DOWN, Reason.PAUSED, "until it is resumed", time.time())
            self._metrics.status(status)
            self._statuses.put(status)
            return
        self._captures[name] = capture
        capture.begin(self._last_seqs.get(name, 0))
        config = self._configs[name]
        if self._clips is not None and config.detect_url is not None:
            self._start_reader(config, self._clips)

    def _start_reader(self, config: StreamConfig, clips: Clips) -> None:
        """Starts what reads the main stream for clips; detection runs on without it."""
        reader = PacketReader(config, clips.ring(config.name), self._metrics.unexpected)
        try:
            reader.start()
        except RuntimeError as error:
            self._metrics.unexpected.report("capture", error, "there are no clips of it", config.name)
            return
        self._readers[config.name] = reader

    def _remove_stream(self, name: str) -> None:
        self._queue.remove_stream(name)
        self._statuses.remove_stream(name)  # from now on no status of it is published
        self._publisher.remove_stream(name)
        self._gates.remove_stream(name)
        if self._clips is not None:
            self._clips.remove_stream(name)
        self._metrics.remove_stream(name)
        del self._configs[name]

    def _stop_captures(self, names: Iterable[str]) -> None:
        names = list(names)
        stopping = {name: self._captures.pop(name) for name in names if name in self._captures}
        readers = [self._readers.pop(name) for name in names if name in self._readers]
        self._join([*stopping.values(), *readers])
        self._last_seqs.update({name: capture.last_seq for name, capture in stopping.items()})
        for name in [name for name in self._last_seqs if name not in self._configs][:-_MAX_GONE_STREAMS]:
            del self._last_seqs[name]

    @staticmethod
    def _join(captures: Sequence[Capture | PacketReader]) -> None:
        """Ends captures, all within the time that one may take."""
        for capture in captures:
            capture.stop()
        deadline = time.monotonic() + Capture.join_timeout_seconds
        for capture in captures:
            capture.join_timeout_seconds = max(deadline - time.monotonic(), 0.01)
            if not capture.join():
                _log.error("the thread %s has not ended", capture.name)


def _differences(before: BaseModel, after: BaseModel, *, on_reload: bool = False) -> str:
    """The changes of a table, as in "max_fps 5 -> 10, zones"; without secrets.

    Args:
        before: a table of the configuration.
        after: the same, changed.
        on_reload: only keys whose change takes effect on reload.
    """
    differences = []
    for key in type(before).model_fields:
        if on_reload and takes_effect(type(before), key) != "on reload":
            continue
        old, new = _shown(getattr(before, key)), _shown(getattr(after, key))
        if getattr(before, key) != getattr(after, key):
            differences.append(f"{key} {old} -> {new}" if old and new and old != new else key)
    return ", ".join(differences)


def _shown(value: object) -> str:
    """A plain value as it is written in the file; empty for one that is too long for a line."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    text = redact(f"{value:g}" if isinstance(value, float) else str(value))
    return text if isinstance(value, str | int | float) and len(text) <= _MAX_VALUE_CHARACTERS else ""


def _listed(named: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{what}: {_some(names)}" for what, names in named.items() if names)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
