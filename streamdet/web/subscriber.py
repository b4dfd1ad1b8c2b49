"""Subscribes to the daemon: one thread reads all events, another the pictures that browsers show."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from streamdet.client.cluster import subscribe
from streamdet.client.subscription import Gap, Subscription
from streamdet.errors import WireError
from streamdet.monitoring.log import LogThrottle
from streamdet.types import AlertEvent, DetectionEvent, FrameInfo, ObjectEvent, PreviewEvent, StateEvent
from streamdet.web.board import Board, detection_fields, taken_at
from streamdet.web.pictures import Pictures
from streamdet.web.settings import Settings
from streamdet.wire import Kind
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
        with _subscribe(self._settings, None, _KINDS, _HIGH_WATER_MARK_EVENTS) as events:
            while not self.stopping:
                revision = self._board.revision
                self._read(events)
                self._board.connected(yes=events.is_connected)
                if time.monotonic() - ticked_at >= _TICK_SECONDS:
                    ticked_at = time.monotonic()
                    self._board.tick(ticked_at)
                if revision != self._board.revision:
                    self._on_news()
                self.beat()

    def _read(self, events: Subscription) -> None:
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
            if isinstance(item, DetectionEvent | StateEvent | ObjectEvent | AlertEvent | Gap):
                self._board.note(item, time.monotonic())
            wait_seconds = 0.0


class PictureSubscriber(Worker):
    """Reads previews; subscribed only to streams that a browser shows, because the daemon encodes only these.

    Its connection is its own, so that pictures never keep events waiting.

    Args:
        settings: where the daemon publishes, and the keys for it.
        pictures: takes every picture, and knows which are wanted.
        on_news: called when there is a new picture; from this thread.
        on_error: called when the thread ends with an error.
    """

    def __init__(
        self,
        settings: Settings,
        pictures: Pictures,
        on_news: Callable[[], None],
        on_error: Callable[[Worker], None] | None = None,
    ) -> None:
        super().__init__("picture subscriber", on_error)
        self._settings = settings
        self._pictures = pictures
        self._on_news = on_news

    def run(self) -> None:
        """Reads until asked to stop."""
        while not self.stopping:
            if wanted := self._pictures.wanted(time.monotonic()):
                with _subscribe(self._settings, wanted, ["preview"], _HIGH_WATER_MARK_PICTURES) as previews:
                    self._read(previews)
            self.sleep(_TURN_SECONDS)
            self.beat()

    def _read(self, previews: Subscription) -> None:
        """Reads as long as any picture is wanted."""
        while not self.stopping and (wanted := self._pictures.wanted(time.monotonic())):
            previews.set_streams(wanted)
            try:
                event = previews.receive(_TURN_SECONDS)
            except WireError as error:
                _throttle.log(_log, logging.WARNING, "dropped a message that is not a picture: %s", error)
                continue
            if isinstance(event, PreviewEvent):
                taken_seconds = taken_at(event, time.monotonic())
                self._pictures.put(event.stream, preview_head(event), event.jpeg, taken_seconds)
                self._on_news()
            self.beat()


def _subscribe(
    settings: Settings, streams: Iterable[str] | None, kinds: Iterable[Kind], high_water_mark: int
) -> Subscription:
    return subscribe(
        settings.endpoint,
        streams,
        kinds,
        server_key=settings.server_key,
        client_key_file=settings.client_key_file,
        high_water_mark_events=high_water_mark,
        heartbeat_seconds=_HEARTBEAT_SECONDS,
    )


def preview_head(event: PreviewEvent) -> bytes:
    """The data that a browser draws over a picture, as the members of a JSON object."""
    found = [detection_fields(detection) for detection in event.detections]
    return orjson.dumps({"frame": _frame_fields(event.frame), "detections": found})[1:-1]


def _frame_fields(frame: FrameInfo) -> dict[str, Any]:
    return {"seq": frame.seq, "captured_at": frame.captured_at, "width": frame.width, "height": frame.height}
