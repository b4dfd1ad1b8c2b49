"""Reads the units of an H.265 stream: which pictures no other picture depends on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_FIRST_OTHER, _SPS = 32, 33  # the first type that is not of a slice, and sequence parameter sets (table 7-1)
_FIRST_REFERENCE_TYPE = 16
_HEADER_BYTES = 3


class Slices(NamedTuple):
    """What the slices of a packet say.

    Attributes:
        begin_picture: whether they begin a picture; false where they go on with the picture of the packet before.
        is_reference: whether another picture may depend on it; true where that is not known.
    """

    begin_picture: bool = True
    is_reference: bool = True


class PictureLayers:
    """Follows the temporal layers of one stream.

    A picture may be built on pictures of its own layer and of lower ones. So none depends on a picture of the highest
    layer that its own layer does not refer to (H.265 3.160, 7.4.2.2).

    Args:
        extradata: what the container says of the codec; None where it says nothing.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self._highest: int | None = None
        self._length_bytes = 0
        if extradata and extradata[0] == 1 and len(extradata) > 22:  # hvcC, ISO/IEC 14496-15 8.3.3
            self._length_bytes = (extradata[21] & 3) + 1
            for unit in units_of_hvcc(extradata):
                self._learn(unit)
        elif extradata:
            for unit in _between_start_codes(extradata):
                self._learn(unit)

    def follow(self, packet: bytes) -> Slices:
        """Reads the next packet."""
        units = _by_length(packet, self._length_bytes) if self._length_bytes else _between_start_codes(packet)
        begins: bool | None = None
        for unit in units:
            kind = unit[0] >> 1 & 63
            if kind >= _FIRST_OTHER:
                self._learn(unit)
                continue
            if begins is None:
                begins = bool(unit[2] & 128)
            layer = (unit[0] & 1) << 5 | unit[1] >> 3
            is_top = self._highest is not None and (unit[1] & 7) - 1 >= self._highest and not layer
            # Even types below 16: no picture of the same layer refers to them.
            if kind >= _FIRST_REFERENCE_TYPE or kind % 2 or not is_top:
                return Slices(begins)
        return Slices() if begins is None else Slices(begins, is_reference=False)

    def _learn(self, unit: bytes) -> None:
        """Takes the number of layers from a sequence parameter set (7.3.2.2)."""
        if unit[0] >> 1 & 63 == _SPS and len(unit) >= _HEADER_BYTES:
            self._highest = max(unit[2] >> 1 & 7, self._highest or 0)


def _between_start_codes(data: bytes) -> Iterator[bytes]:
    """The first bytes of the units of a byte stream (Annex B)."""
    at = data.find(b"\0\0\1")
    while at >= 0:
        if len(unit := data[at + 3 : at + 3 + _HEADER_BYTES]) == _HEADER_BYTES:
            yield unit
        at = data.find(b"\0\0\1", at + 3)


def _by_length(data: bytes, length_bytes: int) -> Iterator[bytes]:
    at = 0
    while at + length_bytes < len(data):
        begin = at + length_bytes
        if len(unit := data[begin : begin + _HEADER_BYTES]) == _HEADER_BYTES:
            yield unit
        at = begin + int.from_bytes(data[at:begin])


def units_of_hvcc(extradata: bytes) -> Iterator[bytes]:
    """The units of an hvcC (ISO/IEC 14496-15 8.3.3); none is empty."""
    at = 23
    for _ in range(extradata[22] if len(extradata) > 22 else 0):
        count, at = int.from_bytes(extradata[at + 1 : at + 3]), at + 3
        for _ in range(count):
            begin = at + 2
            at = begin + int.from_bytes(extradata[at:begin])
            if unit := extradata[begin:at]:
                yield unit
            if at >= len(extradata):
                return  # whatever the counts say
