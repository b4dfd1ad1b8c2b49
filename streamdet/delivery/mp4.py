"""Writes packets into an MP4 as they came from the camera, without encoding them again.

What the head of the file says of the video is what a decoder finds in its parameter sets and its first picture. The
index stands at the beginning, so that a browser can play the file while it arrives.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import av

from streamdet.types import EncodedPacket, VideoParameters

TICKS_PER_SECOND = 90_000
"""Positions of packets in a stream count in these; as RTP counts for video."""

_TIME_BASE = Fraction(1, TICKS_PER_SECOND)
# Of the index: for the file, and for each packet its size, place, duration, order, and whether it is a key frame.
_INDEX_BYTES = 4096
_INDEX_BYTES_PER_PACKET = 48
_START = b"\0\0\0\1"
# Safari plays H.265 under this name only, other browsers under this one, too.
_HEVC_TAG = "hvc1"


@dataclass(frozen=True, slots=True, eq=False)
class TimedPacket:
    """A packet with its place in the time of its stream.

    Attributes:
        packet: the packet.
        at: when it is shown, in ticks that go on over reconnects and rounds of a file.
    """

    packet: EncodedPacket
    at: int


def size_of(packets: Sequence[TimedPacket]) -> int:
    """About how many bytes `write_mp4` makes of packets."""
    index_bytes = _INDEX_BYTES + _INDEX_BYTES_PER_PACKET * len(packets)
    return index_bytes + sum(len(timed.packet.data) for timed in packets)


def write_mp4(packets: Sequence[TimedPacket], file: BinaryIO) -> None:
    """Writes a film of packets, from time 0 on.

    Args:
        packets: in the order of decoding, all with the same parameters; the first one is a key frame.
        file: open for writing, from its beginning on.

    Raises:
        av.FFmpegError: FFmpeg can make no film of them.
        OSError: the file cannot be written.
    """
    first = packets[0]
    parameters = first.packet.parameters
    # Those that are shown before the key frame, but come after it, need packets from before it.
    shown = [first, *(timed for timed in packets[1:] if timed.at > first.at)]
    with (
        av.open(io.BytesIO(_begin_of(parameters, first.packet)), "r", parameters.codec) as sample,
        av.open(file, "w", "mp4", options=head_of_file(len(shown), len(parameters.parameter_sets))) as output,
    ):
        stream = output.add_stream_from_template(sample.streams.video[0])
        stream.time_base = _TIME_BASE
        if parameters.codec == "hevc":
            stream.codec_context.codec_tag = _HEVC_TAG
        if parameters.sample_aspect is not None:
            stream.codec_context.sample_aspect_ratio = parameters.sample_aspect
        if parameters.quarter_turns:
            stream.set_display_rotation(90.0 * parameters.quarter_turns)
        for timed, decoded_at in zip(shown, _decoding_times([timed.at for timed in shown]), strict=True):
            packet = av.Packet(with_start_codes(timed.packet.data, parameters.length_bytes))
            packet.pts, packet.dts = timed.at - first.at, decoded_at - first.at
            packet.time_base, packet.is_keyframe, packet.stream = _TIME_BASE, timed.packet.is_key, stream
            output.mux(packet)


def head_of_file(packets: int, parameters_bytes: int = 0) -> dict[str, str]:
    """Options of FFmpeg that leave room for the index at the beginning of a file.

    Args:
        packets: that the file will hold.
        parameters_bytes: of the parameters of its codec.
    """
    return {"moov_size": str(_INDEX_BYTES + 2 * parameters_bytes + _INDEX_BYTES_PER_PACKET * packets)}


def with_start_codes(data: bytes, length_bytes: int) -> bytes:
    """The units of a packet, each after a start code (Annex B).

    Args:
        data: the packet.
        length_bytes: of the length before each unit; 0 where start codes stand there already.
    """
    if not length_bytes:
        return data
    parts: list[bytes] = []
    at = 0
    while at + length_bytes < len(data):
        begin = at + length_bytes
        at = begin + int.from_bytes(data[at:begin])
        parts += [_START, data[begin:at]]
    return b"".join(parts)


def _begin_of(parameters: VideoParameters, packet: EncodedPacket) -> bytes:
    return parameters.parameter_sets + with_start_codes(packet.data, parameters.length_bytes)


def _decoding_times(shown_at: list[int]) -> list[int]:
    """When each picture is decoded, in an order that MP4 can hold: growing, and before it is shown.

    Cameras that reorder pictures often say only when they are shown, and some say wrong times of decoding.

    Args:
        shown_at: ticks, in the order of decoding.
    """
    times = sorted(shown_at)
    for index in range(1, len(times)):
        times[index] = max(times[index], times[index - 1] + 1)
    early = max(time - at for time, at in zip(times, shown_at, strict=True))
    return [time - early for time in times]
