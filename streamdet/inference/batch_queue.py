"""The queue between captures and the detector: one slot per stream.

Only the queue decides which sound frames are not detected: those replaced by a newer frame, those above `max_fps`, and
those that are too old. Elsewhere a frame is dropped only when it cannot be decoded, detected or encoded, or when the
daemon stops.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from streamdet.detector.stages.tiles import one_of_each_size
from streamdet.types import Demand, DetectionSettings, Drop, Frame, Picture

# How far frames may be off the schedule of `max_fps`, in periods. An early frame passes, but does not move the
# schedule, and a late one saves up one period at the most: so the average stays exact although frames jitter, and
# no burst of more than two follows a pause.
_EARLY_PERIODS = 0.5
_LATE_PERIODS = 1.0


# A stream that is due while its next frame is still on its way keeps its place; a longer pause saves no more.
_SAVED_VIRTUAL_TIME = 1.0
# Streams that are less than this apart in virtual time are equally due: the newest frame of them leaves first. It is
# what a stream can have saved, so that one that sends less than its share still leaves before all that have had theirs.
_EQUALLY_DUE = _SAVED_VIRTUAL_TIME
# A frame counts as late, and its stream as silent, this many periods after it was expected.
_SILENT_PERIODS = 0.5
_DEFAULT_SETTINGS = DetectionSettings()


class QueuedStream(Protocol):
    """What the queue must know about a stream; a `StreamConfig` has it."""

    @property
    def name(self) -> str:
        """Of the stream."""

    @property
    def pace(self) -> str:
        """With "fastest" nothing is lost and `put` waits; otherwise the newest frame wins."""

    @property
    def max_fps(self) -> float | None:
        """Frames per second that may pass, on average; None for all."""

    @property
    def max_frame_age_seconds(self) -> float:
        """Age since capture beyond which a frame is not worth detecting."""

    @property
    def weight(self) -> float:
        """Share of the detector under overload, relative to other streams."""


@dataclass(slots=True, eq=False)
class _Slot:
    """The place of one stream; times are monotonic seconds.

    Attributes:
        stream: whose frames it holds.
        settings: what counts as a detection in them.
        virtual_time: slots with the lowest are emptied first; grows by 1 / weight with each picture that leaves.
        frame: the newest one.
        filled_at: when the slot was last filled while empty.
        put_at: when a frame was last put into it; None before the first.
        period_seconds: between the last two; None before there were two.
        next_due_at: when `max_fps` next lets a frame pass; None before the first.
        blocked_puts: frames that wait in `put`.
        gated: frames that the motion gate has held back.
    """

    stream: QueuedStream
    settings: DetectionSettings
    virtual_time: float
    frame: Frame | None = None
    filled_at: float = 0.0
    put_at: float | None = None
    period_seconds: float | None = None
    next_due_at: float | None = None
    blocked_puts: int = 0
    gated: int = 0

    @property
    def loses_nothing(self) -> bool:
        return self.stream.pace == "fastest"

    def pass_schedule(self, at_seconds: float) -> bool:
        """Whether `max_fps` lets a frame of this moment pass; if so, the schedule moves on by one period."""
        if self.stream.max_fps is None or self.loses_nothing:
            return True
        if not self.is_due(at_seconds):
            return False
        period_seconds = 1 / self.stream.max_fps
        due_at = at_seconds if self.next_due_at is None else self.next_due_at
        self.next_due_at = max(due_at, at_seconds - _LATE_PERIODS * period_seconds) + period_seconds
        return True

    def is_due(self, at_seconds: float) -> bool:
        """Whether `max_fps` would let a frame of this moment pass."""
        if self.stream.max_fps is None or self.loses_nothing or self.next_due_at is None:
            return True
        return at_seconds >= self.next_due_at - _EARLY_PERIODS / self.stream.max_fps

    def turn(self, lowest: float) -> tuple[float, float]:
        """Sorts slots in the order in which they are emptied.

        Args:
            lowest: virtual time of all slots that hold a frame.
        """
        captured = 0.0 if self.frame is None else self.frame.captured_monotonic_seconds
        lead = self.virtual_time - lowest
        return (0.0 if lead < _EQUALLY_DUE else lead), -captured

    def fill(self, frame: Frame, now: float) -> None:
        """Puts the newest frame in; `filled_at` stays with one that is replaced."""
        if self.frame is None:
            self.filled_at = now
        self.period_seconds = None if self.put_at is None else now - self.put_at
        self.frame, self.put_at = frame, now

    def may_fill(self, now: float, until: float) -> bool:
        """Whether a frame may come by then, as far as the last two tell; before there were two, one always may."""
        if self.put_at is None or self.period_seconds is None:
            return True
        expected_at = self.put_at + self.period_seconds
        silent_at = expected_at + max(_SILENT_PERIODS * self.period_seconds, until - now)
        return expected_at <= until and now < silent_at

    def is_stale(self, frame: Frame, now: float) -> bool:
        age_seconds = now - frame.captured_monotonic_seconds
        return age_seconds > self.stream.max_frame_age_seconds and not self.loses_nothing


class BatchQueue:
    """Hands the newest frame of each stream to the detector, in batches.

    - One slot per stream: a newer frame takes the place of an older one (`superseded`).
    - Fair queueing: streams with the lowest virtual time leave first, and each frame that leaves adds 1 / weight to its
      stream's, once for each picture that the detector looks at: a frame of 2x2 tiles is five. Under overload a stream
      of weight 2 leaves twice as often as one of weight 1. That holds while more streams wait than a batch has places.
    - Among streams that are equally due, less than one frame apart, the newest frame leaves first: then frames are
      young when they leave, even of many slow streams. How often each stream leaves stays the same.
    - When a batch leaves: `max_batch_delay_seconds` after the first frame came into the empty queue, or sooner: as soon
      as there are `max_batch_size` pictures, or no other stream is expected to send one before that. It never waits for
      every stream.
    - Also dropped: what `max_fps` does not let in (`rate_limited`), what is too old when it would leave (`stale`),
      and what comes after the end or belongs to a removed stream (`shutdown`).
    - What the motion gate holds back (`gated`) takes no slot, and uses up the schedule of `max_fps`.
    - Streams of pace "fastest" lose nothing: `put` waits until the slot is free.

    Thread-safe, for any number of threads on both sides.

    Args:
        max_batch_size: pictures per batch, at the most: frames, and their tiles. A frame with more tiles than that
            leaves alone.
        max_batch_delay_seconds: how long a batch waits for more frames, at the most.
        on_drop: called with the stream and the reason of every dropped frame; no lock is held meanwhile.
        prepare: called with each picture that is put, and with one of its tiles, by the thread that puts it, before
            it is queued: prepares the detector for a size that is new.
        clock: monotonic seconds.

    Attributes:
        max_batch_size: as given.
    """

    def __init__(
        self,
        max_batch_size: int,
        max_batch_delay_seconds: float,
        on_drop: Callable[[str, Drop], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        prepare: Callable[[Picture], None] = lambda _picture: None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self._limit = max_batch_size
        self._max_batch_delay_seconds = max_batch_delay_seconds
        self._on_drop = on_drop
        self._prepare = prepare
        self._clock = clock
        self._changed = threading.Condition()
        self._slots: dict[str, _Slot] = {}
        # Pictures of the frames that wait.
        self._pictures = 0
        # The lowest of the slots that waited when the newest batch left.
        self._virtual_time = 0.0
        self._closed = False

    def set_stream(self, stream: QueuedStream, settings: DetectionSettings = _DEFAULT_SETTINGS) -> None:
        """Makes a slot for a stream, or changes its configuration; its frame and its virtual time stay.

        Args:
            stream: its configuration.
            settings: that its frames carry which leave from now on.
        """
        with self._changed:
            slot = self._slots.get(stream.name)
            if slot is None:
                self._slots[stream.name] = _Slot(stream, settings, self._virtual_time)
                return
            if stream.max_fps != slot.stream.max_fps:
                slot.next_due_at = None
            if slot.frame is not None:
                self._pictures += settings.looks - slot.settings.looks
            slot.stream, slot.settings = stream, settings
            self._changed.notify_all()

    def remove_stream(self, name: str) -> None:
        """Takes the slot away and drops what is in it; frames put later are dropped too."""
        with self._changed:
            slot = self._slots.pop(name, None)
            dropped = slot is not None and self._empty(slot) is not None
            self._changed.notify_all()
        if dropped:
            self._on_drop(name, Drop.SHUTDOWN)

    def limit(self, pictures: int) -> None:
        """Sets how many pictures the next batches have at most, from 1 to `max_batch_size`."""
        with self._changed:
            if pictures != self._limit:
                self._limit = pictures
                self._changed.notify_all()

    def demand(self, name: str) -> Demand:
        """Which frames of a stream `max_fps` lets pass, for those who decode them."""
        return _QueueDemand(self, name)

    def max_fps(self, name: str) -> float | None:
        """Frames per second of a stream that may pass; None where all may, or where there is no such stream."""
        with self._changed:
            slot = self._slots.get(name)
            return None if slot is None or slot.loses_nothing else slot.stream.max_fps

    def is_due(self, name: str, at_seconds: float) -> bool:
        """Whether a frame of a stream that comes at this moment would pass."""
        with self._changed:
            slot = self._slots.get(name)
            return slot is None or slot.is_due(at_seconds)

    def put(self, frame: Frame) -> None:
        """Offers a frame; waits only for streams of pace "fastest", and for the first frame of a size."""
        if not frame.is_gated:
            for picture in one_of_each_size(frame.picture, self._tiles(frame.stream)):
                self._prepare(picture)
        with self._changed:
            reason = self._put(frame)
        if reason is not None:
            self._on_drop(frame.stream, reason)

    def take(self, timeout_seconds: float, shares: int = 1) -> list[Frame]:
        """The next batch, at most one frame per stream.

        After `close` it gives what is left, without waiting.

        Args:
            timeout_seconds: how long to wait for a first frame; a batch delay may come on top.
            shares: among how many takers to divide what does not fill a batch; one gets this part of it, rounded up.

        Returns:
            frames with 1 to `max_batch_size` pictures, or one with more, each with the settings that its stream has
            now; or none at the time-out or
            when the queue is closed and empty.
        """
        deadline = self._clock() + timeout_seconds
        while True:
            with self._changed:
                self._wait_for_batch(deadline)
                batch, stale = self._collect(self._share(shares))
            for frame in stale:
                self._on_drop(frame.stream, Drop.STALE)
            if batch or not stale:
                return batch

    def close(self) -> None:
        """Drops what is put from now on; what waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def discard(self) -> None:
        """Drops what waits."""
        with self._changed:
            dropped = [frame for slot in self._slots.values() if (frame := self._empty(slot)) is not None]
            self._changed.notify_all()
        for frame in dropped:
            self._on_drop(frame.stream, Drop.SHUTDOWN)

    def pending(self) -> dict[str, int]:
        """Frames that wait, per stream; those that wait in `put` are counted."""
        with self._changed:
            return {name: (slot.frame is not None) + slot.blocked_puts for name, slot in self._slots.items()}

    def pending_since(self) -> float | None:
        """Since when (monotonic seconds) a frame waits to be taken; None when none does."""
        with self._changed:
            return self._oldest_filled_at() if self._pictures else None

    @property
    def drained(self) -> bool:
        """Whether the queue is closed and empty: nothing will ever come out again."""
        with self._changed:
            return self._closed and not self._pictures

    def _tiles(self, name: str) -> int:
        with self._changed:
            slot = self._slots.get(name)
            return 1 if slot is None else slot.settings.tiles

    def _put(self, frame: Frame) -> Drop | None:
        """Puts a frame into its slot; the reason why a frame of that stream is dropped, if one is."""
        slot = self._slots.get(frame.stream)
        if slot is not None and not frame.is_gated:
            self._wait_until_free(slot)
        if slot is None or self._closed or self._slots.get(frame.stream) is not slot:
            return Drop.SHUTDOWN
        if not slot.pass_schedule(frame.captured_monotonic_seconds):
            return Drop.RATE_LIMITED
        if frame.is_gated:
            slot.gated += 1
            return Drop.GATED
        superseded = slot.frame is not None
        slot.fill(replace(frame, gated_before=slot.gated) if slot.gated else frame, self._clock())
        if superseded:
            return Drop.SUPERSEDED
        slot.virtual_time = max(slot.virtual_time, self._virtual_time - _SAVED_VIRTUAL_TIME)
        before, self._pictures = self._pictures, self._pictures + slot.settings.looks
        # Others need not wake: the first frame opens the window, the last one closes it.
        is_first, is_last = before == 0, before < self._limit <= self._pictures
        if is_first or is_last or self._window_end() <= slot.filled_at:
            self._changed.notify_all()
        return None

    def _wait_until_free(self, slot: _Slot) -> None:
        """Waits while the slot of a stream that loses nothing is taken, and still the stream's."""
        slot.blocked_puts += 1
        try:
            while (
                slot.loses_nothing
                and slot.frame is not None
                and not self._closed
                and self._slots.get(slot.stream.name) is slot
            ):
                self._changed.wait()
        finally:
            slot.blocked_puts -= 1

    def _wait_for_batch(self, deadline: float) -> None:
        while not self._closed and self._pictures < self._limit:
            end = self._window_end() if self._pictures else deadline
            left_seconds = end - self._clock()
            if left_seconds <= 0:
                return
            self._changed.wait(left_seconds)

    def _window_end(self) -> float:
        """When the batch leaves that has begun; in the past where nothing more is expected."""
        first, now = self._oldest_filled_at(), self._clock()
        end = first + self._max_batch_delay_seconds
        expects_more = any(slot.frame is None and slot.may_fill(now, end) for slot in self._slots.values())
        return end if expects_more else first

    def _share(self, shares: int) -> int:
        is_full = self._pictures >= self._limit
        return self._limit if is_full else math.ceil(self._pictures / shares)

    def _collect(self, most: int) -> tuple[list[Frame], list[Frame]]:
        """Empties the slots that are due: the batch, and frames that were too old for it."""
        now = self._clock()
        waiting = [slot for slot in self._slots.values() if slot.frame is not None]
        lowest = min((slot.virtual_time for slot in waiting), default=0.0)
        waiting.sort(key=lambda slot: slot.turn(lowest))
        batch: list[Frame] = []
        stale: list[Frame] = []
        room = most
        for slot in waiting:
            if room <= 0:
                break
            looks = slot.settings.looks
            if batch and looks > room:
                # Others leave before it now, but not for long: each adds to its virtual time.
                continue
            frame = self._empty(slot)
            if frame is None:
                continue
            if slot.is_stale(frame, now):
                stale.append(frame)
                continue
            self._virtual_time = max(self._virtual_time, lowest)
            slot.virtual_time += looks / slot.stream.weight
            room -= looks
            batch.append(replace(frame, settings=slot.settings))
        if any(slot.blocked_puts for slot in waiting):
            self._changed.notify_all()
        return batch, stale

    def _empty(self, slot: _Slot) -> Frame | None:
        frame, slot.frame = slot.frame, None
        if frame is not None:
            self._pictures -= slot.settings.looks
        return frame

    def _oldest_filled_at(self) -> float:
        return min(slot.filled_at for slot in self._slots.values() if slot.frame is not None)


class _QueueDemand:
    """The demand for frames of one stream, as the queue will decide; also after a reload."""

    def __init__(self, queue: BatchQueue, stream: str) -> None:
        self._queue = queue
        self._stream = stream

    @property
    def max_fps(self) -> float | None:
        return self._queue.max_fps(self._stream)

    def is_due(self, at_monotonic_seconds: float) -> bool:
        return self._queue.is_due(self._stream, at_monotonic_seconds)
