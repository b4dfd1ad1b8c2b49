"""Frames that the detector also sees in tiles: what it finds there is added, each object once, and nothing is lost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamdet.analytics.tracker import overlap_of
from streamdet.capture.sources.picture import AvPicture
from streamdet.config import DetectorConfig, StreamConfig
from streamdet.detector.graph.pixels import read_bytes, to_rgb
from streamdet.detector.pipeline import ArrayPicture, FasterRcnnDetector, load_detector
from streamdet.detector.stages.tiles import Tile, detect_with_tiles, merge, one_of_each_size, tiles_of
from streamdet.types import Box, Detection, DetectionSettings, Picture, looks_at
from support.detecting import clip_frames

WIDTH, HEIGHT = 1000, 600
BLANK = ArrayPicture(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
TILED = DetectionSettings(tiles=2)


@pytest.mark.parametrize(("value", "per_side", "looks"), [("off", 1, 1), ("2x2", 2, 5), ("3x3", 3, 10)])
def test_the_key_of_a_stream_says_how_often_the_detector_looks(value: str, per_side: int, looks: int) -> None:
    stream = StreamConfig.model_validate({"name": "yard", "url": "yard.mp4", "tiles": value})
    settings = DetectorConfig().settings_for(stream)
    assert (settings.tiles, settings.looks, stream.looks, looks_at(per_side)) == (per_side, looks, looks, looks)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([2, 3]))
def test_tiles_have_one_size_cover_the_frame_and_overlap_by_a_fifth(width: int, height: int, per_side: int) -> None:
    picture = _Size(width, height)
    tiles = tiles_of(picture, per_side)
    assert len(tiles) == per_side**2
    for side, begins, length in (
        (width, sorted({tile.left for tile in tiles}), tiles[0].width),
        (height, sorted({tile.top for tile in tiles}), tiles[0].height),
    ):
        assert begins[0] == 0
        assert begins[-1] + length == side
        assert all(0.2 * length - 2 <= begin + length - after for begin, after in itertools.pairwise(begins))
    assert len({(tile.width, tile.height) for tile in tiles}) == 1
    assert [(one.width, one.height) for one in one_of_each_size(picture, per_side)] == [
        (width, height),
        (tiles[0].width, tiles[0].height),
    ]


def test_without_tiles_a_frame_is_one_picture() -> None:
    assert tiles_of(BLANK, 1) == []
    assert list(one_of_each_size(BLANK, 1)) == [BLANK]


def test_a_tile_shows_its_part_of_the_frame() -> None:
    for tile in tiles_of(ArrayPicture(NOISE), 3):
        rgb = tile.to_rgb()
        assert rgb.flags.c_contiguous
        assert np.array_equal(rgb, NOISE[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width])
        assert tile.to_yuv() is None


@pytest.mark.parametrize("layout", ["yuv420p", "nv12", "yuvj420p"])
def test_a_tile_of_a_decoded_frame_goes_to_a_device_as_the_decoder_left_it(layout: str) -> None:
    frame = av.VideoFrame.from_ndarray(NOISE, format="rgb24").reformat(format=layout)
    whole_format, whole = read_bytes(AvPicture(frame))
    expected = to_rgb(torch.from_numpy(whole)[None], whole_format)[0]
    for tile in tiles_of(AvPicture(frame), 3):
        pixel_format, pixels = read_bytes(tile)
        assert pixel_format == replace(whole_format, height=tile.height, width=tile.width)
        shown = to_rgb(torch.from_numpy(pixels)[None], pixel_format)[0]
        part = expected[:, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
        assert torch.equal(shown, part)


def test_pixels_of_a_tile_have_the_shape_of_those_of_the_frame() -> None:
    frame = av.VideoFrame.from_ndarray(NOISE, format="rgb24")
    assert {tile.pixel_aspect for tile in tiles_of(AvPicture(frame, 0, Fraction(2)), 2)} == {2.0}
    assert {tile.pixel_aspect for tile in tiles_of(BLANK, 2)} == {1.0}


class _Size:
    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height

    def to_rgb(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        raise AssertionError


class Scene:
    """Finds the objects of a scene whose visible part is at least a number of pixels at 320 pixels of width.

    Args:
        boxes: of the objects, in pixels of the frame.
        smallest: least height in the picture that the detector sees.
    """

    def __init__(self, *boxes: Box, smallest: float = 20.0) -> None:
        self.boxes = boxes
        self.smallest = smallest
        self.calls: list[int] = []

    def detect(self, pictures: Sequence[Picture], settings: Sequence[DetectionSettings]) -> list[list[Detection]]:
        self.calls.append(len(pictures))
        return [self._found(*pair) for pair in zip(pictures, settings, strict=True)]

    def _found(self, picture: Picture, settings: DetectionSettings) -> list[Detection]:
        left, top = (picture.left, picture.top) if isinstance(picture, Tile) else (0, 0)
        found = []
        for x1, y1, x2, y2 in self.boxes:
            box = (
                max(x1 - left, 0.0),
                max(y1 - top, 0.0),
                min(x2 - left, float(picture.width)),
                min(y2 - top, float(picture.height)),
            )
            height = box[3] - box[1]
            has_size = settings.min_size <= height / picture.height <= settings.max_size
            if box[0] < box[2] and height * 320 / picture.width >= self.smallest and has_size:
                found.append(Detection("person", min(0.5 + height / 1000, 1.0), box))
        return sorted(found, key=lambda one: -one.score)[: settings.max_detections]


def _at(x: float, y: float, height: float) -> Box:
    return x, y, x + height / 2, y + height


def test_each_object_is_found_once_wherever_it_stands() -> None:
    """Small ones in a tile alone, also where two or four overlap; large ones in the whole frame, and cut in tiles."""
    for height in (45, 90, 300):
        for x in range(0, WIDTH - height // 2, 37):
            for y in range(0, HEIGHT - height, 53):
                scene = Scene(_at(x, y, height))
                (found,) = detect_with_tiles(scene, [BLANK], [TILED], 8)
                assert [one.box for one in found] == list(scene.boxes), (height, x, y, found)
                assert (scene.detect([BLANK], [TILED])[0] == []) == (height == 45)


def test_without_tiles_small_ones_are_not_found() -> None:
    (found,) = detect_with_tiles(Scene(_at(30, 30, 45)), [BLANK], [DetectionSettings()], 8)
    assert found == []


def test_pictures_go_to_the_detector_in_parts_of_the_largest_batch_and_come_back_to_their_frames() -> None:
    scene = Scene(_at(30, 30, 45), _at(500, 100, 90))
    frames, settings = [BLANK] * 4, [DetectionSettings(), TILED, DetectionSettings(tiles=3), TILED]
    for at_once in (1, 3, 8, 64):
        scene.calls.clear()
        counts = [len(found) for found in detect_with_tiles(scene, frames, settings, at_once)]
        assert counts == [1, 2, 2, 2]
        assert sum(scene.calls) == 1 + 5 + 10 + 5
        assert max(scene.calls) == min(at_once, 21)


def one(box: Box, score: float = 0.6, label: str = "person") -> Detection:
    return Detection(label, score, box)


def merged(whole: list[Detection], found: dict[int, list[Detection]], **settings: float) -> list[Detection]:
    """Of a frame of 1000x600; `found` by the number of the tile, boxes in its pixels."""
    tiles = tiles_of(BLANK, 2)
    wanted = replace(TILED, **settings)
    return merge(whole, [(tile, found.get(number, [])) for number, tile in enumerate(tiles)], wanted, HEIGHT)


def test_what_the_whole_frame_shows_stays_as_it_is() -> None:
    whole = [one((100, 100, 150, 200), 0.55), one((101, 101, 151, 201), 0.51)]
    better = one((102, 102, 152, 200), 0.9)
    assert merged(whole, {0: [better]}) == whole
    # Not even the number of detections that may be published lets better ones of tiles push it out.
    assert merged(whole, {0: [one((10, 10, 40, 90), 0.99)]}, max_detections=2) == whole


def test_the_result_is_ordered_by_score() -> None:
    whole = [one((100, 100, 150, 200), 0.7)]
    found = merged(whole, {0: [one((10, 10, 40, 90), 0.99)], 3: [one((300, 200, 330, 280), 0.6)]})
    assert [each.score for each in found] == [0.99, 0.7, 0.6]


def test_what_ends_at_an_inner_border_of_a_tile_is_left_out() -> None:
    width, height = (tile := tiles_of(BLANK, 2)[0]).width, tile.height
    at_frame, at_tile = one((0, 0, 50, 100)), one((width - 50, 50, width - 3, 150))
    assert merged([], {0: [at_frame, at_tile]}) == [at_frame]
    below = one((50, height - 100, 100, height - 2))
    assert merged([], {0: [below]}) == []
    # In the lower right tile these are borders of the frame.
    assert len(merged([], {3: [at_tile]})) == 1
    assert merged([], {3: [one((5, 100, 60, 200))]}) == []


def test_a_part_of_what_is_known_is_no_object_of_its_own_but_another_label_may_be() -> None:
    whole = [one((100, 50, 200, 250), label="truck")]
    door = (120, 60, 190, 150)
    assert merged(whole, {0: [one(door, label="truck")]}) == whole
    assert len(merged(whole, {0: [one(door, label="person")]})) == 2
    # In the same place it is the same object, whatever it is called.
    assert merged(whole, {0: [one((102, 50, 200, 255), label="bus")]}) == whole


def test_bounds_of_size_are_of_the_frame_and_not_of_the_tile() -> None:
    high, low = one((10, 10, 80, 200)), one((200, 10, 220, 60))
    assert merged([], {0: [high, low]}, max_size=0.2) == [low]
    assert merged([], {0: [high, low]}, min_size=0.2) == [high]
    scene = Scene(_at(30, 30, 45))
    for size, count in ((0.07, 1), (0.08, 0)):
        (found,) = detect_with_tiles(scene, [BLANK], [replace(TILED, min_size=size)], 8)
        assert len(found) == count


# ---- the real detector


@pytest.fixture(scope="module")
def detector() -> FasterRcnnDetector:
    config = DetectorConfig(device="cpu", engine="torch", precision="fp32", max_batch_size=5, labels=("person",))
    return load_detector(config)


def test_small_people_of_4k_are_found_once_and_the_whole_frame_keeps_what_it_shows(
    detector: FasterRcnnDetector,
) -> None:
    """The scenes of the sample clip at three quarters of their size, side by side in a frame of 4K."""
    scenes = [cv2.resize(frame, (576, 432), interpolation=cv2.INTER_AREA) for frame in clip_frames(4)]
    frame = np.full((2160, 3840, 3), 114, np.uint8)
    places = [(200, 100), (1730, 1000), (3200, 300), (1700, 200)]
    for scene, (x, y) in zip(scenes, places, strict=True):
        frame[y : y + 432, x : x + 576] = scene
    people = [
        (x + 0.75 * x1, y + 0.75 * y1, x + 0.75 * x2, y + 0.75 * y2)
        for (x, y), found in zip(places, detector.detect([ArrayPicture(one) for one in clip_frames(4)]), strict=True)
        for x1, y1, x2, y2 in (each.box for each in found)
    ]
    settings = DetectionSettings(labels=("person",))
    (whole,) = detector.detect([ArrayPicture(frame)], [settings])
    found = {
        tiles: detect_with_tiles(detector, [ArrayPicture(frame)], [replace(settings, tiles=tiles)], 5)[0]
        for tiles in (2, 3)
    }

    def seen(detections: Sequence[Detection]) -> int:
        return sum(any(overlap_of(box, one.box) > 0.4 for one in detections) for box in people)

    assert len(people) > 15
    assert seen(found[3]) > seen(found[2]) > seen(whole)
    assert seen(found[3]) >= 0.5 * len(people)
    for detections in found.values():
        assert all(one in detections for one in whole)
        pairs = [(a, b) for n, a in enumerate(detections) for b in detections[:n]]
        assert all(overlap_of(a.box, b.box) <= 0.5 for a, b in pairs)
