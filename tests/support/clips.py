"""Clips that are cut from real streams, as tests need them: a sink for packets, and what a clip shows."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import pytest

from streamdet.capture.sources import open_source
from streamdet.delivery.mp4 import write_mp4
from streamdet.delivery.packet_ring import Cut, PacketRing
from streamdet.errors import HeldError, SourceError
from streamdet.types import EncodedPacket
from support.capturing import stream_config
from support.films import number_in, numbers_of


class Packets:
    """Keeps every packet that a source passes on."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.is_open = is_open
        self.packets: list[EncodedPacket] = []
        self.refused: list[str] = []

    def put(self, packet: EncodedPacket) -> None:
        self.packets.append(packet)

    def accept(self) -> None:
        self.refused.clear()

    def refuse(self, codec: str) -> None:
        self.refused.append(codec)


def read_into(sink: Any, url: object, frames: int | None = None, **values: Any) -> list[int]:
    """Reads frames of a stream, all of them unless a number is given; the numbers that they show."""
    source = open_source(stream_config(url, connect_timeout_seconds=20, **values), sink)
    numbers: list[int] = []
    with suppress(SourceError):
        while frames is None or len(numbers) < frames:
            with suppress(HeldError):
                numbers.append(number_in(source.read().picture.to_rgb()))
    source.close()
    return numbers


def new_ring(cuts: list[Cut], seconds: float = 300.0, max_bytes: int = 1 << 28) -> PacketRing:
    ring = PacketRing("yard", seconds, max_bytes, cuts.append)
    ring.open(is_open=True)
    return ring


def whole_film(packets: list[EncodedPacket], path: Path) -> Cut:
    """Writes everything that a clip may hold around the last of the packets."""
    cuts: list[Cut] = []
    ring = new_ring(cuts)
    for packet in packets:
        ring.put(packet)
    ring.want(lambda: "clip", None, packets[-1].arrived_monotonic_seconds, (300.0, 0.0))
    ring.expire(0.0, all_of_them=True)
    write(cuts[0], path)
    return cuts[0]


def write(cut: Cut, path: Path) -> Path:
    with path.open("w+b") as file:
        write_mp4(cut.packets, file)
    return path


def probe(path: Path) -> dict[str, Any]:
    """What ffprobe says of the video of a file; it must have nothing to complain about."""
    command = [
        "ffprobe",
        "-v",
        "warning",
        "-show_streams",
        "-show_format",
        "-show_data_hash",
        "crc32",
        "-of",
        "json",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert [stream["codec_type"] for stream in found["streams"]] == ["video"]
    return found["streams"][0] | {"length": float(found["format"].get("duration", 0.0))}


def times_of(path: Path) -> list[float]:
    """When each frame of a film is shown, in seconds; it begins with a key frame at 0."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert frames[0].key_frame
    return [float(frame.pts * frame.time_base) for frame in frames if frame.pts is not None and frame.time_base]


def check_clip(
    path: Path,
    number: int,
    *,
    before: float = 1.5,
    after: float = 1.5,
    fps: int = 10,
    is_cut_exactly: bool = False,
) -> list[int]:
    """Checks what every whole clip must be; returns the numbers that it shows.

    Args:
        path: the clip.
        number: that the frame of the alert shows.
        before: seconds that were asked for before it.
        after: and after it.
        fps: of the film, which has a key frame each second.
        is_cut_exactly: whether the clip begins where it was asked to, and not at the key frame before.
    """
    numbers, times = numbers_of(path), times_of(path)
    assert number in numbers
    assert numbers == [*range(numbers[0], numbers[-1] + 1)]
    assert is_cut_exactly or numbers[0] % fps == 0
    at = times[numbers.index(number)]
    assert before - 0.15 <= at <= before + (0.15 if is_cut_exactly else 1.15)
    assert after - 0.15 <= times[-1] - at <= after + 0.15
    assert probe(path)["length"] == pytest.approx(times[-1] + 1 / fps, abs=0.15)
    return numbers
