"""What counts as motion, on scenes that are made: noise, light, pulses, rain, and people who walk, stand and leave."""

from __future__ import annotations

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet.capture.motion import Background, Cells, cells_of, grid_of, places_of
from streamdet.capture.sources.picture import AvPicture, BgrPicture

ROWS, COLUMNS = 36, 64
FPS = 10


class Camera:
    """A scene on the grid, its noise, and a background that looks at it."""

    def __init__(self, noise: float = 0.7, seed: int = 1) -> None:
        self.chance = np.random.default_rng(seed)
        # Smooth, as most of a picture is.
        rough = self.chance.uniform(40, 200, (ROWS // 4, COLUMNS // 4))
        self.scene: Cells = np.kron(rough, np.ones((4, 4))).astype(np.float32)
        self.noise = noise
        self.background = Background(ROWS, COLUMNS)
        self.seconds = 0.0
        self.fps = float(FPS)

    def look(self, change: NDArray[np.floating] | float = 0.0, *, follows: bool = False) -> bool:
        self.seconds += 1 / self.fps
        cells = self.scene + change + self.chance.normal(0, self.noise, self.scene.shape)
        return self.background.see(np.clip(cells, 0, 255).astype(np.float32), self.seconds, follows=follows).is_moving

    def looks(self, seconds: float, change: NDArray[np.floating] | float = 0.0, *, follows: bool = False) -> int:
        """In how many pictures something moved."""
        return sum(self.look(change, follows=follows) for _ in range(round(seconds * self.fps)))

    def blob(self, row: float, column: float, levels: float, rows: int = 4, columns: int = 2) -> NDArray[np.float64]:
        """Someone who differs from what is behind by so many levels; between two cells, in part in both."""
        change = np.zeros(self.scene.shape)
        part = column % 1
        for at, share in ((int(column), 1 - part), (int(column) + 1, part)):
            change[int(row) : int(row) + rows, at : at + columns] += share * levels
        return change


@pytest.mark.parametrize("noise", [0.0, 0.7, 2.0, 5.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_noise_alone_is_no_motion(noise: float, seed: int) -> None:
    camera = Camera(noise, seed)
    camera.looks(3, follows=True)
    assert camera.looks(60) == 0


@pytest.mark.parametrize("levels", [-25.0, 14.0, 60.0])
@pytest.mark.parametrize("seed", range(8))
def test_someone_who_appears_is_motion_at_once(levels: float, seed: int) -> None:
    camera = Camera(seed=seed)
    camera.looks(20, follows=True)
    row, column = camera.chance.integers(0, ROWS - 4), camera.chance.integers(0, COLUMNS - 3)
    someone = camera.blob(row, column, levels)
    assert not camera.look(someone)  # in one picture it may be a drop of rain
    assert camera.look(someone)


def test_what_is_in_one_picture_only_is_none_unless_pictures_are_far_apart() -> None:
    camera = Camera()
    camera.looks(10, follows=True)
    someone = camera.blob(10, 10, 40.0)
    assert [camera.look(someone), camera.look(), camera.look()] == [False] * 3
    camera.fps = 1.0
    camera.looks(5)
    assert camera.look(someone)


def test_one_who_stood_still_and_leaves_is_motion() -> None:
    camera = Camera()
    someone = camera.blob(10, 20, 20.0)
    camera.looks(10, follows=True)
    camera.looks(8, someone, follows=True)
    assert camera.looks(60, someone) == 0
    assert camera.looks(0.3) > 0


def test_one_who_moves_slowly_is_not_taken_for_background() -> None:
    camera = Camera()
    camera.looks(10, follows=True)
    camera.looks(5, camera.blob(10, 5, 20.0), follows=True)
    # A cell of 8 pixels in 8 seconds.
    moved = [camera.look(camera.blob(10, 5 + step / FPS / 8, 20.0)) for step in range(10 * FPS)]
    assert any(moved)


@pytest.mark.parametrize(("gain", "levels"), [(0.7, 0.0), (1.2, 0.0), (1.0, 25.0), (0.8, 10.0)])
def test_a_change_of_light_that_is_the_same_everywhere_is_none(gain: float, levels: float) -> None:
    camera = Camera()
    camera.looks(20, follows=True)
    assert camera.looks(5, camera.scene * (gain - 1) + levels) == 0
    assert camera.looks(0.3, camera.scene * (gain - 1) + levels + camera.blob(10, 10, 40.0)) > 0


def test_a_light_that_is_switched_on_in_a_part_of_the_picture_is_motion_until_it_is_known() -> None:
    camera = Camera()
    camera.looks(20, follows=True)
    lamp = np.zeros(camera.scene.shape)
    lamp[:, :20] = np.linspace(60, 20, 20)
    assert camera.looks(1, lamp) > 0
    camera.looks(5, lamp, follows=True)
    assert camera.looks(60, lamp) == 0
    assert camera.looks(0.3, lamp + camera.blob(10, 40, 30.0)) > 0


def test_what_compression_changes_at_key_frames_is_none() -> None:
    camera = Camera(noise=0.3)
    camera.looks(3, follows=True)
    moved = 0
    for _ in range(30):
        # Every two seconds other cells are coarser, until the next key frame.
        moved += camera.looks(2, camera.chance.normal(0, 1.2, camera.scene.shape))
    assert moved == 0


def test_rain_is_none_once_it_is_known() -> None:
    camera = Camera()
    camera.looks(5, follows=True)

    def rain() -> NDArray[np.float64]:
        drops = np.zeros(camera.scene.shape)
        for _ in range(12):
            row, column = camera.chance.integers(0, ROWS - 3), camera.chance.integers(0, COLUMNS)
            drops[row : row + 3, column] += camera.chance.uniform(4, 15)
        return drops

    for _ in range(20 * FPS):
        camera.look(rain())
    assert sum(camera.look(rain()) for _ in range(40 * FPS)) <= 4
    someone = camera.blob(10, 10, 60.0)
    assert sum(camera.look(rain() + someone) for _ in range(5)) >= 3


def test_leaves_are_learned_as_noise_but_not_what_moves_as_an_object() -> None:
    def shaken(camera: Camera) -> NDArray[np.float64]:
        change = np.zeros(camera.scene.shape)
        change[5:15, 30:40] = camera.chance.normal(0, 8.0, (10, 10))
        return change

    tree, door = Camera(), Camera()
    for camera in (tree, door):
        camera.looks(5, follows=True)
    door.background.set_objects(((30.0, 5.0, 40.0, 15.0),), COLUMNS, ROWS)
    for _ in range(60 * FPS):
        tree.look(shaken(tree))
        door.look(shaken(door))
    assert sum(tree.look(shaken(tree)) for _ in range(20 * FPS)) <= 4
    assert sum(door.look(shaken(door)) for _ in range(20 * FPS)) > 20
    # However much it varies, no place becomes blind.
    assert sum(tree.look(shaken(tree) + tree.blob(8, 33, 70.0)) for _ in range(5)) >= 3


def test_who_walks_by_at_the_start_makes_no_place_blind() -> None:
    camera = Camera()
    for step in range(3 * FPS):
        camera.look(camera.blob(10, step / 2, 50.0), follows=True)
    camera.looks(5, follows=True)
    assert camera.looks(10) == 0
    assert camera.looks(0.3, camera.blob(10, 8, 25.0)) > 0


def test_only_watched_places_count() -> None:
    camera = Camera()
    camera.background.watch(places_of(ROWS, COLUMNS, (), (((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)),)))
    camera.looks(5, follows=True)
    assert camera.looks(2, camera.blob(10, 10, 80.0)) == 0
    assert camera.looks(2, camera.blob(10, 50, 80.0)) > 0


def test_places() -> None:
    left = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
    assert places_of(10, 20, (), ()).all()
    zone = places_of(10, 20, (left,), ())
    assert zone[:, :10].all()
    assert not zone[:, 13:].any()
    mask = places_of(10, 20, (), (left,))
    assert not mask[2:-2, 2:8].any()
    assert mask[:, 11:].all()
    assert not places_of(10, 20, (left,), (left,))[2:-2, 2:8].any()


def test_a_restart_forgets_everything() -> None:
    camera = Camera()
    camera.looks(10, follows=True)
    camera.background.restart()
    camera.scene = camera.scene[::-1].copy()
    assert camera.looks(30, follows=True) == 0


@pytest.mark.parametrize(
    ("size", "grid"),
    [((1920, 1080), (135, 240)), ((768, 576), (180, 240)), ((320, 240), (120, 160)), ((1080, 1920), (240, 135)),
     ((3840, 2160), (135, 240)), ((2, 2), (1, 1))],
)  # fmt: skip
def test_grid(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert grid_of(*size) == grid


class _Rgb:
    """A picture that has only colours."""

    def __init__(self, rgb: NDArray[np.uint8]) -> None:
        self.height, self.width = rgb.shape[:2]
        self._rgb = rgb

    def to_rgb(self) -> NDArray[np.uint8]:
        return self._rgb


@pytest.mark.parametrize("pixel_format", ["yuv420p", "nv12", "yuvj420p", "gray", "yuv420p10le", "rgb24", "yuyv422"])
@pytest.mark.parametrize("turns", [0, 1])
def test_brightness_is_the_same_in_every_format(pixel_format: str, turns: int) -> None:
    row, column = np.mgrid[0:360, 0:638]  # lines of the decoder are longer than the picture
    grey = ((row + column) // 8 * 8 % 256).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, axis=2), format="rgb24")
    cells = cells_of(AvPicture(frame.reformat(format=pixel_format, dst_color_range="JPEG"), turns))
    expected = cells_of(_Rgb(np.ascontiguousarray(np.rot90(np.repeat(grey[..., None], 3, axis=2), turns))))
    assert cells.shape == expected.shape
    # Limited range is a little flatter; the gate does not mind.
    assert np.corrcoef(cells.ravel(), expected.ravel())[0, 1] > 0.98


def test_brightness_of_a_device() -> None:
    bgr = np.zeros((480, 640, 3), np.uint8)
    bgr[:, 320:] = 200
    cells = cells_of(BgrPicture(bgr))
    assert cells[:, :100].max() == 0
    assert cells[:, 140:].min() == 200
