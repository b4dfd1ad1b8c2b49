"""H.264 written bit by bit: what no encoder at hand writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_KEY_EVERY = 3
_IDR, _SLICE, _SPS, _PPS = 0x65, 0x41, 0x67, 0x68


class _Bits:
    def __init__(self) -> None:
        self._text = ""

    def put(self, value: int, count: int) -> _Bits:
        self._text += f"{value:0{count}b}"
        return self

    def codes(self, *values: int) -> _Bits:
        """Unsigned Exp-Golomb codes."""
        for value in values:
            self.put(value + 1, 2 * (value + 1).bit_length() - 1)
        return self

    def raw(self, data: bytes) -> _Bits:
        self._text += "0" * (-len(self._text) % 8)
        for byte in data:
            self.put(byte, 8)
        return self

    def unit(self, header: int) -> bytes:
        text = self._text + "1"
        text += "0" * (-len(text) % 8)
        payload = int(text, 2).to_bytes(len(text) // 8)
        safe = bytearray()
        for byte in payload:
            if byte <= 3 and safe[-2:] == b"\0\0":
                safe.append(3)
            safe.append(byte)
        return b"\0\0\0\1" + bytes([header]) + bytes(safe)


def field_film(path: Path, frames: int) -> Path:
    """A film of 16 x 32 pixels whose frames are two pictures each, one for every second line.

    The second field of a key frame is a copy of the first one, and cannot be decoded without it.
    """
    random = np.random.default_rng(5)
    sps = _Bits().put(77, 8).put(0, 8).put(30, 8).codes(0, 0, 2, 1).put(0, 1).codes(0, 0).put(0b001_00, 5)
    pps = _Bits().codes(0, 0).put(0, 2).codes(0, 0, 0).put(0, 3).codes(0, 0, 0).put(0b100, 3)
    film = sps.unit(_SPS) + pps.unit(_PPS)
    for number in range(frames):
        is_key = number % _KEY_EVERY == 0
        for is_bottom in (0, 1):
            is_copy = is_key and is_bottom
            is_idr = is_key and not is_bottom
            bits = _Bits().codes(0, 7 if is_idr else 5, 0).put(number % _KEY_EVERY, 4).put(1, 1).put(is_bottom, 1)
            if is_idr:
                bits.codes(number % 2)
            else:
                bits.put(0, 2)
            bits.put(0, 2 if is_idr else 1).codes(0, 1)
            if is_copy:
                bits.codes(1)
            else:
                bits.codes(*([25] if is_idr else [0, 30])).raw(random.integers(16, 236, 384, np.uint8).tobytes())
            film += bits.unit(_IDR if is_idr else _SLICE)
    path.write_bytes(film)
    return path
