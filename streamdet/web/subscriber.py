"""Subscribes to the daemon, or to the nodes of a cluster.

One thread reads all events, another the pictures that browsers show.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from streamdet.client.cluster import ClusterSubscription, subscribe
from streamdet.client.nodes import Late, Moved
from streamdet.client.subscription import Gap, Restart, Subscription
from streamdet.errors import WireError
from streamdet.monitoring.log import LogThrottle
from streamdet.types import AlertEvent, DetectionEvent, FrameInfo, ObjectEvent, PreviewEvent, StateEvent
from streamdet.web.board import Board, detection_fields, taken_at
from streamdet.web.cluster_board import ClusterBoard
from streamdet.web.pictures import Pictures
from streamdet.web.settings import Settings
from streamdet.wire import Event, Kind
from streamdet.worker import Worker

_KINDS: tuple[Kind, ...] = ("detections", "objects", "alerts", "state")
_TURN_SECONDS = 0.05
_TICK_SECONDS = 1.0
_MAX_EVENTS_PER_TURN = 1000
_HIGH_WATER_MARK_EVENTS = 10_000
# Old pictures are worth nothing: few wait, on either side.
_HIGH_WATER_MARK_PICTURES = 64
# A daemon that hangs is noticed within five seconds: what is shown of it is not live.
_HEARTBEAT_SECONDS = 1.0

_log = logging.getLogger(__name__)
_throttle = LogThrottle()


class EventSubscriber(Worker):
    """Reads events into the board.

    Args:
        settings: where the daemon publishes, and the keys for it.
        board: takes every event.
        on_news: called when there is something new to show; from this thread.
        on_error: called when the thread ends with an error.
    """

    def __init__(
        self,
        settings: Settings,
        board: Board,
        on_news: Callable[[], None],
        on_error: Callable[[Worker], None] | None = None,
    ) -> None:
        super().__init__("event subscriber", on_error)
        self._settings = settings
        self._board = board
        self._on_news = on_news

    def run(self) -> None:
        """Reads until asked to stop."""
        ticked_at = time.monotonic()
        with _subscribe(self._settings, self._board, None, _KINDS, _HIGH_WATER_MARK_EVENTS) as events:
            while not self.stopping:
                revision = self._board.revision
                self._read(events)
                self._note_connections(events)
                if time.monotonic() - ticked_at >= _TICK_SECONDS:
                    ticked_at = time.monotonic()
                    self._board.tick(ticked_at)
                if revision != self._board.revision:
                    self._on_news()
                self.beat()

    def _note_connections(self, events: Subscription | ClusterSubscription) -> None:
        if isinstance(events, Subscription):
            self._board.connected(yes=events.is_connected)
        elif isinstance(self._board, ClusterBoard):
            try:
                self._board.note_nodes(events.connected_nodes, events.problem)
            except WireError as error:
                _throttle.log(_log, logging.WARNING, "%s: %s", self._board.endpoint, error)

    def _read(self, events: Subscription | ClusterSubscription) -> None:
        """Reads all events that have arrived, after waiting for the first one."""
        wait_seconds = _TURN_SECONDS
        for _ in range(_MAX_EVENTS_PER_TURN):
            try:
                item = events.receive(wait_seconds)
            except WireError as error:
                _throttle.log(_log, logging.WARNING, "dropped a message that is not an event: %s", error)
                continue
            if item is None:
                return
            self._note(item)
            wait_seconds = 0.0

    def _note(self, item: Event | Gap | Restart | Moved | Late) -> None:
        board = self._board
        if isinstance(item, DetectionEvent | StateEvent | ObjectEvent | AlertEvent | Gap):
            board.note(item, time.monotonic())
        elif isinstance(item, Moved) and isinstance(board, ClusterBoard):
            board.note_move(item)
        elif isinstance(item, Late) and isinstance(item.event, ObjectEvent | AlertEvent):
            board.note_late(item.event)


class PictureSubscriber(Worker):
    """Reads previews; subscribed only to streams that a browser shows, because the daemon encodes only these.

    Its connection is its own, so that pictures never keep events waiting.

    Args:
        settings: where the daemon publishes, and the keys for it.
        board: knows which node owns a stream.
        pictures: takes every picture, and knows which are wanted.
        on_news: called when there is a new picture; from this thread.
        on_error: called when the thread ends with an error.
    """

    def __init__(
        self,
        settings: Settings,
        board: Board,
        pictures: Pictures,
        on_news: Callable[[], None],
        on_error: Callable[[Worker], None] | None = None,
    ) -> None:
        super().__init__("picture subscriber", on_error)
        self._settings = settings
        self._board = board
        self._pictures = pictures
        self._on_news = on_news

    def run(self) -> None:
        """Reads until asked to stop."""
        while not self.stopping:
            if wanted := self._pictures.wanted(time.monotonic()):
                with _subscribe(
                    self._settings, self._board, wanted, ["preview"], _HIGH_WATER_MARK_PICTURES
                ) as previews:  # fmt: skip
                    self._read(previews)
            self.sleep(_TURN_SECONDS)
            self.beat()

    def _read(self, previews: Subscription | ClusterSubscription) -> None:
        """Reads as long as any picture is wanted."""
        before: frozenset[str] = frozenset()
        has_news = False
        while not self.stopping and (wanted := self._pictures.wanted(time.monotonic())):
            if wanted != before:
                previews.set_streams(wanted)
                before = wanted
            try:
                event = previews.receive(0.0 if has_news else _TURN_SECONDS)
            except WireError as error:
                _throttle.log(_log, logging.WARNING, "dropped a message that is not a picture: %s", error)
                continue
            if isinstance(event, PreviewEvent) and self._board.is_of_owner(event):
                taken_seconds = taken_at(event, time.monotonic())
                self._pictures.put(event.stream, preview_head(event), event.jpeg, taken_seconds)
                has_news = True
            elif event is None and has_news:
                # Pictures of several streams come together: browsers get them in one answer.
                has_news = False
                self._on_news()
            self.beat()


def _subscribe(
    settings: Settings, board: Board, streams: Iterable[str] | None, kinds: Iterable[Kind],
    high_water_mark: int,
) -> Subscription | ClusterSubscription:  # fmt: skip
    more: dict[str, Any] = {
        "server_key": settings.server_key, "client_key_file": settings.client_key_file,
        "high_water_mark_events": high_water_mark, "heartbeat_seconds": _HEARTBEAT_SECONDS,
    }  # fmt: skip
    if isinstance(board, ClusterBoard):
        return subscribe(cluster=board.watch, streams=streams, kinds=kinds, **more)
    return subscribe(settings.endpoint, streams, kinds, **more)


def preview_head(event: PreviewEvent) -> bytes:
    """The data that a browser draws over a picture, as the members of a JSON object."""
    found = [detection_fields(detection) for detection in event.detections]
    return orjson.dumps({"frame": _frame_fields(event.frame), "detections": found})[1:-1]


def _frame_fields(frame: FrameInfo) -> dict[str, Any]:
    return {"seq": frame.seq, "captured_at": frame.captured_at, "width": frame.width, "height": frame.height}
