"""Reads the slices of an H.264 stream: which pictures are missing, come in several packets, or can be left out.

Servers leave out pictures whose packets they cannot send in time, and number the remaining packets without a gap.
FFmpeg then uses another picture in place of the missing one, without an error.

If cameras or muxers put parameter sets, or a delimiter, between the slices of a picture, it is split there: FFmpeg
treats each part as a whole picture with missing data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import av

_SLICE, _IDR_SLICE, _SPS, _PPS = 1, 5, 7, 8
_INTRA_SLICES = (2, 4, 7, 9)  # I and SI, the latter two where all slices of the picture are such
_HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 144, 244})
_HEADER_BYTES = 32
_LONGEST_SPS_BYTES = 1024
_LONGEST_CODE_BITS = 32
_FEWEST_TO_JUDGE = 20
_MOST_PARTS = 32
_MOST_NUMBER_BITS = 16


@dataclass(frozen=True, slots=True)
class PictureStart:
    """How the slices of a packet follow those of the packet before.

    Attributes:
        after_gap: whether pictures are missing before this one.
        rest_at: where the slices begin of a packet that goes on with the picture of the packet before; None for one
            that begins a picture.
        is_idr: whether the picture depends on none before it.
        is_intra: whether none of its slices depends on another picture.
        is_reference: whether another picture may depend on it; true where that is not known.
        is_field: whether it is half of a frame: every second line.
        is_second_field: whether it completes the frame that the picture before has begun.
    """

    after_gap: bool = False
    rest_at: int | None = None
    is_idr: bool = False
    is_intra: bool = False
    is_reference: bool = True
    is_field: bool = False
    is_second_field: bool = False


class PictureNumbers:
    """Follows the numbers of one stream's pictures (H.264 7.4.3).

    Args:
        extradata: what the container says of the codec; None where it says nothing.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self._sets: dict[int, _SequenceSet] = {}
        self._set_of_pps: dict[int, int] = {}
        self._length_bytes = 0
        self._last_number: int | None = None
        self._last: _Slice | None = None
        self._has_first_field = False
        self._pictures = self._gaps = 0
        if extradata and extradata[0] == 1 and len(extradata) > 6:  # avcC, ISO/IEC 14496-15 5.3.3
            self._length_bytes = (extradata[4] & 3) + 1
            for unit in _of_avcc(extradata):
                self._learn(unit)
        elif extradata:
            for _, unit in _between_start_codes(extradata):
                self._learn(unit)

    def follow(self, packet: bytes) -> PictureStart:
        """Reads the numbers of the next packet."""
        first: _Slice | None = None
        rest_at = 0
        begins = is_reference = False
        is_intra: bool | None = None
        for at, unit in self._units(packet):
            if not _is_slice(unit):
                self._learn(unit)
                continue
            found = self._read(unit)
            if found is None:
                self._last = self._last_number = None
                self._has_first_field = False
                return PictureStart()
            if first is None:
                first, rest_at = found, at
            is_reference |= found.is_reference
            # Slices may come in any order: the packet begins a picture where any of its slices does.
            begins |= found.first_block == 0 or found.picture != first.picture or self._last is None
            # A packet may hold more than one picture: all of them must be such that none depends on them.
            is_intra = is_intra is not False and found.is_intra
            if begins and is_reference and (found.is_idr or not is_intra):
                break
        if first is None:
            return PictureStart()
        if not begins and self._last is not None and first.picture == self._last.picture:
            return PictureStart(rest_at=rest_at, is_idr=first.is_idr, is_reference=is_reference)
        is_second_field = self._has_first_field and self._last is not None and first.completes(self._last)
        self._has_first_field = first.field > 0 and not is_second_field
        self._last = first
        return PictureStart(
            self._is_after_gap(first),
            is_idr=first.is_idr,
            is_intra=bool(is_intra),
            is_reference=is_reference,
            is_field=first.field > 0,
            is_second_field=is_second_field,
        )

    def _units(self, packet: bytes) -> Iterator[tuple[int, bytes]]:
        return _by_length(packet, self._length_bytes) if self._length_bytes else _between_start_codes(packet)

    def _learn(self, unit: bytes) -> None:
        kind = unit[0] & 31 if unit else 0
        try:
            if kind == _SPS:
                number, found = _sequence_of(unit[:_LONGEST_SPS_BYTES])
                self._sets[number & 31] = found
            elif kind == _PPS:
                bits = _Bits(unit[1:_HEADER_BYTES])
                number = bits.code()
                self._set_of_pps[number & 255] = bits.code() & 31
        except ValueError:
            pass  # the decoder reports what is wrong with it

    def _read(self, unit: bytes) -> _Slice | None:
        """The header of a slice (7.3.3); None where it cannot be read."""
        bits = _Bits(unit[1:_HEADER_BYTES])
        is_idr, is_reference = unit[0] & 31 == _IDR_SLICE, bool(unit[0] & 0x60)
        try:
            first_block = bits.code()
            is_intra = bits.code() in _INTRA_SLICES
            pps = bits.code()
            sequence = self._sets[self._set_of_pps[pps & 255]]
            if sequence.has_planes:
                bits.take(2)
            number = bits.take(sequence.number_bits)
            field = 0
            if not sequence.has_frames_only and bits.take(1):
                field = 1 + bits.take(1)
            idr_number = bits.code() if is_idr else 0
            order = bits.take(sequence.order_bits)
        except (ValueError, KeyError):
            return None
        picture = (is_idr, is_reference, pps, number, field, idr_number, order)
        return _Slice(first_block, is_idr, is_intra, is_reference, number, field, sequence, picture)

    def _is_after_gap(self, found: _Slice) -> bool:
        last, number, sequence = self._last_number, found.number, found.sequence
        if found.is_reference or found.is_idr:
            self._last_number = number
        if found.is_idr or last is None or sequence.allows_gaps:
            return False
        self._pictures += 1
        is_gap = number not in (last, (last + 1) % (1 << sequence.number_bits))
        self._gaps += is_gap
        # Some encoders count in another way.
        counts_otherwise = self._pictures >= _FEWEST_TO_JUDGE and 2 * self._gaps > self._pictures
        return is_gap and not counts_otherwise


class PictureParts:
    """Joins the packets of which each holds a part of one picture.

    How many parts a picture has is learnt from the first one: a stream of whole pictures waits for nothing.
    """

    def __init__(self) -> None:
        # By whether it is an IDR picture: these are larger, and may be the only ones that are cut. 0 is not known yet.
        self._parts = {False: 1, True: 1}
        self._held: list[tuple[av.Packet[av.VideoStream], int]] = []
        self._start = PictureStart()
        self._is_given = True

    def add(
        self, packet: av.Packet[av.VideoStream], start: PictureStart
    ) -> list[tuple[av.Packet[av.VideoStream], PictureStart, bool]]:
        """Takes the next packet.

        Args:
            packet: with data.
            start: how its slices follow those of the packet before.

        Returns:
            Packets to decode now, each with a whole picture as far as that is known; with each its start, and whether
            a part of it has been returned before.
        """
        if start.rest_at is not None and self._held and len(self._held) < _MOST_PARTS:
            self._held.append((packet, start.rest_at))
            if self._parts[start.is_idr] == 0:
                return []
            if start.is_idr and max(self._parts.values()) == 1:
                self._parts[False] = 0
            is_again = self._is_given
            self._parts[start.is_idr] = max(self._parts[start.is_idr], len(self._held))
            if is_again and not start.is_idr:
                # It builds on others, which the decoder has replaced by now.
                return [(packet, start, False)]
            return self._given(is_again=is_again) if len(self._held) == self._parts[start.is_idr] else []
        before = self.rest()
        if before and self._parts[self._start.is_idr] == 0:
            self._parts[self._start.is_idr] = len(self._held)
        self._held, self._start, self._is_given = [(packet, 0)], start, False
        return before + (self._given() if self._parts[start.is_idr] == 1 else [])

    def rest(self) -> list[tuple[av.Packet[av.VideoStream], PictureStart, bool]]:
        """The packets held back; they are complete, because no more of the picture comes."""
        return [] if self._is_given else self._given()

    def drop(self) -> None:
        """Forgets what has been held back."""
        self._held, self._is_given = [], True

    def _given(self, *, is_again: bool = False) -> list[tuple[av.Packet[av.VideoStream], PictureStart, bool]]:
        self._is_given = True
        first, _ = self._held[0]
        if len(self._held) == 1:
            return [(first, self._start, False)]
        whole = cast("av.Packet[av.VideoStream]", av.Packet(b"".join(bytes(packet)[at:] for packet, at in self._held)))
        whole.pts, whole.dts, whole.time_base, whole.stream = first.pts, first.dts, first.time_base, first.stream
        whole.is_keyframe = first.is_keyframe
        return [(whole, self._start, is_again)]


class _SequenceSet(NamedTuple):
    """What a sequence parameter set says about slices: bits of their fields, and which fields there are."""

    number_bits: int
    allows_gaps: bool
    has_planes: bool
    order_bits: int
    has_frames_only: bool


class _Slice(NamedTuple):
    first_block: int
    is_idr: bool
    is_intra: bool
    is_reference: bool
    number: int
    # 0 of a frame, 1 of a top field, 2 of a bottom field
    field: int
    sequence: _SequenceSet
    # What differs between slices of different pictures (7.4.1.2.4).
    picture: tuple[int, ...]

    def completes(self, first: _Slice) -> bool:
        """Whether it is in the second field of a frame, after the first (3.30, 7.4.1.2.4)."""
        return self.field == 3 - first.field and self.number == first.number and not self.is_idr


class _Bits:
    """Reads bits, most significant first; ValueError where there are no more."""

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")  # emulation prevention
        self._left = len(data) * 8
        self._value = int.from_bytes(data)

    def take(self, count: int) -> int:
        """An unsigned number of `count` bits."""
        if count > self._left:
            msg = "too short"
            raise ValueError(msg)
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def code(self) -> int:
        """An unsigned Exp-Golomb code."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > _LONGEST_CODE_BITS:
                msg = "no code"
                raise ValueError(msg)
        return (1 << zeros) - 1 + self.take(zeros)

    def signed_code(self) -> int:
        """A signed one."""
        value = self.code()
        return (value + 1) // 2 if value % 2 else -(value // 2)


def _sequence_of(unit: bytes) -> tuple[int, _SequenceSet]:
    """The number of a sequence parameter set (7.3.2.1.1), and its values.

    Raises:
        ValueError: it is not a sequence parameter set.
    """
    bits = _Bits(unit[1:])
    profile = bits.take(8)
    bits.take(16)
    number, has_planes = bits.code(), False
    if profile in _HIGH_PROFILES:
        has_planes = _skip_format(bits)
    number_bits = bits.code() + 4
    kind, order_bits = bits.code(), 0
    if kind == 0:
        order_bits = bits.code() + 4
    elif kind == 1:
        bits.take(1)
        bits.code()
        bits.code()
        for _ in range(min(bits.code(), 255)):
            bits.code()
    bits.code()  # max_num_ref_frames
    allows_gaps = bool(bits.take(1))
    bits.code()  # pic_width_in_mbs_minus1
    bits.code()  # pic_height_in_map_units_minus1
    has_frames_only = bool(bits.take(1))
    if max(number_bits, order_bits) > _MOST_NUMBER_BITS:
        msg = "no set"
        raise ValueError(msg)
    return number, _SequenceSet(number_bits, allows_gaps, has_planes, order_bits, has_frames_only)


def _skip_format(bits: _Bits) -> bool:
    """Reads past what only high profiles have; whether colour planes are separate."""
    chroma = bits.code()
    has_planes = chroma == 3 and bool(bits.take(1))
    bits.code()
    bits.code()
    bits.take(1)
    if bits.take(1):
        for index in range(12 if chroma == 3 else 8):
            if bits.take(1):
                _skip_scaling_list(bits, 16 if index < 6 else 64)
    return has_planes


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    scale = 8
    for _ in range(size):
        scale = (scale + bits.signed_code()) % 256
        if scale == 0:
            return


def _is_slice(unit: bytes) -> bool:
    return bool(unit) and unit[0] & 31 in (_SLICE, _IDR_SLICE)


def _between_start_codes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The units of a byte stream (Annex B), each cut to what is looked at, and where their start codes stand."""
    at = data.find(b"\0\0\1")
    while at >= 0:
        begin = at + 3
        if _is_slice(data[begin : begin + 1]):
            # Where its end is takes long to find, and mostly no one asks for what comes next.
            yield at, data[begin : begin + _HEADER_BYTES]
            at = data.find(b"\0\0\1", begin)
            continue
        end = data.find(b"\0\0\1", begin)
        yield at, data[begin : end if end >= 0 else len(data)][:_LONGEST_SPS_BYTES]
        at = end


def _by_length(data: bytes, length_bytes: int) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + length_bytes < len(data):
        begin = at + length_bytes
        size = int.from_bytes(data[at:begin])
        yield at, data[begin : begin + min(size, _LONGEST_SPS_BYTES)]
        at = begin + size


def _of_avcc(extradata: bytes) -> Iterator[bytes]:
    at = 5
    for mask in (31, 255):
        count, at = extradata[at] & mask if at < len(extradata) else 0, at + 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2])
            yield extradata[at + 2 : at + 2 + size]
            at += 2 + size
