"""Every metric of the daemon, declared here and nowhere else; all names begin with `streamdet_`.

`Metrics` has the methods by which the rest of the daemon reports; `DeliveryMetrics` those about subscribers. Metrics of
the process itself (`process_`, `python_`) are prometheus-client's.
"""

from __future__ import annotations

import importlib.metadata
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamdet import wire
from streamdet.monitoring.ledger import Ledger, StreamLedger
from streamdet.monitoring.log import lost_lines
from streamdet.monitoring.rates import Recent
from streamdet.monitoring.unexpected import PARTS, UnexpectedErrors
from streamdet.types import Crossing, Direction, Drop, Pass, Reason, State, StreamStatus, ZoneChange, ZoneVisit

STAGES = ("input", "preprocess", "features", "proposals", "roi_pool", "classify", "postprocess")

_LATENCY_BUCKETS_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10)
_BATCH_SIZE_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_SHORT_BUCKETS_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_DWELL_BUCKETS_SECONDS = (1, 3, 10, 30, 60, 300, 900, 3600)
# Sources without a rate of their own report that of their clock, such as 90,000.
_MAX_NOMINAL_FPS = 1000
_DIRECTIONS: tuple[Direction, ...] = ("in", "out")

HANDSHAKE_FAILURES = ("unknown_key", "wrong_server_key", "no_key", "broken_off", "protocol", "timeout")
"""Why a connection was refused; a client without a key mostly hangs up when the daemon asks for one."""

CUT_REASONS = ("revoked", "flood", "too_many")
"""Why a connection was ended."""

NOT_KEPT_REASONS = ("queue_full", "disk_full", "error")
"""Why the spool did not keep an event: it came too fast, there was no room, or the disk failed."""

PICTURES_DROPPED = (
    "busy",
    "no_frame",
    "too_large",
    "privacy",
    "error",
    "slow_disk",
    "disk_full",
    "disk_error",
    "shutdown",
)
"""Why a picture was not kept: too many were due at once, its frame was no longer there, it was too large, what it must
hide was not known, an unexpected error, the disk was slow, full or failed, or the daemon stopped."""

CLIPS_DROPPED = (
    "no_packets",
    "no_key_frame",
    "too_large",
    "codec",
    "privacy",
    "busy",
    "error",
    "slow_disk",
    "disk_full",
    "disk_error",
    "shutdown",
)
"""Why a clip was not kept: nothing of the stream was in memory, or nothing that decoding can begin with; the time from
one key frame to the next is larger than the ring; the stream is neither H.264 nor H.265; what it must hide cannot be
hidden; too many were to be encoded again; an unexpected error; the disk was slow, full or failed; or the daemon
stopped."""

# A creation time beside every counter would double the page, and no dashboard reads it.
disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no types here


class Metrics:
    """The metrics of one daemon, in a registry of their own.

    Every series of a stream exists from `set_stream` on, at zero, and is gone after `remove_stream`; what is
    reported later about a removed stream is ignored. Any thread may report; no lock is held for longer than it
    takes to count.

    Args:
        ledger: where frames are counted.

    Attributes:
        registry: what the metrics page shows.
        capture_decode_seconds: time to decode one frame.
        batch_size: frames per batch.
        batch_limit: the most pictures of a batch.
        batches_at_once: how many may be detected at the same time.
        queue_wait_seconds: from capture to the start of its batch.
        config_last_reload_successful: 1 or 0.
        delivery: about subscribers, replay and the spool.
        pictures: about the pictures of objects and alerts.
        clips: about the clips around alerts.
        healthy: 0 while frames are due and the detector yields none, or a part of the daemon has failed.
        out_of_memory_total: batches that had to be halved.
        unexpected: errors that cost a single frame, request or connection.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.registry = registry = CollectorRegistry()
        self.ledger = ledger
        self._lock = threading.Lock()
        self._streams: dict[str, _StreamSeries] = {}
        self._devices: dict[str, Gauge] = {}
        self._stage_listener: Callable[[str, float], None] | None = None

        declare = _Declarations(registry)
        # Of streams; what is counted for every frame is read by the collector from where it is kept.
        registry.register(_Collector(ledger, self._streams))
        self._reconnects = declare.counter(
            "stream_reconnects", "Attempts to reconnect, by the reason of the failure.", ["stream", "reason"]
        )
        self._detections = declare.counter("detections", "Detections published.", ["stream", "label"])
        self._objects = declare.counter(
            "objects", "Objects that began, by the label that they had then.", ["stream", "label"]
        )
        self._objects_present = declare.gauge("objects_present", "Objects that have not ended.", ["stream"])
        self._events = declare.counter("events_published", "Events handed to ZeroMQ.", ["topic"])
        self._event_latency = declare.histogram(
            "event_latency_seconds", "From capture to publication.", _LATENCY_BUCKETS_SECONDS, ["stream"]
        )
        self._previews = declare.counter("previews_encoded", "Preview pictures that were encoded.", ["stream"])
        self._shapes = _ShapeMetrics(declare)
        self._rules = _RuleMetrics(declare)
        self._gates = _GateMetrics(declare)

        # Of the way of a frame.
        self.capture_decode_seconds = declare.histogram(
            "capture_decode_seconds", "Time to decode one frame.", _SHORT_BUCKETS_SECONDS
        )
        self.queue_wait_seconds = declare.histogram(
            "queue_wait_seconds", "From capture to the start of its batch.", _LATENCY_BUCKETS_SECONDS
        )
        self.batch_size = declare.histogram("batch_size", "Frames per batch.", _BATCH_SIZE_BUCKETS)
        self.batches_at_once = declare.gauge(
            "batches_at_once", "Batches that may be detected at the same time, depending on the free cores."
        )
        self.batch_limit = declare.gauge(
            "batch_limit", "Most pictures of a batch, depending on how long batches take at present."
        )
        self.out_of_memory_total = declare.counter("out_of_memory", "Batches that were halved because memory ran out.")
        stage_seconds = declare.histogram(
            "stage_seconds", "Time of one batch in one stage of the detector.", _SHORT_BUCKETS_SECONDS, ["stage"]
        )
        self._stage_seconds = {stage: stage_seconds.labels(stage) for stage in STAGES}
        self._preview_encode_seconds = declare.histogram(
            "preview_encode_seconds", "Time to encode one preview picture.", _SHORT_BUCKETS_SECONDS
        )
        self.delivery = DeliveryMetrics(registry)
        self._picture_encode_seconds = declare.histogram(
            "picture_encode_seconds", "Time to encode one picture of an object or alert.", _SHORT_BUCKETS_SECONDS
        )
        self.pictures = FileStoreMetrics(registry, "pictures", PICTURES_DROPPED)
        self.clips = ClipMetrics(registry)

        # Of the daemon.
        self.healthy = declare.gauge("healthy", "1 while frames that are due are detected, and no thread has failed.")
        self.healthy.set(1)
        unexpected = declare.counter(
            "unexpected_errors", "Unexpected errors; each affected one frame, request or connection.", ["part"]
        )
        self.unexpected = UnexpectedErrors({part: unexpected.labels(part) for part in PARTS})
        self.config_last_reload_successful = declare.gauge(
            "config_last_reload_successful", "1 when the newest configuration is in force."
        )
        self.config_last_reload_successful.set(1)
        self._config_last_reload_success = declare.gauge(
            "config_last_reload_success_timestamp_seconds", "Unix time at which the configuration in force was loaded."
        )
        self._control_requests = declare.counter(
            "control_requests", "Requests to the control API, by outcome.", ["outcome"]
        )
        for outcome in ("done", "refused"):
            self._control_requests.labels(outcome)
        self._control_changes = declare.counter(
            "control_changes",
            "Changes and reloads that were asked for: by users of the page, or by other programs.",
            ["via", "outcome"],
        )
        for via in ("api", "page"):
            for outcome in ("done", "refused", "failed"):
                self._control_changes.labels(via, outcome)
        self._claims = declare.gauge(
            "claims", "Claims of a cluster, by whether their lease holds or is over and they are kept.", ["lease"]
        )
        self.claims(0, 0)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Info("streamdet_build", "Version of the daemon.", registry=registry).info(
            {"version": importlib.metadata.version("streamdet"), "python": platform.python_version()}
        )

    def set_stream(
        self,
        stream: str,
        labels: Iterable[str],
        zones: Sequence[str] = (),
        lines: Sequence[str] = (),
        *,
        has_gate: bool = False,
    ) -> None:
        """Makes every series of a stream, at zero; those that exist already keep their counts.

        Args:
            stream: its name.
            labels: of the detections that it may yield from now on.
            zones: its zones; the series of others are removed.
            lines: its lines; the series of others are removed.
            has_gate: whether it has a motion gate.
        """
        with self._lock:
            if stream not in self._streams:
                series = _StreamSeries(
                    self._event_latency.labels(stream),
                    self._previews.labels(stream),
                    self._objects_present.labels(stream),
                )
                series.reconnects = {reason: self._reconnects.labels(stream, reason.value) for reason in Reason}
                series.events = {topic: self._events.labels(topic) for topic in _topics(stream)}
                self.ledger.set_stream(stream)
                self._streams[stream] = series
            for label in labels:
                self._streams[stream].detections.setdefault(label, self._detections.labels(stream, label))
                self._streams[stream].objects.setdefault(label, self._objects.labels(stream, label))
            self._shapes.set(stream, zones, lines)
            if has_gate:
                self._gates.add(stream)

    def remove_stream(self, stream: str) -> None:
        """Forgets a stream: the next scrape has none of its series."""
        with self._lock:
            series = self._streams.pop(stream, None)
            if series is None:
                return
            self.ledger.remove_stream(stream)
            for metric in (
                *(self._detections, self._objects, self._objects_present),
                *(self._reconnects, self._event_latency, self._previews),
            ):
                metric.remove_by_labels({"stream": stream})
            for topic in series.events:
                self._events.remove(topic)
            self._shapes.remove(stream)
            self._gates.remove(stream)

    def objects_of(self, stream: str) -> dict[str, int]:
        """How many objects of a stream began, by label; without labels that had none."""
        samples = [sample for family in self._objects.collect() for sample in family.samples]
        counts = {s.labels["label"]: int(s.value) for s in samples if s.labels["stream"] == stream}
        return {label: count for label, count in counts.items() if count}

    def recent(self, stream: str) -> Recent:
        """What happened in a stream lately, for people."""
        series = self._streams.get(stream)
        return Recent() if series is None else series.recent

    def reloaded(self, at: float | None) -> None:
        """A configuration was loaded at this Unix time in seconds; None when it was refused and nothing changed."""
        self.config_last_reload_successful.set(at is not None)
        if at is not None:
            self._config_last_reload_success.set(at)

    def control_request(self, done: bool) -> None:
        """Counts a request to the control API: carried out, or refused."""
        self._control_requests.labels("done" if done else "refused").inc()

    def control_change(self, via: str, outcome: str) -> None:
        """Counts a change that was asked for.

        Args:
            via: "page" or "api".
            outcome: "done", "refused" or "failed".
        """
        self._control_changes.labels(via, outcome).inc()

    def claims(self, holding: int, over: int) -> None:
        """Shows how many claims there are whose lease holds, and how many whose lease is over."""
        self._claims.labels("holds").set(holding)
        self._claims.labels("over").set(over)

    def status(self, status: StreamStatus) -> None:
        """A stream changed its state."""
        series = self._streams.get(status.stream)
        if series is not None:
            if status.state is State.UP and series.state not in (State.UP, State.STALLED):
                series.connects += 1
            series.state, series.reason = status.state, status.reason
            if status.state is not State.UP:
                self._shapes.nothing_seen(status.stream)

    def nominal_fps(self, stream: str, fps: float | None) -> None:
        """The measured frames per second of a connection; None for a new one, until they are known."""
        series = self._streams.get(stream)
        if series is not None:
            series.nominal_fps = fps if fps is not None and 0 < fps <= _MAX_NOMINAL_FPS else 0.0

    def decoder(self, stream: str, decoder: str) -> None:
        """What decodes the stream: "cpu", or the name of a device."""
        series = self._streams.get(stream)
        if series is not None:
            series.decoder = decoder

    def decoder_of(self, stream: str) -> str | None:
        """What decodes the stream; None before it was connected."""
        series = self._streams.get(stream)
        return None if series is None else series.decoder

    def reconnect(self, stream: str, reason: Reason) -> None:
        """A stream is about to be connected again, because of `reason`."""
        series = self._streams.get(stream)
        if series is not None:
            series.reconnects[reason].inc()

    def frame_captured(self, stream: str, captured_at: float) -> None:
        """A frame was received at this Unix time in seconds."""
        self.ledger.captured(stream)
        series = self._streams.get(stream)
        if series is not None:
            series.last_frame_at = captured_at

    def frame_damaged(self, stream: str) -> None:
        """A frame was decoded and is held back: it depends on something that is missing."""
        self.ledger.captured(stream)
        self.ledger.dropped(stream, Drop.DAMAGED)

    def frame_not_decoded(self, stream: str, captured_at: float) -> None:
        """A picture was received at this Unix time in seconds, and is not decoded."""
        self.frame_captured(stream, captured_at)
        self.ledger.dropped(stream, Drop.NOT_DECODED)

    def frame_dropped(self, stream: str, reason: Drop) -> None:
        """A frame will not be published."""
        self.ledger.dropped(stream, reason)

    def gate_passed(self, stream: str, why: Pass) -> None:
        """The motion gate of a stream let a frame through."""
        self._gates.passed(stream, why)

    def gate_audited(self, stream: str) -> None:
        """A frame was detected that the motion gate would have held back."""
        self._gates.audited(stream)

    def gate_missed(self, stream: str, objects: int) -> None:
        """So many objects were found in such frames that no one knew of."""
        self._gates.missed(stream, objects)

    def gate_counts(self, stream: str) -> GateCounts | None:
        """What the audit of a stream's motion gate has found; None where there is no gate."""
        return self._gates.counts(stream)

    def frame_published(self, stream: str, latency_seconds: float, labels: Iterable[str]) -> None:
        """A frame's event was handed to ZeroMQ, this long after capture, with these detections."""
        self.ledger.published(stream)
        series = self._streams.get(stream)
        if series is None:
            return
        series.event_latency.observe(latency_seconds)
        series.recent.published(latency_seconds)
        for label in labels:
            self._count(stream, series.detections, label, self._detections, (stream, label))

    def event_published(self, topic: str) -> None:
        """An event was handed to ZeroMQ; the topic's second level is the stream's name."""
        stream = topic.split("/", 2)[1] if "/" in topic else ""
        series = self._streams.get(stream)
        if series is not None:
            self._count(stream, series.events, topic, self._events, (topic,))

    def shapes_seen(self, stream: str, zone_counts: Mapping[str, int], crossings: Iterable[Crossing]) -> None:
        """The objects in each zone of a frame, and the lines that were crossed."""
        self._shapes.seen(stream, zone_counts, crossings)

    def object_began(self, stream: str, label: str) -> None:
        """An object began; its label may be another one later."""
        series = self._streams.get(stream)
        if series is not None:
            self._count(stream, series.objects, label, self._objects, (stream, label))

    def objects_present(self, stream: str, count: int) -> None:
        """The number of objects of a stream that have not ended."""
        series = self._streams.get(stream)
        if series is not None:
            series.objects_present.set(count)

    def zones_changed(self, stream: str, changes: Iterable[ZoneChange]) -> None:
        """What an object has done in zones."""
        self._shapes.changed(stream, changes)

    def zones_visited(self, stream: str, visits: Iterable[ZoneVisit]) -> None:
        """An object has ended, after these visits to zones."""
        self._shapes.visited(stream, visits)

    def set_rules(self, rules: Iterable[tuple[str, str]]) -> None:
        """Makes every series of the rules, at zero; those that exist already keep their counts.

        Args:
            rules: the name of each rule with each of its streams; the series of others are removed.
        """
        self._rules.set(rules)

    def alert_raised(self, rule: str, stream: str) -> None:
        """A rule raised an alert."""
        self._rules.raised(rule, stream)
        series = self._streams.get(stream)
        if series is not None:
            series.recent.alert_raised()

    def alert_suppressed(self, rule: str, stream: str) -> None:
        """A rule raised no alert though its condition was met, because of its cooldown."""
        self._rules.suppressed(rule, stream)

    def preview_encoded(self, stream: str, seconds: float) -> None:
        """A preview picture of the stream was encoded, in this time."""
        self._preview_encode_seconds.observe(seconds)
        series = self._streams.get(stream)
        if series is not None:
            series.previews.inc()

    def picture_encoded(self, seconds: float) -> None:
        """A picture of an object or an alert was encoded, in this time."""
        self._picture_encode_seconds.observe(seconds)

    def engine(self, facts: Mapping[str, str | int]) -> None:
        """Shows what detects; until then there is no such metric."""
        info = Info("streamdet_engine", "The engine that runs the detector; 1 while it runs.", registry=self.registry)
        info.info({name: str(value) for name, value in facts.items()})

    def stage(self, stage: str, seconds: float) -> None:
        """A batch spent this time in one of `STAGES`."""
        self._stage_seconds[stage].observe(seconds)
        if self._stage_listener is not None:
            self._stage_listener(stage, seconds)

    def follow_stages(self, listener: Callable[[str, float], None]) -> None:
        """Calls the listener for every stage, too, in the thread that reports it."""
        self._stage_listener = listener

    def last_frame_at(self) -> dict[str, float]:
        """Unix time in seconds of each stream's newest frame; streams without one are left out."""
        with self._lock:
            return {name: series.last_frame_at for name, series in self._streams.items() if series.last_frame_at}

    def add_device(
        self, device: str, read_memory: Callable[[], tuple[int, int]], read_busy: Callable[[], float] | None
    ) -> None:
        """Shows an accelerator's memory and use, read at each scrape; without accelerators there are no such metrics.

        Args:
            device: its name, such as "cuda:0".
            read_memory: bytes in use and in total.
            read_busy: share of the time in which a kernel ran, 0 to 1; None where that is unknown.
        """
        self._device("memory_used_bytes", "Memory in use on the accelerator.", device, lambda: read_memory()[0])
        self._device("memory_total_bytes", "Memory of the accelerator.", device, lambda: read_memory()[1])
        if read_busy is not None:
            self._device("busy_ratio", "Share of the time in which a kernel ran.", device, read_busy)

    def _device(self, name: str, text: str, device: str, read: Callable[[], float]) -> None:
        if name not in self._devices:
            self._devices[name] = Gauge(f"streamdet_device_{name}", text, ["device"], registry=self.registry)
        self._devices[name].labels(device).set_function(read)

    def _count(
        self, stream: str, children: dict[str, Counter], key: str, parent: Counter, labels: tuple[str, ...]
    ) -> None:
        """Adds one to a child; a child for an unforeseen label joins the page only while its stream is there."""
        child = children.get(key)
        if child is None:
            with self._lock:
                if stream not in self._streams:
                    return
                child = children.setdefault(key, parent.labels(*labels))
        child.inc()


def _topics(stream: str) -> tuple[str, ...]:
    return tuple(wire.topic(kind, stream) for kind in wire.KINDS)


class _Declarations:
    """Declares metrics in a registry, each by its name without `streamdet_`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"streamdet_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(f"streamdet_{name}", text, labels, registry=self._registry)

    def histogram(self, name: str, text: str, buckets: Sequence[float], labels: Iterable[str] = ()) -> Histogram:
        return Histogram(f"streamdet_{name}", text, labels, buckets=buckets, registry=self._registry)


class DeliveryMetrics:
    """What is reported about subscribers: connections, replay, and the events that the spool keeps; from any thread.

    Args:
        registry: what the metrics page shows.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        declare = _Declarations(registry)
        self._connections = declare.gauge("subscriber_connections", "Connections that are open.", ["socket"])
        self._accepted = declare.counter("subscriber_accepted", "Connections that were accepted.", ["socket"])
        self._handshake_failures = declare.counter(
            "subscriber_handshake_failures",
            "Connections that had no allowed key, did not use ZeroMQ, or broke during the handshake.",
            ["socket", "reason"],
        )
        self._cuts = declare.counter(
            "subscriber_cuts",
            "Connections that were closed because their key was revoked, or because they sent far too much.",
            ["socket", "reason"],
        )
        self._subscriptions = declare.gauge("subscriber_subscriptions", "Different prefixes that are subscribed to.")
        self._replay_requests = declare.counter("replay_requests", "Requests for replay, by outcome.", ["outcome"])
        for outcome in ("done", "refused", "dropped"):
            self._replay_requests.labels(outcome)
        self._replay_bytes = declare.gauge("replay_used_bytes", "Size of the events kept in memory.")
        self._kept = declare.counter("spool_events_kept", "Events that were written to disk.")
        self._not_kept = declare.counter(
            "spool_events_not_kept", "Events that were not written to disk, by reason.", ["reason"]
        )
        for reason in NOT_KEPT_REASONS:
            self._not_kept.labels(reason)
        self._spool_bytes = declare.gauge("spool_used_bytes", "Size of the spool on disk.")

    def add_socket(self, name: str) -> None:
        """Makes the series of a socket, at zero."""
        self._connections.labels(name)
        self._accepted.labels(name)
        for reason in HANDSHAKE_FAILURES:
            self._handshake_failures.labels(name, reason)
        for reason in CUT_REASONS:
            self._cuts.labels(name, reason)

    def connections(self, name: str, count: int) -> None:
        """The number of connections that are open at this socket."""
        self._connections.labels(name).set(count)

    def connected(self, name: str) -> None:
        """A connection was accepted at this socket."""
        self._accepted.labels(name).inc()

    def handshake_failed(self, name: str, reason: str) -> None:
        """A connection to this socket came to nothing, for one of `HANDSHAKE_FAILURES`."""
        self._handshake_failures.labels(name, reason).inc()

    def cut(self, name: str, reason: str) -> None:
        """A connection to this socket was ended, for one of `CUT_REASONS`."""
        self._cuts.labels(name, reason).inc()

    def subscriptions(self, count: int) -> None:
        """The number of different prefixes that are subscribed to."""
        self._subscriptions.set(count)

    def replay_request(self, outcome: str) -> None:
        """A request was answered ("done"), "refused", or its answer "dropped" because the client does not take it."""
        self._replay_requests.labels(outcome).inc()

    def follow_replay(self, read_bytes: Callable[[], int]) -> None:
        """Shows the bytes that are kept in memory, read at each scrape."""
        self._replay_bytes.set_function(read_bytes)

    def kept(self, count: int) -> None:
        """Events were written to disk."""
        self._kept.inc(count)

    def not_kept(self, reason: str, count: int) -> None:
        """Events were not written to disk, for one of `NOT_KEPT_REASONS`."""
        self._not_kept.labels(reason).inc(count)

    def spool_used(self, used_bytes: int) -> None:
        """The bytes that the spool takes on disk."""
        self._spool_bytes.set(used_bytes)


class FileStoreMetrics:
    """What is reported about files that are kept, pictures or clips; from any thread.

    Args:
        registry: what the metrics page shows.
        what: "pictures" or "clips".
        reasons: why one may be lost.
    """

    def __init__(self, registry: CollectorRegistry, what: str, reasons: Sequence[str]) -> None:
        declare = _Declarations(registry)
        self._stored = declare.counter(f"{what}_stored", f"{what.capitalize()} that were written to disk.")
        self._dropped = declare.counter(
            f"{what}_dropped", f"{what.capitalize()} that were due and are not kept, by reason.", ["reason"]
        )
        for reason in reasons:
            self._dropped.labels(reason)
        self._used = declare.gauge(f"{what}_stored_bytes", f"Size of the {what} on disk.")

    def stored(self) -> None:
        """One was written to disk."""
        self._stored.inc()

    def dropped(self, reason: str, count: int = 1) -> None:
        """Some that were due are lost."""
        self._dropped.labels(reason).inc(count)

    def used(self, used_bytes: int) -> None:
        """The bytes that they take on disk."""
        self._used.set(used_bytes)


class ClipMetrics(FileStoreMetrics):
    """What is reported about clips, and the rings that they are cut from; from any thread.

    Args:
        registry: what the metrics page shows.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, "clips", CLIPS_DROPPED)
        declare = _Declarations(registry)
        self._shortened = declare.counter(
            "clips_shortened",
            "Clips whose beginning or end is missing: the stream was not up, changed its format, or the ring is small.",
            ["missing"],
        )
        for part in ("begin", "end"):
            self._shortened.labels(part)
        self._ring_bytes = declare.gauge("clip_ring_bytes", "Size of the encoded packets in memory, of all streams.")

    def shortened(self, missing: str) -> None:
        """The "begin" or the "end" of a clip is missing."""
        self._shortened.labels(missing).inc()

    def follow_rings(self, read_bytes: Callable[[], int]) -> None:
        """Shows the bytes in the rings, read at each scrape."""
        self._ring_bytes.set_function(read_bytes)


class _ShapeMetrics:
    """The series of every stream's zones and lines: there, at zero, from `set` on; gone after `remove`.

    Any thread may call; what is reported about a shape that is not there is ignored.

    Args:
        declare: declares them.
    """

    def __init__(self, declare: _Declarations) -> None:
        self._crossings = declare.counter(
            "line_crossings", "Objects that crossed a line.", ["stream", "line", "direction"]
        )
        of_zone = ["stream", "zone"]
        self._objects = declare.gauge("zone_objects", "Objects in a zone; 0 while the stream is not up.", of_zone)
        self._entries = declare.counter("zone_entries", "Times that an object entered a zone.", of_zone)
        self._loitering = declare.counter(
            "zone_loitering", "Visits to a zone that reached its loiter_seconds.", of_zone
        )
        self._dwell = declare.histogram(
            "zone_dwell_seconds",
            "Time that an object spent in a zone, all its visits together; observed when the object ends.",
            _DWELL_BUCKETS_SECONDS,
            of_zone,
        )
        self._lock = threading.Lock()
        self._zones: dict[str, dict[str, _ZoneSeries]] = {}
        self._lines: dict[str, dict[tuple[str, Direction], Counter]] = {}

    def set(self, stream: str, zones: Sequence[str], lines: Sequence[str]) -> None:
        """Makes these the shapes of a stream; those that it had already go on counting."""
        with self._lock:
            keys = [(line, direction) for line in lines for direction in _DIRECTIONS]
            for zone in self._zones.get(stream, {}).keys() - {*zones}:
                for metric in (self._objects, self._entries, self._loitering, self._dwell):
                    metric.remove(stream, zone)
            for key in self._lines.get(stream, {}).keys() - {*keys}:
                self._crossings.remove(stream, *key)
            self._zones[stream] = {zone: self._series_of(stream, zone) for zone in zones}
            self._lines[stream] = {key: self._crossings.labels(stream, *key) for key in keys}

    def remove(self, stream: str) -> None:
        """Forgets a stream."""
        self.set(stream, (), ())
        with self._lock:
            del self._zones[stream], self._lines[stream]

    def seen(self, stream: str, zone_counts: Mapping[str, int], crossings: Iterable[Crossing]) -> None:
        """The objects in each zone of a frame, and the lines that were crossed."""
        zones = self._zones.get(stream, {})
        for zone, count in zone_counts.items():
            if zone in zones:
                zones[zone].objects.set(count)
        lines = self._lines.get(stream, {})
        for crossing in crossings:
            counter = lines.get((crossing.line, crossing.direction))
            if counter is not None:
                counter.inc()

    def nothing_seen(self, stream: str) -> None:
        """The stream is not up: its zones must not go on showing the last objects."""
        for zone in self._zones.get(stream, {}).values():
            zone.objects.set(0)

    def changed(self, stream: str, changes: Iterable[ZoneChange]) -> None:
        """What an object has done in zones."""
        zones = self._zones.get(stream, {})
        for change in changes:
            zone = zones.get(change.zone)
            if zone is not None and change.change == "enter":
                zone.entries.inc()
            elif zone is not None and change.change == "loiter":
                zone.loitering.inc()

    def visited(self, stream: str, visits: Iterable[ZoneVisit]) -> None:
        """How long an object was in zones, at its end."""
        zones = self._zones.get(stream, {})
        for visit in visits:
            if visit.zone in zones:
                zones[visit.zone].dwell.observe(visit.seconds)

    def _series_of(self, stream: str, zone: str) -> _ZoneSeries:
        objects, entries = self._objects.labels(stream, zone), self._entries.labels(stream, zone)
        return _ZoneSeries(objects, entries, self._loitering.labels(stream, zone), self._dwell.labels(stream, zone))


class _ZoneSeries(NamedTuple):
    """The series of one zone."""

    objects: Gauge
    entries: Counter
    loitering: Counter
    dwell: Histogram


class _RuleMetrics:
    """The series of every rule and its streams: there, at zero, from `set` on; gone when `set` has them no more.

    Any thread may call; what is reported about a rule that is not there is ignored.

    Args:
        declare: declares them.
    """

    def __init__(self, declare: _Declarations) -> None:
        self._raised = declare.counter("alerts", "Alerts that were raised.", ["rule", "stream"])
        self._suppressed = declare.counter(
            "alerts_suppressed", "Alerts that were not raised because of the rule's cooldown.", ["rule", "stream"]
        )
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str], tuple[Counter, Counter]] = {}

    def set(self, rules: Iterable[tuple[str, str]]) -> None:
        """Makes these the rules, each with one of its streams; those that were there already go on counting."""
        keys = [*rules]
        with self._lock:
            for key in self._series.keys() - {*keys}:
                self._raised.remove(*key)
                self._suppressed.remove(*key)
            self._series = {key: (self._raised.labels(*key), self._suppressed.labels(*key)) for key in keys}

    def raised(self, rule: str, stream: str) -> None:
        """An alert was raised."""
        series = self._series.get((rule, stream))
        if series is not None:
            series[0].inc()

    def suppressed(self, rule: str, stream: str) -> None:
        """An alert was not raised because of the rule's cooldown."""
        series = self._series.get((rule, stream))
        if series is not None:
            series[1].inc()


class GateCounts(NamedTuple):
    """What the audit of a motion gate has found.

    Attributes:
        audited: frames that were detected although the gate would have held them back.
        missed: objects in them that no one knew of.
    """

    audited: int
    missed: int


class _GateMetrics:
    """The series of the motion gate of every stream that has had one; gone with the stream.

    Any thread may call; what is reported about a stream without a gate is ignored.

    Args:
        declare: declares them.
    """

    def __init__(self, declare: _Declarations) -> None:
        self._passed = declare.counter(
            "gate_passed", "Frames that the motion gate let through, by the reason.", ["stream", "reason"]
        )
        self._audited = declare.counter(
            "gate_audited", "Frames detected although the motion gate would have held them back.", ["stream"]
        )
        self._missed = declare.counter(
            "gate_missed", "Objects in audited frames that the motion gate would have missed.", ["stream"]
        )
        self._series: dict[str, dict[Pass, Counter]] = {}
        self._audits: dict[str, tuple[Counter, Counter]] = {}

    def add(self, stream: str) -> None:
        """Makes the series of a stream, at zero; those that are there go on counting."""
        if stream not in self._series:
            self._audits[stream] = self._audited.labels(stream), self._missed.labels(stream)
            self._series[stream] = {why: self._passed.labels(stream, why.value) for why in Pass}

    def remove(self, stream: str) -> None:
        """Removes the series of a stream."""
        if self._series.pop(stream, None) is None:
            return
        del self._audits[stream]
        for metric in (self._passed, self._audited, self._missed):
            metric.remove_by_labels({"stream": stream})

    def passed(self, stream: str, why: Pass) -> None:
        """A frame was let through."""
        series = self._series.get(stream)
        if series is not None:
            series[why].inc()

    def audited(self, stream: str) -> None:
        """A frame was detected to learn what is missed."""
        audits = self._audits.get(stream)
        if audits is not None:
            audits[0].inc()

    def missed(self, stream: str, objects: int) -> None:
        """Objects were found that no one knew of."""
        audits = self._audits.get(stream)
        if audits is not None:
            audits[1].inc(objects)

    def counts(self, stream: str) -> GateCounts | None:
        """What the audit has found; None where the stream has no gate."""
        if stream not in self._audits:
            return None
        return GateCounts(*(_value_of(metric, stream) for metric in (self._audited, self._missed)))


def _value_of(metric: Counter, stream: str) -> int:
    samples = [sample for family in metric.collect() for sample in family.samples]
    return sum(int(s.value) for s in samples if s.labels["stream"] == stream and s.name.endswith("_total"))


class _StreamSeries:
    """The series of one stream. Looking a child up by its labels for every frame would cost more than counting.

    Attributes:
        last_frame_at: Unix time in seconds of the newest frame; 0 before the first.
        state: what the stream is doing; None before it is known.
        reason: why it is not up; None while it is.
        connects: how often it came up after it had not been connected.
        decoder: "cpu" or the name of a device; None before it was connected.
        nominal_fps: frames per second at the beginning of the connection; 0 until they are measured.
        recent: latencies and alerts, for people.
    """

    __slots__ = (
        "connects",
        "decoder",
        "detections",
        "event_latency",
        "events",
        "last_frame_at",
        "nominal_fps",
        "objects",
        "objects_present",
        "previews",
        "reason",
        "recent",
        "reconnects",
        "state",
    )

    def __init__(self, event_latency: Histogram, previews: Counter, objects_present: Gauge) -> None:
        self.last_frame_at = 0.0
        self.state: State | None = None
        self.reason: Reason | None = None
        self.connects = 0
        self.decoder: str | None = None
        self.nominal_fps = 0.0
        self.event_latency = event_latency
        self.previews = previews
        self.objects_present = objects_present
        self.detections: dict[str, Counter] = {}
        self.objects: dict[str, Counter] = {}
        self.reconnects: dict[Reason, Counter] = {}
        self.events: dict[str, Counter] = {}
        self.recent = Recent()


class _Collector(Collector):
    """Reads counts, states and times from where they are kept, at each scrape, so that they cannot disagree."""

    def __init__(self, ledger: Ledger, streams: dict[str, _StreamSeries]) -> None:
        self._ledger = ledger
        self._streams = streams

    def describe(self) -> Iterator[Metric]:
        """The families without their samples; the registry asks for the names."""
        return self._families({}, {})

    def collect(self) -> Iterator[Metric]:
        """The families with a sample for every stream."""
        return self._families(self._ledger.snapshot(), dict(self._streams))

    @staticmethod
    def _families(ledgers: dict[str, StreamLedger], streams: dict[str, _StreamSeries]) -> Iterator[Metric]:
        captured = CounterMetricFamily("streamdet_frames_captured", "Frames received.", labels=["stream"])
        published = CounterMetricFamily("streamdet_frames_published", "Frames published.", labels=["stream"])
        in_flight = GaugeMetricFamily(
            "streamdet_frames_in_flight", "Frames neither published nor dropped yet.", labels=["stream"]
        )
        dropped = CounterMetricFamily(
            "streamdet_frames_dropped", "Frames captured and not published.", labels=["stream", "reason"]
        )
        for name, counts in ledgers.items():
            captured.add_metric([name], counts.captured)
            published.add_metric([name], counts.published)
            in_flight.add_metric([name], counts.in_flight)
            for drop, count in counts.dropped.items():
                dropped.add_metric([name, drop.value], count)
        state = GaugeMetricFamily(
            "streamdet_stream_state", "1 for the state that the stream is in.", labels=["stream", "state"]
        )
        last_frame = GaugeMetricFamily(
            "streamdet_stream_last_frame_timestamp_seconds",
            "Unix time of the newest frame; 0 before the first.",
            labels=["stream"],
        )
        reason = GaugeMetricFamily(
            "streamdet_stream_reason", "1 for the reason why the stream is not up.", labels=["stream", "reason"]
        )
        connects = CounterMetricFamily(
            "streamdet_stream_connects",
            "Times that the stream came up: connected, and its first frame decoded.",
            labels=["stream"],
        )
        nominal_fps = GaugeMetricFamily(
            "streamdet_stream_nominal_fps",
            "Frames per second, measured over the first 5 s of the connection; 0 until then.",
            labels=["stream"],
        )
        decoder = GaugeMetricFamily(
            "streamdet_stream_decoder",
            "1 for what decodes the stream: cpu, or the hwaccel that does.",
            labels=["stream", "decoder"],
        )
        for name, series in streams.items():
            current = series.state
            if series.decoder is not None:
                decoder.add_metric([name, series.decoder], 1.0)
            last_frame.add_metric([name], series.last_frame_at)
            nominal_fps.add_metric([name], series.nominal_fps)
            connects.add_metric([name], series.connects)
            if (why := series.reason) is not None:
                reason.add_metric([name, why.value], 1.0)
            for possible in State:
                state.add_metric([name, possible.value], float(possible is current))
        yield from (captured, published, in_flight, dropped, state, reason, last_frame, nominal_fps, connects, decoder)
        text = "Log lines that could not be written, or not in time."
        yield CounterMetricFamily("streamdet_log_lines_dropped", text, value=lost_lines())
