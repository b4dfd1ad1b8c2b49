"""Passes on the encoded packets of a stream, beside the frames that are decoded from them.

Only H.264 and H.265, the codecs of cameras that browsers play. Each packet that is passed on is one whole picture, with
the parameters that its decoder needs: from the container, or from the stream itself, which may change them at any key
frame.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Literal

import av

from streamdet.capture.sources.h265 import units_of_hvcc
from streamdet.types import EncodedPacket, PacketSink, VideoParameters, units_of

_Codec = Literal["h264", "hevc"]
CODECS: dict[str, _Codec] = {"h264": "h264", "hevc": "hevc"}
"""Those whose packets are passed on, by their names in FFmpeg."""

# More than a decoder holds back before its first picture.
_MAX_WAITING = 64
_NO_TIME_BASE = Fraction(1, 90_000)


def tap(stream: av.VideoStream, sink: PacketSink, *, is_timed: bool) -> PacketTap | None:
    """Makes the tap of a stream; None if its codec is another one. The sink is informed of either."""
    name = stream.codec_context.codec.canonical_name
    codec = CODECS.get(name)
    if codec is not None:
        sink.accept()
        return PacketTap(stream, codec, sink, is_timed=is_timed)
    sink.refuse(name)
    return None


class PacketTap:
    """Passes on the packets of one connection, from the thread that reads it.

    The newest packet is held back until the next one begins, because parts of its picture may follow; the first ones
    are held back until a decoded picture shows its rotation.

    Args:
        stream: that is read.
        codec: of the stream.
        sink: gets the packets.
        is_timed: whether its timestamps are times, not a count of pictures.
    """

    def __init__(self, stream: av.VideoStream, codec: _Codec, sink: PacketSink, *, is_timed: bool) -> None:
        self._sink = sink
        self._is_timed = is_timed
        self._codec = codec
        self._time_base = stream.time_base or _NO_TIME_BASE
        of_container, of_codec = stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio
        self._sample_aspect = of_container if of_container and of_container != of_codec else None
        self._sets: dict[int, tuple[bytes, ...]] = {}
        self._length_bytes = 0
        self._parameters: VideoParameters | None = None
        self._quarter_turns: int | None = None
        self._held: EncodedPacket | None = None
        self._waiting: list[EncodedPacket] = []
        self._begins = True
        self._learn_extradata(stream.codec_context.extradata or b"")

    def add(self, packet: av.Packet[av.VideoStream], data: bytes | None = None, rest_at: int | None = None) -> None:
        """Takes the next packet.

        Args:
            packet: with data.
            data: its bytes, where they have been copied already.
            rest_at: where the slices begin of a packet that goes on with the picture of the packet before; None for one
                that begins a picture.
        """
        if not self._sink.is_open:
            self._held = None
            self._waiting.clear()
            self._begins = True
            return
        data = bytes(packet) if data is None else data
        if rest_at is not None and self._held is not None:
            self._held = replace(self._held, data=self._held.data + data[rest_at:])
            return
        self._pass_held()
        if packet.has_sidedata("new_extradata"):
            self._learn_extradata(bytes(packet.get_sidedata("new_extradata")))
        if packet.is_keyframe:
            self._learn(units_of(data, self._length_bytes))
        if self._parameters is None:
            return  # nothing can decode it
        self._held = EncodedPacket(
            data,
            packet.pts if self._is_timed else None,
            packet.dts if self._is_timed else None,
            packet.duration if self._is_timed else None,
            packet.time_base or self._time_base,
            is_key=packet.is_keyframe,
            begins=self._begins,
            parameters=self._parameters,
            arrived_monotonic_seconds=time.monotonic(),
        )
        self._begins = False

    def show(self, quarter_turns: int) -> None:
        """Takes the rotation of the pictures.

        Args:
            quarter_turns: counter-clockwise turns that show them upright, 0 to 3.
        """
        if quarter_turns == self._quarter_turns:
            return
        self._quarter_turns = quarter_turns
        waiting, self._waiting = self._waiting, []
        for packet in waiting:
            self._pass_on(packet)

    def end(self) -> None:
        """Passes on the last packet."""
        self._pass_held()

    def _pass_held(self) -> None:
        packet, self._held = self._held, None
        if packet is not None:
            self._pass_on(packet)

    def _pass_on(self, packet: EncodedPacket) -> None:
        if self._quarter_turns is None:
            self._waiting.append(packet)
            if len(self._waiting) > _MAX_WAITING:
                del self._waiting[0]
                # The first one marks where timestamps begin.
                self._waiting[0] = replace(self._waiting[0], begins=True)
            return
        if packet.parameters.quarter_turns != self._quarter_turns:
            packet = replace(packet, parameters=replace(packet.parameters, quarter_turns=self._quarter_turns))
        self._sink.put(packet)

    def _learn_extradata(self, extradata: bytes) -> None:
        """Takes the parameter sets of the container: avcC or hvcC (ISO/IEC 14496-15), or with start codes."""
        if extradata[:1] == b"\1" and len(extradata) > 6:
            is_h264 = self._codec == "h264"
            self._length_bytes = (extradata[4 if is_h264 else min(21, len(extradata) - 1)] & 3) + 1
            self._learn(_of_avcc(extradata) if is_h264 else units_of_hvcc(extradata))
        else:
            self._learn(units_of(extradata, 0))

    def _learn(self, units: Iterator[bytes]) -> None:
        """Takes the parameter sets that stand before the first slice; sets that are known already change nothing."""
        found: dict[int, tuple[bytes, ...]] = {}
        for unit in units:
            kind = self._kind(unit)
            if kind in self._kinds:
                found[kind] = (*found.get(kind, ()), unit)
            elif self._is_slice(kind):
                break
        news = {kind: sets for kind, sets in found.items() if not {*sets} <= {*self._sets.get(kind, ())}}
        if news:
            self._sets |= news
        if news and all(kind in self._sets for kind in self._kinds):
            sets = tuple(unit for kind in self._kinds for unit in dict.fromkeys(self._sets[kind]))
            turns = self._quarter_turns or 0
            self._parameters = VideoParameters(self._codec, sets, self._length_bytes, self._sample_aspect, turns)

    @property
    def _kinds(self) -> tuple[int, ...]:
        """The types of units that are parameter sets: SPS and PPS; VPS, SPS and PPS."""
        return (7, 8) if self._codec == "h264" else (32, 33, 34)

    def _kind(self, unit: bytes) -> int:
        return unit[0] & 31 if self._codec == "h264" else unit[0] >> 1 & 63

    def _is_slice(self, kind: int) -> bool:
        return 1 <= kind <= 5 if self._codec == "h264" else kind < 32


def _of_avcc(extradata: bytes) -> Iterator[bytes]:
    at = 5
    for mask in (31, 255):
        count, at = extradata[at] & mask if at < len(extradata) else 0, at + 1
        for _ in range(count):
            begin = at + 2
            at = begin + int.from_bytes(extradata[at:begin])
            if unit := extradata[begin:at]:
                yield unit
