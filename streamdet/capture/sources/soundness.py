"""Which pictures of a stream are sound: those that depend on nothing that is missing.

A picture is made from the ones before it. Where one is missing or damaged, or where a stream is joined between two key
frames, decoders go on with what they have: pictures that look smeared, in which a detector finds what is not there. So
nothing counts as sound from the damage on until a key frame, or a whole wave of intra refresh.

Damage shows in several ways: data that were lost (`losses`), pictures that are missing (`h264`), a packet that the
container or the decoder calls broken, a picture that the decoder marks. The decoder is then told to forget all it has.
After that it marks every picture until it has recovered (H.264, HEVC), or gives none (MPEG-2, VP8, VP9, AV1). MPEG-4
does neither: there only key frames count. A whole picture that is missing without any other sign is noticed in H.264
and HEVC. Pictures of other codecs stand for themselves.
"""

from __future__ import annotations

import time

import av
from av.codec.context import Flags
from av.video.frame import PictureType

from streamdet.capture.sources.h264 import MissingPictures
from streamdet.capture.sources.losses import take_losses

KEY_FRAME_SECONDS = 120.0
"""How long a key frame is waited for. A stream that has none at all, because it refreshes its pictures bit by bit, has
whole ones by then, and is shown as it is."""

_TIMES_OF_MPEG_TS = 1 << 33
_BUILD_ON_OTHERS = frozenset({"h263", "h264", "hevc", "vvc", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9", "av1"})


class Soundness:
    """Decodes one connection's packets and judges its pictures.

    Args:
        decoder: that has decoded nothing yet.

    Attributes:
        broken_packets: that could not be decoded.
        waits: whether a key frame is waited for: nothing can be shown before it.
    """

    def __init__(self, decoder: av.VideoCodecContext) -> None:
        name = decoder.codec.canonical_name
        self._builds_on_others = name in _BUILD_ON_OTHERS
        self._marks_until_recovered = name == "h264"
        self._missing = MissingPictures(decoder.extradata) if name == "h264" else None
        self.broken_packets = 0
        self.waits = self._builds_on_others
        self._decoder = decoder
        # Else pictures that are not sound would be left out where they should be counted.
        decoder.flags |= Flags.output_corrupt
        self._holds_since: float | None = time.monotonic()
        self._shows_all = self._lost = self._has_keys = False
        self._lost_times: set[int] = set()
        self._damaged_key: tuple[int | None] | None = None
        self._unshown_key: int | None = None

    @property
    def has_waited_too_long(self) -> bool:
        """Whether there was no key frame for `KEY_FRAME_SECONDS`."""
        return self._holds_since is not None and time.monotonic() - self._holds_since > KEY_FRAME_SECONDS

    def decode(self, packet: av.Packet[av.VideoStream]) -> list[tuple[av.VideoFrame, bool]]:
        """The pictures that are complete with this packet, and whether they are sound."""
        if packet.size:
            losses = take_losses()
            self._lost_times |= {dts % _TIMES_OF_MPEG_TS for dts in losses.times}
            # What RTP has lost belongs to this packet, or to the one that has just begun behind it.
            was_lost, self._lost = self._lost, losses.rtp
            if self._lost or (was_lost and packet.is_keyframe) or self._has_lost_a_part(packet):
                return self._begin_again()
        if packet.is_keyframe:
            self.waits, self._has_keys = False, True
        judged: list[tuple[av.VideoFrame, bool]] = []
        if self._missing is not None and packet.size and self._missing.before(bytes(packet)):
            judged += self._begin_again()
        try:
            frames = packet.decode()
        except av.FFmpegError:
            self.broken_packets += 1
            # What is left may hold the broken picture itself.
            left = self._begin_again()
            return judged + [(frame, ok and frame.pts not in (None, packet.pts)) for frame, ok in left]
        if packet.is_keyframe and packet.is_discard:
            self._unshown_key = packet.pts
        for frame in frames:
            judged += [(frame, True)] if self._is_sound(frame) else [(frame, False), *self._after_damage(frame)]
        return judged

    def _has_lost_a_part(self, packet: av.Packet[av.VideoStream]) -> bool:
        if not self._lost_times or packet.dts is None:
            return False
        dts = packet.dts % _TIMES_OF_MPEG_TS
        found = dts in self._lost_times
        # Those of other streams and of long ago are of no use.
        self._lost_times = set() if found else {t for t in self._lost_times if t >= dts}
        return found

    def _is_sound(self, frame: av.VideoFrame) -> bool:
        if self._begins_without_key(frame):
            self._shows_all, self._holds_since = True, None
        if self._shows_all or not self._builds_on_others:
            return self._shows_all or not frame.is_corrupt
        second_half = self._damaged_key == (frame.pts,) and frame.pts is not None
        if frame.key_frame and (second_half or not frame.is_corrupt):
            # One that is sent as two, each with a part of the slices, is whole with the second.
            self._damaged_key = self._holds_since = None
            return True
        if frame.is_corrupt:
            return False
        if self._holds_since is None and self._damaged_key is None:
            return True
        # Those that are shown before a key frame but come after it depend on pictures from before it.
        marked = self._marks_until_recovered and frame.pict_type != PictureType.B
        recovered = self._damaged_key is None and (marked or self._is_after_unshown_key(frame))
        if recovered or self.has_waited_too_long:
            self._shows_all = not recovered
            self._holds_since = None
            return True
        return False

    def _is_after_unshown_key(self, frame: av.VideoFrame) -> bool:
        """Whether its key frame was decoded, but not given out: a film that is cut without being encoded again."""
        return self._unshown_key is not None and frame.pts is not None and frame.pts > self._unshown_key

    def _begins_without_key(self, frame: av.VideoFrame) -> bool:
        """Whether it is the first whole picture of a stream that marks none as a point to begin at."""
        is_whole = frame.pict_type == PictureType.I and not self._has_keys
        return is_whole and self._marks_until_recovered and self._holds_since is not None

    def _after_damage(self, frame: av.VideoFrame) -> list[tuple[av.VideoFrame, bool]]:
        """What a picture that is not sound means for the next ones."""
        if not self._builds_on_others:
            return []
        if self.has_waited_too_long:
            self._shows_all = True
            return []
        if frame.key_frame and self._damaged_key is None:
            # Either it is damaged, or it is the first half of one.
            self._damaged_key = (frame.pts,)
            return []
        if self._damaged_key is not None or self._holds_since is None:
            # It was decoded before those that are left.
            return [(left, False) for left, _ in self._begin_again()]
        return []

    def _begin_again(self) -> list[tuple[av.VideoFrame, bool]]:
        """Has the decoder forget everything; what it has not given yet was sound if what came before was."""
        try:
            left = [(frame, self._is_sound(frame)) for frame in self._decoder.decode(None)]
        except av.FFmpegError:
            left = []
        self._decoder.flush_buffers()
        if not self._builds_on_others:
            return left
        self._shows_all = False
        self._damaged_key = self._unshown_key = None
        if self._holds_since is None:
            self._holds_since = time.monotonic()
        return left
