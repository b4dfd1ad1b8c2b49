"""Hands events to ZeroMQ, and answers who has lost some: the only thread that owns bound sockets."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from streamdet.config import PublisherConfig, ReplayConfig, StreamConfig
from streamdet.delivery.events import EventWriter, FrameResult
from streamdet.delivery.preview import Preview, Previews
from streamdet.delivery.replay import Archive, Replay, Ring
from streamdet.delivery.sockets import OFF, Route, Sockets
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.opentelemetry import Tracer
from streamdet.types import Detection, Drop, Frame, FrameInfo, StreamStatus
from streamdet.wire.replay import Refused, encode_answer, request_id
from streamdet.worker import Worker

MAX_PENDING = 256
"""Results that may wait to be published; then `put_detections` blocks."""

_MAX_PENDING_FOR_PREVIEWS = 64
_MAX_PENDING_FOR_ANSWERS = 128
_MAX_WAIT_SECONDS = 1.0
_BATCH_PAUSE_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class _Forget:
    stream: str


@dataclass(frozen=True, slots=True)
class _Answer:
    route: Route
    parts: list[bytes]


_Item = FrameResult | StreamStatus | StreamConfig | _Forget | Preview | _Answer


class Publisher(Worker):
    """Numbers, encodes and sends events; repeats state events for those who subscribe late.

    The endpoint is bound here, before anything else of the daemon starts. A stop first sends what is queued.

    Args:
        config: where to bind, and how much may wait for a slow subscriber.
        epoch: new at each start of the daemon.
        metrics: counts frames and events.
        on_error: told when the thread ends with an error.
        tracer: follows some of the frames.
        replay: where requests for replay come in, and how much is kept for them; None for nowhere and nothing.
        archive: what keeps more than that.

    Attributes:
        endpoint: what is bound; with the real port where port 0 was asked for.
        replay_endpoint: the same for requests; empty where they are not answered.

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
    ) -> None:
        super().__init__("publisher", on_error)
        self._metrics = metrics
        self._changed = threading.Condition()
        self._pending: deque[_Item] = deque()
        self._sending: deque[_Item] = deque()
        self._previews = Previews(config, self._put_preview, metrics, on_error)
        self._forgotten: set[str] = set()
        self._closed = False
        interval_seconds = config.state_interval_seconds
        self._outgoing = EventWriter(epoch, interval_seconds, metrics, self._send, self._previews.offer, tracer)
        self._replay: Replay | None = None
        if replay is not None and (replay.endpoint != OFF or archive is not None):
            ring = Ring(replay.max_events, replay.max_bytes)
            self._replay = Replay(epoch, ring, metrics.delivery, archive)
        self._sockets = Sockets(config, replay.endpoint if replay else OFF, metrics.delivery, on_error)
        self.endpoint, self.replay_endpoint = self._sockets.endpoint, self._sockets.replay_endpoint

    def put_detections(self, frame: Frame, detections: Sequence[Detection]) -> None:
        """Queues one frame's result; blocks while `MAX_PENDING` wait.

        Args:
            frame: its pixels are kept only where a preview is due, until that is made.
            detections: what was found in it; may be empty.
        """
        picture = frame.picture
        info = FrameInfo(frame.seq, frame.pts_seconds, frame.captured_at, frame.clock, picture.width, picture.height)
        captured = frame.captured_monotonic_seconds
        kept = picture if self._previews.is_due(frame.stream, captured) else None
        found = FrameResult(frame.stream, info, captured, tuple(detections), kept)
        with self._changed:
            while len(self._pending) >= MAX_PENDING and not self._closed:
                self._changed.wait()
            wanted = not self._closed and frame.stream not in self._forgotten
            if wanted:
                self._append(found)
        if not wanted:
            self._metrics.frame_dropped(frame.stream, Drop.SHUTDOWN)

    def put_status(self, status: StreamStatus) -> None:
        """Queues a state event; never blocks, so under pressure only the newest state of a stream is kept."""
        with self._changed:
            if self._closed:
                return
            self._forgotten.discard(status.stream)
            if len(self._pending) >= MAX_PENDING:
                for older in self._pending:
                    if isinstance(older, StreamStatus) and older.stream == status.stream:
                        self._pending.remove(older)
                        break
            self._append(status)

    def set_stream(self, config: StreamConfig) -> None:
        """Has a stream's objects tracked, and its zones, lines and masks applied, from the next frame on; never blocks.

        A stream without rules is published as it was detected.
        """
        with self._changed:
            if not self._closed:
                self._append(config)

    def remove_stream(self, stream: str) -> None:
        """Publishes what is queued for a stream, then nothing more until its next status; does not wait."""
        with self._changed:
            self._forgotten.add(stream)
            if not self._closed:
                self._append(_Forget(stream))

    def wake(self) -> None:
        """Ends the wait of `run`."""
        with self._changed:
            self._ring()

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

    def run(self) -> None:
        """Sends until asked to stop and nothing is left."""
        try:
            with self._previews:
                while not self._drained():
                    self._wait()
                    self._answer_subscriptions()
                    self._answer_requests()
                    self._send_pending()
                    self._outgoing.repeat_states()
                    self.beat()
        finally:
            self.close()

    def _put_preview(self, preview: Preview) -> None:
        """Queues a picture; it is left out where events wait already, for they come first."""
        with self._changed:
            stream = preview.event.stream
            if not self._closed and stream not in self._forgotten and len(self._pending) < _MAX_PENDING_FOR_PREVIEWS:
                self._append(preview)

    def _append(self, item: _Item) -> None:
        self._pending.append(item)
        # Waking costs two system calls; a thread that has something to send does not wait.
        if len(self._pending) == 1:
            self._ring()

    def _ring(self) -> None:
        if not self._closed:
            self._sockets.wake()

    def _drained(self) -> bool:
        with self._changed:
            self._closed = self.stopping and not self._pending
            return self._closed

    def _wait(self) -> None:
        now = time.monotonic()
        seconds = max(self._outgoing.due(now + _MAX_WAIT_SECONDS) - now, 0.0)
        self._sockets.wait(0 if self.stopping or self._pending else seconds)

    def _answer_subscriptions(self) -> None:
        """Applies a subscription or its end."""
        for message in self._sockets.subscriptions():
            try:
                self._previews.subscription(message)
                if message[:1] == b"\x01":
                    self._outgoing.subscribed(message[1:])
            except Exception as error:  # noqa: BLE001 - whatever it is: others have subscribed, too
                self._metrics.unexpected.report("subscription", error, "a subscription is not answered")

    def _answer_requests(self) -> None:
        if self._replay is not None:
            for route, payload in self._sockets.requests():
                answer = partial(self._put_answer, route)
                try:
                    self._replay.answer(route[0], payload, answer)
                except Exception as error:  # noqa: BLE001 - whatever it is: it is that request's answer
                    self._metrics.unexpected.report("replay", error, "a request for replay is refused")
                    self._metrics.delivery.replay_request("refused")
                    answer(encode_answer(Refused(request_id(payload), "failed", "an unexpected error; see the log")))

    def _put_answer(self, route: Route, parts: list[bytes]) -> None:
        """Queues an answer, from any thread; it is left out where events wait already, and will be asked for again."""
        with self._changed:
            room = not self._closed and len(self._pending) < _MAX_PENDING_FOR_ANSWERS
            if room:
                self._append(_Answer(route, parts))
        if not room:
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
                self._outgoing.send_detections(item)
            elif isinstance(item, StreamStatus):
                self._outgoing.send_state(item)
            elif isinstance(item, Preview):
                self._outgoing.send_preview(item)
            elif isinstance(item, StreamConfig):
                self._outgoing.set_stream(item)
            elif isinstance(item, _Answer):
                if not self._sockets.answer(item.route, item.parts):
                    self._metrics.delivery.replay_request("dropped")
            else:
                self._forget(item.stream)

    def _forget(self, stream: str) -> None:
        forgotten_for_good = self._outgoing.remove_stream(stream)
        self._previews.remove_stream(stream)
        if self._replay is not None:
            self._replay.remove_stream(stream)
        if forgotten_for_good is None:
            return
        if self._replay is not None:
            self._replay.forget_numbers(forgotten_for_good)
        with self._changed:
            # It may have come back and gone again meanwhile.
            if _Forget(forgotten_for_good) not in (*self._sending, *self._pending):
                self._forgotten.discard(forgotten_for_good)

    def _send(self, topic: str, seq: int, parts: list[bytes], is_kept: bool) -> None:
        # Kept first: a client that gets an event can ask for those before it.
        if self._replay is not None and is_kept:
            try:
                self._replay.add(topic, seq, parts[1])
            except Exception as error:  # noqa: BLE001 - whatever it is: the event is to be sent
                self._metrics.unexpected.report("replay", error, f"an event of {topic} is not kept")
        self._sockets.send(parts)
