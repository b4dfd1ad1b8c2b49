"""Publishes events, and answers requests for replay: the only thread that uses the bound sockets.

Results and states come in by `put_detections` and `put_status`. `EventWriter` makes events from them, `Replay` keeps
them, `Sockets` sends them. `Previews` and `Pictures` encode in threads of their own, and an archive reads old events in
another; they ring the `Wakeup` of this thread when there is something to send.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from streamdet.config import PicturesConfig, PublisherConfig, ReplayConfig, RuleConfig, StreamConfig
from streamdet.delivery.clips import Clips
from streamdet.delivery.event_store import LeftBehind
from streamdet.delivery.events import EventWriter, FrameResult, Message
from streamdet.delivery.file_store import FileStore
from streamdet.delivery.history import History
from streamdet.delivery.pictures import Pictures
from streamdet.delivery.preview import Previews
from streamdet.delivery.replay import Archive, Replay, Ring
from streamdet.delivery.snapshots import Snapshots
from streamdet.delivery.sockets import OFF, SUBSCRIBE, Route, Sockets
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.opentelemetry import Tracer
from streamdet.types import (
    AlertEvent,
    Detection,
    Drop,
    EndReason,
    Frame,
    FrameInfo,
    ObjectEvent,
    Owner,
    SceneWatch,
    StreamStatus,
)
from streamdet.wire.replay import Answer, Refused, encode_answer, request_id
from streamdet.worker import Worker

MAX_PENDING = 256
"""Results that may wait to be published; then `put_detections` blocks."""

# At most this many of them keep their pixels for pictures of objects and alerts: a frame takes some megabytes.
_MAX_PENDING_PICTURES = 64
# An alert waits for the picture that it carries for at most this long.
_MAX_HELD_SECONDS = 0.5
# The event of an object or alert waits for the disk for at most this long; usually it takes 20 ms.
_MAX_UNSETTLED_SECONDS = 0.25
_MAX_WAIT_SECONDS = 1.0
_BATCH_PAUSE_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class _Removal:
    stream: str


@dataclass(frozen=True, slots=True)
class _Unsettled:
    """An event of an object or alert that is sent once it is on disk.

    Attributes:
        message: the message.
        settled: `Archive.settled` from which on it is on disk.
        until_monotonic_seconds: when it is sent in any case.
    """

    message: Message[Any]
    settled: int
    until_monotonic_seconds: float


@dataclass(frozen=True, slots=True)
class _Rules:
    rules: tuple[RuleConfig, ...]


@dataclass(frozen=True, slots=True)
class _Setting:
    config: StreamConfig
    owner: Owner | None


_Item = FrameResult | StreamStatus | _Setting | _Rules | _Removal | LeftBehind


@dataclass(slots=True)
class _Held:
    """A message that is sent later, because it or one before it on its topic waits for its picture.

    Attributes:
        message: the message.
        picture_id: of the picture that it carries; None if it waits for no picture.
        until_monotonic_seconds: when it is sent without its picture.
    """

    message: Message[Any]
    picture_id: str | None
    until_monotonic_seconds: float


class Publisher(Worker):
    """Sends the events of a daemon, and repeats state events for subscribers that come late.

    The endpoint is bound here, before anything else of the daemon starts. A stop first sends what is queued, then ends
    every object.

    Args:
        config: where to bind, and how much may wait for a slow subscriber.
        epoch: new at each start of the daemon.
        metrics: counts frames and events.
        on_error: called when the thread ends with an error.
        tracer: follows some of the frames.
        replay: where requests for replay come in, and how much is kept in memory; None for nowhere and nothing.
        archive: keeps events for longer than memory does.
        pictures: how pictures of objects and alerts are made.
        picture_store: keeps these pictures; None for no pictures.
        clips: keeps clips around alerts; None for no clips.
        history: reads events of objects and alerts back on request; None where none are kept on disk.
        gates: the motion gates of streams; None where no stream has one.

    Attributes:
        endpoint: the bound endpoint; with the real port where port 0 was configured.
        replay_endpoint: the same for requests; empty where they are not answered.
        snapshots: takes requests for pictures of the newest frames.

    Raises:
        EndpointError: the endpoint cannot be bound.
    """

    def __init__(
        self,
        config: PublisherConfig,
        epoch: str,
        metrics: Metrics,
        on_error: Callable[[Worker], None] | None = None,
        tracer: Tracer | None = None,
        replay: ReplayConfig | None = None,
        archive: Archive | None = None,
        *,
        pictures: PicturesConfig | None = None,
        picture_store: FileStore | None = None,
        clips: Clips | None = None,
        history: History | None = None,
        gates: SceneWatch | None = None,
    ) -> None:
        super().__init__("publisher", on_error)
        self._metrics = metrics
        self._tracer = tracer
        self._archive = archive
        self._changed = threading.Condition()
        self._pending: deque[_Item] = deque()
        self._sending: deque[_Item] = deque()
        self._removed: set[str] = set()
        self._closed = False
        self._sockets = Sockets(config, replay.endpoint if replay else OFF, metrics.delivery, on_error)
        self.endpoint, self.replay_endpoint = self._sockets.endpoint, self._sockets.replay_endpoint
        self._wakeup = self._sockets.wakeup
        pictures = pictures or PicturesConfig()
        self.snapshots = Snapshots(pictures.quality)
        self._previews = Previews(config, self._wakeup, metrics, on_error, self.snapshots)
        self._pictures: Pictures | None = None
        if picture_store is not None:
            self._pictures = Pictures(pictures, picture_store, metrics, on_error, self._wakeup.wake)
        self._held: dict[str, deque[_Held]] = {}  # by topic
        self._unsettled: deque[_Unsettled] = deque()
        self._writer = EventWriter(epoch, config.state_interval_seconds, metrics, self._pictures, clips, gates)
        self._replay: Replay | None = None
        if replay is not None and (replay.endpoint != OFF or archive is not None):
            ring = Ring(replay.max_events, replay.max_bytes)
            self._replay = Replay(epoch, ring, metrics.delivery, archive, self._wakeup, picture_store, clips, history)

    def put_detections(self, frame: Frame, detections: Sequence[Detection]) -> None:
        """Queues one frame's result; blocks while `MAX_PENDING` wait.

        Args:
            frame: its pixels are kept only where a picture of it may be made, until it is certain that none is.
            detections: what was found in it; may be empty.
        """
        picture = frame.picture
        info = FrameInfo(frame.seq, frame.pts_seconds, frame.captured_at, frame.clock, picture.width, picture.height)
        captured = frame.captured_monotonic_seconds
        is_preview_due = self._previews.is_due(frame.stream, captured)
        is_asked_for = self.snapshots.is_due(frame.stream, captured)
        # Whether this frame is the best view of an object, or raises an alert, is known only later.
        may_be_kept = self._pictures is not None and len(self._pending) < _MAX_PENDING_PICTURES
        is_kept = is_preview_due or is_asked_for or may_be_kept
        kept = picture if is_kept else None
        result = FrameResult(
            frame.stream, info, captured, tuple(detections), kept, is_preview_due, frame.packet_pts, is_asked_for,
            frame.gated_before, frame.is_audit,
        )  # fmt: skip
        with self._changed:
            while len(self._pending) >= MAX_PENDING and not self._closed:
                self._changed.wait()
            is_taken = not self._closed and frame.stream not in self._removed
            if is_taken:
                self._append(result)
        if not is_taken:
            self._metrics.frame_dropped(frame.stream, Drop.SHUTDOWN)

    def is_watched(self, stream: str) -> bool:
        """Whether someone looks at the stream's pictures now; may be called from any thread."""
        return self._previews.is_watched(stream) or self.snapshots.is_waiting(stream)

    def put_status(self, status: StreamStatus) -> None:
        """Queues a state event; never blocks, so under pressure only the newest state of a stream is kept."""
        with self._changed:
            if self._closed:
                return
            self._removed.discard(status.stream)
            if len(self._pending) >= MAX_PENDING:
                for older in self._pending:
                    if isinstance(older, StreamStatus) and older.stream == status.stream:
                        self._pending.remove(older)
                        break
            self._append(status)

    def set_stream(self, config: StreamConfig, owner: Owner | None = None) -> None:
        """Tracks a stream's objects, and applies its zones, lines and masks, from the next frame on; never blocks.

        Objects end if the stream is paused or its tracking changes. A stream that was never set is
        published as it was detected.

        Args:
            config: of the stream.
            owner: stands in its events; None where it belongs to no cluster.
        """
        with self._changed:
            if not self._closed:
                self._append(_Setting(config, owner))

    def set_rules(self, rules: Iterable[RuleConfig]) -> None:
        """Replaces the rules from the next frame on; never blocks.

        A rule of the same name keeps its alerts, and does not raise them again.
        """
        with self._changed:
            if not self._closed:
                self._append(_Rules(tuple(rules)))

    def remove_stream(self, stream: str) -> None:
        """Publishes what is queued for a stream, its end, then nothing until its next status.

        Does not wait.
        """
        with self._changed:
            self._removed.add(stream)
            if not self._closed:
                self._append(_Removal(stream))

    def run(self) -> None:
        """Sends until asked to stop and nothing is left."""
        try:
            with self._previews, self._pictures or nullcontext():
                if self._archive is not None:
                    self._archive.follow(self._wakeup.wake)
                    self._archive.fetch_left_behind(self._put_left_behind)
                while not self._drained():
                    self._wait()
                    self._take_subscriptions()
                    self._answer_requests()
                    self._send_pending()
                    self._send_previews()
                    self._repeat_states()
                    self._send_all(self._writer.stand_still())
                    self._send_all(self._writer.end_silent())
                    self._send_settled()
                    self._send_held()
                    self.beat()
                self._send_all(self._writer.end_all(EndReason.STOPPING))
                while self._unsettled:
                    self._sockets.wait(max(self._unsettled[0].until_monotonic_seconds - time.monotonic(), 0.0))
                    self._send_settled()
                self._send_held(at_once=True)
        finally:
            self.close()

    def wake(self) -> None:
        """Ends the wait of `run`."""
        self._wakeup.wake()

    def close(self) -> None:
        """Frees the endpoint of a publisher that was never started; a running one does it itself at its end."""
        if self.is_alive() and threading.current_thread() is not self._thread:
            return
        with self._changed:
            self._closed = True
            left = [*self._sending, *self._pending]
            self._sending, self._pending = deque(), deque()
            self._changed.notify_all()
        for item in left:
            if isinstance(item, FrameResult):
                self._metrics.frame_dropped(item.stream, Drop.SHUTDOWN)
        self._sockets.close()

    def _put_left_behind(self, left_behind: LeftBehind) -> None:
        """Queues what the archive has found; called in the archive's thread."""
        with self._changed:
            if not self._closed:
                self._append(left_behind)

    def _append(self, item: _Item) -> None:
        self._pending.append(item)
        # Waking costs two system calls; a thread that has something to send does not wait.
        if len(self._pending) == 1:
            self._wakeup.wake()

    def _drained(self) -> bool:
        with self._changed:
            # What comes from now on is refused: otherwise those who never pause could keep the thread from its end.
            self._closed = self.stopping
            return self._closed and not self._pending

    def _wait(self) -> None:
        now = time.monotonic()
        held_until = min((held[0].until_monotonic_seconds for held in self._held.values()), default=math.inf)
        unsettled_until = self._unsettled[0].until_monotonic_seconds if self._unsettled else math.inf
        seconds = max(min(self._writer.due(now + _MAX_WAIT_SECONDS), held_until, unsettled_until) - now, 0.0)
        is_over = self.stopping and not self._unsettled
        self._sockets.wait(0 if is_over or self._pending else seconds)

    def _take_subscriptions(self) -> None:
        for message in self._sockets.subscriptions():
            try:
                self._previews.subscription(message)
                if message[:1] == SUBSCRIBE:
                    self._writer.subscribed(message[1:])
            except Exception as error:  # noqa: BLE001 - whatever it is: there are other subscribers
                self._metrics.unexpected.report("subscription", error, "a subscription is not answered")

    def _answer_requests(self) -> None:
        if self._replay is None:
            return
        for route, payload in self._sockets.requests():
            answer: Answer | None
            try:
                answer = self._replay.answer(route, payload)
            except Exception as error:  # noqa: BLE001 - whatever it is: it is that request's answer
                self._metrics.unexpected.report("replay", error, "a request for replay is refused")
                answer = Refused(request_id(payload), "failed", "an unexpected error; see the log")
            if answer is not None:
                self._send_answer(route, answer)
        for route, answer in self._replay.archived():
            self._send_answer(route, answer)

    def _send_answer(self, route: Route, answer: Answer) -> None:
        self._metrics.delivery.replay_request("refused" if isinstance(answer, Refused) else "done")
        if not self._sockets.answer(route, encode_answer(answer)):
            self._metrics.delivery.replay_request("dropped")

    def _send_pending(self) -> None:
        if self._pending and not self.stopping:
            # The rest of the batch is about to come: waking for each of its frames would cost more than sending them.
            time.sleep(_BATCH_PAUSE_SECONDS)
        # All at once: taking the lock for each would cost as much as sending.
        with self._changed:
            self._sending, self._pending = self._pending, deque()
            self._changed.notify_all()
        while self._sending:
            item = self._sending.popleft()
            if isinstance(item, FrameResult):
                self._send_detections(item)
            elif isinstance(item, StreamStatus):
                self._send(self._writer.state(item))
            elif isinstance(item, _Setting):
                self._send_all(self._writer.set_stream(item.config, item.owner))
            elif isinstance(item, _Rules):
                self._send_all(self._writer.set_rules(item.rules))
            elif isinstance(item, _Removal):
                self._remove(item.stream)
            else:
                self._take_over(item)

    def _send_detections(self, result: FrameResult) -> None:
        stream = result.stream
        trace = self._tracer.take(stream, result.frame.seq) if self._tracer else None
        events = self._writer.detections(result, trace.trace_id if trace else None)
        message = events.message
        if message is None:
            self._metrics.frame_dropped(stream, Drop.INTERNAL_ERROR)
            self._send_all(events.occurrences)
            return
        self._send(message)
        self._send_all(events.occurrences)
        event = message.event
        latency_seconds = time.monotonic() - result.captured_monotonic_seconds
        self._metrics.frame_published(stream, latency_seconds, [found.label for found in event.detections])
        if trace is not None and self._tracer is not None:
            self._tracer.published(trace, event.seq, len(event.detections))
        if result.is_preview_due and result.picture is not None and events.hidden is not None:
            self._previews.offer(event, result.picture, events.hidden)
        if result.is_asked_for and result.picture is not None and events.hidden is not None:
            self._previews.offer_asked_for(event, result.picture, events.hidden)

    def _send_previews(self) -> None:
        for preview in self._previews.take():
            if preview.event.stream not in self._removed:
                self._send(self._writer.preview(preview))

    def _repeat_states(self) -> None:
        self._send_all(self._writer.due_states())

    def _take_over(self, left_behind: LeftBehind) -> None:
        """Ends the objects and alerts that an earlier epoch could not end."""
        for message in self._writer.take_over(left_behind):
            self._send(message)
            if not self._writer.is_set(message.event.stream):
                self._forget(message.event.stream)

    def _send_all(self, messages: Iterable[Message[Any]]) -> None:
        for message in messages:
            self._send(message)

    def _send(self, message: Message[Any] | None) -> None:
        if message is None:
            return
        # Kept first: a client that gets an event can ask for those before it.
        settled = 0
        if self._replay is not None and message.is_kept:
            try:
                settled = self._replay.add(message.topic, message.event.seq, message.parts[1])
            except Exception as error:  # noqa: BLE001 - whatever it is: the event is to be sent
                self._metrics.unexpected.report("replay", error, f"an event of {message.topic} is not kept")
        if self._archive is not None and isinstance(message.event, ObjectEvent | AlertEvent):
            self._unsettled.append(_Unsettled(message, settled, time.monotonic() + _MAX_UNSETTLED_SECONDS))
        else:
            self._send_or_hold(message)

    def _send_settled(self) -> None:
        """Sends the events of objects and alerts that are on disk.

        A subscriber must not get an end that is lost at a kill: the next start would end the object again.
        """
        if self._archive is None:
            return
        settled, now = self._archive.settled, time.monotonic()
        while self._unsettled:
            first = self._unsettled[0]
            if first.settled > settled and first.until_monotonic_seconds > now:
                return
            self._unsettled.popleft()
            self._send_or_hold(first.message)

    def _send_or_hold(self, message: Message[Any]) -> None:
        picture_id = self._picture_to_come(message.event)
        held = self._held.get(message.topic)
        if held is not None or picture_id is not None:
            until = time.monotonic() + _MAX_HELD_SECONDS
            self._held.setdefault(message.topic, deque()).append(_Held(message, picture_id, until))
        else:
            self._send_now(message)

    def _send_now(self, message: Message[Any]) -> None:
        self._sockets.send(message.parts)
        self._metrics.event_published(message.topic)

    def _picture_to_come(self, event: object) -> str | None:
        """The id of the picture that an alert carries and that is still being encoded."""
        if self._pictures is None or not self._pictures.in_events:
            return None
        if not isinstance(event, AlertEvent) or event.phase != "raised" or event.picture is None:
            return None
        return event.picture.picture_id

    def _send_held(self, *, at_once: bool = False) -> None:
        """Sends the messages whose pictures have come, or have taken too long."""
        if self._pictures is None:
            return
        now = time.monotonic()
        for topic, held in list(self._held.items()):
            for one in held:
                parts = None if one.picture_id is None else self._pictures.take(one.picture_id)
                if parts is not None:
                    one.message.parts.extend(parts)
                    one.picture_id = None
            while held and (held[0].picture_id is None or held[0].until_monotonic_seconds <= now or at_once):
                self._send_now(held.popleft().message)
            if not held:
                del self._held[topic]

    def _remove(self, stream: str) -> None:
        self._send_all(self._writer.end(stream, EndReason.REMOVED))
        self._send(self._writer.removed(stream))
        self._forget(stream)

    def _forget(self, stream: str) -> None:
        forgotten = self._writer.remove_stream(stream)
        self._previews.remove_stream(stream)
        self.snapshots.remove_stream(stream)
        if self._replay is not None:
            self._replay.remove_stream(stream)
        if forgotten is None:
            return
        if self._replay is not None:
            self._replay.forget_numbers(forgotten)
        with self._changed:
            # It may have been added and removed again meanwhile.
            if _Removal(forgotten) not in (*self._sending, *self._pending):
                self._removed.discard(forgotten)
