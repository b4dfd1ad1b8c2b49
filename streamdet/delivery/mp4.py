"""Writes packets of a camera into an MP4, without encoding them again.

The header of the file is made from what a decoder finds in the parameter sets and the first picture. The index is at
the beginning, so that a browser can play the file while it downloads.

The codec's configuration (avcC, hvcC) is built here from the parameter sets alone: FFmpeg would hang on damaged ones.
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
"""The unit of positions of packets in a stream, as in RTP for video."""

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
        at: when it is shown, in ticks that continue over reconnects and repetitions of a file.
    """

    packet: EncodedPacket
    at: int


def size_of(packets: Sequence[TimedPacket]) -> int:
    """Estimates the size of the file that `write_mp4` makes from packets, in bytes."""
    index_bytes = _INDEX_BYTES + _INDEX_BYTES_PER_PACKET * len(packets)
    return index_bytes + sum(len(timed.packet.data) for timed in packets)


def write_mp4(packets: Sequence[TimedPacket], file: BinaryIO) -> None:
    """Writes a video of packets, from their first key frame that can be decoded, which is shown at time 0.

    Args:
        packets: in the order of decoding, all with the same parameters; the first one is a key frame.
        file: open for writing, from its beginning on.

    Raises:
        ValueError: no video can be made from them.
        OSError: the file cannot be written.
    """
    try:
        for index, timed in enumerate(packets):
            if timed.packet.is_key and _write_from(packets[index:], file):
                return
    except av.FFmpegError as error:
        # Some of them are errors of the system by their type; those of the file itself are no errors of FFmpeg.
        message = f"FFmpeg cannot write it as MP4: {error}"
        raise ValueError(message) from None
    message = "none of its key frames can be decoded"
    raise ValueError(message)


def _write_from(packets: Sequence[TimedPacket], file: BinaryIO) -> bool:
    """Writes a video that begins with the first packet; false if it cannot be decoded, and nothing is written."""
    first = packets[0]
    parameters = first.packet.parameters
    begin = with_start_codes(parameters.parameter_sets) + with_start_codes(_units(first.packet))
    with av.open(io.BytesIO(begin), "r", parameters.codec) as sample:
        pictures = _format_of(sample)
        if pictures is None:
            return False
        # Pictures that come after the key frame but are shown before it need earlier packets.
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
    """The format of the first picture; None if no picture can be decoded."""
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
        packets: number of packets in the file.
        parameters_bytes: size of the codec's parameters, at most.
    """
    return {"moov_size": str(_INDEX_BYTES + parameters_bytes + _INDEX_BYTES_PER_PACKET * packets)}


def with_start_codes(units: Iterable[bytes]) -> bytes:
    """Units in the format of decoders: each after a start code (Annex B)."""
    return b"".join(part for unit in units for part in (_START, unit))


def decodable(packet: EncodedPacket) -> bytes:
    """The bytes of a packet in the format of decoders (Annex B)."""
    return with_start_codes(_units(packet)) if packet.parameters.length_bytes else packet.data


def _units(packet: EncodedPacket) -> Iterable[bytes]:
    return units_of(packet.data, packet.parameters.length_bytes)


def _with_lengths(packet: EncodedPacket) -> bytes:
    """The units of a packet in the format of MP4, without the parameter sets that are in its header."""
    if packet.parameters.length_bytes == _LENGTH_BYTES:
        return packet.data
    known = packet.parameters.parameter_sets
    units = [unit for unit in _units(packet) if len(unit) > _MAX_SET_BYTES or unit not in known]
    return b"".join(part for unit in units for part in (len(unit).to_bytes(_LENGTH_BYTES), unit))


def _configuration(parameters: VideoParameters, pictures: av.VideoFormat) -> bytes:
    """The codec's configuration in MP4: avcC (ISO/IEC 14496-15 5.3.3.1) or hvcC (8.3.3.1).

    Args:
        parameters: of the stream.
        pictures: format of its first picture.

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
            message = "the parameter sets of the stream do not fit into an MP4"
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
    """The chroma format: 0 for monochrome, 1 for 4:2:0, 2 for 4:2:2, 3 for 4:4:4."""
    if len(pictures.components) == 1:
        return 0
    if pictures.chroma_width(64) == 64:
        return 3
    return 2 if pictures.chroma_height(64) == 64 else 1


def _decoding_times(shown_at: list[int]) -> list[int]:
    """Computes decoding times that MP4 allows: increasing, and not after the picture is shown.

    Cameras that reorder pictures often send only presentation times, and some send wrong decoding times.

    Args:
        shown_at: ticks, in the order of decoding.
    """
    times = sorted(shown_at)
    for index in range(1, len(times)):
        times[index] = max(times[index], times[index - 1] + 1)
    early = max(time - at for time, at in zip(times, shown_at, strict=True))
    return [time - early for time in times]
