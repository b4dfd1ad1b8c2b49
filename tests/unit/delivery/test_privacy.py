"""What is black and what is unrecognisable in pictures, checked on their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamdet.analytics.zones import contains
from streamdet.config.stream import MaskConfig, StreamConfig, crossing_sides
from streamdet.delivery.privacy import NOTHING, Hidden, Privacy
from streamdet.types import Box, Detection

LEFT = {"name": "left", "polygon": [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]}
PLACE: Box = (40.0, 20.0, 80.0, 100.0)


def config_of(**keys: Any) -> StreamConfig:
    masks = tuple(MaskConfig(**mask) for mask in keys.pop("masks", ()))
    return StreamConfig(name="cam", url="rtsp://192.0.2.5/", masks=masks, **keys)


def person(box: Box = PLACE, track_id: int | None = 1, label: str = "person") -> Detection:
    return Detection(label, 0.9, box, track_id)


def noise(width: int = 160, height: int = 120) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(60, 256, (height, width, 3), np.uint8)


def seen(privacy: Privacy, *published: Detection, now: float = 0.0, hidden: tuple[Detection, ...] = ()) -> list[Box]:
    return list(privacy.see("cam", (*published, *hidden), published, now, (160, 120)).boxes)


def details(area: NDArray[np.uint8]) -> int:
    """How many colours an area has."""
    return len(np.unique(area.reshape(-1, 3), axis=0))


def test_a_mask_for_all_objects_is_black_and_a_restricted_one_stays_visible() -> None:
    privacy = Privacy()
    for restricted in ({"labels": ["car"]}, {"min_size": 0.2}, {"max_size": 0.9}):
        config = config_of(masks=[LEFT | restricted])
        privacy.set_stream(config)
        assert privacy.see("cam", [], [], 0.0, (160, 120)) is NOTHING
    config = config_of(masks=[LEFT, {"name": "right", "polygon": [[0.9, 0], [1, 0], [1, 0.1]], "labels": ["car"]}])
    privacy.set_stream(config)
    rgb = noise()
    shown = privacy.see("cam", [], [], 0.0, (160, 120)).cut(rgb)
    assert not shown[:, :80].any()
    assert np.array_equal(shown[:, 83:], rgb[:, 83:])
    assert rgb.all(), "the frame itself is not changed"


@given(
    polygon=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8, unique=True),
    region=st.tuples(st.integers(0, 99), st.integers(0, 69), st.integers(1, 60), st.integers(1, 50)),
)
def test_every_pixel_whose_centre_a_mask_holds_is_black_in_every_part(
    polygon: list[tuple[float, float]], region: tuple[int, int, int, int]
) -> None:
    assume(not crossing_sides(tuple(polygon)))  # refused in a configuration
    left, top, width, height = region
    piece = Hidden((tuple(polygon),)).cut(noise(), (left, top, left + width, top + height))
    assert piece.shape == (height, width, 3)
    for y in range(0, height, 7):
        for x in range(0, width, 7):
            if contains(polygon, ((left + x + 0.5) / 160, (top + y + 0.5) / 120)):
                assert not piece[y, x].any()


def test_a_box_is_left_with_few_colours_also_where_a_part_of_it_is_shown() -> None:
    rgb = noise()
    whole = Hidden(boxes=(PLACE,)).cut(rgb)
    x1, y1, x2, y2 = (int(side) for side in PLACE)
    assert details(rgb[y1:y2, x1:x2]) > 1000
    assert details(whole[y1 : y2 + 1, x1 : x2 + 1]) <= 3 * 6
    assert details(whole[y1 - 4, x1:x2].reshape(1, -1, 3)) <= 3, "a little around the box is hidden as well"
    assert np.array_equal(whole[:, 90:], rgb[:, 90:])
    part = Hidden(boxes=(PLACE,)).cut(rgb, (60, 40, 160, 120))
    assert details(part[: y2 - 40, : x2 - 60]) <= 3 * 6
    outside = Hidden(boxes=(PLACE,)).cut(rgb, (100, 0, 160, 120))
    assert np.array_equal(outside, rgb[:, 100:])
    tiny = Hidden(boxes=((159.5, 119.5, 160.0, 120.0), (0.0, 0.0, 160.0, 120.0))).cut(rgb)
    assert details(tiny) <= 6 * 6


def test_what_a_mask_hides_does_not_show_in_the_blotches_beside_it() -> None:
    rgb = np.zeros((120, 160, 3), np.uint8)
    rgb[:, :60] = (255, 0, 0)
    shown = Hidden(((((0.0, 0.0), (0.375, 0.0), (0.375, 1.0), (0.0, 1.0))),), (PLACE,)).cut(rgb)
    assert not shown.any()


def test_only_labels_that_are_named_are_hidden_and_also_where_a_mask_leaves_the_detection_out() -> None:
    privacy = Privacy()
    privacy.set_stream(config_of(blur=["person"]))
    assert seen(privacy, person(label="car")) == []
    assert seen(privacy, person()) == [PLACE]
    other = (100.0, 20.0, 140.0, 100.0)
    assert seen(privacy, person(), hidden=(person(other, None),)) == [PLACE, other]


def test_an_object_is_hidden_where_it_was_last_until_its_track_is_given_up() -> None:
    privacy = Privacy()
    privacy.set_stream(config_of(blur=["person"], track_max_lost_seconds=2))
    moved = (60.0, 20.0, 100.0, 100.0)
    seen(privacy, person(), now=10.0)
    assert seen(privacy, person(moved), now=11.0) == [moved]
    assert seen(privacy, now=12.9) == [moved]
    assert seen(privacy, person(moved, 2, "car"), now=12.95) == [moved]
    assert seen(privacy, now=13.1) == []


def test_a_track_of_a_hidden_label_is_hidden_in_a_frame_that_takes_it_for_something_else() -> None:
    privacy = Privacy()
    privacy.set_stream(config_of(blur=["person"]))
    seen(privacy, person())
    moved = (60.0, 20.0, 100.0, 100.0)
    assert seen(privacy, person(moved, label="bicycle"), now=0.1) == [moved]


def test_without_tracks_places_stay_hidden_as_long_and_a_moving_object_leaves_few() -> None:
    privacy = Privacy()
    privacy.set_stream(config_of(blur=["person"], track=False, track_max_lost_seconds=1))
    for step in range(10):
        box = (40.0 + step, 20.0, 80.0 + step, 100.0)
        assert seen(privacy, person(box, None), now=step * 0.04) == [box]
    assert seen(privacy, now=1.2) == [(49.0, 20.0, 89.0, 100.0)]
    assert seen(privacy, now=1.5) == []


def test_a_change_of_the_rules_counts_at_once_and_keeps_what_is_known() -> None:
    privacy = Privacy()
    privacy.set_stream(config_of(blur=["person"]))
    seen(privacy, person())
    privacy.set_stream(config_of(blur=["person"], masks=[LEFT]))
    hidden = privacy.see("cam", [], [], 0.1, (160, 120))
    assert (len(hidden.polygons), hidden.boxes) == (1, (PLACE,))
    privacy.remove_stream("cam")
    assert privacy.see("cam", [person()], [person()], 0.2, (160, 120)) is NOTHING


def test_what_is_hidden_stays_so_in_frames_of_another_size() -> None:
    privacy = Privacy()
    privacy.set_stream(config_of(blur=["person"]))
    untracked = (100.0, 20.0, 140.0, 100.0)
    seen(privacy, person(), hidden=(person(untracked, None),))
    hidden = privacy.see("cam", [], [], 0.1, (80, 60))
    assert hidden.boxes == ((20.0, 10.0, 40.0, 50.0), (50.0, 10.0, 70.0, 50.0))


def test_tracks_are_new_in_the_frame_that_hides_them_first() -> None:
    privacy = Privacy()
    privacy.set_stream(config_of(blur=["person"]))
    new = [
        set(privacy.see("cam", [found], [found], now, (160, 120)).new_tracks)
        for now, found in enumerate([person(label="dog"), person(), person(label="dog"), person(track_id=2)])
    ]
    assert new == [set(), {1}, set(), {2}]
