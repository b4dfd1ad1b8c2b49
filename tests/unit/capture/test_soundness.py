"""Pictures that depend on something that is missing are never shown; what is sound is shown again at a key frame."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet.capture.sources.h264 import PictureNumbers
from streamdet.capture.sources.soundness import Soundness

_FRAMES, _KEY_EVERY = 48, 16


def pictures() -> Iterator[av.VideoFrame]:
    """Noise that moves: whatever is missing shows."""
    noise = np.random.default_rng(7).integers(0, 256, (96, 224, 3), np.uint8)
    for number in range(_FRAMES):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(noise[:, number * 2 :][:, :128]), format="rgb24")
        frame = frame.reformat(format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        yield frame


def encoded(path: Path, codec: str, **options: str) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.gop_size = _KEY_EVERY
        stream.options = options
        for frame in pictures():
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


_KEYS = f"keyint={_KEY_EVERY}:min-keyint={_KEY_EVERY}:scenecut=0"
_STREAMS: dict[str, Callable[[Path], Path]] = {
    "h264": lambda folder: encoded(folder / "a.mp4", "libx264", **{"x264-params": f"{_KEYS}:bframes=0"}),
    "h264-b": lambda folder: encoded(folder / "b.mkv", "libx264", **{"x264-params": f"{_KEYS}:bframes=2"}),
    "h264-open": lambda folder: encoded(folder / "o.ts", "libx264", **{"x264-params": f"{_KEYS}:open-gop=1:bframes=2"}),
    "h264-refresh": lambda folder: encoded(
        folder / "r.mp4", "libx264", **{"x264-params": f"keyint={_KEY_EVERY}:intra-refresh=1:bframes=0"}
    ),
    "hevc": lambda folder: encoded(folder / "h.mp4", "libx265", **{"x265-params": f"{_KEYS}:bframes=0:log-level=none"}),
    "mpeg4": lambda folder: encoded(folder / "m.mp4", "mpeg4"),
}


@pytest.fixture(scope="module", params=list(_STREAMS))
def stream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _STREAMS[request.param](tmp_path_factory.mktemp("stream"))


def shown(
    path: Path,
    *,
    without: Collection[int] = (),
    cut: Collection[int] = (),
    since: int = 0,
    key_frame_seconds: float = 120,
) -> tuple[dict[int, NDArray[np.int16]], int]:
    """The sound pictures by their time, and how many others were decoded."""
    sound: dict[int, NDArray[np.int16]] = {}
    held = 0
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        video.codec_context.thread_count = 1
        soundness = Soundness(video.codec_context, key_frame_seconds)
        for number, packet in enumerate(container.demux(video)):
            if packet.size and (number in without or number < since):
                continue
            if number in cut:
                half = av.Packet(bytes(packet)[: packet.size // 2])
                half.pts, half.dts, half.time_base, half.stream = packet.pts, packet.dts, packet.time_base, video
                half.is_keyframe = packet.is_keyframe
                packet = half  # noqa: PLW2901 - the same, damaged
            for frame, is_sound in soundness.decode(packet):
                held += not is_sound
                if is_sound:
                    assert frame.pts is not None
                    sound[frame.pts] = frame.to_ndarray(format="gray").astype(np.int16)
    return sound, held


def worst(found: dict[int, NDArray[np.int16]], wanted: dict[int, NDArray[np.int16]]) -> float:
    return max(float(np.abs(picture - wanted[pts]).mean()) for pts, picture in found.items())


def test_everything_is_shown_where_nothing_is_missing(stream: Path) -> None:
    found, held = shown(stream)
    assert (len(found), held) == (_FRAMES, 0)


def second_key(path: Path) -> int:
    """Which packet holds the second key frame, or begins the second wave of intra refresh."""
    with av.open(str(path)) as container:
        keys = [number for number, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    return keys[1]


@pytest.mark.parametrize("damage", ["cut", "cut-key", "joined-late", "missing", "missing-key"])
def test_nothing_smeared_is_shown(stream: Path, damage: str) -> None:
    if damage.startswith("missing") and stream.name == "m.mp4":
        pytest.skip("nothing in MPEG-4 says that a picture is missing")
    if damage == "cut-key" and stream.name == "o.ts":
        pytest.skip("pictures before the key frame build on it, and come out before the decoder marks it")
    wanted, _ = shown(stream)
    key = second_key(stream)
    found, held = {
        "cut": lambda: shown(stream, cut={_KEY_EVERY + 5}),
        "cut-key": lambda: shown(stream, cut={key}),
        "joined-late": lambda: shown(stream, since=5),
        "missing": lambda: shown(stream, without={_KEY_EVERY + 4, _KEY_EVERY + 5}),
        "missing-key": lambda: shown(stream, without={key}),
    }[damage]()
    assert worst(found, wanted) == 0
    last = max(wanted)
    if stream.name != "r.mp4":
        # Shown again from the next key frame on.
        assert last in found
        assert len(found) >= _FRAMES - 2 * _KEY_EVERY - 2
    assert len(found) < _FRAMES
    if damage != "missing-key" or stream.name != "h.mp4":
        assert held + len(found) >= _FRAMES - 5


def test_a_stream_without_key_frames_is_shown_after_a_while(tmp_path: Path) -> None:
    path = _STREAMS["hevc"](tmp_path)
    assert not shown(path, since=2 * _KEY_EVERY + 1)[0]
    assert shown(path, since=2 * _KEY_EVERY + 1, key_frame_seconds=0)[0]


def test_numbers_of_pictures_are_read_in_both_framings(tmp_path: Path) -> None:
    for path in (_STREAMS["h264"](tmp_path), _STREAMS["h264-open"](tmp_path)):
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            packets = [bytes(packet) for packet in container.demux(video) if packet.size]
            extradata = video.codec_context.extradata
        whole = PictureNumbers(extradata)
        assert not any(whole.follow(packet).after_gap for packet in packets)
        part = PictureNumbers(extradata)
        del packets[20:23]
        assert [n for n, packet in enumerate(packets) if part.follow(packet).after_gap] == [20]


def test_nonsense_is_no_gap_and_no_error() -> None:
    random = np.random.default_rng(3)
    for size in [*range(40), *[200] * 300]:
        data = random.integers(0, 256, size, np.uint8).tobytes()
        for extradata in (None, data, b"\1" + data):
            found = PictureNumbers(extradata)
            assert not found.follow(b"\0\0\1" + data).after_gap
            assert not found.follow(data).after_gap


def test_an_encoder_that_counts_in_another_way_is_not_held_for_ever(tmp_path: Path) -> None:
    path = _STREAMS["h264"](tmp_path)
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        packets = [bytes(packet) for packet in container.demux(video) if packet.size]
        missing = PictureNumbers(video.codec_context.extradata)
    gaps = [missing.follow(packet).after_gap for packet in packets[::2] * 4]
    assert any(gaps[:20])
    assert not any(gaps[-20:])


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_gaps_of_mpeg_ts_are_noticed_in_the_picture_that_has_them(tmp_path: Path, codec: str) -> None:
    names = {"libx264": "x264-params", "libx265": "x265-params"}
    path = encoded(tmp_path / "a.ts", codec, **{names[codec]: f"{_KEYS}:bframes=0:log-level=none"})
    content = path.read_bytes()
    packets = [content[at : at + 188] for at in range(0, len(content), 188)]
    video = [n for n, packet in enumerate(packets) if (packet[1] & 31, packet[2]) == (1, 0)]
    begins = [n for n in video if packets[n][1] & 64]
    # A piece from the middle of the second key frame.
    lost = begins[_KEY_EVERY] + 8
    assert lost < begins[_KEY_EVERY + 1] - 1
    (tmp_path / "lossy.ts").write_bytes(b"".join(packets[:lost] + packets[lost + 1 :]))
    wanted, _ = shown(path)
    found, _ = shown(tmp_path / "lossy.ts")
    assert worst(found, wanted) == 0
    assert sorted(found) == sorted(wanted)[:_KEY_EVERY] + sorted(wanted)[2 * _KEY_EVERY :]


_FOR_JOINS: dict[str, dict[str, str]] = {
    "libx264": {"x264-params": f"{_KEYS}:bframes=2"},
    "libx265": {"x265-params": f"{_KEYS}:bframes=0:log-level=none"},
    "mpeg2video": {},
    "mpeg4": {},
}


@pytest.mark.parametrize("codec", _FOR_JOINS)
def test_recordings_one_after_the_other_are_shown_whole(tmp_path: Path, codec: str) -> None:
    one = encoded(tmp_path / "one.ts", codec, **_FOR_JOINS[codec]).read_bytes()
    (tmp_path / "three.ts").write_bytes(one * 3)
    with av.open(str(tmp_path / "three.ts")) as container:
        video = container.streams.video[0]
        video.codec_context.thread_count = 1
        soundness = Soundness(video.codec_context)
        judged = [is_sound for packet in container.demux(video) for _, is_sound in soundness.decode(packet)]
    assert judged == [True] * (3 * _FRAMES)


def test_a_gap_before_a_key_frame_counts_where_the_time_goes_on(tmp_path: Path) -> None:
    content = encoded(tmp_path / "a.ts", "libx264", **{"x264-params": f"{_KEYS}:bframes=0"}).read_bytes()
    packets = [content[at : at + 188] for at in range(0, len(content), 188)]
    begins = [n for n, packet in enumerate(packets) if (packet[1] & 95, packet[2]) == (65, 0)]
    # The last piece of the picture before the second key frame.
    lost = max(n for n in range(begins[_KEY_EVERY]) if (packets[n][1] & 31, packets[n][2]) == (1, 0))
    assert lost not in begins
    wanted, _ = shown(tmp_path / "a.ts")
    (tmp_path / "lossy.ts").write_bytes(b"".join(packets[:lost] + packets[lost + 1 :]))
    found, _ = shown(tmp_path / "lossy.ts")
    assert sorted(found) == [pts for n, pts in enumerate(sorted(wanted)) if n != _KEY_EVERY - 1]


_AUD = b"\0\0\0\1\x09\x10"


def units_of(stream: bytes) -> list[bytes]:
    """The NAL units of a byte stream, each with its start code."""
    starts = [found.start() for found in re.finditer(rb"\x00?\x00\x00\x01", stream)]
    return [stream[begin:end] for begin, end in itertools.pairwise([*starts, len(stream)])]


def cut_in_parts(path: Path, *, only_keys: bool) -> Path:
    """The same pictures, with something before each further slice that has FFmpeg take it for another picture."""
    units = units_of(path.read_bytes())
    sets = [unit for unit in units[:2] if unit.lstrip(b"\0\1")[0] & 31 in (7, 8)]
    assert len(sets) == 2
    cut = b""
    for unit in units:
        header = unit.lstrip(b"\0")[1:]
        if header[0] & 31 == 5 and not header[1] & 128:
            cut += b"".join(sets)
        elif header[0] & 31 == 1 and not header[1] & 128 and not only_keys:
            cut += _AUD
        cut += unit
    parts = path.with_stem("parts")
    parts.write_bytes(cut)
    return parts


@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize("slices", [2, 3])
@pytest.mark.parametrize("only_keys", [True, False])
def test_pictures_that_come_in_parts_are_whole(tmp_path: Path, bframes: int, slices: int, *, only_keys: bool) -> None:
    parameters = f"{_KEYS}:bframes={bframes}:slices={slices}:repeat-headers=1"
    whole = encoded(tmp_path / "whole.h264", "libx264", **{"x264-params": parameters})
    parts = cut_in_parts(whole, only_keys=only_keys)
    with av.open(str(parts)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    assert packets == _FRAMES + (3 if only_keys else _FRAMES) * (slices - 1)
    wanted, found = [], []
    held = []
    for path, pictures_of in ((whole, wanted), (parts, found)):
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            video.codec_context.thread_count = 1
            soundness = Soundness(video.codec_context)
            judged = [each for packet in container.demux(video) for each in soundness.decode(packet)]
        pictures_of += [frame.to_ndarray(format="gray") for frame, is_sound in judged if is_sound]
        held.append(sum(not is_sound for _, is_sound in judged))
    assert len(found) == len(wanted) == _FRAMES
    assert all(np.array_equal(*pair) for pair in zip(found, wanted, strict=True))
    # Only what has shown that pictures come in parts.
    assert held[0] == 0
    assert held[1] <= slices - 1


def test_a_part_that_is_lost_is_damage(tmp_path: Path) -> None:
    parameters = f"{_KEYS}:bframes=0:slices=2:repeat-headers=1"
    parts = cut_in_parts(encoded(tmp_path / "whole.h264", "libx264", **{"x264-params": parameters}), only_keys=True)
    with av.open(str(parts)) as container:
        video = container.streams.video[0]
        video.codec_context.thread_count = 1
        soundness = Soundness(video.codec_context)
        keys = 0
        sound = held = 0
        for packet in container.demux(video):
            keys += packet.is_keyframe
            if packet.is_keyframe and keys == 4:
                continue  # the second part of the second key frame
            for _, is_sound in soundness.decode(packet):
                sound += is_sound
                held += not is_sound
    assert sound == _FRAMES - _KEY_EVERY
    assert held >= _KEY_EVERY


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4"])
def test_a_film_that_is_cut_between_key_frames_is_shown_from_the_cut_on(tmp_path: Path, codec: str) -> None:
    whole = _STREAMS[codec](tmp_path)
    first = 5
    film = tmp_path / "film.mp4"
    # As phones and FFmpeg's `-c copy` cut: all pictures are there, and a list of edits says which are shown.
    with (
        av.open(str(whole)) as read,
        av.open(str(film), "w", options={"avoid_negative_ts": "disabled", "use_editlist": "1"}) as output,
    ):
        video = read.streams.video[0]
        stream = output.add_stream_from_template(video)
        for packet in read.demux(video):
            if packet.pts is None or packet.dts is None or packet.time_base is None:
                continue
            shift = round(first / (25 * packet.time_base))
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            output.mux(packet)
    found, held = shown(film)
    assert len(found) == _FRAMES - first
    assert held == 0
