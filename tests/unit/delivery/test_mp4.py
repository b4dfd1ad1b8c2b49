"""Films of packets that a camera, or a bad line, has damaged."""

from __future__ import annotations

import io
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import av
import pytest

from streamdet.delivery.masked_mp4 import masked_mp4
from streamdet.delivery.mp4 import TimedPacket, write_mp4
from streamdet.delivery.privacy import Hidden
from support.clips import Packets, read_into, whole_film
from support.films import make_film, numbers_of

_HIDDEN = Hidden((((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)),))


@pytest.fixture(scope="module", params=["a.mp4", "b.ts", "c.mp4", "d.ts"])
def packets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[TimedPacket]:
    folder = tmp_path_factory.mktemp("films")
    codec = "libx264" if request.param < "c" else "libx265"
    sink = Packets()
    read_into(sink, make_film(folder / request.param, seconds=3, codec=codec), pace="fastest")
    return whole_film(sink.packets, folder / "clip.mp4").packets


def damaged(timed: TimedPacket, data: bytes) -> TimedPacket:
    return replace(timed, packet=replace(timed.packet, data=data))


def test_a_damaged_key_frame_costs_its_own_group(packets: list[TimedPacket], tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with path.open("wb") as file:
        write_mp4([damaged(packets[0], packets[0].packet.data[:9]), *packets[1:]], file)
    assert numbers_of(path) == [*range(10, 30)]


def test_what_cannot_be_decoded_is_no_film_and_nothing_is_written(packets: list[TimedPacket]) -> None:
    file = io.BytesIO()
    with pytest.raises(ValueError, match="none of its key frames can be decoded"):
        write_mp4([damaged(timed, bytes(20)) for timed in packets], file)
    assert file.getvalue() == b""


def test_damage_never_hangs_nor_crashes(packets: list[TimedPacket]) -> None:
    """FFmpeg's own description of H.265 read damaged parameters without end."""
    chance = random.Random(7)  # noqa: S311 - the same each time

    def mutated(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 3, 20])):
            changed[chance.randrange(min(len(changed), 200))] = chance.randrange(256)
        return bytes(changed[: chance.randrange(len(changed))] if chance.random() < 0.2 else changed)

    made = 0
    for _ in range(60):
        sets = packets[0].packet.parameters.parameter_sets
        kept = tuple(unit[:3] + mutated(unit[3:]) if chance.random() < 0.3 else unit for unit in sets)
        parameters = replace(packets[0].packet.parameters, parameter_sets=kept)
        film = [
            replace(
                timed,
                packet=replace(
                    timed.packet,
                    data=mutated(timed.packet.data) if chance.random() < 0.2 else timed.packet.data,
                    parameters=parameters,
                ),
            )
            for timed in packets
        ]
        with suppress(ValueError, av.FFmpegError):
            write_mp4(film, io.BytesIO())
            made += 1
        with suppress(ValueError, av.FFmpegError):
            made += masked_mp4(film, 0, _HIDDEN, lambda: False) is not None
    assert made > 10
