"""YUV becomes the RGB that FFmpeg makes of it."""

from __future__ import annotations

import itertools
import platform

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace

from streamdet.assets import sample_clip
from streamdet.bench.cases import calibrated_weights
from streamdet.capture.sources.picture import AvPicture, BgrPicture
from streamdet.config import DetectorConfig
from streamdet.detector.graph.detector import GraphDetector
from streamdet.detector.graph.pixels import Matrix, PixelFormat, PixelLayout, read_bytes, to_rgb
from streamdet.detector.pipeline import ArrayPicture
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE

# Elsewhere swscale rounds otherwise.
TOLERANCE = 0 if platform.machine() == "x86_64" else 3


def decoded() -> av.VideoFrame:
    with av.open(str(sample_clip())) as container:
        return next(itertools.islice(container.decode(video=0), 5, None))


def noise(layout: str = "yuv420p") -> av.VideoFrame:
    values = np.random.default_rng(0).integers(0, 256, (96, 48), dtype=np.uint8)
    return av.VideoFrame.from_ndarray(values, format=layout)


def to_rgb_on_device(picture: AvPicture) -> tuple[PixelFormat, np.ndarray]:
    pixel_format, pixels = read_bytes(picture)
    rgb = to_rgb(torch.from_numpy(pixels)[None], pixel_format)
    return pixel_format, rgb[0].permute(1, 2, 0).numpy()


def test_a_decoded_frame() -> None:
    picture = AvPicture(decoded())
    pixel_format, rgb = to_rgb_on_device(picture)
    assert pixel_format == PixelFormat(576, 768, "yuv420p", "bt601", full_range=False)
    assert np.abs(rgb - picture.to_rgb()).max() <= TOLERANCE
    assert rgb.std() > 20


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(
    ("colorspace", "matrix"),
    [
        (2, "bt601"),
        (6, "bt601"),
        (Colorspace.ITU601, "bt601"),
        (Colorspace.BT2020, "bt2020"),
        (Colorspace.ITU709, "bt709"),
        (Colorspace.SMPTE240M, "smpte240m"),
    ],
)
def test_every_matrix_and_range(colorspace: int, matrix: Matrix, full_range: bool) -> None:
    frame = noise()
    frame.colorspace, frame.color_range = colorspace, ColorRange.JPEG if full_range else ColorRange.MPEG
    picture = AvPicture(frame)
    pixel_format, rgb = to_rgb_on_device(picture)
    assert (pixel_format.matrix, pixel_format.full_range) == (matrix, full_range)
    assert np.abs(rgb - picture.to_rgb()).max() <= TOLERANCE


def test_the_old_format_of_full_range() -> None:
    picture = AvPicture(noise("yuvj420p"))
    pixel_format, rgb = to_rgb_on_device(picture)
    assert pixel_format.full_range
    assert np.abs(rgb - picture.to_rgb()).max() <= TOLERANCE


def test_nv12_is_the_same_picture() -> None:
    planar = noise()
    interleaved = planar.to_ndarray().copy()
    chroma = interleaved[64:].reshape(2, -1)
    interleaved[64:] = chroma.T.reshape(interleaved[64:].shape)
    picture = AvPicture(av.VideoFrame.from_ndarray(interleaved, format="nv12"))
    pixel_format, rgb = to_rgb_on_device(picture)
    assert pixel_format.layout == "nv12"
    assert np.array_equal(rgb, to_rgb_on_device(AvPicture(planar))[1])


@pytest.mark.parametrize("layout", ["yuv422p", "gray", "rgb24"])
def test_other_layouts_come_as_rgb(layout: PixelLayout) -> None:
    picture = AvPicture(noise().reformat(format=layout))
    assert picture.to_yuv() is None
    pixel_format, rgb = to_rgb_on_device(picture)
    assert pixel_format == PixelFormat(64, 48)
    assert np.array_equal(rgb, picture.to_rgb())


def test_turned_and_odd_pictures_come_as_rgb() -> None:
    rare = noise()
    rare.colorspace = Colorspace.FCC
    assert AvPicture(rare).to_yuv() is None
    assert AvPicture(noise(), quarter_turns=1).to_yuv() is None
    assert AvPicture(noise().reformat(width=47, height=63)).to_yuv() is None
    bgr = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    pixel_format, pixels = read_bytes(BgrPicture(bgr))
    assert pixel_format == PixelFormat(4, 4)
    assert np.array_equal(pixels.reshape(4, 4, 3), bgr[:, :, ::-1])


def test_detections_are_those_in_rgb() -> None:
    detector = GraphDetector(
        calibrated_weights(EMBEDDED_ARCHITECTURE), DetectorConfig(score_threshold=0.2), torch.device("cpu")
    )
    picture = AvPicture(decoded())
    of_yuv, of_rgb = detector.detect([picture, ArrayPicture(picture.to_rgb())])
    assert len(of_yuv) > 5
    if TOLERANCE == 0:
        assert of_yuv == of_rgb
