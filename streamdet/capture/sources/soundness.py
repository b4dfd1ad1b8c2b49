"""Decides which pictures of a stream are sound: those that do not depend on missing data.

A picture is decoded from the ones before it. If one is missing or damaged, or if a stream is joined between two key
frames, decoders continue with incomplete data: the pictures look smeared, and a detector finds objects that are not
there. So no picture counts as sound from the damage on until a key frame, or a complete wave of intra refresh.

Damage shows in several ways: FFmpeg's log reports lost data, the numbers of H.264 pictures have a gap (`h264`), the
container or the decoder calls a packet broken, the decoder marks a picture. The decoder is then flushed. After that it
marks every picture until it has recovered (H.264, HEVC), or returns none (MPEG-2, VP8, VP9, AV1). MPEG-4 does neither:
there only key frames count. A whole picture that is missing without any other sign is noticed in H.264 and HEVC only:
the other codecs do not number their pictures. Each picture of a codec that is not named here counts as sound.

In MPEG-TS every packet is numbered, and a gap counts against the picture before it. Where another file or recording
begins, the numbers start again although nothing is missing. So that picture is judged with the packet after it: if this
one is a key frame and begins another file of HLS or another timeline, the picture is decoded like any other.

FFmpeg's log is read here but never written anywhere, because it may contain a URL.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import av
import av.logging
from av.codec.context import Flags
from av.video.frame import PictureType

from streamdet.capture.sources.h264 import PictureNumbers, PictureParts, PictureStart
from streamdet.capture.sources.hardware import HardwareDecoder
from streamdet.capture.sources.packets import PacketTap
from streamdet.capture.sources.selection import Choice, Selection

KEY_FRAME_SECONDS = 120.0
"""How long a key frame is waited for. A stream that has none at all, because it refreshes its pictures bit by bit, has
whole ones by then, and is shown as it is."""

_TIMES_OF_MPEG_TS = 1 << 33
# Decoding times that go on by more belong to another timeline.
_LARGEST_STEP_SECONDS = 10.0
_BUILD_ON_OTHERS = frozenset({"h263", "h264", "hevc", "vvc", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9", "av1"})

# What FFmpeg reports in its log only: lost RTP packets, a missing index of MP4, gaps in MPEG-TS.
_RTP = ("RTP: missed", "RTP: PT=")
_NO_INDEX = "moov atom not found"
# FFmpeg also marks the next packet of its parser; only the message names the right one.
_CORRUPT = re.compile(r"Packet corrupt \(stream = [0-9]+, dts = (-?[0-9]+|NOPTS)\)")
# The HLS demuxer repeats the message for the wrong packet.
_OF_HLS = "libav.hls"
_MOST_REMEMBERED = 64


class Soundness:
    """Decodes one connection's packets and judges its pictures.

    Args:
        decoder: that has decoded nothing yet.
        key_frame_seconds: how long a key frame is waited for.
        tap: gets every packet of which nothing is known to be lost.
        selection: says which packets are decoded; None for all.
        hardware: decodes instead of `decoder`; None for that itself.

    Attributes:
        broken_packets: that could not be decoded.
        waits: whether a key frame is waited for: nothing can be shown before it.
    """

    def __init__(
        self,
        decoder: av.VideoCodecContext,
        key_frame_seconds: float = KEY_FRAME_SECONDS,
        tap: PacketTap | None = None,
        selection: Selection | None = None,
        hardware: HardwareDecoder | None = None,
    ) -> None:
        name = decoder.codec.canonical_name
        self._builds_on_others = name in _BUILD_ON_OTHERS
        self._marks_until_recovered = name == "h264"
        self._numbers = PictureNumbers(decoder.extradata) if name == "h264" else None
        self._parts = PictureParts()
        self.broken_packets = 0
        self.waits = self._builds_on_others
        self._decoder = hardware or decoder
        self._key_frame_seconds = key_frame_seconds
        self._tap = tap
        self._selection = selection or Selection(decoder)
        self._left_out: list[LeftOut] = []
        # Otherwise damaged pictures would be missing instead of counted.
        decoder.flags |= Flags.output_corrupt
        self._holds_since: float | None = time.monotonic()
        self._shows_all = self._lost = self._has_keys = False
        self._lost_times: dict[int, bool] = {}
        self._doubtful: _DoubtfulPacket | None = None
        self._unshown_key: int | None = None

    @property
    def has_waited_too_long(self) -> bool:
        """Whether there was no key frame for `key_frame_seconds`."""
        return self._holds_since is not None and time.monotonic() - self._holds_since > self._key_frame_seconds

    def decode(self, packet: av.Packet[av.VideoStream]) -> list[tuple[av.VideoFrame, bool]]:
        """The pictures that are complete with this packet, and whether they are sound."""
        judged: list[tuple[av.VideoFrame, bool]] = []
        if self._doubtful is not None:
            doubtful, self._doubtful = self._doubtful, None
            if doubtful.is_whole_before(packet):
                judged = self._follow(doubtful.packet, is_last=True)
            judged += self._drop()
        if packet.size:
            losses = take_losses()
            self._lost_times |= {dts % _TIMES_OF_MPEG_TS: at_join for dts, at_join in losses.times.items()}
            # RTP packets were lost from this packet, or from the one that has just begun after it.
            was_lost, self._lost = self._lost, losses.rtp
            if self._lost or (was_lost and packet.is_keyframe):
                return judged + self._drop()
            self._doubtful = self._lost_a_part(packet)
            if self._doubtful is not None:
                return judged
        return judged + self._follow(packet)

    def take_left_out(self) -> list[LeftOut]:
        """The pictures that were not decoded, since the last call."""
        left_out, self._left_out = self._left_out, []
        return left_out

    def _drop(self) -> list[tuple[av.VideoFrame, bool]]:
        """Goes on without a packet that is damaged."""
        self._parts.drop()
        return self._begin_again()

    def _follow(self, packet: av.Packet[av.VideoStream], *, is_last: bool = False) -> list[tuple[av.VideoFrame, bool]]:
        """Decodes what is complete with this packet, and follows the pictures' numbers."""
        if self._numbers is None:
            if self._tap is not None and packet.size:
                self._tap.add(packet)
            return self._select(packet)
        if packet.size:
            data = bytes(packet)
            start = self._numbers.follow(data)
            if self._tap is not None:
                self._tap.add(packet, data, start.rest_at)
            ready = self._parts.add(packet, start)
            ready += self._parts.rest() if is_last else []
        else:
            ready = [*self._parts.rest(), (packet, PictureStart(), False)]
        judged: list[tuple[av.VideoFrame, bool]] = []
        for whole, start, is_again in ready:
            if is_again:
                # A part of it was decoded as if it were all.
                judged += [left for left in self._begin_again() if not left[0].key_frame or left[0].pts != whole.pts]
            elif start.after_gap:
                judged += self._begin_again()
            judged += self._select(whole, start)
        return judged

    def _select(
        self, packet: av.Packet[av.VideoStream], start: PictureStart | None = None
    ) -> list[tuple[av.VideoFrame, bool]]:
        """Decodes a packet with a whole picture, if that is to be decoded."""
        selection = self._selection
        choice = selection.choose(packet, start)
        judged = self._finish_key() if selection.ends_key else []
        if packet.is_keyframe and not selection.decodes:
            self.waits = False
        if choice is Choice.LEAVE_OUT and not self.waits:
            is_sound = self._holds_since is None or selection.only_keys
            self._left_out.append(LeftOut(packet, is_sound))
        if choice in (Choice.LEAVE_OUT, Choice.LEAVE_PART):
            return judged
        for each in (*selection.catch_up(), packet):
            judged += self._decode(each)
        if choice is Choice.ALONE:
            judged += self._finish_key(judged)
        return [found for found in judged if selection.shows(found[0])]

    def _finish_key(self, before: Sequence[tuple[av.VideoFrame, bool]] = ()) -> list[tuple[av.VideoFrame, bool]]:
        """Gets a key frame from the decoder that was decoded alone, and has the decoder begin with the next one.

        Args:
            before: pictures that the decoder has already returned, with the key frame.
        """
        try:
            left = [(frame, self._is_sound(frame)) for frame in self._decoder.decode(None)]
        except av.FFmpegError:
            left = []
        self._decoder.flush_buffers()
        found = [*before, *left]
        self._selection.judge_key(is_sound=bool(found) and found[-1][1])
        return left

    def _decode(self, packet: av.Packet[av.VideoStream]) -> list[tuple[av.VideoFrame, bool]]:
        """What the decoder makes of a packet with a whole picture."""
        if packet.is_keyframe:
            self.waits, self._has_keys = False, True
        try:
            frames = self._decoder.decode(packet)
        except av.FFmpegError:
            self.broken_packets += 1
            # One of the remaining pictures may be the broken one.
            left = self._begin_again()
            return [(frame, ok and frame.pts not in (None, packet.pts)) for frame, ok in left]
        if packet.is_keyframe and packet.is_discard:
            self._unshown_key = packet.pts
        judged: list[tuple[av.VideoFrame, bool]] = []
        for frame in frames:
            judged += [(frame, True)] if self._is_sound(frame) else [(frame, False), *self._after_damage(frame)]
        return judged

    def _lost_a_part(self, packet: av.Packet[av.VideoStream]) -> _DoubtfulPacket | None:
        if not self._lost_times or packet.dts is None:
            return None
        dts = packet.dts % _TIMES_OF_MPEG_TS
        at_join = self._lost_times.get(dts)
        # Entries of other streams, and old ones, are not needed.
        left = {} if at_join is not None else {t: joins for t, joins in self._lost_times.items() if t >= dts}
        self._lost_times = left
        return None if at_join is None else _DoubtfulPacket(packet, at_join)

    def _is_sound(self, frame: av.VideoFrame) -> bool:
        if self._begins_without_key(frame):
            self._shows_all, self._holds_since = True, None
        if self._shows_all or not self._builds_on_others:
            return self._shows_all or not frame.is_corrupt
        if frame.is_corrupt:
            return False
        if frame.key_frame or self._holds_since is None:
            self._holds_since = None
            return True
        # Pictures shown before a key frame but decoded after it depend on pictures from before it.
        recovered = self._marks_until_recovered and frame.pict_type != PictureType.B
        if recovered or self._is_after_unshown_key(frame) or self.has_waited_too_long:
            self._shows_all = not recovered and not self._is_after_unshown_key(frame)
            self._holds_since = None
            return True
        return False

    def _is_after_unshown_key(self, frame: av.VideoFrame) -> bool:
        """Whether its key frame was decoded but not returned, as in a film that was cut without being encoded again."""
        return self._unshown_key is not None and frame.pts is not None and frame.pts > self._unshown_key

    def _begins_without_key(self, frame: av.VideoFrame) -> bool:
        """Whether it is the first whole picture of a stream that marks no picture as a key frame."""
        is_whole = frame.pict_type == PictureType.I and not self._has_keys
        return is_whole and self._marks_until_recovered and self._holds_since is not None

    def _after_damage(self, frame: av.VideoFrame) -> list[tuple[av.VideoFrame, bool]]:
        """Reacts to a damaged picture: the next ones may depend on it."""
        if not self._builds_on_others:
            return []
        if self.has_waited_too_long:
            self._shows_all = True
            return []
        if frame.key_frame or self._holds_since is None:
            # The remaining pictures were decoded before it, and are returned after it.
            return [(left, False) for left, _ in self._begin_again()]
        return []

    def _begin_again(self) -> list[tuple[av.VideoFrame, bool]]:
        """Flushes the decoder, and judges the pictures that it had not returned yet."""
        try:
            left = [(frame, self._is_sound(frame)) for frame in self._decoder.decode(None)]
        except av.FFmpegError:
            left = []
        self._decoder.flush_buffers()
        self._selection.forget()
        if not self._builds_on_others:
            return left
        self._shows_all = False
        self._unshown_key = None
        if self._holds_since is None:
            self._holds_since = time.monotonic()
        return left


class LeftOut(NamedTuple):
    """A packet whose picture was not decoded, and whether nothing is known to be wrong with the stream."""

    packet: av.Packet[av.VideoStream]
    is_sound: bool


class _DoubtfulPacket(NamedTuple):
    """A packet behind which the numbers of MPEG-TS have a gap, and whether another file has begun there."""

    packet: av.Packet[av.VideoStream]
    at_join: bool

    def is_whole_before(self, after: av.Packet[av.VideoStream]) -> bool:
        """Whether the numbers have started again with the packet after it, and nothing is missing."""
        if not after.is_keyframe:
            return False
        if self.at_join or self.packet.dts is None or after.dts is None or after.time_base is None:
            return self.at_join
        step = after.dts - self.packet.dts
        return step < 0 or step * after.time_base > _LARGEST_STEP_SECONDS


@dataclass(slots=True)
class Losses:
    """What was lost while one thread read.

    Attributes:
        rtp: whether RTP packets were lost.
        times: decoding times of packets of which a part was lost, in the units of their stream; and whether another
            file had just begun.
        at_join: whether another file has begun.
        index: whether the index of an MP4 file was not found.
    """

    rtp: bool = False
    times: dict[int, bool] = field(default_factory=dict)
    at_join: bool = False
    index: bool = False


_threads = threading.local()


class _Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Notes a loss for the thread that reads; FFmpeg writes its log in that thread."""
        text, losses = str(record.msg), _of_this_thread()
        if text.startswith(_RTP):
            losses.rtp = True
        elif text.startswith(_NO_INDEX):
            losses.index = True
        elif record.name != _OF_HLS and (found := _CORRUPT.match(text)) is not None:
            losses.rtp |= found[1] == "NOPTS"
            if found[1] != "NOPTS" and len(losses.times) < _MOST_REMEMBERED:
                losses.times[int(found[1])] = losses.at_join


def _of_this_thread() -> Losses:
    losses: Losses | None = getattr(_threads, "losses", None)
    if losses is None:
        losses = _threads.losses = Losses()
    return losses


_logger = logging.getLogger("libav")
_logger.addHandler(_Listener())
_logger.propagate = False
# For FFmpeg a message is also repeated if another thread wrote it before.
av.logging.set_skip_repeated(False)
av.logging.set_level(av.logging.WARNING)


def take_losses() -> Losses:
    """What was lost while this thread read, since the last call."""
    losses, _threads.losses = _of_this_thread(), Losses()
    return losses


def note_join() -> None:
    """Notes that this thread begins to read another file of a stream, whose last file it has read to the end."""
    _of_this_thread().at_join = True
