"""Pictures that are left out cost nothing, are counted once, and never change those that are shown."""

from __future__ import annotations

from collections.abc import Callable, Collection
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet.capture.sources.h265 import PictureLayers
from streamdet.capture.sources.selection import Mode, Selection
from streamdet.capture.sources.soundness import Soundness
from support.bits import field_film

_FPS = 25
_SIZE = (96, 64)
_PARAMETERS = {"libx264": "x264-params", "libx265": "x265-params"}


def film(path: Path, codec: str, parameters: str, *, pictures: int = 100, keys: Collection[int] = ()) -> Path:
    """Noise that moves, so that whatever is missing shows; with further key frames where they are wanted."""
    noise = np.random.default_rng(7).integers(0, 256, (_SIZE[1], 2 * pictures + _SIZE[0], 3), np.uint8)
    quiet = ":log-level=none" if codec == "libx265" else ""
    options = {_PARAMETERS[codec]: f"scenecut=0:{parameters}{quiet}", "forced-idr": "1"} if codec in _PARAMETERS else {}
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=_FPS, options=options)
        stream.width, stream.height = _SIZE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(pictures):
            cut = np.ascontiguousarray(noise[:, number * 2 :][:, : _SIZE[0]])
            frame = av.VideoFrame.from_ndarray(cut, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, _FPS)
            frame.pict_type = av.video.frame.PictureType.I if number in keys else av.video.frame.PictureType.NONE
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


class Schedule:
    """A `Demand` as that of the queue, by the time of the stream."""

    def __init__(self, max_fps: float | None) -> None:
        self.max_fps = max_fps
        self.due_at = 0.0

    def is_due(self, at_monotonic_seconds: float) -> bool:
        return self.max_fps is None or at_monotonic_seconds >= self.due_at - 0.5 / self.max_fps

    def take(self, at_seconds: float) -> bool:
        """Whether the queue takes a frame of this moment."""
        if self.max_fps is None or not self.is_due(at_seconds):
            return self.max_fps is None
        self.due_at = max(self.due_at, at_seconds - 1 / self.max_fps) + 1 / self.max_fps
        return True


def packets_of(path: Path) -> list[av.Packet[av.VideoStream]]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


class Shown:
    """What came of a film, by time in pictures: the sound ones, those left out, and those the queue would take."""

    def __init__(
        self,
        path: Path,
        mode: Mode,
        demand: Schedule | None = None,
        *,
        without: Collection[int] = (),
        at: Callable[[int, Schedule | None], None] = lambda _number, _demand: None,
    ) -> None:
        self.sound: dict[int, NDArray[np.uint8]] = {}
        self.left_out: list[int] = []
        self.taken: list[int] = []
        self.delays: list[int] = []
        self.held = 0
        arrived: dict[int, int] = {}
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            video.codec_context.thread_count = 1
            tick = _FPS * (video.time_base or Fraction(0))
            first = min(packet.pts for packet in packets_of(path) if packet.pts is not None)
            selection = Selection(video.codec_context, mode, demand, shown_at=lambda _packet: now)
            soundness = Soundness(video.codec_context, selection=selection)
            now = 0.0
            for number, packet in enumerate(container.demux(video)):
                if packet.size and number in without:
                    continue
                at(number, demand)
                now = number / _FPS
                if packet.pts is not None:
                    arrived[round((packet.pts - first) * tick)] = number
                for frame, is_sound in soundness.decode(packet):
                    self.held += not is_sound
                    if not is_sound:
                        continue
                    assert frame.pts is not None
                    shown = round((frame.pts - first) * tick)
                    assert shown not in self.sound, "shown twice"
                    self.sound[shown] = frame.to_ndarray(format="gray")
                    self.delays.append(number - arrived[shown])
                    if demand is not None and demand.take(now):
                        self.taken.append(shown)
                for left_out, _ in soundness.take_left_out():
                    assert left_out.pts is not None
                    self.left_out.append(round((left_out.pts - first) * tick))

    def check(self, whole: Shown, pictures: int) -> None:
        """Every picture is counted once, and shows what it shows when all are decoded."""
        assert sorted([*self.sound, *self.left_out]) == list(range(pictures))
        assert all(np.array_equal(picture, whole.sound[number]) for number, picture in self.sound.items())


_FILMS: dict[str, tuple[str, str, str]] = {
    # container, encoder, its parameters: a group of 25 pictures
    "h264": ("mp4", "libx264", "keyint=25:min-keyint=25:bframes=0"),
    "h264-b": ("mkv", "libx264", "keyint=25:min-keyint=25:bframes=2:b-pyramid=none"),
    "h264-pyramid": ("ts", "libx264", "keyint=25:min-keyint=25:bframes=3:b-pyramid=normal:ref=3"),
    "h264-open": ("ts", "libx264", "keyint=25:min-keyint=25:bframes=2:open-gop=1"),
    "h264-slices": ("ts", "libx264", "keyint=25:min-keyint=25:bframes=2:slices=3"),
    "h265": ("mp4", "libx265", "keyint=25:min-keyint=25:bframes=0"),
    "h265-b": ("mkv", "libx265", "keyint=25:min-keyint=25:bframes=3:open-gop=0"),
    "h265-open": ("ts", "libx265", "keyint=25:min-keyint=25:bframes=3:open-gop=1"),
    "h265-layers": ("mp4", "libx265", "keyint=25:min-keyint=25:bframes=3:b-adapt=0:temporal-layers=3:open-gop=0"),
}
_PICTURES = 100


@pytest.fixture(scope="module", params=list(_FILMS))
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    container, codec, parameters = _FILMS[request.param]
    folder = tmp_path_factory.mktemp("film")
    return film(folder / f"{request.param}.{container}", codec, parameters, pictures=_PICTURES)


def has_free_pictures(clip: Path) -> bool:
    return clip.stem not in ("h264", "h265")


@pytest.mark.parametrize("mode", ["all", "auto"])
def test_nothing_is_left_out_where_all_is_wanted(clip: Path, mode: Mode) -> None:
    shown = Shown(clip, mode)
    assert (sorted(shown.sound), shown.left_out, shown.held) == ([*range(_PICTURES)], [], 0)


def test_pictures_that_no_other_needs_are_left_out(clip: Path) -> None:
    shown = Shown(clip, "reference")
    shown.check(Shown(clip, "all"), _PICTURES)
    assert len(shown.left_out) > _PICTURES / 5 if has_free_pictures(clip) else not shown.left_out
    assert not shown.held


def test_key_frames_are_shown_alone_and_at_once(clip: Path) -> None:
    shown, whole = Shown(clip, "keyframes"), Shown(clip, "all")
    shown.check(whole, _PICTURES)
    assert len(shown.sound) == 4
    # The first one waits for the packet that shows that it was complete.
    assert max(shown.delays[1:]) == 0
    assert shown.delays[0] <= 1


@pytest.mark.parametrize("max_fps", [12.5, 5.0, 1.0])
def test_auto_loses_no_frame_that_max_fps_lets_pass(clip: Path, max_fps: float) -> None:
    whole = Shown(clip, "all", Schedule(max_fps))
    shown = Shown(clip, "auto", Schedule(max_fps))
    shown.check(whole, _PICTURES)
    assert abs(len(shown.taken) - len(whole.taken)) <= 1
    assert len(shown.taken) >= max_fps * _PICTURES / _FPS - 1
    if max_fps == 1:
        # Three distances between key frames are looked at first.
        assert len(shown.left_out) >= 24
    elif has_free_pictures(clip):
        assert shown.left_out


@pytest.fixture(scope="module", params=["h264", "h265-b"])
def long_clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    container, codec, parameters = _FILMS[request.param]
    path = tmp_path_factory.mktemp("long") / f"{request.param}.{container}"
    return film(path, codec, parameters, pictures=250)


def test_auto_decodes_key_frames_alone_where_they_are_enough(long_clip: Path) -> None:
    shown = Shown(long_clip, "auto", Schedule(1.0))
    shown.check(Shown(long_clip, "all"), 250)
    assert [number for number in sorted(shown.sound) if number > 80] == [100, 125, 150, 175, 200, 225]
    slow = Shown(long_clip, "auto", Schedule(0.5))
    assert [number for number in sorted(slow.sound) if number > 100] in ([125, 175, 225], [150, 200])


def test_auto_goes_on_from_the_last_key_frame_when_more_is_wanted(long_clip: Path) -> None:
    def want_all(number: int, demand: Schedule | None) -> None:
        if number == 140 and demand is not None:
            demand.max_fps = None

    shown = Shown(long_clip, "auto", Schedule(1.0), at=want_all)
    shown.check(Shown(long_clip, "all"), 250)
    assert not shown.held
    # At once, and not at the next key frame; pictures that are decoded for others are not counted twice.
    assert {*range(143, 250)} <= {*shown.sound}
    assert 135 in shown.left_out


def test_a_key_frame_that_is_late_is_not_waited_for(tmp_path: Path) -> None:
    keys = [*range(0, 151, 25), *range(250, 400, 25)]
    clip = film(tmp_path / "a.mp4", "libx264", "keyint=400:min-keyint=1:bframes=0", pictures=400, keys=keys)
    whole, shown = Shown(clip, "all", Schedule(1.0)), Shown(clip, "auto", Schedule(1.0))
    shown.check(whole, 400)
    assert len(shown.taken) >= len(whole.taken) - 1
    # Decoded again a quarter of a period after the key frame was due.
    assert min(number for number in shown.sound if number > 150) in range(181, 185)
    # After that, twice as many key frames have to be in time: six distances, 250 to 400, are not enough.
    assert {*range(185, 400)} <= {*shown.sound}


def test_damage_between_key_frames_does_not_matter_where_they_are_decoded_alone(long_clip: Path) -> None:
    shown = Shown(long_clip, "keyframes", without={60, 61, 62})
    whole = Shown(long_clip, "all")
    assert len(shown.sound) == 10
    assert all(np.array_equal(picture, whole.sound[number]) for number, picture in shown.sound.items())


def test_what_was_kept_before_damage_is_not_decoded(long_clip: Path) -> None:
    def want_all(number: int, demand: Schedule | None) -> None:
        if number == 140 and demand is not None:
            demand.max_fps = None

    if long_clip.suffix != ".mp4":
        pytest.skip("nothing in H.265 says that a picture is missing")
    shown = Shown(long_clip, "auto", Schedule(1.0), without={130, 131}, at=want_all)
    whole = Shown(long_clip, "all")
    assert all(np.array_equal(picture, whole.sound[number]) for number, picture in shown.sound.items())
    assert not {*range(126, 150)} & {*shown.sound}
    assert {*range(150, 250)} <= {*shown.sound}


def test_a_wave_of_intra_refresh_is_no_key_frame(tmp_path: Path) -> None:
    clip = film(tmp_path / "a.mp4", "libx264", "keyint=25:intra-refresh=1:bframes=0")
    shown = Shown(clip, "keyframes")
    assert sorted(shown.sound) == [0]
    assert len(shown.left_out) == _PICTURES - 1
    auto = Shown(clip, "auto", Schedule(1.0))
    assert len(auto.sound) == _PICTURES


def test_of_pictures_that_depend_on_none_only_those_are_decoded_that_are_due(tmp_path: Path) -> None:
    clip = film(tmp_path / "a.avi", "mjpeg", "")
    shown = Shown(clip, "auto", Schedule(5.0))
    shown.check(Shown(clip, "all"), _PICTURES)
    assert sorted(shown.taken) == sorted(shown.sound)
    assert len(shown.sound) in range(20, 23)


@pytest.mark.parametrize("codec", ["mpeg4", "mpeg2video"])
def test_other_codecs_are_decoded_whole_or_by_their_key_frames(tmp_path: Path, codec: str) -> None:
    clip = film(tmp_path / "a.mkv", codec, "")
    for mode in ("auto", "reference"):
        assert len(Shown(clip, mode, Schedule(1.0)).sound) == _PICTURES  # type: ignore[arg-type]
    shown = Shown(clip, "keyframes")
    shown.check(Shown(clip, "all"), _PICTURES)
    assert len(shown.sound) == sum(packet.is_keyframe for packet in packets_of(clip)) < 12


def test_a_key_frame_of_two_fields_is_shown_whole(tmp_path: Path) -> None:
    frames = 6
    clip = field_film(tmp_path / "fields.h264", frames)
    with av.open(str(clip)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) in (frames, 2 * frames)
    whole, shown = fields_of(clip, "all"), fields_of(clip, "keyframes")
    assert len(whole[0]) == frames
    assert shown[1] == frames - 2
    assert len(shown[0]) == 2
    assert all(any(np.array_equal(picture, other) for other in whole[0]) for picture in shown[0])


def fields_of(path: Path, mode: Mode) -> tuple[list[NDArray[np.uint8]], int]:
    """The pictures of a film without timestamps, and how many were left out."""
    pictures: list[NDArray[np.uint8]] = []
    left_out = 0
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        video.codec_context.thread_count = 1
        soundness = Soundness(video.codec_context, selection=Selection(video.codec_context, mode))
        for packet in container.demux(video):
            pictures += [frame.to_ndarray(format="gray") for frame, ok in soundness.decode(packet) if ok]
            left_out += len(soundness.take_left_out())
    return pictures, left_out


def test_nonsense_is_needed_and_no_error() -> None:
    random = np.random.default_rng(3)
    for size in [*range(60), *[200] * 300]:
        data = random.integers(0, 256, size, np.uint8).tobytes()
        for extradata in (None, data, b"\1" + data, b"\0\0\1" + data):
            layers = PictureLayers(extradata)
            layers.follow(b"\0\0\1" + data)
            layers.follow(data)


def test_a_layer_that_higher_ones_may_need_is_needed() -> None:
    sps = bytes([33 << 1, 1, 2 << 1, 0])  # up to layer 2
    for layer, is_reference in ((0, True), (1, True), (2, False)):
        layers = PictureLayers(b"\0\0\0\1" + sps)
        assert layers.follow(b"\0\0\1" + bytes([0, layer + 1, 128, 0])).is_reference is is_reference
        assert layers.follow(b"\0\0\1" + bytes([1 << 1, layer + 1, 128, 0])).is_reference
    assert PictureLayers(None).follow(b"\0\0\1" + bytes([0, 3, 128, 0])).is_reference
