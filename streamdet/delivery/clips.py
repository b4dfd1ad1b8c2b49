"""Stores a clip around each alert whose rule has `clip_seconds`.

The captures put the packets of their streams into rings (`packet_ring`). The publisher requests a clip with the frame
that raised the alert, and gets its id at once. When the last picture of the clip has come, the clip is cut from the
ring, and the thread of the store writes it. No thread waits for another or for the disk; clips that cannot be stored
are counted.

Only clips of streams with masks that hide an area are encoded again, in the thread of `Clips`, at the lowest priority,
one after the other. A stream with `blur` has no clips: between the frames that are detected, the positions of its
objects are not known.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from streamdet.config import ClipsConfig, RuleConfig, StreamConfig
from streamdet.delivery.file_store import FileStore, PartReply, StoreLimits
from streamdet.delivery.masked_mp4 import has_encoder, masked_mp4
from streamdet.delivery.mp4 import size_of, write_mp4
from streamdet.delivery.packet_ring import CODEC, NO_PACKETS, Cut, PacketRing
from streamdet.delivery.privacy import Hidden, black_areas
from streamdet.monitoring.log import LogThrottle
from streamdet.monitoring.metrics import Metrics
from streamdet.worker import Worker

# An index, and the parameters of the codec; packets need less in MP4 than in a ring.
_SMALLEST_FILE_BYTES = 1 << 20
_IDLE_SECONDS = 60.0
_PRIVACY, _BUSY, _SHUTDOWN = "privacy", "busy", "shutdown"
_LOWEST_PRIORITY = 19

_log = logging.getLogger(__name__)


class Clips(Worker):
    """The rings of all streams, and the store of their clips.

    Args:
        config: with a directory.
        metrics: counts clips that are stored and dropped.
        on_error: called when this thread or that of the store ends with an error.

    Raises:
        StoreError: the directory cannot be used.
    """

    def __init__(self, config: ClipsConfig, metrics: Metrics, on_error: Callable[[Worker], None] | None = None) -> None:
        super().__init__("clips", on_error)
        self._config = config
        self._metrics = metrics
        largest = config.max_ring_bytes + _SMALLEST_FILE_BYTES
        # What is encoded again may become larger than it was.
        self._max_waiting_bytes = 2 * largest
        limits = StoreLimits(config.max_bytes, config.max_age_seconds, 2 * largest, self._max_waiting_bytes)
        self._store = FileStore(
            "clips", Path(config.directory or ""), ".mp4", limits, metrics.clips, on_error, metrics.unexpected
        )
        self._throttle = LogThrottle()
        self._changed = threading.Condition()
        self._rings: dict[str, PacketRing] = {}
        self._rules: tuple[RuleConfig, ...] = ()
        self._codecs: dict[str, str] = {}
        self._blurred: set[str] = set()
        self._hidden: dict[str, Hidden] = {}
        self._to_encode: deque[tuple[Cut, Hidden]] = deque()
        self._has_news = False
        metrics.clips.follow_rings(self._ring_bytes)

    def ring(self, stream: str) -> PacketRing:
        """The ring for the packets of a stream; the same for all of its connections."""
        with self._changed:
            ring = self._rings.get(stream)
            if ring is None:
                config = self._config
                ring = PacketRing(stream, config.ring_seconds, config.max_ring_bytes, self._keep)
                self._rings[stream] = ring
                ring.open(is_open=self._is_wanted(stream))
            return ring

    def set_stream(self, config: StreamConfig) -> None:
        """Applies the masks and `blur` of a stream to its clips; a change of masks drops earlier packets."""
        stream, areas = config.name, black_areas(config)
        with self._changed:
            ring = self._rings.get(stream)
            before, hidden = self._hidden.get(stream), Hidden(areas) if areas else None
            if ring is not None and before != hidden:
                ring.clear()
            self._hidden.pop(stream, None)
            if hidden is not None:
                self._hidden[stream] = hidden
            (self._blurred.add if config.blur else self._blurred.discard)(stream)
            if ring is not None:
                ring.open(is_open=self._is_wanted(stream))

    def set_rules(self, rules: Iterable[RuleConfig]) -> None:
        """Keeps packets only of streams that have a rule with clips."""
        with self._changed:
            self._rules = tuple(rule for rule in rules if rule.clip_seconds is not None)
            for stream, ring in self._rings.items():
                ring.open(is_open=self._is_wanted(stream))

    def clear(self, stream: str) -> None:
        """Drops the packets of a stream that is reconnected with other settings; pending clips end there."""
        with self._changed:
            ring = self._rings.get(stream)
        if ring is not None:
            ring.clear()

    def remove_stream(self, stream: str) -> None:
        """Drops the packets of a stream; pending clips are cut from what was received."""
        with self._changed:
            ring = self._rings.pop(stream, None)
            self._codecs.pop(stream, None)
            if ring is not None:
                ring.open(is_open=False)
            self._hidden.pop(stream, None)
            self._blurred.discard(stream)

    def want(
        self, stream: str, packet_pts: int | None, captured_monotonic_seconds: float, span: tuple[float, float]
    ) -> str:
        """Requests a clip around a frame; overlapping clips of a stream become one, if the ring can hold it.

        Args:
            stream: name of the stream.
            packet_pts: of the frame.
            captured_monotonic_seconds: `time.monotonic()` of the frame.
            span: seconds before and after the frame.

        Returns:
            The id of the clip.

        Raises:
            LookupError: there is none; the text is the reason, "privacy" or one of `packet_ring`.
        """
        ring = self._rings.get(stream)
        if stream in self._blurred:
            self._metrics.clips.dropped(_PRIVACY)
            raise LookupError(_PRIVACY)
        if ring is None or not ring.is_open:
            raise LookupError(NO_PACKETS)
        try:
            clip_id = ring.want(
                functools.partial(self._store.promise, stream), packet_pts, captured_monotonic_seconds, span
            )
        except LookupError as missing:
            reason = str(missing.args[0])
            self._metrics.clips.dropped(reason)
            self._report_missing(stream, reason, ring.refused_codec)
            raise
        self.wake()
        return clip_id

    def missing_of(self, stream: str) -> str | None:
        """Why alerts of a stream have no clips, as in their events; None where they may have, or it is not known."""
        with self._changed:
            ring = self._rings.get(stream)
            if stream in self._blurred or (stream in self._hidden and not has_encoder()):
                return _PRIVACY
        return CODEC if ring is not None and ring.refused_codec else None

    def path_of(self, clip_id: str) -> Path | None:
        """The file of a clip; None if it is not kept, any longer or not yet."""
        return self._store.path_of(clip_id)

    def fetch_part(
        self, client: bytes, clip_id: str, span: tuple[int, int], reply: PartReply, question: Hashable = None
    ) -> bool:
        """Has a part of a clip read in the thread of the store; the arguments are as in `FileStore.fetch_part`."""
        return self._store.fetch_part(client, clip_id, span, reply, question)

    def wake(self) -> None:
        """Ends the wait of `run`."""
        with self._changed:
            self._has_news = True
            self._changed.notify_all()

    def close(self) -> None:
        """Unlocks the directory if this was never started; otherwise the end of `run` does."""
        self._store.close()

    def run(self) -> None:
        """Cuts clips whose last pictures do not come, and encodes those with masks; a stop cuts all pending ones."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        with self._store:
            while not self.stopping:
                with self._changed:
                    self._has_news = False
                    rings = list(self._rings.values())
                now = time.monotonic()
                due = min((at for ring in rings if (at := ring.expire(now)) is not None), default=now + _IDLE_SECONDS)
                self._encode_next()
                self.beat()
                with self._changed:
                    waits = max(due - now, 0.0) if not self._to_encode else 0.0
                    self._changed.wait_for(lambda: self._has_news or self.stopping, waits)
            for ring in list(self._rings.values()):
                ring.open(is_open=False)
            for cut, _ in self._to_encode:
                self._store.lose(cut.clip_id, _SHUTDOWN)

    def _is_wanted(self, stream: str) -> bool:
        return stream not in self._blurred and any(rule.applies_to(stream) for rule in self._rules)

    def _keep(self, cut: Cut) -> None:
        """Passes a complete clip to the store; called by the thread that completed it."""
        if cut.missing:
            self._store.lose(cut.clip_id, cut.missing)
            return
        if cut.lacks_begin:
            self._metrics.clips.shortened("begin")
        if cut.lacks_end:
            self._metrics.clips.shortened("end")
        hidden = self._hidden.get(cut.stream)
        if hidden is not None:
            self._encode_later(cut, hidden)
        else:
            self._store.keep(cut.clip_id, functools.partial(write_mp4, cut.packets), size_of(cut.packets))

    def _encode_later(self, cut: Cut, hidden: Hidden) -> None:
        """Queues a clip to be encoded; if too many wait, the first of them is dropped."""
        lost: list[Cut] = []
        with self._changed:
            self._to_encode.append((cut, hidden))
            while (
                len(self._to_encode) > 1
                and sum(size_of(c.packets) for c, _ in self._to_encode) > self._max_waiting_bytes
            ):
                lost.append(self._to_encode.popleft()[0])
        for each in lost:
            self._store.lose(each.clip_id, _BUSY)
        self.wake()

    def _encode_next(self) -> None:
        with self._changed:
            if not self._to_encode:
                return
            cut, hidden = self._to_encode.popleft()
        if not has_encoder():
            self._store.lose(cut.clip_id, _PRIVACY)
            return
        try:
            content = masked_mp4(cut.packets, cut.begin, hidden, lambda: self.stopping)
        except Exception as error:  # noqa: BLE001 - whatever it is: other clips are to be encoded
            self._metrics.unexpected.report("clips", error, "a clip is not kept", cut.stream)
            self._store.lose(cut.clip_id, "error")
            return
        if content is None:
            self._store.lose(cut.clip_id, _SHUTDOWN)
        else:
            self._store.keep(cut.clip_id, content)

    def _report_missing(self, stream: str, reason: str, codec: str) -> None:
        if reason != CODEC:
            why = reason.replace("_", " ")
            self._throttle.log(_log, logging.WARNING, "an alert has no clip: %s", why, stream=stream)
        elif self._codecs.get(stream) != codec:
            self._codecs[stream] = codec
            text = "the stream has no clips: its video is %s, but clips need H.264 or H.265"
            _log.warning(text, codec, extra={"stream": stream})

    def _ring_bytes(self) -> int:
        with self._changed:
            return sum(ring.size_bytes for ring in self._rings.values())
