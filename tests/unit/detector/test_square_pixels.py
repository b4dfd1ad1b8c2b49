"""Streams whose pixels are not square: the detector sees the scene as it is, events give pixels of the source frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from streamdet.capture.sources import open_source
from streamdet.capture.sources.picture import AvPicture, BgrPicture
from streamdet.config import DetectorConfig
from streamdet.detector.pipeline import ArrayPicture, load_detector
from streamdet.detector.stages.square_pixels import SquarePicture, detect_with_square_pixels
from streamdet.types import Detection, DetectionSettings
from support.capturing import stream_config
from support.detecting import clip_frames
from support.videos import make_video

NOISE = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)


def picture(aspect: Fraction | None, turns: int = 0) -> AvPicture:
    return AvPicture(av.VideoFrame.from_ndarray(NOISE, format="rgb24"), turns, aspect)


@pytest.mark.parametrize(
    ("aspect", "turns", "expected"),
    [
        (None, 0, 1.0),
        (Fraction(0), 0, 1.0),
        (Fraction(1), 0, 1.0),
        (Fraction(16, 11), 0, 16 / 11),
        (Fraction(2), 1, 0.5),
        (Fraction(2), 2, 2.0),
        (Fraction(1, 2), 3, 2.0),
        (Fraction(5), 0, 1.0),
        (Fraction(1, 5), 0, 1.0),
        (Fraction(-2), 0, 1.0),
        (Fraction(2**31 - 1, 1), 0, 1.0),
    ],
)
def test_the_shape_of_pixels_turns_with_the_picture_and_is_believed_within_bounds(
    aspect: Fraction | None, turns: int, expected: float
) -> None:
    assert picture(aspect, turns).pixel_aspect == pytest.approx(expected)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.h264"])
def test_sources_say_what_the_stream_says(tmp_path: Path, name: str) -> None:
    path = make_video(tmp_path / name, sample_aspect=Fraction(16, 11))
    source = open_source(stream_config(path, pace="fastest"))
    try:
        found = source.read().picture
    finally:
        source.close()
    assert isinstance(found, AvPicture | BgrPicture)
    assert found.pixel_aspect == pytest.approx(16 / 11)
    assert (found.width, found.height) == (64, 48)


class Fixed:
    """Finds one box that fills the right lower quarter of whatever it is shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def detect(self, pictures: list[ArrayPicture], *settings: object) -> list[list[Detection]]:
        self.seen += [(one.width, one.height) for one in pictures]
        assert all(one.to_rgb().shape == (one.height, one.width, 3) for one in pictures)
        return [[Detection("x", 0.5, (p.width / 2, p.height / 2, p.width, p.height))] for p in pictures]


def test_boxes_come_back_in_pixels_of_the_source_frame() -> None:
    detector = Fixed()
    shown = [picture(None), picture(Fraction(2)), picture(Fraction(1, 2)), picture(Fraction(2), 1)]
    boxes = [
        found[0].box
        for found in detect_with_square_pixels(detector, shown, [DetectionSettings(score_threshold=0.6)] * len(shown))
    ]
    assert detector.seen == [(6, 8), (12, 8), (6, 16), (8, 12)]
    assert boxes == [(3, 4, 6, 8)] * 3 + [(4, 3, 8, 6)]


def test_a_square_picture_is_stretched_and_not_cut() -> None:
    wide = SquarePicture(ArrayPicture(NOISE), 2.0).to_rgb()
    assert wide.shape == (8, 12, 3)
    assert np.abs(wide[:, ::2].astype(int) - NOISE).mean() < np.abs(wide[:, ::2].astype(int) - NOISE[:, ::-1]).mean()


def test_half_of_the_width_finds_what_the_whole_finds() -> None:
    """Measured on the clip in fp32: without square pixels a tenth of the people is lost."""
    detector = load_detector(DetectorConfig(device="cpu", engine="torch", precision="fp32", score_threshold=0.6))
    frames = clip_frames(3)
    whole = detector.detect([ArrayPicture(frame) for frame in frames])
    halves = [cv2.resize(frame, (384, 576), interpolation=cv2.INTER_AREA) for frame in frames]
    shown = [AvPicture(av.VideoFrame.from_ndarray(half, format="rgb24"), 0, Fraction(2)) for half in halves]
    found = detect_with_square_pixels(detector, shown, [DetectionSettings(score_threshold=0.6)] * len(shown))
    for expected, got in zip(whole, found, strict=True):
        boxes = [(2 * x1, y1, 2 * x2, y2) for x1, y1, x2, y2 in (one.box for one in got)]
        near = [one for one in expected if any(np.allclose(one.box, box, atol=12) for box in boxes)]
        assert len(near) >= 0.85 * len(expected), (expected, got)
        assert all(x2 <= 384 for _, _, x2, _ in (one.box for one in got))
