"""The results for programs: what `--json` prints, and what an earlier run printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamdet.bench.cases import REFERENCE
from streamdet.bench.run import Results
from streamdet.errors import DataError

KEYS = ("model", "engine", "precision", "batch", "workers")
Key = tuple[str | int, ...]


def to_dict(results: Results) -> dict[str, Any]:
    """Everything, ready for JSON; what was not measured is null."""
    seen = results.disturbance
    return {
        "machine": results.machine
        | {
            "load_before": seen and round(seen.load_before, 2),
            "other_processes_share": seen and round(seen.others_share, 4),
            "stolen_share": seen and round(seen.stolen_share, 4),
        },
        "models": {
            name: {"weights": origin, "gflop_per_frame": _rounded(results.flops.get(name), 1e9, 3)}
            for name, origin in results.origins.items()
        },
        "peak_gflop_per_second": {name: _rounded(peak, 1e9, 1) for name, peak in results.peaks.items()},
        "detector": [row.to_dict() for row in results.detector],
        "plain_loop": results.plain_loop,
        "daemon": results.daemon or None,
        "capacity": results.capacity,
        "notes": results.notes,
        "interrupted": results.interrupted,
        "error": None if results.error is None else str(results.error),
    }


def read_baseline(path: Path) -> dict[Key, float]:
    """Milliseconds per frame of an earlier run's rows.

    Raises:
        DataError: the file is not what `--json` printed.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))["detector"]
        return {tuple(row[key] for key in KEYS): float(row["ms_per_frame"]) for row in rows}
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise DataError(msg) from None
    except (ValueError, KeyError, TypeError):
        msg = f"{path} is not what `streamdet bench --json` prints"
        raise DataError(msg) from None


def fastest_group_rows(report: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """The rows of a model at the batch size of its fastest row.

    Args:
        report: what `to_dict` returned.
        model: its name.
    """
    of_model = [row for row in report["detector"] if row["model"] == model]
    ours = [row for row in of_model if row["engine"] != REFERENCE] or of_model
    batch = min(ours, key=lambda row: float(row["ms_per_frame"]))["batch"]
    return [row for row in of_model if row["batch"] == batch]


def models_of(report: Mapping[str, Any]) -> list[str]:
    """Names of the models that have rows."""
    return list(dict.fromkeys(row["model"] for row in report["detector"]))


def case_name(row: Mapping[str, Any]) -> str:
    """Engine and precision of a row, for people."""
    return "torchvision" if row["engine"] == REFERENCE else f"{row['engine']} {row['precision']}"


def _rounded(value: float | None, unit: float, digits: int) -> float | None:
    return None if value is None else round(value / unit, digits)
