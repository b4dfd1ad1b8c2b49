"""The state of the page: each stream's state, its detections, and lost events. One thread writes, another reads."""

from __future__ import annotations

import secrets
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import orjson

from streamdet.client.subscription import Gap
from streamdet.types import (
    AlertEvent,
    Detection,
    DetectionEvent,
    Geometry,
    ObjectEvent,
    PreviewEvent,
    Reason,
    Shape,
    State,
    StateEvent,
)
from streamdet.web.journal import Filter, Journal
from streamdet.web.occurrences import Occurrences

HISTORY_SAMPLES = 90
_WINDOW_SECONDS = 5.0
_MAX_MARKS = 16
# A second of a very fast stream; the median of these is as good as that of all.
_MAX_LATENCIES = 120
# After a silence of this many times the usual distance between two events, the stream counts as silent.
_SILENCE_INTERVALS = 3.0
_SHORTEST_QUIET_SECONDS = 2.0


class Sample(NamedTuple):
    """The values of one second; rates are means over about five, so that those of slow streams do not jump.

    Attributes:
        fps_in: frames captured per second, by their numbers and times of capture.
        fps_out: events published per second, by theirs.
        latency_seconds: median from capture to publication; None without events.
        latency_p95_seconds: what 95 of 100 events did not exceed; None without events.
    """

    fps_in: float
    fps_out: float
    latency_seconds: float | None
    latency_p95_seconds: float | None


class _Mark(NamedTuple):
    """The last event of a second in which one came; `came_at` is monotonic, the others are Unix times."""

    came_at: float
    captured_at: float
    frame_seq: int
    published_at: float
    event_seq: int


class EventRates:
    """Counts the events of one stream.

    Attributes:
        samples: the newest last.
    """

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=HISTORY_SAMPLES)
        self._marks: deque[_Mark] = deque(maxlen=_MAX_MARKS)
        self._newest: _Mark | None = None
        self._latencies: list[float] = []
        self._epoch = ""

    def note(self, event: DetectionEvent, now: float) -> None:
        """Counts an event that came at this monotonic time in seconds."""
        frame = event.frame
        mark = _Mark(now, frame.captured_at, frame.seq, event.published_at, event.seq)
        if event.epoch != self._epoch or not self._marks:
            # Nothing to compare with: this event is where counting begins.
            self._epoch = event.epoch
            self._marks.clear()
            self._marks.append(mark)
        self._newest = mark
        if len(self._latencies) < _MAX_LATENCIES:
            self._latencies.append(event.published_at - frame.captured_at)

    def tick(self, now: float) -> Sample:
        """Closes the second that ends at this monotonic time; called about once a second."""
        if self._newest is not None:
            self._marks.append(self._newest)
            self._newest = None
        while len(self._marks) > 2 and now - self._marks[1].came_at >= _WINDOW_SECONDS:
            self._marks.popleft()
        fps_in, fps_out = self._rates(now)
        latencies, self._latencies = sorted(self._latencies), []
        sample = Sample(
            fps_in=fps_in,
            fps_out=fps_out,
            latency_seconds=statistics.median(latencies) if latencies else None,
            latency_p95_seconds=latencies[int(len(latencies) * 0.95)] if latencies else None,
        )
        self.samples.append(sample)
        return sample

    def newest_latency(self) -> tuple[float | None, float | None]:
        """Median and 95 of 100 of the newest second that had events; None for a stream that is silent."""
        for sample in reversed(self.samples):
            if sample.fps_out == 0:
                break
            if sample.latency_seconds is not None:
                return sample.latency_seconds, sample.latency_p95_seconds
        return None, None

    def _rates(self, now: float) -> tuple[float, float]:
        if len(self._marks) < 2:
            return 0.0, 0.0
        first, last = self._marks[0], self._marks[-1]
        captured_seconds = last.captured_at - first.captured_at
        published_seconds = last.published_at - first.published_at
        events = last.event_seq - first.event_seq
        if captured_seconds <= 0 or published_seconds <= 0 or events <= 0:
            return 0.0, 0.0
        silence = max(_SILENCE_INTERVALS * published_seconds / events, _SHORTEST_QUIET_SECONDS)
        if now - last.came_at > silence:
            # Counting begins again with the next event, or the silence would count as slowness.
            self._marks.clear()
            return 0.0, 0.0
        frames = max(last.frame_seq - first.frame_seq, 0)
        return frames / captured_seconds, events / published_seconds


# A stream that left the configuration is silent: its states, which come at an interval of their own, stay away.
_MISSED_STATES = 3
_SHORTEST_SILENCE_SECONDS = 20.0
_HEARD_LATELY_SECONDS = 3.0
_MAX_STREAMS = 2000
# A daemon that was started again reports the states of all its streams at once.
_NEW_EPOCH_SECONDS = 3.0


@dataclass(slots=True)
class StreamNow:
    """What is known of one stream now; times are monotonic seconds, but for `not_up_since`, Unix time as in events.

    Attributes:
        listed: the state that the list showed last.
        taken_at: when the newest frame was captured, as far as can be known here; None before the first one.
        epoch: of the newest event.
        not_up_since: when it stopped to be up, or was tried for the first time; None while it is up.
    """

    state: StateEvent | None = None
    listed: StateEvent | None = None
    not_up_since: float | None = None
    rates: EventRates = field(default_factory=EventRates)
    newest: DetectionEvent | None = None
    fullest: DetectionEvent | None = None
    lost: int = 0
    taken_at: float | None = None
    epoch: str = ""
    heard_at: float = 0.0
    state_heard_at: float = 0.0
    state_interval_seconds: float | None = None


class Board:
    """Receives events, and returns JSON.

    Attributes:
        instance: new for each board, so that a browser notices that it talks to another one.
        revision: grows with everything that a browser should show at once, and every second.
        endpoint: where the events come from.
        occurrences: objects and alerts of late.
    """

    def __init__(self, endpoint: str) -> None:
        self.instance = secrets.token_hex(8)
        self.endpoint = endpoint
        self.revision = 1
        self._lock = threading.Lock()
        self._streams: dict[str, StreamNow] = {}
        self._journal = Journal()
        self.occurrences = Occurrences()
        self._ticks = 0
        self._epoch = ""
        self._epoch_at = 0.0
        # Monotonic seconds since when there is no connection; None while there is one.
        self._disconnected_at: float | None = time.monotonic()
        self._connected_at = time.monotonic()
        self._heard_at = 0.0
        self._has_none = False
        self._overviews: dict[int, bytes] = {}

    def connected(self, *, yes: bool) -> None:
        """The connection to the daemon was made, or is gone."""
        with self._lock:
            if yes != (self._disconnected_at is None):
                self._has_none = False
                self._disconnected_at = None if yes else time.monotonic()
                self._connected_at = time.monotonic()
                if self._epoch:
                    self._journal.note("connected" if yes else "disconnected", "", time.time())
                self._revise()

    def note(self, event: DetectionEvent | StateEvent | ObjectEvent | AlertEvent | Gap, now: float) -> None:
        """An event came at this monotonic time in seconds."""
        with self._lock:
            self._heard_at = now
            stream = self._streams.get(event.stream)
            if stream is not None:
                stream.heard_at = now
            if isinstance(event, Gap):
                self._note_gap(stream, event)
                return
            self._note_origin(event, now)
            if isinstance(event, ObjectEvent | AlertEvent):
                # The ends of objects may come after the stream was removed.
                self._note_occurrence(event)
            elif isinstance(event, StateEvent) and event.reason is Reason.REMOVED:
                self._note_removed(event)
            elif stream is not None or len(self._streams) < _MAX_STREAMS:
                self._note_stream(stream or self._new_stream(event.stream), event, now)

    def is_of_owner(self, event: PreviewEvent) -> bool:  # noqa: ARG002 - a cluster looks at it
        """Whether a picture is from who owns its stream, as those of one daemon are."""
        return True

    @property
    def is_bare(self) -> bool:
        """Whether there is a connection, but no stream has been heard of."""
        with self._lock:
            return self._disconnected_at is None and not self._streams

    def note_none(self) -> None:
        """The daemon has said that it has no streams: to have heard of none does not mean so much."""
        with self._lock:
            if not self._streams and not self._has_none:
                self._has_none = True
                self._revise()

    def tick(self, now: float) -> None:
        """Called at the end of each second."""
        with self._lock:
            self._ticks += 1
            for name, stream in list(self._streams.items()):
                if self._is_gone(name, stream, now):
                    self._forget(name, time.time())
                    continue
                stream.rates.tick(now)
                if stream.fullest is not None:
                    self._journal.saw(stream.fullest)
                    stream.fullest = None
            self._revise()

    def overview(self, sample: int) -> bytes:
        """Every stream's row, as JSON; encoded once for all browsers with the same position.

        Args:
            sample: number of the newest second that the browser knows; only later ones are sent.
        """
        with self._lock:
            # More is not kept; and so many answers at most are kept for browsers in different places.
            behind = min(max(self._ticks - sample, 0), HISTORY_SAMPLES)
            if behind not in self._overviews:
                self._overviews[behind] = orjson.dumps(self._overview(behind))
            return self._overviews[behind]

    def events(self, after: int, wanted: Filter, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """The number of the newest entry of the list, and the newest entries that match."""
        with self._lock:
            return self._journal.last_id, self._journal.select(after, wanted, limit)

    def geometry(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """Zones, lines and masks of streams, or of all, by name; only of those that have some."""
        with self._lock:
            wanted = self._streams if names is None else names
            known = {name: self._streams[name].state for name in wanted if name in self._streams}
            return {name: _geometry(state.geometry) for name, state in known.items() if state and state.geometry}

    def detail(self, name: str) -> dict[str, Any] | None:
        """Details about one stream, for its detail page; None if it is not known."""
        with self._lock:
            stream = self._streams.get(name)
            if stream is None:
                return None
            newest = stream.newest
            return {
                "stream": name,
                "epoch": self._epoch,
                "seq": newest.seq if newest else None,
                "frame": _frame(newest) if newest else None,
                "detections": [detection_fields(found) for found in newest.detections] if newest else [],
                "geometry": _geometry(stream.state.geometry if stream.state else None),
            }

    def _new_stream(self, name: str) -> StreamNow:
        stream = self._streams[name] = StreamNow()
        self._has_none = False
        self._revise()
        return stream

    def _forget(self, name: str, at: float) -> None:
        """A stream is no longer one of the daemon's, since this Unix time; what happened on it stays in the list."""
        if self._streams.pop(name, None) is not None:
            self._journal.forget(name)
            self._journal.note("gone", name, at)
            self._revise()

    def note_late(self, event: ObjectEvent | AlertEvent) -> None:
        """An object or alert of a node before, which has come after a stream has moved to another node."""
        with self._lock:
            self._note_occurrence(event)

    def _note_occurrence(self, event: ObjectEvent | AlertEvent) -> None:
        if self._journal.occurred(event) | self.occurrences.note(event):
            self._revise()

    def _note_stream(self, stream: StreamNow, event: DetectionEvent | StateEvent, now: float) -> None:
        stream.heard_at, stream.epoch = now, event.epoch
        if isinstance(event, StateEvent):
            self._note_state(stream, event, now)
        else:
            self._note_detections(stream, event, now)

    def _note_gap(self, stream: StreamNow | None, gap: Gap) -> None:
        if stream is not None:
            stream.lost += gap.count
        self._journal.note("gap", gap.stream, time.time(), topic=gap.topic, count=gap.count)

    def _note_origin(self, event: DetectionEvent | StateEvent | ObjectEvent | AlertEvent, now: float) -> None:
        """Notes which run of the daemon an event is from."""
        if event.epoch != self._epoch:
            if self._epoch:
                self._journal.note("restart", "", event.published_at, epoch=event.epoch)
            self._epoch, self._epoch_at = event.epoch, now
            self._revise()

    def _note_removed(self, event: StateEvent) -> None:
        """The daemon no longer watches a stream."""
        self._forget(event.stream, event.since)

    def _note_state(self, stream: StreamNow, event: StateEvent, now: float) -> None:
        before, stream.state = stream.state, event
        if before is not None and before.since == event.since and stream.state_heard_at:
            # A repetition: how far apart these are shows when one is missing.
            stream.state_interval_seconds = max(now - stream.state_heard_at, stream.state_interval_seconds or 0.0)
        stream.state_heard_at = now
        if event.state is State.UP:
            stream.not_up_since = None
        elif stream.not_up_since is None or (event.state is State.CONNECTING and event.reason is None):
            stream.not_up_since = event.since
        if before is None or _said(before) != _said(event):
            self._tell_state(stream, event)
            self._revise()

    def _tell_state(self, stream: StreamNow, event: StateEvent) -> None:
        """Adds a state to the list, except attempts with the same result as the one before, which go on without end."""
        is_retry = event.state is State.CONNECTING and event.reason is not None
        if is_retry or (stream.listed is not None and _said(stream.listed) == _said(event)):
            return
        stream.listed = event
        reason = event.reason.value if event.reason else None
        self._journal.note(
            "state", event.stream, event.since, state=event.state.value, reason=reason, detail=event.detail
        )

    def _note_detections(self, stream: StreamNow, event: DetectionEvent, now: float) -> None:
        stream.rates.note(event, now)
        stream.newest = event
        stream.taken_at = taken_at(event, now)
        if stream.fullest is None or len(event.detections) >= len(stream.fullest.detections):
            stream.fullest = event
        for crossing in event.crossings:
            self._journal.crossed(crossing, event.stream, event.published_at)

    def _is_gone(self, name: str, stream: StreamNow, now: float) -> bool:  # noqa: ARG002 - a cluster goes by the name
        """Whether only a daemon before this one had it; or others are heard, and it has missed too many states."""
        if stream.epoch != self._epoch and now - self._epoch_at >= _NEW_EPOCH_SECONDS:
            return True
        # One that was removed before its second state is judged by the interval of the others.
        intervals = [other.state_interval_seconds or 0.0 for other in self._streams.values()]
        interval_seconds = stream.state_interval_seconds or max(intervals)
        if not interval_seconds or now - self._heard_at > _HEARD_LATELY_SECONDS:
            return False
        return now - stream.heard_at > max(_MISSED_STATES * interval_seconds, _SHORTEST_SILENCE_SECONDS)

    def _revise(self) -> None:
        self.revision += 1
        self._overviews.clear()

    def _longest_silence(self) -> float:
        """For how many seconds a daemon may send nothing: all its streams repeat their states."""
        intervals = [stream.state_interval_seconds or 0.0 for stream in self._streams.values()]
        return max(_MISSED_STATES * min(intervals, default=0.0), _SHORTEST_SILENCE_SECONDS)

    def _overview(self, behind: int) -> dict[str, Any]:
        now = time.monotonic()
        quiet_seconds = now - max(self._heard_at, self._connected_at)
        return {
            "endpoint": self.endpoint,
            "clock": now,
            "disconnected_seconds": None if self._disconnected_at is None else round(now - self._disconnected_at, 1),
            "quiet_seconds": round(quiet_seconds, 1),
            "is_silent": bool(self._streams) and quiet_seconds > self._longest_silence(),
            "has_none": self._has_none,
            "epoch": self._epoch,
            "sample": self._ticks,
            "streams": self._rows(behind, now),
            "cluster": self._cluster(now),
        }

    def _rows(self, behind: int, now: float) -> list[dict[str, Any]]:
        return [row_of(name, stream, behind, now) for name, stream in sorted(self._streams.items())]

    def _cluster(self, now: float) -> dict[str, Any] | None:  # noqa: ARG002 - a cluster says how old it is
        """What is known of the nodes of a cluster; None for one daemon."""
        return None


def _said(event: StateEvent) -> tuple[State, Reason | None, str]:
    return event.state, event.reason, event.detail


def detection_fields(found: Detection) -> dict[str, Any]:
    """A detection as the page reads it."""
    return {
        "label": found.label,
        "score": found.score,
        "box": found.box,
        "track_id": found.track_id,
        "zones": found.zones,
    }


def taken_at(event: DetectionEvent | PreviewEvent, now: float) -> float:
    """Monotonic seconds at which an event's frame was captured.

    The event came at `now`; how old the frame was when it was sent is known where both times are the daemon's.
    """
    latency = event.published_at - event.frame.captured_at if event.frame.clock == "daemon" else 0.0
    return now - max(latency, 0.0)


def row_of(name: str, stream: StreamNow, behind: int, now: float) -> dict[str, Any]:
    """What the page shows of a stream, with the samples of the last seconds."""
    state, newest, samples = stream.state, stream.newest, stream.rates.samples
    last = samples[-1] if samples else Sample(0.0, 0.0, None, None)
    latency, latency_p95 = stream.rates.newest_latency()
    labels = Counter(found.label for found in newest.detections) if newest else Counter[str]()
    return {
        "name": name,
        "is_heard": True,
        # Detections without a state: it is up, and its state is on its way.
        "state": state.state.value if state else "up" if newest else "connecting",
        "reason": state.reason.value if state and state.reason else None,
        "detail": state.detail if state else "",
        "since": stream.not_up_since or (state.since if state else None),
        "fps_in": round(last.fps_in, 2),
        "fps_out": round(last.fps_out, 2),
        "latency_ms": _milliseconds(latency),
        "latency_p95_ms": _milliseconds(latency_p95),
        "age_seconds": None if stream.taken_at is None else round(now - stream.taken_at, 2),
        "clock": newest.frame.clock if newest else "daemon",
        "size": [newest.frame.width, newest.frame.height] if newest else None,
        "labels": labels,
        "lost": stream.lost,
        "samples": [
            [round(s.fps_in, 1), round(s.fps_out, 1), _milliseconds(s.latency_seconds)]
            for s in islice(samples, max(len(samples) - behind, 0), None)
        ],
    }


def _frame(event: DetectionEvent) -> dict[str, Any]:
    frame = event.frame
    return {
        "seq": frame.seq,
        "captured_at": frame.captured_at,
        "width": frame.width,
        "height": frame.height,
    }


def _geometry(geometry: Geometry | None) -> dict[str, Any] | None:
    if geometry is None:
        return None
    return {"zones": _shapes(geometry.zones), "lines": _shapes(geometry.lines), "masks": _shapes(geometry.masks)}


def _shapes(shapes: tuple[Shape, ...]) -> list[dict[str, Any]]:
    return [{"name": shape.name, "points": shape.points} for shape in shapes]


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
