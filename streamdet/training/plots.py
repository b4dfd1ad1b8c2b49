"""Diagrams as PNG bytes: how a run goes, how precise a detector is, what it takes for what."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from streamdet.training.metrics import Metrics
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
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()
