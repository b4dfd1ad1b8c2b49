# ruff: noqa: INP001 - part of a program, not a module
"""One picture of a whole run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from sample import Sample

_MEGA = 1e6


def draw(path: Path, samples: Sequence[Sample], quiet: Sequence[tuple[float, float]], title: str) -> None:
    """Writes the picture.

    Args:
        path: a PNG file.
        samples: one per second.
        quiet: spans without faults, in seconds; shaded.
        title: over all.
    """
    minutes = [sample.at_seconds / 60 for sample in samples]
    plt.switch_backend("Agg")  # there may be no display
    figure, axes = plt.subplots(4, 1, sharex=True, figsize=(10, 8.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    lines: list[list[tuple[str, list[Any]]]] = [
        [("captured", [s.fps_captured for s in samples]), ("published", [s.fps_published for s in samples])],
        [
            ("99 of 100 faster", [_or_nan(s.latency_p99_seconds) for s in samples]),
            ("median", [_or_nan(s.latency_p50_seconds) for s in samples]),
        ],
        [
            ("resident memory", [s.resident_bytes / _MEGA for s in samples]),
            ("of it given out by glibc", [s.allocated_bytes / _MEGA for s in samples]),
        ],
        [("threads", [s.threads for s in samples]), ("file descriptors", [s.descriptors for s in samples])],
    ]
    for axis, label, curves in zip(axes, ("frames per second", "latency, s", "MB", "count"), lines, strict=True):
        for name, values in curves:
            axis.plot(minutes, values, label=name, linewidth=0.8)
        for begin, end in quiet:
            axis.axvspan(begin / 60, end / 60, color="tab:green", alpha=0.12, linewidth=0)
        axis.set_ylabel(label)
        axis.legend(loc="lower right", fontsize=8)
        axis.grid(visible=True, alpha=0.3)
        if label == "latency, s":
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes; shaded: all faults undone")
    figure.savefig(path, dpi=85)
    plt.close(figure)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
