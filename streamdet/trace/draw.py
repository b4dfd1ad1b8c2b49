"""Pictures of tensors: heat maps, coloured boxes, mosaics."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from streamdet.trace.report import Rgb
from streamdet.types import Detection

Values = NDArray[np.float32]
"""float32 [height, width]."""

# Distinct on light and dark pictures; classes take them in turn.
_CLASS_COLOURS = (
    (255, 196, 0), (0, 200, 255), (255, 92, 92), (124, 220, 80), (210, 120, 255), (255, 140, 30), (60, 240, 190),
)  # fmt: skip
_GAP_PIXELS = 4
_BLEND = 0.62


def resize(picture: Rgb, width: int, height: int, *, smooth: bool = True) -> Rgb:
    """Scales a picture; without `smooth`, every pixel stays visible as a square."""
    shrinks = width < picture.shape[1]
    interpolation = (cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC) if smooth else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, (width, height), interpolation=interpolation), np.uint8)


def scaled(picture: Rgb, scale: float) -> Rgb:
    """Makes a picture so many times as large, in both directions; at least one pixel."""
    return resize(picture, max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))


def heat(values: Values, low: float | None = None, high: float | None = None) -> Rgb:
    """Colours values from dark violet (`low`, or the smallest) to yellow (`high`, or the largest)."""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    coloured = cv2.applyColorMap((scaled * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(coloured[..., ::-1])


def heat_over(picture: Rgb, values: Values) -> Rgb:
    """Lays a heat map over the grey picture; cells stay visible as squares."""
    height, width = picture.shape[:2]
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    # The brightest few cells would leave all others dark.
    coloured = heat(values, high=float(np.quantile(values, 0.995)))
    over = resize(coloured, width, height, smooth=False)
    return np.asarray(cv2.addWeighted(over, _BLEND, grey, 1 - _BLEND, 0), np.uint8)


def signed(values: Values, limit: float) -> Rgb:
    """Colours values from blue (-`limit`) over white (0) to red (`limit`)."""
    t = np.clip(values / limit, -1, 1)[..., None]
    red, blue, white = (np.array(c, np.float32) for c in ((202, 0, 32), (5, 80, 174), (247, 247, 247)))
    return np.asarray(np.where(t > 0, white + t * (red - white), white - t * (blue - white)), np.uint8)


def boxes_by_value(picture: Rgb, boxes: Values, values: Values) -> Rgb:
    """Draws boxes, the highest value last and brightest.

    Args:
        picture: what they lie in; shown darker.
        boxes: float32 [n, 4], xyxy in pixels of the picture.
        values: float32 [n], 0 to 1.
    """
    canvas = np.asarray(picture * 0.55, np.uint8)
    if not len(values):
        return canvas
    colours = heat(values[:, None], 0, 1)[:, 0]
    for index in np.argsort(values):
        _rectangle(canvas, boxes[index].tolist(), tuple(map(int, colours[index])), 1)
    return canvas


def boxes_by_class(picture: Rgb, boxes: Values, classes: Sequence[int]) -> Rgb:
    """Draws boxes in the colours of their classes; arguments as in `boxes_by_value`."""
    canvas = np.asarray(picture * 0.75, np.uint8)
    for box, class_ in zip(boxes.tolist(), classes, strict=True):
        _rectangle(canvas, box, _CLASS_COLOURS[class_ % len(_CLASS_COLOURS)], 1)
    return canvas


def detections(picture: Rgb, found: Sequence[Detection], labels: Sequence[str]) -> Rgb:
    """Draws detections with label and score, in a size that can be read."""
    canvas = picture.copy()
    scale = max(0.4, picture.shape[1] / 1600)
    for detection in reversed(found):
        colour = _CLASS_COLOURS[labels.index(detection.label) % len(_CLASS_COLOURS)]
        _rectangle(canvas, list(detection.box), colour, 2)
        text = f"{detection.label} {detection.score:.0%}"
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        x = min(int(detection.box[0]), max(0, canvas.shape[1] - width - 4))
        y = max(int(detection.box[1]), height + 6)
        cv2.rectangle(canvas, (x, y - height - 6), (x + width + 4, y), colour, -1)
        cv2.putText(canvas, text, (x + 2, y - 4), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas


def crop(picture: Rgb, box: Sequence[float]) -> Rgb:
    """Cuts a box, xyxy in pixels, out of a picture; at least one pixel."""
    height, width = picture.shape[:2]
    x1, y1 = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    return picture[y1 : max(y1 + 1, round(box[3])), x1 : max(x1 + 1, round(box[2]))]


def letterbox(picture: Rgb, side: int) -> Rgb:
    """Fits a picture into a grey square without stretching it."""
    scale = side / max(picture.shape[:2])
    small = resize(picture, max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    canvas = np.full((side, side, 3), 128, np.uint8)
    top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def mosaic(pictures: Sequence[Rgb], columns: int) -> Rgb:
    """Puts pictures of one size side by side, in rows."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    canvas = np.full((rows * (height + _GAP_PIXELS), columns * (width + _GAP_PIXELS), 3), 128, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * (height + _GAP_PIXELS), (i % columns) * (width + _GAP_PIXELS)
        canvas[y : y + height, x : x + width] = picture
    return canvas[:-_GAP_PIXELS, :-_GAP_PIXELS]


def _rectangle(canvas: Rgb, box: list[float], colour: tuple[int, ...], thickness: int) -> None:
    x1, y1, x2, y2 = (round(side) for side in box)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness, cv2.LINE_AA)
