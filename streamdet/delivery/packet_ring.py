"""Keeps the newest seconds of a stream as encoded packets, and cuts clips from them.

A ring takes the memory of its packets. It holds whole groups of pictures, each from a key frame up to the next one:
the oldest group is dropped when the next one reaches back far enough, or when the ring exceeds its limit of bytes.

Time is that of the stream: it continues over reconnects, repetitions of a file, and encoders that start again. A clip
is cut as soon as its last picture has come, so no packet has to be kept longer than in the ring.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from streamdet.delivery.mp4 import TICKS_PER_SECOND, TimedPacket
from streamdet.types import EncodedPacket, VideoParameters

# A clip begins before the frame that raised its alert, which had to be detected first.
_DETECTION_TICKS = 2 * TICKS_PER_SECOND
# A step further back or forward is another timeline.
_MOST_BACK_TICKS = TICKS_PER_SECOND // 2
_MOST_BACK_WITHOUT_DTS_TICKS = 2 * TICKS_PER_SECOND
_MOST_FORWARD_TICKS = 10 * TICKS_PER_SECOND
# The objects around the bytes of a packet.
_PACKET_BYTES = 400
# How long the last pictures of a clip may be late; and how long one waits at most for those of a slow file.
_LATE_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 600.0
# Streams without a key frame for so long are rare.
_KEY_FRAME_SECONDS = 10.0

NO_PACKETS, NO_KEY_FRAME, TOO_LARGE, CODEC = "no_packets", "no_key_frame", "too_large", "codec"
"""Why a clip cannot be cut: no packets have come; none that decoding can begin with; one group of pictures is larger
than the ring; the codec is neither H.264 nor H.265."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """What a clip is made of.

    Attributes:
        stream: name of the stream.
        clip_id: of the clip.
        packets: in the order of decoding, from a key frame on, all with the same parameters.
        begin: requested beginning, in ticks; the key frame is usually before it.
        end: requested end, in ticks.
        lacks_begin: whether packets from its beginning are missing.
        lacks_end: whether packets from its end are missing.
        missing: why there are no packets at all; empty where there are.
    """

    stream: str
    clip_id: str
    packets: list[TimedPacket]
    begin: int
    end: int
    lacks_begin: bool
    lacks_end: bool
    missing: str = ""


@dataclass(slots=True)
class _Group:
    """A key frame and the packets up to the next one."""

    parameters: VideoParameters
    connection: int
    packets: list[TimedPacket] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def begin(self) -> int:
        return self.packets[0].at


@dataclass(slots=True)
class _Wanted:
    """A clip whose end has not come yet; positions in ticks.

    One that begins with the next key frame has no parameters before that, and its end counts from there.
    """

    clip_id: str
    begin: int
    moment: int
    end: int
    until_monotonic_seconds: float
    parameters: VideoParameters | None


class PacketRing:
    """The newest packets of one stream; a `PacketSink`.

    The capture puts packets in, the publisher requests clips; `cut` is called in either thread, or in that of `expire`.

    Args:
        stream: name of the stream.
        seconds: the longest clip.
        max_bytes: of all packets together.
        cut: gets each clip when its last picture has come; must not block.

    Attributes:
        is_open: whether packets are kept.
        size_bytes: of the packets that are kept.
        refused_codec: the codec of the stream if clips cannot be made from it; else empty.
    """

    def __init__(self, stream: str, seconds: float, max_bytes: int, cut: Callable[[Cut], None]) -> None:
        self.is_open = False
        self.size_bytes = 0
        self._stream = stream
        self._longest_ticks = round(seconds * TICKS_PER_SECOND)
        self._max_bytes = max_bytes
        self._cut = cut
        self._lock = threading.Lock()
        self._timeline = _Timeline()
        self._groups: deque[_Group] = deque()
        # Whether packets belong to the newest group: not before a key frame, nor after a connection has ended.
        self._is_growing = False
        self._missing = NO_PACKETS
        self._missing_since_monotonic_seconds = 0.0
        self.refused_codec = ""
        self._newest = 0
        self._connection = 0
        self._arrived_monotonic_seconds = 0.0
        self._wanted: list[_Wanted] = []
        self._opened_monotonic_seconds = float("-inf")

    def put(self, packet: EncodedPacket) -> None:
        """Takes the next packet, in the order of decoding."""
        with self._lock:
            self._add(packet)
            done = [wanted for wanted in self._wanted if wanted.parameters is not None and self._newest > wanted.end]
            cuts = self._taken(done)
        self._pass_on(cuts)

    def accept(self) -> None:
        """Records that clips can be made from the codec of the stream, which may have been another one before."""
        with self._lock:
            if self.refused_codec:
                self._clear(NO_PACKETS, time.monotonic())
                self.refused_codec = ""

    def refuse(self, codec: str) -> None:
        """Records that clips cannot be made from the codec of the stream."""
        with self._lock:
            self._clear(CODEC, time.monotonic())
            self.refused_codec = codec

    def want(
        self,
        new_id: Callable[[], str],
        packet_pts: int | None,
        captured_monotonic_seconds: float,
        span: tuple[float, float],
    ) -> str:
        """Requests a clip around a frame; a pending clip may be extended to cover both requests.

        While a ring that was just opened has no key frame, a clip begins with the first one that comes.

        Args:
            new_id: makes the id of a clip.
            packet_pts: of the frame.
            captured_monotonic_seconds: `time.monotonic()` of the frame.
            span: seconds before and after the frame.

        Returns:
            The id of the clip.

        Raises:
            LookupError: there are no packets to cut it from; the text is one of the reasons of this module.
        """
        before, after = (round(seconds * TICKS_PER_SECOND) for seconds in span)
        until = captured_monotonic_seconds + span[1] + _LATE_SECONDS
        with self._lock:
            try:
                moment, parameters = self._find(packet_pts, captured_monotonic_seconds)
            except LookupError:
                if packet_pts is None or not self._is_new(captured_monotonic_seconds):
                    raise
                if not self._groups:
                    return self._want_later(new_id, after, until + _KEY_FRAME_SECONDS)
                moment, parameters = self._groups[0].begin, self._groups[0].parameters
            begin, end = moment - before, moment + after
            for wanted in self._wanted:
                ticks = max(end, wanted.end) - min(begin, wanted.begin)
                if wanted.parameters == parameters and ticks <= self._longest_ticks:
                    wanted.begin, wanted.end = min(begin, wanted.begin), max(end, wanted.end)
                    wanted.until_monotonic_seconds = max(until, wanted.until_monotonic_seconds)
                    return wanted.clip_id
            clip = _Wanted(new_id(), begin, moment, end, until, parameters)
            self._wanted.append(clip)
            cuts = self._taken([clip] if self._newest > end else [])
        self._pass_on(cuts)
        return clip.clip_id

    def _is_new(self, captured_monotonic_seconds: float) -> bool:
        """Whether a frame is from before the first key frame since the ring was opened, and that not long ago."""
        if captured_monotonic_seconds > self._opened_monotonic_seconds + _KEY_FRAME_SECONDS:
            return False
        if self._groups:
            return self._groups[0].packets[0].packet.arrived_monotonic_seconds > captured_monotonic_seconds
        return self._missing in (NO_PACKETS, NO_KEY_FRAME)

    def _want_later(self, new_id: Callable[[], str], after: int, until: float) -> str:
        """Requests a clip that begins with the next key frame."""
        for wanted in self._wanted:
            if wanted.parameters is None:
                wanted.end = max(after, wanted.end)
                wanted.until_monotonic_seconds = max(until, wanted.until_monotonic_seconds)
                return wanted.clip_id
        self._wanted.append(_Wanted(new_id(), 0, 0, after, until, None))
        return self._wanted[-1].clip_id

    def expire(self, now: float, *, all_of_them: bool = False) -> float | None:
        """Cuts clips whose last pictures do not come; returns when to call this again, None for never.

        Args:
            now: `time.monotonic()`.
            all_of_them: whether no more pictures come.
        """
        with self._lock:
            is_idle = now - self._arrived_monotonic_seconds > _LATE_SECONDS
            done = [
                wanted
                for wanted in self._wanted
                if all_of_them or now >= wanted.until_monotonic_seconds + (0.0 if is_idle else _LONGEST_WAIT_SECONDS)
            ]
            cuts = self._taken(done)
            due = min((wanted.until_monotonic_seconds for wanted in self._wanted), default=None)
        self._pass_on(cuts)
        return None if due is None else max(due, now + _LATE_SECONDS / 4)

    def open(self, *, is_open: bool) -> None:
        """Starts or stops keeping packets; at a stop, pending clips are cut from what is there."""
        if is_open == self.is_open:
            return
        self.is_open = is_open
        if is_open:
            self._opened_monotonic_seconds = time.monotonic()
        else:
            self.clear()

    def clear(self) -> None:
        """Drops all packets; pending clips are cut from what is there."""
        self.expire(time.monotonic(), all_of_them=True)
        with self._lock:
            self._clear(CODEC if self.refused_codec else NO_PACKETS, time.monotonic())

    def _add(self, packet: EncodedPacket) -> None:
        at, self._newest = self._timeline.place(packet)
        self._arrived_monotonic_seconds = packet.arrived_monotonic_seconds
        self.refused_codec = ""
        self._connection += packet.begins
        if packet.is_key:
            self._groups.append(_Group(packet.parameters, self._connection))
            self._is_growing = True
            for wanted in self._wanted:
                if wanted.parameters is None:
                    wanted.begin = at - 1  # before what there is: its beginning is missing
                    wanted.moment, wanted.end, wanted.parameters = at, at + wanted.end, packet.parameters
        elif packet.begins or (self._missing == NO_PACKETS and not self._groups):
            self._is_growing, self._missing = False, NO_KEY_FRAME
            self._missing_since_monotonic_seconds = packet.arrived_monotonic_seconds
        if not self._is_growing:
            return
        size = sys.getsizeof(packet.data) + _PACKET_BYTES
        group = self._groups[-1]
        group.packets.append(TimedPacket(packet, at))
        group.size_bytes += size
        self.size_bytes += size
        keep_from = self._newest - self._longest_ticks - _DETECTION_TICKS
        while len(self._groups) > 1 and (self.size_bytes > self._max_bytes or self._groups[1].begin <= keep_from):
            self.size_bytes -= self._groups.popleft().size_bytes
        if self.size_bytes > self._max_bytes:
            self._clear(TOO_LARGE, packet.arrived_monotonic_seconds)

    def _clear(self, missing: str, since: float) -> None:
        self._groups.clear()
        self._opened_monotonic_seconds = float("-inf")
        self.size_bytes = 0
        self._is_growing, self._missing = False, missing
        self._missing_since_monotonic_seconds = since

    def _find(self, packet_pts: int | None, captured_monotonic_seconds: float) -> tuple[int, VideoParameters]:
        """The position of a frame, in ticks, and its parameters.

        Raises:
            LookupError: its packet is not here.
        """
        nearest: tuple[int, VideoParameters] | None = None
        if not self._is_growing and captured_monotonic_seconds >= self._missing_since_monotonic_seconds:
            raise LookupError(self._missing)
        connection: int | None = None
        for group in reversed(self._groups):
            if connection not in (None, group.connection):
                break  # timestamps of another connection cannot be compared
            for timed in reversed(group.packets):
                if timed.packet.arrived_monotonic_seconds > captured_monotonic_seconds:
                    continue
                if timed.packet.pts == packet_pts or packet_pts is None:
                    return timed.at, group.parameters
                if nearest is None:
                    nearest, connection = (timed.at, group.parameters), group.connection
        if nearest is None:
            raise LookupError(NO_KEY_FRAME)
        return nearest

    def _taken(self, done: list[_Wanted]) -> list[Cut]:
        if not done:
            return []
        self._wanted = [wanted for wanted in self._wanted if wanted not in done]
        return [self._cut_out(wanted) for wanted in done]

    def _cut_out(self, wanted: _Wanted) -> Cut:
        """The packets of a clip: those of its span that have the parameters of the requested frame."""
        if wanted.parameters is None:
            missing = CODEC if self.refused_codec else NO_KEY_FRAME
            return Cut(self._stream, wanted.clip_id, [], 0, 0, lacks_begin=True, lacks_end=True, missing=missing)
        groups = list(self._groups)
        fits = [group.parameters == wanted.parameters for group in groups]
        first = last = max((n for n, group in enumerate(groups) if group.begin <= wanted.moment), default=0)
        while first > 0 and fits[first - 1] and groups[first].begin > wanted.begin:
            first -= 1
        while last + 1 < len(groups) and fits[last + 1] and groups[last + 1].begin <= wanted.end:
            last += 1
        packets = [timed for group in groups[first : last + 1] for timed in group.packets]
        while packets and packets[-1].at > wanted.end:
            packets.pop()
        lacks_begin = not packets or packets[0].at > wanted.begin
        lacks_end = self._newest <= wanted.end or (last + 1 < len(groups) and groups[last + 1].begin <= wanted.end)
        missing = "" if packets else TOO_LARGE
        return Cut(self._stream, wanted.clip_id, packets, wanted.begin, wanted.end, lacks_begin, lacks_end, missing)

    def _pass_on(self, cuts: list[Cut]) -> None:
        for cut in cuts:
            self._cut(cut)


class _Timeline:
    """Places packets on one timeline that never starts again."""

    def __init__(self) -> None:
        self._offset = 0
        self._step = 1
        self._last: tuple[int, float] | None = None

    def place(self, packet: EncodedPacket) -> tuple[int, int]:
        """Where the next packet belongs, in ticks: when it is shown, and when the newest one is decoded."""
        base = packet.time_base
        pts = _ticks(packet.pts, base)
        dts = _ticks(packet.dts, base)
        raw = pts if dts is None else dts
        arrived = packet.arrived_monotonic_seconds
        if self._last is None:
            decoded = 0
            self._offset = 0 if raw is None else -raw
        else:
            last, last_arrived = self._last
            waited = round((arrived - last_arrived) * TICKS_PER_SECOND)
            untimed_step = _ticks(packet.duration, base) or max(waited, 1)
            decoded = last + untimed_step if raw is None else raw + self._offset
            most_back = _MOST_BACK_TICKS if dts is not None else _MOST_BACK_WITHOUT_DTS_TICKS
            step = decoded - last
            if raw is not None and (packet.begins or not -most_back <= step <= waited + _MOST_FORWARD_TICKS):
                # Another timeline continues after the time that has passed here.
                step = max(waited, self._step)
                decoded = last + step
                self._offset = decoded - raw
            elif step > 0:
                self._step = min(step, TICKS_PER_SECOND)
        newest = decoded if self._last is None else max(decoded, self._last[0])
        self._last = newest, arrived
        return (decoded if pts is None else pts + self._offset), newest


def _ticks(time_stamp: int | None, time_base: Fraction) -> int | None:
    return None if time_stamp is None else round(time_stamp * time_base * TICKS_PER_SECOND)
