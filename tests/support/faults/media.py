"""Live video of all kinds, made once and sent again and again: MPEG-TS and Matroska, as long as a scene lasts."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from support.videos import scheduling_kept

FPS = 10
SECONDS = 60
_PACKET_BYTES = 188
_TICKS = 90_000
_BITS = 33

_OPTIONS = {
    "libx264": {"preset": "ultrafast", "tune": "zerolatency", "g": "5"},
    "libx265": {"preset": "ultrafast", "tune": "zerolatency", "x265-params": "keyint=5:log-level=none:pools=1"},
    "libsvtav1": {"preset": "12", "g": "5", "svtav1-params": "lp=1:pred-struct=1:lookahead=0"},
}


@dataclass(frozen=True)
class Live:
    """What a server sends in real time.

    Attributes:
        data: all of it.
        seconds: in which it is sent.
        content_type: as HTTP names it.
        unit_bytes: what is never cut in two.
    """

    data: bytes
    seconds: float = SECONDS
    content_type: str = "video/mp2t"
    unit_bytes: int = _PACKET_BYTES


def video(codec: str = "libx264", width: int = 64, height: int = 48, container: str = "mpegts") -> Live:
    """Noise on a grey that grows brighter; without the noise there would hardly be anything to send."""
    grain = np.random.default_rng(1).integers(0, 40, (height * 3 // 2, width), np.uint8)
    file = io.BytesIO()
    options = {"mpegts_flags": "+resend_headers"} if container == "mpegts" else {"live": "1"}
    with scheduling_kept(), av.open(file, "w", container, options=options) as output:
        stream = output.add_stream(codec, rate=FPS, options=_OPTIONS[codec])
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(FPS * SECONDS):
            picture = np.roll(grain, number, 1) + np.uint8(20 + number % 20 * 9)
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return Live(file.getvalue())


def sound() -> Live:
    """A stream that has nothing to show."""
    file = io.BytesIO()
    with av.open(file, "w", "mpegts", options={"mpegts_start_pid": "0x200"}) as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        for number in range(SECONDS * 8000 // 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, number * 1024
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return Live(file.getvalue())


def retimed(live: Live, time: Callable[[float], float]) -> Live:
    """The same MPEG-TS with other presentation and decoding times (ISO/IEC 13818-1, 2.4.3.7), in seconds."""
    data = bytearray(live.data)
    for begin in range(0, len(data), _PACKET_BYTES):
        starts, adapted = data[begin + 1] & 0x40, data[begin + 3] & 0x20
        payload = begin + 4 + (1 + data[begin + 4] if adapted else 0)
        if not starts or data[payload : payload + 3] != b"\0\0\1":
            continue
        count = {0x80: 1, 0xC0: 2}.get(data[payload + 7] & 0xC0, 0)
        for field in range(payload + 9, payload + 9 + 5 * count, 5):
            _write_time(data, field, time(_read_time(data, field) / _TICKS))
    return Live(bytes(data))


def _read_time(data: bytearray, at: int) -> int:
    high, middle, low = (
        data[at] & 0x0E,
        int.from_bytes(data[at + 1 : at + 3]) >> 1,
        int.from_bytes(data[at + 3 : at + 5]),
    )
    return high << 29 | middle << 15 | low >> 1


def _write_time(data: bytearray, at: int, seconds: float) -> None:
    ticks = round(seconds * _TICKS) % (1 << _BITS)
    data[at] = data[at] & 0xF1 | ticks >> 29 & 0x0E
    data[at + 1] = ticks >> 22 & 0xFF
    data[at + 2] = ticks >> 14 & 0xFE | 1
    data[at + 3] = ticks >> 7 & 0xFF
    data[at + 4] = ticks << 1 & 0xFE | 1
