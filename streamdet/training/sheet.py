"""A sheet of validation pictures with their boxes: what is there, and what was found."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from streamdet.training.dataset import Dataset, Sample
from streamdet.training.metrics import ImageDetections
from streamdet.training.picture_files import read_image

_Image = NDArray[np.uint8]
_Colour = tuple[int, int, int]
_COLUMNS, _ROWS = 4, 3
_TILE_PIXELS, _GAP_PIXELS, _HEAD_PIXELS = 400, 8, 44
_WHITE, _BLACK, _PAPER = (255, 255, 255), (0, 0, 0), (28, 30, 34)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# RGB; distinguishable on photographs, also for most colour-blind eyes (Okabe and Ito 2008).
_COLOURS: tuple[_Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 200, 140), (240, 228, 66), (80, 130, 255), (255, 110, 40), (230, 130, 190),
)  # fmt: skip


def predictions_png(dataset: Dataset, detections: list[ImageDetections], min_score: float = 0.3) -> bytes:
    """Twelve pictures, evenly chosen from those with objects: truth white and dashed, detections in colour.

    Args:
        dataset: pictures and truth.
        detections: one per sample, in the same order.
        min_score: detections below it are not drawn.
    """
    chosen = _choose(dataset)
    rows = -(-len(chosen) // _COLUMNS)
    step = _TILE_PIXELS + _GAP_PIXELS
    sheet: _Image = np.full((_HEAD_PIXELS + rows * step, _COLUMNS * step + _GAP_PIXELS, 3), _PAPER, np.uint8)
    _draw_legend(sheet, [c.name for c in dataset.categories], min_score)
    for i, number in enumerate(chosen):
        row, column = divmod(i, _COLUMNS)
        top, left = _HEAD_PIXELS + row * step, _GAP_PIXELS + column * step
        tile = _tile(dataset, dataset.samples[number], detections[number], min_score)
        sheet[top : top + _TILE_PIXELS, left : left + _TILE_PIXELS] = tile
    _, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    return data.tobytes()


def _choose(dataset: Dataset) -> list[int]:
    with_objects = [i for i, s in enumerate(dataset.samples) if len(s.boxes)] or list(range(len(dataset.samples)))
    count = min(_COLUMNS * _ROWS, len(with_objects))
    return [with_objects[i * len(with_objects) // count] for i in range(count)]


def _colour(label: int) -> _Colour:
    return _COLOURS[(label - 1) % len(_COLOURS)]


def _tile(dataset: Dataset, sample: Sample, found: ImageDetections, min_score: float) -> _Image:
    """One picture, as large as fits, with its boxes."""
    image = read_image(sample.path)
    scale = _TILE_PIXELS / max(image.shape[:2])
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = cast("_Image", cv2.resize(image, size, interpolation=interpolation))
    for box in sample.boxes * scale:
        _dashed(picture, box)
    keep = np.flatnonzero(found.scores >= min_score)
    keep = keep[np.argsort(found.scores[keep], kind="stable")]
    for i in keep:
        x1, y1, x2, y2 = (round(float(v)) for v in found.boxes[i] * scale)
        cv2.rectangle(picture, (x1, y1), (x2, y2), _colour(int(found.labels[i])), 2, cv2.LINE_AA)
    for i in keep:  # after all boxes, so that no box crosses a text
        name = dataset.categories[int(found.labels[i]) - 1].name
        _write_score(picture, found.boxes[i] * scale, f"{name} {found.scores[i]:.2f}", _colour(int(found.labels[i])))
    tile: _Image = np.full((_TILE_PIXELS, _TILE_PIXELS, 3), _PAPER, np.uint8)
    top, left = (_TILE_PIXELS - size[1]) // 2, (_TILE_PIXELS - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = picture
    return tile


def _dashed(picture: _Image, box: NDArray[np.float32]) -> None:
    """A white box with black gaps, visible on every ground."""
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    cv2.rectangle(picture, (x1, y1), (x2, y2), _BLACK, 1)
    for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
        for at in range(0, length, 8):
            a, b = at / length, min(at + 5, length) / length
            points = [tuple(round(s + (e - s) * t) for s, e in zip(start, end, strict=True)) for t in (a, b)]
            cv2.line(picture, points[0], points[1], _WHITE, 1)


def _write_score(picture: _Image, box: NDArray[np.float32], text: str, colour: _Colour) -> None:
    x1, y1 = round(float(box[0])), round(float(box[1]))
    (width, height), _ = cv2.getTextSize(text, _FONT, 0.38, 1)
    left = max(min(x1, picture.shape[1] - width - 4), 0)
    bottom = y1 if y1 >= height + 6 else min(y1 + height + 6, picture.shape[0])
    cv2.rectangle(picture, (left, bottom - height - 6), (left + width + 4, bottom), colour, -1)
    cv2.putText(picture, text, (left + 2, bottom - 3), _FONT, 0.38, _BLACK, 1, cv2.LINE_AA)


def _draw_legend(sheet: _Image, names: list[str], min_score: float) -> None:
    middle = _HEAD_PIXELS // 2
    _dashed(sheet, np.array([12, middle - 9, 46, middle + 9], np.float32))
    x = _write(sheet, "truth", 54, middle) + 24
    cv2.rectangle(sheet, (x, middle - 9), (x + 34, middle + 9), _COLOURS[0], 2)
    x = _write(sheet, f"found, score {min_score:.2f} and above:", x + 42, middle) + 16
    for label, name in enumerate(names, start=1):
        if x > sheet.shape[1] - 120:
            _write(sheet, "...", x, middle)
            break
        cv2.rectangle(sheet, (x, middle - 7), (x + 14, middle + 7), _colour(label), -1)
        x = _write(sheet, name, x + 20, middle) + 18


def _write(sheet: _Image, text: str, x: int, middle: int) -> int:
    """Writes light text and returns where it ends."""
    cv2.putText(sheet, text, (x, middle + 5), _FONT, 0.5, (225, 225, 225), 1, cv2.LINE_AA)
    return x + int(cv2.getTextSize(text, _FONT, 0.5, 1)[0][0])
