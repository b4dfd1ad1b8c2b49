"""Selects the pictures of a stream that are decoded.

Decoding is most of what a stream costs, and with `max_fps` most pictures are dropped afterwards. Two kinds of pictures
can be left out without harm to others: those that no other picture depends on, and, where key frames alone are enough,
all pictures between them. `decode` in a stream's configuration says which are:

- "all": none is left out.
- "reference": pictures that no other depends on.
- "none", where only packets are wanted: all.
- "keyframes": all but key frames.
- "auto": what `max_fps` would drop anyway. Pictures that no other depends on are decoded when the queue would take
  them. Where key frames come as often as `max_fps` takes frames, only they are decoded.

Wherever decoding goes on, it does so with all that the next picture depends on: at a key frame or, as "auto" keeps the
packets since the last one, at any picture. So no picture differs from what decoding everything would give.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Literal

import av

from streamdet.capture.sources.h264 import PictureStart
from streamdet.capture.sources.h265 import PictureLayers
from streamdet.types import Demand

Mode = Literal["all", "reference", "keyframes", "auto", "none"]

# Timestamps are rounded, and cameras are not exact: a detection every 2.1 s is as good as one every 2 s.
_MOST_PERIODS = 1.05
# A key frame that is later than this is not waited for.
_LATEST_PERIODS = 1.25
# So many distances between key frames in a row must fit; twice as many after each key frame that was late.
_FEWEST_FITTING = 3
_MOST_FITTING = 96
# A larger distance, or one below 0, is one between timelines.
_LONGEST_DISTANCE_SECONDS = 300.0
# Packets that are kept since the last key frame; where there are more, the next one is waited for.
_MOST_KEPT_BYTES = 8 << 20
_MOST_KEPT_PACKETS = 2000


class Choice(Enum):
    """What is done with a packet.

    Attributes:
        DECODE: it is decoded.
        ALONE: it is decoded, and needs nothing of what came before: the decoder returns its picture at once.
        LEAVE_OUT: it is not decoded.
        LEAVE_PART: it is not decoded either, and belongs to the picture of the packet before.
    """

    DECODE = auto()
    ALONE = auto()
    LEAVE_OUT = auto()
    LEAVE_PART = auto()


class _Kind(Enum):
    """What a packet is for others: a key frame; a picture that others may depend on, or none; a part of one."""

    KEY = auto()
    NEEDED = auto()
    FREE = auto()
    PART = auto()


class AllWanted:
    """The `Demand` for every frame."""

    max_fps: float | None = None

    def is_due(self, at_monotonic_seconds: float) -> bool:  # noqa: ARG002 - as in `Demand`
        """Always."""
        return True


class Selection:
    """Selects packets of one connection; each holds one picture, or a part of the one before.

    Args:
        decoder: of the stream.
        mode: `decode` of the stream's configuration.
        demand: which frames are worth decoding; for "auto" alone.
        is_timed: whether timestamps are times, not a count of pictures.
        shown_at: when the picture of a packet is to be shown, in monotonic seconds.

    Attributes:
        ends_key: whether a key frame, decoded alone from several packets, was complete with the packet before.
    """

    def __init__(
        self,
        decoder: av.VideoCodecContext,
        mode: Mode = "all",
        demand: Demand | None = None,
        *,
        is_timed: bool = True,
        shown_at: Callable[[av.Packet[av.VideoStream]], float] = lambda _packet: time.monotonic(),
    ) -> None:
        self._codec = decoder.codec.canonical_name
        self._is_intra_only = decoder.codec.intra_only
        self._layers = PictureLayers(decoder.extradata) if self._codec == "hevc" else None
        # The key frames of other codecs may hide pictures that are not shown, or be none (MPEG-4).
        self._is_known = self._is_intra_only or self._codec in ("h264", "hevc")
        self._mode = mode
        self._demand = demand or AllWanted()
        self._is_timed = is_timed
        self._shown_at = shown_at
        self._only_keys = mode == "keyframes"
        self._last = Choice.DECODE
        self._kept: list[av.Packet[av.VideoStream]] | None = None
        self._kept_bytes = 0
        self._counted: set[int] = set()
        self._last_key_at: float | None = None
        self._fitting = 0
        self._needed_fitting = _FEWEST_FITTING
        self._is_leaving = False
        self._keys_are_sound = True
        # Whether packets go on with the key frame of the packet before; None where that is not known yet.
        self._has_parts: bool | None = False if self._is_intra_only else None
        self._follows_key = False
        self.ends_key = False

    @property
    def decodes(self) -> bool:
        """Whether any picture is decoded."""
        return self._mode != "none"

    @property
    def only_keys(self) -> bool:
        """Whether only key frames are decoded now, and the last one was sound."""
        return self._only_keys and self._keys_are_sound

    def choose(self, packet: av.Packet[av.VideoStream], start: PictureStart | None = None) -> Choice:
        """What to do with the next packet; if it is decoded, then after those of `catch_up`.

        Args:
            packet: with a picture or a part of one; without data at the end.
            start: what its slices say, of H.264.
        """
        self.ends_key = False
        if self._mode == "all" or not packet.size:
            return Choice.DECODE
        kind = self._kind_of(packet, start)
        if self._follows_key:
            self.ends_key = kind is not _Kind.PART and self._has_parts is not False and self._last is Choice.ALONE
            if kind is _Kind.PART or self._has_parts is None:
                self._has_parts = kind is _Kind.PART
        if kind is not _Kind.PART:
            self._follows_key = kind is _Kind.KEY
        self._last = self._choose(packet, kind)
        if self._last is Choice.ALONE and self._has_parts is not False:
            return Choice.DECODE
        return self._last

    def catch_up(self) -> list[av.Packet[av.VideoStream]]:
        """Packets that must be decoded before the chosen one; what is counted of them already is not shown."""
        if self._only_keys or not self._kept:
            return []
        kept, self._kept = self._kept, None
        self._counted = {packet.pts for packet in kept if packet.pts is not None}
        return kept

    def shows(self, frame: av.VideoFrame) -> bool:
        """Whether a decoded picture is to be shown: not if it was counted as left out, or shown before."""
        if frame.pts is None or not self._counted:
            return True
        if frame.pts > max(self._counted):
            # Pictures come in the order of their times.
            self._counted.clear()
        is_counted = frame.pts in self._counted
        self._counted.discard(frame.pts)
        return not is_counted

    def forget(self) -> None:
        """Something is missing or damaged: what has been kept cannot be decoded."""
        self._kept = None
        self._counted.clear()

    def judge_key(self, *, is_sound: bool) -> None:
        """Takes whether a key frame that was decoded alone is a sound picture."""
        self._keys_are_sound = is_sound
        if not is_sound and self._mode == "auto":
            self._only_keys = False
            self._distrust()
            self.forget()

    def _kind_of(self, packet: av.Packet[av.VideoStream], start: PictureStart | None) -> _Kind:
        if self._is_intra_only:
            return _Kind.KEY
        if self._layers is not None:
            slices = self._layers.follow(bytes(packet))
            if not slices.begin_picture:
                return _Kind.PART
            is_key, is_free = packet.is_keyframe, not slices.is_reference
        elif self._codec == "h264" and start is not None:
            if start.rest_at is not None or start.is_second_field:
                return _Kind.PART
            # A wave of intra refresh begins like a key frame, and is none. Of two fields, one needs the other.
            is_key = packet.is_keyframe and (start.is_idr or start.is_intra)
            is_free = not start.is_reference and not start.is_field
        else:
            is_key, is_free = packet.is_keyframe, False
        if is_key:
            return _Kind.KEY
        return _Kind.FREE if is_free else _Kind.NEEDED

    def _choose(self, packet: av.Packet[av.VideoStream], kind: _Kind) -> Choice:
        if kind is _Kind.PART:
            return self._choose_part(packet)
        if self._mode == "none":
            return Choice.LEAVE_OUT
        if self._mode == "keyframes":
            return Choice.ALONE if kind is _Kind.KEY else Choice.LEAVE_OUT
        if self._mode == "reference":
            return Choice.LEAVE_OUT if kind is _Kind.FREE else Choice.DECODE
        max_fps = self._demand.max_fps
        if not self._is_known:
            return Choice.DECODE
        return self._choose_needed(packet, kind, None if max_fps is None else 1 / max_fps)

    def _choose_part(self, packet: av.Packet[av.VideoStream]) -> Choice:
        self._keep(packet, is_part=True)
        return self._last if self._last in (Choice.DECODE, Choice.ALONE) else Choice.LEAVE_PART

    def _choose_needed(self, packet: av.Packet[av.VideoStream], kind: _Kind, period_seconds: float | None) -> Choice:
        """What "auto" does.

        Args:
            packet: the next one.
            kind: of it.
            period_seconds: between two frames that `max_fps` lets pass; None where it lets all pass.
        """
        at = self._time_of(packet)
        if self._only_keys:
            self._look_for_end(at, period_seconds)
        if kind is _Kind.KEY:
            return self._choose_key(packet, at, period_seconds)
        if self._only_keys and self._is_leaving and self._kept:
            self._only_keys = self._is_leaving = False
            return Choice.DECODE
        if self._only_keys:
            self._keep(packet)
            return Choice.LEAVE_OUT
        return Choice.LEAVE_OUT if kind is _Kind.FREE and not self._is_due(packet) else Choice.DECODE

    def _choose_key(self, packet: av.Packet[av.VideoStream], at: float, period_seconds: float | None) -> Choice:
        self._measure(at, period_seconds)
        begins = not self._only_keys and self._fits(period_seconds)
        if self._is_leaving:
            self._only_keys = self._is_leaving = False
        self._only_keys |= begins
        self._kept, self._kept_bytes = [] if self._only_keys else None, 0
        if not self._only_keys:
            return Choice.DECODE
        self._counted.clear()
        self._keep(packet)
        # With the first one, the decoder also returns what it still holds.
        return Choice.ALONE if begins or self._is_due(packet) else Choice.LEAVE_OUT

    def _is_due(self, packet: av.Packet[av.VideoStream]) -> bool:
        return self._demand.is_due(self._shown_at(packet))

    def _look_for_end(self, at: float, period_seconds: float | None) -> None:
        """Notices that key frames are no longer enough."""
        if self._is_intra_only or self._is_leaving or self._last_key_at is None:
            return
        if period_seconds is None:
            self._is_leaving = True
        elif at - self._last_key_at > _LATEST_PERIODS * period_seconds:
            self._is_leaving = True
            self._distrust()

    def _distrust(self) -> None:
        """Key frames have to prove themselves for longer from now on."""
        self._fitting = 0
        self._needed_fitting = min(2 * self._needed_fitting, _MOST_FITTING)

    def _fits(self, period_seconds: float | None) -> bool:
        if period_seconds is None:
            return False
        return self._is_intra_only or self._fitting >= self._needed_fitting

    def _measure(self, at: float, period_seconds: float | None) -> None:
        """Counts the distances between key frames in a row that are short enough."""
        distance = None if self._last_key_at is None else at - self._last_key_at
        if distance == 0:
            return  # the same key frame, in parts
        self._last_key_at = at
        if distance is None or not 0 < distance < _LONGEST_DISTANCE_SECONDS:
            return
        fits = period_seconds is not None and distance <= _MOST_PERIODS * period_seconds
        self._fitting = self._fitting + 1 if fits else 0

    def _keep(self, packet: av.Packet[av.VideoStream], *, is_part: bool = False) -> None:
        """Keeps a packet, in case that key frames do not suffice any more."""
        if self._kept is None or self._is_intra_only:
            return
        self._kept_bytes += packet.size
        if (
            (packet.pts is None and not is_part)
            or self._kept_bytes > _MOST_KEPT_BYTES
            or len(self._kept) >= _MOST_KEPT_PACKETS
        ):
            self._kept = None
            return
        self._kept.append(packet)

    def _time_of(self, packet: av.Packet[av.VideoStream]) -> float:
        if not self._is_timed or packet.pts is None or packet.time_base is None:
            return time.monotonic()
        return float(packet.pts * packet.time_base)
