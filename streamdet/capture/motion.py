"""Whether something moves in front of a camera, from the brightness of its pictures on a coarse grid.

A picture is compared with the scene as it was when the detector last looked on. The scene follows the pictures quickly
while the detector looks on, and next to not at all while it does not: so a person who moves slowly is compared with
where he was then, and is not taken for background, and one who leaves after standing still is a change as well as one
who comes.

How much each cell of the grid varies from moment to moment is learned: noise of the sensor, what compression changes at
key frames, leaves, rain; but not what changes slowly and for good, which may be someone. A change of light that is
about the same everywhere, as when the exposure is corrected, is taken out first.
What is left must be larger than that noise, in several neighbouring cells, in two pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from streamdet.types import Box, Picture, Point

Cells = NDArray[np.float32]
"""float32 [rows, columns], 0 to 255."""
Places = NDArray[np.uint8]
"""uint8 [rows, columns], 1 for each cell that belongs to it, else 0."""

# A cell is 8 pixels wide in 1080p, and in a small picture less: what the detector can find has several cells then.
_MAX_COLUMNS = 240
# Cells are the mean of four samples that are each the mean of two pixels: reading every pixel would take eight times as
# long, and compression leaves little noise.
_SAMPLES = 2

# Time constants. While the detector looks on, what has left is forgotten within a second or two.
_FOLLOW_SECONDS = 0.7
_DRIFT_SECONDS = 60.0
_RECENT_SECONDS = 0.7
_NOISE_SECONDS = 20.0
# Before this, nothing is known.
_LEARNING_SECONDS = 2.0
_LEARNING_PICTURES = 8

# A cell has changed when it differs by more than this, in levels, and this many standard deviations of its noise.
_LEAST_CHANGE = 4.0
_DEVIATIONS = 4.0
# A cell that varies by more than this counts as one that varies by so much: nothing makes a place blind.
_MAX_NOISE = 6.0
_MIN_NOISE = 0.3
# One difference counts as noise up to this many times the change that counts.
_MAX_SURPRISE = 2.0
# Of a cell and its eight neighbours so many must have changed. A person of 24 x 60 pixels in 1080p covers 3 x 7 cells.
_LEAST_CELLS = 3
# Pictures closer than this are compared with each other: what is there in only one of them, as a drop of rain, is none.
_PAIR_SECONDS = 0.35
# Where more than this part changes, it is the light or the camera: nothing is learned about noise.
_EVERYTHING = 0.3
# Cells at which a change of light is measured: every so many-th, in both directions.
_LIGHT_STEP = 6
_REFRESH_SECONDS = 0.5
# More often, nothing is learned: it takes as long as comparing.
_LEARN_SECONDS = 0.15

_AROUND = np.ones((3, 3), np.uint8)


@runtime_checkable
class LumaPicture(Protocol):
    """A picture whose brightness can be had without its colours."""

    def to_small_luma(self, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width], contiguous."""


@dataclass(frozen=True, slots=True)
class Motion:
    """What a picture shows.

    Attributes:
        is_known: whether enough pictures were seen before to say so.
        is_moving: whether something has changed that is not noise.
    """

    is_known: bool
    is_moving: bool


def cells_of(picture: Picture) -> Cells:
    """The brightness of a picture on the grid."""
    rows, columns = grid_of(picture.width, picture.height)
    size = columns * _SAMPLES, rows * _SAMPLES
    if isinstance(picture, LumaPicture):
        samples = picture.to_small_luma(*size)
    else:
        rgb = cv2.resize(picture.to_rgb(), size, interpolation=cv2.INTER_LINEAR)
        samples = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
    return cv2.resize(samples, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)


def grid_of(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of the grid for pictures of this size in pixels."""
    scale = min(_MAX_COLUMNS / max(width, height), 1 / _SAMPLES)
    return max(1, round(height * scale)), max(1, round(width * scale))


class Background:
    """The scene in front of one camera; for one thread.

    Args:
        rows: of the grid.
        columns: of the grid.
    """

    def __init__(self, rows: int, columns: int) -> None:
        shape = rows, columns
        self.shape = shape
        self._scene: Cells = np.zeros(shape, np.float32)
        self._recent: Cells = np.zeros(shape, np.float32)
        self._variance: Cells = np.zeros(shape, np.float32)
        self._least: Cells = np.full(shape, np.inf, np.float32)
        self._change: Cells = np.zeros(shape, np.float32)
        self._squared: Cells = np.zeros(shape, np.float32)
        self._watched: Places = np.ones(shape, np.uint8)
        self._watched_cells = rows * columns
        self._moved: Places = np.zeros(shape, np.uint8)
        self._few: Places = np.full(shape, _LEAST_CELLS - 1, np.uint8)
        self._quiet: Places | None = None
        # Of the cells at which light is measured: the darker and the brighter half, and the medians of both.
        self._dark = self._bright = np.zeros(0, np.intp)
        self._darkness = 0.0, 0.0
        self.restart()

    def restart(self) -> None:
        """Forgets what was learned: the next picture may show something else."""
        self._pictures = 0
        self._began = self._seconds = self._refreshed = self._learned = 0.0
        self._noise = 0.0
        self._moved[:] = 0

    def watch(self, places: Places) -> None:
        """Sets where changes count; one cell at least."""
        self._watched = places
        self._watched_cells = max(1, int(np.count_nonzero(places)))

    def set_objects(self, boxes: tuple[Box, ...], width: int, height: int) -> None:
        """Sets where objects move, which are not to be learned as noise.

        Args:
            boxes: of the objects.
            width: of the frame that they are in, in pixels.
            height: likewise.
        """
        self._quiet = None
        if boxes:
            self._quiet = np.ones(self.shape, np.uint8)
            rows, columns = self.shape
            for x1, y1, x2, y2 in boxes:
                # Their surroundings as well: they were, or will be, there.
                side_x, side_y = (x2 - x1) / 2, (y2 - y1) / 4
                left, right = (x1 - side_x) / width * columns, (x2 + side_x) / width * columns
                top, bottom = (y1 - side_y) / height * rows, (y2 + side_y) / height * rows
                self._quiet[max(0, int(top)) : int(bottom) + 1, max(0, int(left)) : int(right) + 1] = 0

    def see(self, cells: Cells, seconds: float, *, follows: bool) -> Motion:
        """Compares the next picture with the scene, and learns from it.

        Args:
            cells: of the picture.
            seconds: of the stream, later than at the picture before.
            follows: whether the detector looks on, so that the scene is to follow what changes.
        """
        step = seconds - self._seconds
        self._seconds = seconds
        self._pictures += 1
        if self._pictures == 1:
            self._began = self._refreshed = seconds
            self._scene[:] = self._recent[:] = cells
            return Motion(is_known=False, is_moving=False)
        cv2.subtract(cells, self._scene, self._change)
        if self._pictures <= _LEARNING_PICTURES or seconds - self._began < _LEARNING_SECONDS:
            self._learned = seconds
            self._learn(cells)
            return Motion(is_known=False, is_moving=False)
        self._take_out_light()
        is_moving, is_everywhere = self._compare(step)
        learned_seconds = seconds - self._learned
        if learned_seconds >= _LEARN_SECONDS:
            self._learned = seconds
            self._learn_noise(cells, learned_seconds, is_everywhere=is_everywhere)
            pace = _FOLLOW_SECONDS if is_moving or follows else _DRIFT_SECONDS
            cv2.accumulateWeighted(cells, self._scene, min(learned_seconds / pace, 1.0))
            if seconds - self._refreshed > _REFRESH_SECONDS:
                self._refresh()
        return Motion(is_known=True, is_moving=is_moving)

    def _learn(self, cells: Cells) -> None:
        """Takes one of the first pictures. Things may move meanwhile: the noise is that of most cells."""
        usual = _median(np.abs(self._change[::_LIGHT_STEP, ::_LIGHT_STEP]).ravel())
        # Of the difference from the mean of n pictures, from the median of its amount.
        n = self._pictures - 1
        self._noise += (usual / 0.6745 / (1 + 1 / n) ** 0.5 - self._noise) / n
        cv2.accumulateWeighted(cells, self._scene, max(1 / self._pictures, 0.1))
        self._recent[:] = self._scene
        self._variance[:] = min(max(self._noise, _MIN_NOISE), _MAX_NOISE) ** 2
        self._refresh()

    def _take_out_light(self) -> None:
        """Subtracts the change of light, a line over brightness through the medians of dark and of bright cells."""
        if not self._dark.size:
            return
        change = self._change[::_LIGHT_STEP, ::_LIGHT_STEP].ravel()
        low, high = _median(change[self._dark]), _median(change[self._bright])
        from_, to = self._darkness
        slope = (high - low) / (to - from_) if to - from_ > 1.0 else 0.0
        cv2.addWeighted(self._scene, -slope, self._change, 1.0, slope * from_ - low, self._change)

    def _compare(self, step: float) -> tuple[bool, bool]:
        """Whether something has changed that is not noise, and whether nearly everything has."""
        np.abs(self._change, self._change)
        changed = cv2.bitwise_and(cv2.compare(self._change, self._least, cv2.CMP_GT), self._watched)
        count = cv2.countNonZero(changed)
        before = self._moved
        if count < _LEAST_CELLS:
            self._moved = np.zeros(self.shape, np.uint8)
            return False, False
        dense = cv2.boxFilter(changed, -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
        moved = cv2.bitwise_and(cv2.compare(dense, self._few, cv2.CMP_GT), changed)
        self._moved = np.asarray(moved, np.uint8)
        if step <= _PAIR_SECONDS:
            moved = cv2.bitwise_and(moved, cv2.dilate(before, _AROUND))
        return cv2.countNonZero(moved) >= _LEAST_CELLS, count > _EVERYTHING * self._watched_cells

    def _learn_noise(self, cells: Cells, step: float, *, is_everywhere: bool) -> None:
        """Takes what differs from the newest pictures as noise, large differences cut, except where objects move."""
        cv2.absdiff(cells, self._recent, self._change)
        cv2.accumulateWeighted(cells, self._recent, min(step / _RECENT_SECONDS, 1.0))
        usual = _median(self._change[::_LIGHT_STEP, ::_LIGHT_STEP].ravel())
        if is_everywhere or usual > _LEAST_CHANGE + self._noise:
            return  # it is the light
        cv2.min(self._change, self._least * _MAX_SURPRISE, self._change)
        cv2.multiply(self._change, self._change, self._squared)
        cv2.accumulateWeighted(self._squared, self._variance, min(step / _NOISE_SECONDS, 0.5), self._quiet)

    def _refresh(self) -> None:
        """Computes what follows from the scene and its noise, which change slowly."""
        self._refreshed = self._seconds
        scene = self._scene[::_LIGHT_STEP, ::_LIGHT_STEP].ravel()
        order = scene.argsort()
        half = order.size // 2
        self._dark, self._bright = order[:half], order[half:]
        self._darkness = (_median(scene[self._dark]), _median(scene[self._bright])) if half else (0.0, 0.0)
        np.clip(self._variance, _MIN_NOISE**2, _MAX_NOISE**2, self._variance)
        cv2.sqrt(self._variance, self._least)
        np.multiply(self._least, _DEVIATIONS, self._least)
        np.add(self._least, _LEAST_CHANGE, self._least)


def places_of(
    rows: int, columns: int, zones: tuple[tuple[Point, ...], ...], masks: tuple[tuple[Point, ...], ...]
) -> Places:
    """The cells in which a change counts: in one of the zones, if there are any, and in no mask.

    A cell that a zone touches is in it; one that a mask does not cover wholly is in none.

    Args:
        rows: of the grid.
        columns: of the grid.
        zones: polygons, as fractions of the picture.
        masks: likewise.
    """
    places = _covered(rows, columns, zones) if zones else np.ones((rows, columns), np.uint8)
    if zones:
        places = np.asarray(cv2.dilate(places, _AROUND), np.uint8)
    if masks:
        places &= 1 - np.asarray(cv2.erode(_covered(rows, columns, masks), _AROUND), np.uint8)
    return places


def _covered(rows: int, columns: int, polygons: tuple[tuple[Point, ...], ...]) -> Places:
    places = np.zeros((rows, columns), np.uint8)
    for polygon in polygons:
        corners = np.round(np.array(polygon) * (columns, rows) - 0.5).astype(np.int32)
        cv2.fillPoly(places, [corners], (1,))
    return places


def _median(values: NDArray[np.float32]) -> float:
    middle = values.size // 2
    return float(np.partition(values, middle)[middle])
