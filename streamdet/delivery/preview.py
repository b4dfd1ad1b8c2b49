"""Small JPEG pictures of the streams whose previews are subscribed to, encoded in a thread of their own.

What they cost is bounded, however many streams are watched: all together get `preview_total_fps`, each at least one
picture a second, and the more there are, the smaller the pictures are, down to half of `preview_width`. Pictures of
several streams fall due at the same moments, are encoded one right after the other where their frames come so, and are
sent together: each that comes alone wakes threads, here and in every subscriber.

The same thread makes the pictures that are asked for one by one (`snapshots.py`).

A stream without subscribers to previews costs one lookup in a set per frame. With subscribers, the publisher only keeps
the newest picture: there is one slot per stream before the encoder and one after it, and a newer picture replaces one
that still waits there.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, perf_counter

from streamdet import wire
from streamdet.config import PublisherConfig
from streamdet.delivery.jpeg import near_half, picture_to_jpeg, to_jpeg
from streamdet.delivery.privacy import NOTHING, Hidden
from streamdet.delivery.snapshots import Snapshots
from streamdet.monitoring.log import LogThrottle
from streamdet.monitoring.metrics import Metrics
from streamdet.types import DetectionEvent, Picture
from streamdet.worker import Wakeup, Worker

_PREFIX = b"preview/"
# A client can send subscriptions without end, but does not watch this many streams one by one.
_MAX_PREFIXES = 1000
# So many streams are watched at full size; of more, pictures have as many pixels together.
_FULL_SIZE_STREAMS = 4
_WIDTH_STEP = 16
# Seconds between two pictures of a stream at most, where `preview_max_fps` allows it: what is older does not look live.
_LONGEST_INTERVAL_SECONDS = 1.0
# A frame waits for those of other streams no longer than this: soon its decoder needs its memory, and it is copied.
_GATHERING_SECONDS = 0.02
# Encoded pictures wait for those of other streams for this part of the interval, at most so long.
_UNSENT_PART = 0.3
_LONGEST_UNSENT_SECONDS = 0.15
# As many as wait at the most, of frames or of encoded pictures.
_MAX_GATHERED = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Preview:
    """An encoded picture.

    Attributes:
        event: what was published of the frame that the picture shows.
        jpeg: at most `wire.MAX_MESSAGE_BYTES`.
    """

    event: DetectionEvent
    jpeg: bytes


class Previews(Worker):
    """Encodes the newest picture of each watched stream.

    Only a subscription that begins with `preview/` counts as a viewer: a client that subscribes to everything,
    with an empty prefix, gets the pictures that others asked for and asks for none.

    Three threads use it: one asks `is_due` when a frame comes; the publisher's passes on subscriptions, offers pictures
    and takes them when they are encoded; its own encodes.

    Args:
        config: size, quality and rate.
        encoded: rung when there is a picture to take.
        metrics: counts what was encoded.
        on_error: called when the thread ends with an error.
        snapshots: requests for single pictures.
    """

    def __init__(
        self,
        config: PublisherConfig,
        encoded: Wakeup,
        metrics: Metrics,
        on_error: Callable[[Worker], None] | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        super().__init__("previews", on_error)
        self._snapshots = snapshots
        self._max_side = config.preview_width
        self._quality = config.preview_quality
        self._shortest_interval_seconds = 1 / config.preview_max_fps
        self._total_fps = max(config.preview_total_fps, config.preview_max_fps)
        # How many of the streams that have frames are watched.
        self._watched = 1
        # So many pictures wait before they are encoded, or some time passes.
        self._awaited = 1
        self._encoded = encoded
        self._metrics = metrics
        self._throttle = LogThrottle()
        self._prefixes: tuple[bytes, ...] = ()
        # Whether there were more prefixes than are kept: then all streams count as subscribed until all are gone.
        self._is_overfull = False
        self._due_seconds: dict[str, float] = {}
        self._changed = threading.Condition()
        self._slots: dict[str, tuple[DetectionEvent, Picture, Hidden]] = {}
        self._asked_for: dict[str, tuple[DetectionEvent, Picture, Hidden]] = {}
        # Encoded, and waiting for those of other streams until this monotonic time in seconds.
        self._unsent: dict[str, Preview] = {}
        self._send_at = math.inf
        self._done: dict[str, Preview] = {}

    def subscription(self, message: bytes) -> None:
        """Takes a message of the XPUB socket: 1 (a subscription) or 0 (the last one has ended), then the prefix."""
        prefix = message[1:]
        if not prefix.startswith(_PREFIX):
            return
        if message[:1] == b"\x01":
            if prefix not in self._prefixes and len(self._prefixes) < _MAX_PREFIXES:
                self._prefixes = (*self._prefixes, prefix)
            elif prefix not in self._prefixes:
                self._is_overfull = True
        else:
            self._prefixes = tuple(other for other in self._prefixes if other != prefix)
            self._is_overfull &= bool(self._prefixes)
        self._count_watched()

    def is_watched(self, stream: str) -> bool:
        """Whether there is a subscription to the stream's previews."""
        if self._is_overfull:
            return True
        return bool(self._prefixes) and wire.topic("preview", stream).encode().startswith(self._prefixes)

    def is_due(self, stream: str, now: float) -> bool:
        """Whether the picture of the stream's frame should be kept; true at most `preview_max_fps` times a second.

        Where many streams are watched, it is so less often, but at least once a second.

        Args:
            stream: name of the stream.
            now: monotonic seconds at which the frame was captured.
        """
        if not self._prefixes or now < self._due_seconds.get(stream, now) or not self.is_watched(stream):
            return False
        is_new = stream not in self._due_seconds
        self._due_seconds[stream] = self._due_after(self._due_seconds.get(stream, now), now)
        if is_new:
            self._count_watched()
        return True

    def _due_after(self, due: float, now: float) -> float:
        """When a stream's next picture is due, after one that was due and came at these monotonic seconds.

        Counted on from when it was due, so that the rate is right on average though frames do not come on time. Where
        several streams are watched, it is a multiple of the interval: so their pictures come together.
        """
        interval = self._interval_seconds
        if self._watched == 1:
            return max(due + interval, now)
        # What is a multiple already must not count as a little less.
        return max(math.floor(due / interval + 1 + 1e-6), math.floor(now / interval)) * interval

    def _count_watched(self) -> None:
        self._watched = max(1, sum(map(self.is_watched, list(self._due_seconds))))

    @property
    def _interval_seconds(self) -> float:
        shared = min(self._watched / self._total_fps, _LONGEST_INTERVAL_SECONDS)
        return max(self._shortest_interval_seconds, shared)

    @property
    def _side(self) -> int:
        """Pixels of the longer side of a picture at most."""
        part = max(0.5, math.sqrt(min(1.0, _FULL_SIZE_STREAMS / self._watched)))
        return self._max_side if part == 1 else max(1, round(self._max_side * part / _WIDTH_STEP)) * _WIDTH_STEP

    def offer(self, event: DetectionEvent, picture: Picture, hidden: Hidden = NOTHING) -> None:
        """Has the picture encoded, in place of one of the same stream that still waits; does not wait.

        Args:
            event: what is published of the frame.
            picture: the frame.
            hidden: what must not be seen in it.
        """
        with self._changed:
            self._slots[event.stream] = (event, picture, hidden)
            # Waking the thread for each of those that are gathered would cost as much as gathering saves.
            if len(self._slots) == 1 or self._is_gathered:
                self._changed.notify()

    def offer_asked_for(self, event: DetectionEvent, picture: Picture, hidden: Hidden) -> None:
        """Has the picture encoded for those who asked for one of the stream; arguments as of `offer`, does not wait."""
        with self._changed:
            self._asked_for[event.stream] = (event, picture, hidden)
            self._changed.notify()

    def take(self) -> list[Preview]:
        """The pictures that were encoded since the last call, several streams' together; does not wait."""
        if not self._done:
            return []
        with self._changed:
            done, self._done = self._done, {}
        return list(done.values())

    def remove_stream(self, stream: str) -> None:
        """Drops what is kept of a stream."""
        self._due_seconds.pop(stream, None)
        with self._changed:
            self._slots.pop(stream, None)
            self._asked_for.pop(stream, None)
            self._unsent.pop(stream, None)
            self._done.pop(stream, None)

    def wake(self) -> None:
        """Ends the wait of `run`."""
        with self._changed:
            self._changed.notify()

    def run(self) -> None:
        """Encodes until asked to stop; what waits then is left."""
        while not self.stopping:
            with self._changed:
                due_seconds = None if self._send_at == math.inf else max(self._send_at - monotonic(), 0.0)
                self._changed.wait_for(lambda: self._slots or self._asked_for or self.stopping, due_seconds)
                if self._slots:
                    self._awaited = self._count_awaited()
                    self._changed.wait_for(lambda: self._is_gathered or self.stopping, _GATHERING_SECONDS)
            while (self._slots or self._asked_for) and not self.stopping:
                self._encode_next()
                self._send_together()
                self.beat()
            self._send_together()

    @property
    def _is_gathered(self) -> bool:
        return bool(self._asked_for) or len(self._slots) + len(self._unsent) >= self._awaited

    def _count_awaited(self) -> int:
        """How many pictures are worth waiting for: none of a stream that had no frame for an interval."""
        due = list(self._due_seconds.values())
        silent_until = max(due, default=0.0) - 1.5 * self._interval_seconds
        return max(1, min(sum(moment > silent_until for moment in due), self._watched, _MAX_GATHERED))

    def _encode_next(self) -> None:
        with self._changed:
            # The stream that has waited longest: a slot keeps its place when a newer picture takes it.
            due = self._slots.pop(next(iter(self._slots))) if self._slots else None
            asked_for = self._asked_for.pop(next(iter(self._asked_for))) if self._asked_for else None
        for frame, encode in ((due, self._encode), (asked_for, self._make)):
            if frame is None:
                continue
            try:
                encode(*frame)
            except Exception as error:  # noqa: BLE001 - whatever it is: other pictures are to be encoded
                self._metrics.unexpected.report("preview", error, "a preview is left out", frame[0].stream)

    def _send_together(self) -> None:
        """Hands on the encoded pictures when all that are awaited are encoded, or the first one has waited enough."""
        if not self._unsent:
            self._send_at = math.inf
            return
        now = monotonic()
        if self._send_at == math.inf:
            self._send_at = now + min(self._interval_seconds * _UNSENT_PART, _LONGEST_UNSENT_SECONDS)
        if len(self._unsent) >= self._awaited or now >= self._send_at:
            self._send_at = math.inf
            with self._changed:
                self._done.update(self._unsent)
                self._unsent.clear()
            self._encoded.wake()

    def _make(self, event: DetectionEvent, picture: Picture, hidden: Hidden) -> None:
        if self._snapshots is not None:
            self._snapshots.make(event.stream, picture, hidden, [found.box for found in event.detections])

    def _encode(self, event: DetectionEvent, picture: Picture, hidden: Hidden) -> None:
        if not self.is_watched(event.stream):
            return
        began = perf_counter()
        side = near_half(max(picture.width, picture.height), self._side, self._max_side)
        if hidden.is_needed:
            # What is hidden is cut from the whole frame, so that its edges are exact.
            jpeg = to_jpeg(hidden.cut(picture.to_rgb()), side, self._quality)
        else:
            jpeg = picture_to_jpeg(picture, side, self._quality)
        if jpeg is None:
            text = "a preview is too large for one message"
            self._throttle.log(_log, logging.WARNING, text, stream=event.stream)
            return
        self._metrics.preview_encoded(event.stream, perf_counter() - began)
        with self._changed:
            self._unsent[event.stream] = Preview(event, jpeg)
