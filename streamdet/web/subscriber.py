"""The page's own subscriber: reads events all the time, and pictures of the streams that someone looks at."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import zmq
from zmq.utils.monitor import recv_monitor_message

from streamdet import wire
from streamdet.client.subscription import Gap
from streamdet.errors import WireError
from streamdet.security.curve import ClientKeys
from streamdet.security.endpoints import parse_endpoint
from streamdet.types import DetectionEvent, FrameInfo, PreviewEvent, StateEvent
from streamdet.web.board import Board, detection_fields, taken_at
from streamdet.web.pictures import Pictures
from streamdet.worker import Worker

_POLL_MILLISECONDS = 50
_MAX_MESSAGES_PER_TURN = 1000
_TICK_SECONDS = 1.0
_HIGH_WATER_MARK_EVENTS = 10_000
# Old pictures are worth nothing: few wait, on either side.
_HIGH_WATER_MARK_PICTURES = 64

_log = logging.getLogger(__name__)


class Subscriber(Worker):
    """Feeds a board and the pictures; a connection that breaks is made again by itself.

    Pictures come over a socket of their own, so that they never keep events waiting, and are subscribed to only
    while they are wanted: that is what makes the daemon encode them.

    Args:
        endpoint: where the daemon publishes.
        board: told every event.
        pictures: told every picture, and asked which are wanted.
        on_news: called when there is something new to show; from this thread.
        on_error: told when the thread ends with an error.
        keys: shown to a daemon that asks for them.

    Raises:
        EndpointError: the endpoint is malformed. That no one answers there is not an error.
    """

    def __init__(
        self,
        endpoint: str,
        board: Board,
        pictures: Pictures,
        on_news: Callable[[], None],
        on_error: Callable[[Worker], None] | None = None,
        keys: ClientKeys | None = None,
    ) -> None:
        super().__init__("subscriber", on_error)
        parse_endpoint(endpoint)
        self._endpoint = endpoint
        self._keys = keys
        self._board = board
        self._pictures = pictures
        self._on_news = on_news
        self._last: dict[str, tuple[str, int]] = {}
        self._subscribed: frozenset[str] = frozenset()

    def run(self) -> None:
        """Reads until told to stop."""
        with zmq.Context() as context:
            events = _socket(context, self._endpoint, self._keys, _HIGH_WATER_MARK_EVENTS, ("detections/", "state/"))
            previews = _socket(context, self._endpoint, self._keys, _HIGH_WATER_MARK_PICTURES, ())
            # Watched before it connects: on the same machine the connection may be there at once.
            monitor = events.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            events.connect(self._endpoint)
            previews.connect(self._endpoint)
            poller = zmq.Poller()
            for socket in (events, previews, monitor):
                poller.register(socket, zmq.POLLIN)
            try:
                self._read(poller, events, previews, monitor)
            finally:
                events.disable_monitor()
                context.destroy(linger=0)

    def _read(
        self, poller: zmq.Poller, events: zmq.Socket[bytes], previews: zmq.Socket[bytes], monitor: zmq.Socket[bytes]
    ) -> None:
        ticked_at = time.monotonic()
        while not self.stopping:
            self._subscribe(previews)
            ready = dict(poller.poll(_POLL_MILLISECONDS))
            revision = self._board.revision
            if monitor in ready:
                self._watch_connection(monitor)
            if events in ready:
                self._drain(events, self._note_event)
            if time.monotonic() - ticked_at >= _TICK_SECONDS:
                ticked_at = time.monotonic()
                self._board.tick(ticked_at)
            if previews in ready:
                self._drain(previews, self._note_preview)
            if previews in ready or revision != self._board.revision:
                self._on_news()
            self.beat()

    def _subscribe(self, previews: zmq.Socket[bytes]) -> None:
        wanted = self._pictures.wanted(time.monotonic())
        for stream in wanted - self._subscribed:
            previews.subscribe(f"preview/{stream}/")
        for stream in self._subscribed - wanted:
            previews.unsubscribe(f"preview/{stream}/")
        self._subscribed = wanted

    def _watch_connection(self, monitor: zmq.Socket[bytes]) -> None:
        message = recv_monitor_message(monitor)
        self._board.connected(yes=message["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED)

    @staticmethod
    def _drain(socket: zmq.Socket[bytes], note: Callable[[Sequence[bytes]], None]) -> None:
        for _ in range(_MAX_MESSAGES_PER_TURN):
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                note(parts)
            except WireError as error:
                _log.warning("a message that is no event was left out: %s", error)

    def _note_event(self, parts: Sequence[bytes]) -> None:
        event = wire.from_message(parts)
        if not isinstance(event, DetectionEvent | StateEvent):
            return
        now = time.monotonic()
        gap = self._gap_before(event)
        if gap is not None:
            self._board.note(gap, now)
        self._board.note(event, now)

    def _gap_before(self, event: DetectionEvent | StateEvent) -> Gap | None:
        topic = wire.topic_of(event)
        epoch, seq = self._last.get(topic, (event.epoch, event.seq - 1))
        self._last[topic] = (event.epoch, event.seq)
        missing = event.seq - seq - 1
        return Gap(event.stream, topic, seq + 1, missing) if event.epoch == epoch and missing > 0 else None

    def _note_preview(self, parts: Sequence[bytes]) -> None:
        event = wire.from_message(parts)
        if isinstance(event, PreviewEvent):
            self._pictures.put(event.stream, preview_head(event), event.jpeg, taken_at(event, time.monotonic()))


def preview_head(event: PreviewEvent) -> bytes:
    """What a browser needs to draw over a picture, as the inside of a JSON object."""
    found = [detection_fields(detection) for detection in event.detections]
    return orjson.dumps({"frame": _frame_fields(event.frame), "detections": found})[1:-1]


def _frame_fields(frame: FrameInfo) -> dict[str, Any]:
    return {"seq": frame.seq, "captured_at": frame.captured_at, "width": frame.width, "height": frame.height}


def _socket(
    context: zmq.Context[Any], endpoint: str, keys: ClientKeys | None, high_water_mark: int, topics: Sequence[str]
) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    socket.ipv6 = parse_endpoint(endpoint).is_ipv6
    socket.linger = 0
    socket.rcvhwm = high_water_mark
    socket.maxmsgsize = wire.MAX_MESSAGE_BYTES
    socket.reconnect_ivl = 100
    socket.reconnect_ivl_max = 2000
    socket.connect_timeout = 5000
    # A daemon that hangs is noticed within five seconds: what is shown of it is not live.
    socket.heartbeat_ivl = 1000
    socket.heartbeat_timeout = 4000
    for topic in topics:
        socket.subscribe(topic)
    if keys is not None:
        keys.apply_to(socket)
    return socket
