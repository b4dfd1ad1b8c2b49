"""Writes packets into an MP4 as they came from the camera, without encoding them again.

What the head of the file says of the video is what a decoder finds in its parameter sets and its first picture. The
index stands at the beginning, so that a browser can play the file while it arrives.

What describes the codec (avcC, hvcC) is made here, with nothing in it but the parameter sets: FFmpeg would read them
for it without end where they are damaged.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import av

from streamdet.types import EncodedPacket, VideoParameters, units_of

TICKS_PER_SECOND = 90_000
"""Positions of packets in a stream count in these; as RTP counts for video."""

_TIME_BASE = Fraction(1, TICKS_PER_SECOND)
# Of the index: for the file, and for each packet its size, place, duration, order, and whether it is a key frame.
_INDEX_BYTES = 4096
_INDEX_BYTES_PER_PACKET = 48
_START = b"\0\0\0\1"
_LENGTH_BYTES = 4
# Safari plays H.265 under this name only, other browsers under this one, too.
_HEVC_TAG = "hvc1"
_MIN_SET_BYTES, _MAX_SET_BYTES = 3, 0xFFFF
_MAX_SETS = {7: 31, 8: 255, 32: 16, 33: 16, 34: 64}
# Of H.264, those that say nothing of their colours.
_LOW_PROFILES = frozenset({66, 77, 88})
# From the header of an H.265 unit and a byte to its profile, tier and level.
_SPS_BEGIN_BYTES, _LEVEL_BYTES = 3, 12


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
    """Writes a film of packets, from time 0 and from their first key frame that can be decoded.

    Args:
        packets: in the order of decoding, all with the same parameters; the first one is a key frame.
        file: open for writing, from its beginning on.

    Raises:
        ValueError: they make no film.
        OSError: the file cannot be written.
    """
    try:
        for index, timed in enumerate(packets):
            if timed.packet.is_key and _write_from(packets[index:], file):
                return
    except av.FFmpegError as error:
        # Some of them are errors of the system by their type; those of the file itself are no errors of FFmpeg.
        message = f"FFmpeg makes no film of it: {error}"
        raise ValueError(message) from None
    message = "none of its key frames can be decoded"
    raise ValueError(message)


def _write_from(packets: Sequence[TimedPacket], file: BinaryIO) -> bool:
    """Writes a film that begins with the first packet; false where that cannot be decoded, and nothing is written."""
    first = packets[0]
    parameters = first.packet.parameters
    begin = with_start_codes(parameters.parameter_sets) + with_start_codes(_units(first.packet))
    with av.open(io.BytesIO(begin), "r", parameters.codec) as sample:
        pictures = _format_of(sample)
        if pictures is None:
            return False
        # Those that are shown before the key frame, but come after it, need packets from before it.
        shown = [first, *(timed for timed in packets[1:] if timed.at > first.at)]
        with av.open(file, "w", "mp4", options=head_of_file(len(shown), len(begin))) as output:
            stream = output.add_stream_from_template(sample.streams.video[0])
            stream.time_base = _TIME_BASE
            codec = stream.codec_context
            codec.extradata = _configuration(parameters, pictures)
            if parameters.codec == "hevc":
                codec.codec_tag = _HEVC_TAG
            if parameters.sample_aspect is not None:
                codec.sample_aspect_ratio = parameters.sample_aspect
            if parameters.quarter_turns:
                stream.set_display_rotation(90.0 * parameters.quarter_turns)
            for timed, decoded_at in zip(shown, _decoding_times([timed.at for timed in shown]), strict=True):
                packet = av.Packet(_with_lengths(timed.packet))
                packet.pts, packet.dts = timed.at - first.at, decoded_at - first.at
                packet.time_base, packet.is_keyframe, packet.stream = _TIME_BASE, timed.packet.is_key, stream
                output.mux(packet)
    return True


def _format_of(sample: av.container.InputContainer) -> av.VideoFormat | None:
    """The format of the first picture; None where there is none that can be decoded."""
    if not sample.streams.video:
        return None
    sample.streams.video[0].codec_context.thread_count = 1
    try:
        picture = next(sample.decode(video=0), None)
    except av.FFmpegError:
        return None
    return None if picture is None else picture.format


def head_of_file(packets: int, parameters_bytes: int = 0) -> dict[str, str]:
    """Options of FFmpeg that leave room for the index at the beginning of a file.

    Args:
        packets: that the file will hold.
        parameters_bytes: of the parameters of its codec, at most.
    """
    return {"moov_size": str(_INDEX_BYTES + parameters_bytes + _INDEX_BYTES_PER_PACKET * packets)}


def with_start_codes(units: Iterable[bytes]) -> bytes:
    """Units, each after a start code, as decoders take them (Annex B)."""
    return b"".join(part for unit in units for part in (_START, unit))


def decodable(packet: EncodedPacket) -> bytes:
    """The bytes of a packet as decoders take them."""
    return with_start_codes(_units(packet)) if packet.parameters.length_bytes else packet.data


def _units(packet: EncodedPacket) -> Iterable[bytes]:
    return units_of(packet.data, packet.parameters.length_bytes)


def _with_lengths(packet: EncodedPacket) -> bytes:
    """The units of a packet as MP4 has them, without the parameter sets that its head has already."""
    if packet.parameters.length_bytes == _LENGTH_BYTES:
        return packet.data
    known = packet.parameters.parameter_sets
    units = [unit for unit in _units(packet) if len(unit) > _MAX_SET_BYTES or unit not in known]
    return b"".join(part for unit in units for part in (len(unit).to_bytes(_LENGTH_BYTES), unit))


def _configuration(parameters: VideoParameters, pictures: av.VideoFormat) -> bytes:
    """What MP4 says of a codec: avcC (ISO/IEC 14496-15 5.3.3.1) or hvcC (8.3.3.1).

    Args:
        parameters: of the stream.
        pictures: of which its first picture is.

    Raises:
        ValueError: the parameter sets do not fit into it.
    """
    is_h264 = parameters.codec == "h264"
    by_kind: dict[int, list[bytes]] = {}
    for unit in parameters.parameter_sets:
        by_kind.setdefault(unit[0] & 31 if is_h264 else unit[0] >> 1 & 63, []).append(unit)
    for kind, units in by_kind.items():
        if len(units) > _MAX_SETS.get(kind, 0) or not all(
            _MIN_SET_BYTES <= len(unit) <= _MAX_SET_BYTES for unit in units
        ):
            message = "the parameters of a stream fit no MP4"
            raise ValueError(message)
    depth = pictures.components[0].bits - 8 & 7
    colours = bytes([0xFC | _chroma(pictures), 0xF8 | depth, 0xF8 | depth])
    if is_h264:
        sps, pps = by_kind[7], by_kind[8]
        head = bytes([1, *sps[0][1:4], 0xFC | (_LENGTH_BYTES - 1), 0xE0 | len(sps)])
        more = colours + b"\0" if sps[0][1] not in _LOW_PROFILES else b""
        return head + _listed(sps) + bytes([len(pps)]) + _listed(pps) + more
    sps_begin = by_kind[33][0].replace(b"\0\0\3", b"\0\0")  # emulation prevention
    levels = sps_begin[_SPS_BEGIN_BYTES : _SPS_BEGIN_BYTES + _LEVEL_BYTES]
    layers, is_nested = (sps_begin[2] >> 1 & 7) + 1, sps_begin[2] & 1
    head = b"\1" + levels + b"\xf0\0\xfc" + colours + b"\0\0"
    arrays = b"".join(
        bytes([0x80 | kind]) + len(units).to_bytes(2) + _listed(units) for kind, units in sorted(by_kind.items())
    )
    return head + bytes([layers << 3 | is_nested << 2 | (_LENGTH_BYTES - 1), len(by_kind)]) + arrays


def _listed(units: list[bytes]) -> bytes:
    return b"".join(len(unit).to_bytes(2) + unit for unit in units)


def _chroma(pictures: av.VideoFormat) -> int:
    """How coarse colours are: 0 for none, 1 for 4:2:0, 2 for 4:2:2, 3 for 4:4:4."""
    if len(pictures.components) == 1:
        return 0
    if pictures.chroma_width(64) == 64:
        return 3
    return 2 if pictures.chroma_height(64) == 64 else 1


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
