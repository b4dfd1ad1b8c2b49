"""Notices that pictures of an H.264 stream are missing, by the numbers that they carry (`frame_num`, H.264 7.4.3).

Servers leave out pictures whose packets they cannot send in time, and number the packets that are left without a gap.
FFmpeg then takes another picture for the one that is missing, and says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

_SLICE, _IDR_SLICE, _SPS, _PPS = 1, 5, 7, 8
_HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 144, 244})
_HEADER_BYTES = 32
_LONGEST_SPS_BYTES = 1024
_LONGEST_CODE_BITS = 32
_FEWEST_TO_JUDGE = 20


class MissingPictures:
    """Follows the numbers of one stream's pictures.

    Args:
        extradata: what the container says of the codec; None where it says nothing.
    """

    def __init__(self, extradata: bytes | None) -> None:
        # Bits of frame_num, None where gaps are allowed; whether colour planes are separate.
        self._sets: dict[int, tuple[int | None, bool]] = {}
        self._set_of_pps: dict[int, int] = {}
        self._length_bytes = 0
        self._last: int | None = None
        self._pictures = self._gaps = 0
        if extradata and extradata[0] == 1 and len(extradata) > 6:  # avcC, ISO/IEC 14496-15 5.3.3
            self._length_bytes = (extradata[4] & 3) + 1
            for unit in _of_avcc(extradata):
                self._learn(unit)
        elif extradata:
            for unit in _between_start_codes(extradata):
                self._learn(unit)

    def before(self, packet: bytes) -> bool:
        """Whether pictures are missing before the one in this packet."""
        units = _by_length(packet, self._length_bytes) if self._length_bytes else _between_start_codes(packet)
        for unit in units:
            kind = unit[0] & 31 if unit else 0
            if kind in (_SLICE, _IDR_SLICE):
                return self._follow(unit, is_idr=kind == _IDR_SLICE)
            self._learn(unit)
        return False

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
            pass  # the decoder will say what is wrong with it

    def _follow(self, unit: bytes, *, is_idr: bool) -> bool:
        bits = _Bits(unit[1:_HEADER_BYTES])
        try:
            bits.code()  # first_mb_in_slice
            bits.code()  # slice_type
            length, has_planes = self._sets[self._set_of_pps[bits.code() & 255]]
            if has_planes:
                bits.take(2)
            number = 0 if length is None else bits.take(length)
        except (ValueError, KeyError):
            self._last = None
            return False
        last, is_reference = self._last, bool(unit[0] & 0x60)
        if is_reference or is_idr:
            self._last = number
        if is_idr or last is None or length is None:
            return False
        self._pictures += 1
        is_gap = number not in (last, (last + 1) % (1 << length))
        self._gaps += is_gap
        # Some encoders count in another way.
        counts_otherwise = self._pictures >= _FEWEST_TO_JUDGE and 2 * self._gaps > self._pictures
        return is_gap and not counts_otherwise


class _Bits:
    """Reads bits, most significant first; ValueError where there are no more."""

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")  # emulation prevention
        self._left = len(data) * 8
        self._value = int.from_bytes(data)

    def take(self, count: int) -> int:
        """An unsigned number of so many bits."""
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


def _sequence_of(unit: bytes) -> tuple[int, tuple[int | None, bool]]:
    """What a sequence parameter set says: its number, bits of frame_num, and whether colour planes are separate.

    No bits where gaps are allowed.

    Raises:
        ValueError: it is none.
    """
    bits = _Bits(unit[1:])
    profile = bits.take(8)
    bits.take(16)
    number, has_planes = bits.code(), False
    if profile in _HIGH_PROFILES:
        has_planes = _skip_format(bits)
    length = bits.code() + 4
    kind = bits.code()
    if kind == 0:
        bits.code()
    elif kind == 1:
        bits.take(1)
        bits.code()
        bits.code()
        for _ in range(min(bits.code(), 255)):
            bits.code()
    bits.code()  # max_num_ref_frames
    allows_gaps = bits.take(1) or length > 16
    return number, (None if allows_gaps else length, has_planes)


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


def _between_start_codes(data: bytes) -> Iterator[bytes]:
    """The units of a byte stream (Annex B), of which each is cut to what is looked at."""
    at = data.find(b"\0\0\1")
    while at >= 0:
        begin = at + 3
        kind = data[begin] & 31 if begin < len(data) else 0
        if kind in (_SLICE, _IDR_SLICE):
            yield data[begin : begin + _HEADER_BYTES]
            return
        at = data.find(b"\0\0\1", begin)
        yield data[begin : at if at >= 0 else len(data)][:_LONGEST_SPS_BYTES]


def _by_length(data: bytes, length_bytes: int) -> Iterator[bytes]:
    at = 0
    while at + length_bytes < len(data):
        size = int.from_bytes(data[at : at + length_bytes])
        at += length_bytes
        yield data[at : at + min(size, _LONGEST_SPS_BYTES)]
        at += size


def _of_avcc(extradata: bytes) -> Iterator[bytes]:
    at = 5
    for mask in (31, 255):
        count, at = extradata[at] & mask if at < len(extradata) else 0, at + 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2])
            yield extradata[at + 2 : at + 2 + size]
            at += 2 + size
