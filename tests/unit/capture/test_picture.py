from __future__ import annotations

import threading

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet.capture.sources import picture as picture_module
from streamdet.capture.sources.picture import AvPicture, BgrPicture, check_size
from streamdet.delivery.jpeg import fitted
from streamdet.errors import SourceError
from support.waiting import join

# ITU-R BT.601 and BT.709: weights of red and blue in luma.
_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
_COLORSPACE = {"bt601": 6, "bt709": 1, "unspecified": 2}  # AVColorSpace
_RANGE = {"limited": 1, "full": 2, "unspecified": 0}  # AVColorRange


def yuv_frame(colorspace: str, color_range: str, pixel_format: str = "yuv420p") -> av.VideoFrame:
    """A ramp of luma over blocks of chroma."""
    height, width = 32, 96
    frame = av.VideoFrame(width, height, pixel_format)
    luma = np.tile(np.linspace(60, 180, width).astype(np.uint8), (height, 1))
    blue = np.repeat(np.linspace(100, 150, width // 16), 8).astype(np.uint8)
    red = blue[::-1]
    for plane, row in zip(frame.planes[1:], (blue, red), strict=True):
        fill(plane, np.tile(row, (height // 2, 1)))
    fill(frame.planes[0], luma)
    frame.colorspace, frame.color_range = _COLORSPACE[colorspace], _RANGE[color_range]
    return frame


def fill(plane: av.video.plane.VideoPlane, values: NDArray[np.uint8]) -> None:
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    rows[:, : plane.width] = values


def reference_rgb(frame: av.VideoFrame, matrix: str, *, full: bool) -> NDArray[np.float64]:
    """The conversion as the recommendations define it."""

    def values(plane: av.video.plane.VideoPlane) -> NDArray[np.float64]:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        return rows[:, : plane.width].astype(float)

    luma, blue, red = (values(plane) for plane in frame.planes)
    blue, red = (np.repeat(np.repeat(c, 2, 0), 2, 1) - 128 for c in (blue, red))
    if not full:
        luma, blue, red = (luma - 16) * 255 / 219, blue * 255 / 224, red * 255 / 224
    weight_red, weight_blue = _WEIGHTS[matrix]
    r = luma + 2 * (1 - weight_red) * red
    b = luma + 2 * (1 - weight_blue) * blue
    g = (luma - weight_red * r - weight_blue * b) / (1 - weight_red - weight_blue)
    return np.clip(np.stack([r, g, b], -1), 0, 255)


@pytest.mark.parametrize(
    ("colorspace", "color_range", "pixel_format", "matrix", "full"),
    [
        ("bt601", "limited", "yuv420p", "bt601", False),
        ("bt709", "limited", "yuv420p", "bt709", False),
        ("bt709", "full", "yuv420p", "bt709", True),
        ("unspecified", "unspecified", "yuv420p", "bt601", False),
        ("unspecified", "unspecified", "yuvj420p", "bt601", True),
        ("bt601", "full", "yuvj420p", "bt601", True),
    ],
)
def test_colours_follow_the_tags(
    colorspace: str, color_range: str, pixel_format: str, matrix: str, *, full: bool
) -> None:
    frame = yuv_frame(colorspace, color_range, pixel_format)
    rgb = AvPicture(frame).to_rgb()
    assert rgb.dtype == np.uint8
    assert rgb.flags.c_contiguous
    difference = np.abs(rgb - reference_rgb(frame, matrix, full=full))
    # Chroma may be placed half a pixel aside; the blocks' insides must agree.
    assert np.median(difference) <= 1.5
    assert np.percentile(difference, 95) <= 4


def test_picture_may_be_converted_by_many_threads() -> None:
    picture = AvPicture(yuv_frame("bt709", "limited"))
    results: list[NDArray[np.uint8]] = []
    threads = [threading.Thread(target=lambda: results.append(picture.to_rgb()), daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert len(results) == 8
    assert all(np.array_equal(r, results[0]) for r in results)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "nv12", "yuv444p", "yuv420p10le", "p010le", "rgb24"])
@pytest.mark.parametrize("size", [(64, 48), (61, 47)])
def test_a_picture_that_leaves_its_decoder_stays_the_same(pixel_format: str, size: tuple[int, int]) -> None:
    rgb = np.random.default_rng(4).integers(0, 256, (*size[::-1], 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pixel_format)
    frame.colorspace, frame.color_range = _COLORSPACE["bt709"], _RANGE["limited"]
    left, stayed = AvPicture(frame), AvPicture(frame)
    left.leave_decoder()
    assert (left.frame is frame) is (pixel_format == "rgb24")
    for make in (
        AvPicture.to_rgb,
        lambda picture: (picture.to_yuv() or (0,))[0],
        lambda picture: picture.to_small_bgr(16, 12),
        lambda picture: picture.to_sampled_rgb(24, 18),
        lambda picture: picture.to_small_luma(16, 12),
    ):
        assert np.array_equal(make(left), make(stayed))


@pytest.mark.parametrize("width", [97, 101, 63, 2])
def test_odd_widths(width: int) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (31, width, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    assert np.array_equal(AvPicture(frame).to_rgb(), rgb)


def test_turns_are_counter_clockwise() -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[0, 5] = 255
    picture = AvPicture(av.VideoFrame.from_ndarray(rgb, format="rgb24"), quarter_turns=1)
    assert (picture.width, picture.height) == (4, 6)
    assert picture.to_rgb()[0, 0].tolist() == [255, 255, 255]


def test_a_small_picture_of_a_device_has_the_mean_colours() -> None:
    bgr = np.random.default_rng(2).integers(0, 256, (40, 60, 3), np.uint8)
    means = bgr.reshape(10, 4, 15, 4, 3).mean((1, 3))
    assert np.abs(BgrPicture(bgr).to_small_bgr(15, 10) - means).max() <= 1
    assert np.array_equal(BgrPicture(bgr).to_small_bgr(60, 40), bgr)


def test_bgr_becomes_rgb() -> None:
    bgr = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    picture = BgrPicture(bgr)
    assert (picture.width, picture.height) == (4, 2)
    assert picture.to_rgb()[0, 0].tolist() == [2, 1, 0]
    assert picture.to_rgb().flags.c_contiguous


@pytest.mark.parametrize(("width", "height"), [(20000, 100), (100, 20000), (8320, 8200)])
def test_size_limit(width: int, height: int) -> None:
    check_size(7680, 4320)
    with pytest.raises(SourceError, match="too large"):
        check_size(width, height)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_small_picture_shows_what_the_whole_one_shows(turns: int) -> None:
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
    rgb = np.kron(coarse, np.ones((40, 40, 1), np.uint8))
    picture = AvPicture(av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p"), turns)
    whole = picture.to_rgb()
    for side in (160, 96):
        width, height = fitted(picture.width, picture.height, side)
        bgr = picture.to_small_bgr(width, height)
        assert bgr.shape == (height, width, 3)
        assert bgr.flags.c_contiguous
        small = bgr[:, :, ::-1]
        expected = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(small.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("times", [2, 4])
@pytest.mark.parametrize(
    ("pixel_format", "colorspace", "color_range"),
    [
        ("yuv420p", "bt601", "limited"),
        ("yuv420p", "bt709", "full"),
        ("yuvj420p", "unspecified", "unspecified"),
        ("nv12", "bt709", "limited"),
    ],
)
def test_a_halved_picture_has_the_mean_colours(
    pixel_format: str, colorspace: str, color_range: str, times: int, turns: int
) -> None:
    # Brighter and darker rows in turns: who samples one of them sees another picture.
    rgb = np.kron(np.random.default_rng(5).integers(40, 200, (6, 8, 3), np.uint8), np.ones((48, 48, 1), np.uint8))
    rgb[::2] += 40
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format=pixel_format, dst_colorspace=_COLORSPACE[colorspace], dst_color_range=_RANGE[color_range]
    )
    frame.colorspace, frame.color_range = _COLORSPACE[colorspace], _RANGE[color_range]
    picture = AvPicture(frame, turns)
    whole = picture.to_rgb()
    height, width = (side // times for side in whole.shape[:2])
    halved = picture.to_small_bgr(width, height)
    assert halved.flags.c_contiguous
    means = whole.reshape(height, times, width, times, 3).mean((1, 3))
    assert np.abs(halved[:, :, ::-1] - means).mean() < 3.5


def test_pictures_are_halved_without_swscale(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    convert = picture_module._converted_to_bgr

    def noting(frame: av.VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
        made.append((frame.width, frame.height))
        return convert(frame, width, height)

    monkeypatch.setattr(picture_module, "_converted_to_bgr", noting)
    for pixel_format in ("yuv420p", "nv12", "yuv422p", "yuv420p10le"):
        frame = av.VideoFrame(768, 576, pixel_format)
        for width, height in ((384, 288), (192, 144), (368, 276), (384, 280)):
            AvPicture(frame).to_small_bgr(width, height)
    whole = (768, 576)
    assert made == [(384, 288), (192, 144), whole, whole] * 2 + [whole] * 8


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("pixel_format", "colorspace", "color_range"),
    [
        ("yuv420p", "bt601", "limited"),
        ("yuv420p", "bt709", "full"),
        ("yuvj420p", "unspecified", "unspecified"),
        ("nv12", "bt709", "limited"),
        ("yuv422p10le", "bt709", "limited"),
        ("rgb24", "unspecified", "unspecified"),
    ],
)
def test_a_sampled_picture_is_the_whole_one_resized(
    pixel_format: str, colorspace: str, color_range: str, turns: int
) -> None:
    frame = yuv_frame(colorspace, color_range)
    if pixel_format != "yuv420p":
        frame = frame.reformat(format=pixel_format)
        frame.colorspace, frame.color_range = _COLORSPACE[colorspace], _RANGE[color_range]
    picture = AvPicture(frame, turns)
    for divisor in (2, 3, 1, 0.7):
        size = (int(picture.width / divisor), int(picture.height / divisor))
        wanted = cv2.resize(picture.to_rgb(), size, interpolation=cv2.INTER_LINEAR).astype(int)
        found = picture.to_sampled_rgb(*size)
        assert found.shape == wanted.shape
        assert found.flags.c_contiguous
        # FFmpeg rounds colours down, those of nv12 by 2; and between blocks of one colour, what is resized before it is
        # converted is smoother.
        difference = np.abs(found - wanted)
        assert np.median(difference) <= 2
        assert np.percentile(difference, 90) <= 4


def test_a_sampled_picture_with_odd_sides() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (31, 97, 3), np.uint8)
    picture = AvPicture(av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p"))
    wanted = cv2.resize(picture.to_rgb(), (48, 15), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(picture.to_sampled_rgb(48, 15), wanted)
