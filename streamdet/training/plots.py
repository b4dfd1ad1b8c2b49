"""Charts as PNG bytes: the progress of a run, precision over recall, the confusion of categories."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any, cast

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from streamdet.detector.picture_files import read_rgb
from streamdet.training.dataset import Dataset, Sample
from streamdet.training.metrics import ImageDetections, Metrics
from streamdet.training.run import EpochResult, start_of

_DPI = 120
_GRID: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.6}
_MAX_CURVES = 10
_STYLE: Any = {  # typed by key in the stubs, at a length of pages
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "text.parse_math": False,  # names of categories may have dollars
}


def curves_png(results: Sequence[EpochResult]) -> bytes:
    """Losses, accuracy, learning rate and speed over the epochs."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 6.5), layout="constrained")
        loss, accuracy, rate, speed = figure.subplots(2, 2).flat
        trained = [r for r in results if r.epoch]
        epochs = [r.epoch for r in trained]
        loss.plot(epochs, [r.loss for r in trained], "k-o", markersize=3, label="sum")
        for name in ("objectness", "rpn_box", "classifier", "box"):
            loss.plot(epochs, [getattr(r, name) for r in trained], "-o", markersize=3, label=name)
        loss.set_title("Loss, training")
        evaluated = [r for r in results if r.map is not None]
        for name, label in (("map", "mAP"), ("map_50", "mAP@.50")):
            values = [max(getattr(r, name), 0.0) for r in evaluated]
            accuracy.plot([r.epoch for r in evaluated], values, "-o", markersize=3, label=label)
        if start := start_of(results):
            accuracy.axhline(
                max(start.map or 0.0, 0.0), color="grey", linestyle=":", label="mAP of the starting weights"
            )
        accuracy.set_title("Accuracy, validation")
        accuracy.set_ylim(0, 1)
        rate.plot(epochs, [r.learning_rate for r in trained], "-o", markersize=3, color="tab:purple")
        rate.set_title("Learning rate at the end of the epoch")
        speed.plot(epochs, [r.images_per_second for r in trained], "-o", markersize=3, color="tab:brown")
        speed.set_title("Training pictures per second")
        for axes in (loss, rate, speed):
            axes.set_ylim(bottom=0)
        for axes in (loss, accuracy, rate, speed):
            axes.set_xlabel("epoch")
            axes.set_xlim(0.5 if axes is not accuracy else -0.5, max(len(trained), 2) + 0.5)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(visible=True, **_GRID)
        for axes in (loss, accuracy):
            axes.legend(frameon=False)
        return _png(figure)


def precision_recall_png(metrics: Metrics) -> bytes:
    """Precision over recall at IoU 0.5: every class with objects, at most ten, and their mean."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.5, 5), layout="constrained")
        axes = figure.subplots()
        recall = np.linspace(0, 1, metrics.precision.shape[1])
        at_50 = metrics.precision[0]
        counted = [i for i in range(at_50.shape[1]) if (at_50[:, i] > -1).any()]
        names = list(metrics.per_class)
        most = sorted(counted, key=lambda i: -metrics.per_class[names[i]]["ap_50"])[:_MAX_CURVES]
        for i in most:
            ap = metrics.per_class[names[i]]["ap_50"]
            axes.plot(recall, at_50[:, i], linewidth=1.4, label=f"{names[i]}  {ap:.2f}")
        if counted:
            axes.plot(recall, at_50[:, counted].mean(axis=1), "k--", linewidth=1.8,
                      label=f"mean of {len(counted)}  {metrics.numbers['map_50']:.2f}")  # fmt: skip
            axes.legend(title="AP@.50", frameon=False, loc="lower left")
        else:
            axes.text(0.5, 0.5, "no labelled object", ha="center")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.set_title("Precision and recall at IoU 0.5")
        axes.grid(visible=True, **_GRID)
        return _png(figure)


def confusion_png(confusion: NDArray[np.int64], names: Sequence[str], score: float) -> bytes:
    """Counts of truth (rows) against detection (columns), coloured by their share of the row.

    Args:
        confusion: int [C + 1, C + 1]; the last row is background found as something, the last column missed.
        names: of the C classes.
        score: the threshold of the detections, for the title.
    """
    with mpl.rc_context(_STYLE):
        count = len(confusion)
        side = min(max(0.62 * count + 2.2, 5.0), 24.0)
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.subplots()
        shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.argwhere(confusion > 0):
            colour = "white" if shares[row, column] > 0.5 else "#222222"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(count), [*names, "(missed)"], rotation=45, ha="right")
        axes.set_yticks(range(count), [*names, "(background)"])
        axes.set(xlabel="found as", ylabel="truth")
        axes.set_title(f"Confusion at IoU 0.5, score {score:.2f} and above")
        figure.colorbar(picture, ax=axes, shrink=0.7, label="share of the row")
        return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


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
    image = read_rgb(sample.path)
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
