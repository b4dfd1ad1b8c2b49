"""The results: JSON for programs, tables and text for people, and a chart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from streamdet.bench.cases import REFERENCE
from streamdet.bench.run import Results
from streamdet.errors import DataError, StreamdetError
from streamdet.extras import how_to_install
from streamdet.monitoring.metrics import STAGES

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
        "low_threshold": results.low_threshold,
        "analytics": results.analytics,
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


# Others' share of the machine from which on figures are wrong by more than their spread says.
_DISTURBING_SHARE = 0.05


def tables(report: Mapping[str, Any], baseline: Mapping[Key, float] | None = None) -> list[Table]:
    """For each model its cases and its stages, then the runs of the daemon.

    Args:
        report: what `report.to_dict` returned.
        baseline: what `report.read_baseline` returned, for a column with the change.
    """
    found = []
    for model in models_of(report):
        found += [_detector_table(report, model, baseline), _stage_table(report, model)]
    return found + ([_daemon_table(report["daemon"])] if report["daemon"] else [])


def sentences(report: Mapping[str, Any]) -> list[str]:
    """Conclusions from the figures, and caveats, one line each."""
    lines = [*_capacity_lines(report), *_end_to_end_lines(report), *_overload_lines(report)]
    lines += [*_low_threshold_lines(report), *_analytics_lines(report), *_machine_lines(report)]
    lines += [f"Note: {note}" for note in report["notes"]]
    return lines + (["Broken off: this is what had been measured so far."] if report["interrupted"] else [])


def _capacity_lines(report: Mapping[str, Any]) -> list[str]:
    found = report["capacity"]
    if not found:
        return []
    costs = found["cpu_ms_per_frame"]
    parts = f"{costs['decode_ms']:.1f} decoding + {costs['overhead_ms']:.1f} own + {costs['detector_ms']:.1f} detector"
    where = f"{found['cores']} cores" + ("" if costs["device_ms"] is None else f", {costs['device_ms']:.2f} ms of GPU")
    size = f"{found['width']}x{found['height']}"
    count = f"{found['streams']} stream{'' if found['streams'] == 1 else 's'}"
    model = f"{found['model']} ({found['engine']}, {found['precision']})"
    total = f"{found['fps_of_all_streams']:.1f} frames/s"
    lines = [
        f"Capacity: {count} of {size} at {found['fps']:g} fps with {model}.",
        f"  Computed: {total} = {found['headroom']:.0%} of {where} / CPU ms per frame ({parts}).",
    ]
    if "checked" in found:
        lines.append(f"  Tried: the daemon {'kept up' if found['checked'] else 'did NOT keep up'} with that many.")
    return lines


def _end_to_end_lines(report: Mapping[str, Any]) -> list[str]:
    plain, full = report["plain_loop"], (report["daemon"] or {}).get("saturated")
    if not plain:
        return []
    line = f"End to end: a plain loop of OpenCV and torchvision {plain['frames_per_second']:.1f} frames/s"
    if full:
        line += f", the daemon {full['fps_published']:.1f}: {full['speedup_over_plain_loop']:.1f} times"
    return [line + "."]


def _overload_lines(report: Mapping[str, Any]) -> list[str]:
    found = (report["daemon"] or {}).get("overload")
    if not found or not found["latency_ms"]:
        return []
    fewest, most = found["events_of_a_stream"]
    failed = ", ".join(name for name, holds in found["holds"].items() if not holds)
    verdict = f"NOT within the bounds ({failed})" if failed else "within the bounds"
    rates = f"{found['fps_captured']:.0f} frames/s in, {found['fps_published']:.1f} detected"
    marks = ", ".join(f"{name} {_ms(value)}" for name, value in found["latency_ms"].items())
    bound = f"{found['bound_ms']:.0f} = 4 detections of {_ms(found['detection_ms'])} ms + 100"
    low, high = found["throughput_of_best_quartiles"]
    share = (
        f"{found['throughput_of_best']:.0%} of the throughput with batches of {found['best_batch']}, the best in time"
    )
    rounds = f"quartiles of {found['rounds']} rounds {low:.0%} and {high:.0%}; " if found["rounds"] > 1 else ""
    lines = [f"Overload: {found['streams']} streams, {rates} in batches of up to {found['batch']}: {verdict}."]
    lines += [f"  Capture to event: {marks} ms; p95 must be below {bound}."]
    lines += [f"  {share} ({rounds}at least 95 %); {fewest} to {most} frames of each stream."]
    fastest = max(found["fps_of_batches"], key=lambda size: found["fps_of_batches"][size])
    if int(fastest) != found["best_batch"]:
        late = found["p95_ms_of_batches"].get(fastest)
        lines += [
            f"  Batches of {fastest} detect {found['fps_of_batches'][fastest]:.1f}, too late: p95 {_ms(late)} ms."
        ]
    return lines


def _low_threshold_lines(report: Mapping[str, Any]) -> list[str]:
    found = report.get("low_threshold")
    if not found:
        return []
    line = (
        f"Thresholds: with one stream at 0.05 and the others at 0.5, a batch of {found['batch']} takes "
        f"{found['ratio']:.2f} times as long as with all at 0.5 ({found['engine']} {found['precision']})."
    )
    return [line]


def _analytics_lines(report: Mapping[str, Any]) -> list[str]:
    found = report.get("analytics")
    if not found:
        return []
    parts = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in found["core_share"].items())
    line = (
        f"Analytics: {found['streams']} streams of {found['fps']} fps, {found['objects']} objects in each frame, "
        f"{found['zones']} zones, {found['lines']} lines and {found['rules']} rules take "
        f"{found['total_core_share']:.0%} of one core: {parts}."
    )
    return [line]


def _machine_lines(report: Mapping[str, Any]) -> list[str]:
    machine = report["machine"]
    peaks = ", ".join(f"{name} {peak:.0f}" for name, peak in report["peak_gflop_per_second"].items() if peak)
    where = "" if machine["device"] == "cpu" else f", {machine['device']}"
    lines = [f"Machine: {machine['cpu']}, {machine['cores']} cores{where}; peak, measured: {peaks} GFLOP/s."]
    others, stolen = machine["other_processes_share"], machine["stolen_share"]
    if others is not None and max(others, stolen) > _DISTURBING_SHARE:
        lines.append(
            f"Careful: meanwhile other processes used {others:.0%} of the machine and its host took {stolen:.0%}; "
            "the times are too long, the ratios are better."
        )
    return lines


def _detector_table(report: Mapping[str, Any], model: str, baseline: Mapping[Key, float] | None) -> Table:
    facts = report["models"][model]
    title = f"{model} ({facts['weights']} weights), {facts['gflop_per_frame']:.1f} GFLOP per frame"
    table = Table(
        title=Text(title), box=box.SIMPLE_HEAD, caption="ms per frame, from the decoded picture to detections"
    )
    table.add_column("engine, workers", no_wrap=True)
    headings = ["batch", "ms", "quartiles", "fps", "speed-up", "of floor"]
    for heading in headings + (["change"] if baseline is not None else []):
        table.add_column(heading, justify="right", no_wrap=True)
    batch = None
    for row in report["detector"]:
        if row["model"] != model:
            continue
        if batch not in (None, row["batch"]):
            table.add_section()
        batch = row["batch"]
        low, high = row["ms_per_frame_quartiles"]
        ratio, share = row["speedup_over_torchvision"], row["floor_share"]
        cells = [
            f"{case_name(row)} x{row['workers']}", str(batch), _ms(row["ms_per_frame"]), f"{_ms(low)}-{_ms(high)}",
            f"{row['frames_per_second']:.1f}", "" if ratio is None else f"{ratio:.2f}x",
            "" if share is None else f"{share:.0%}",
        ]  # fmt: skip
        table.add_row(*cells, *([] if baseline is None else [_change(row, baseline)]))
    return table


def _stage_table(report: Mapping[str, Any], model: str) -> Table:
    """A column for each case, at the batch size that ran best for the model."""
    rows = fastest_group_rows(report, model)
    table = Table(title=f"Stages in batches of {rows[0]['batch']}, ms/frame", box=box.SIMPLE_HEAD)
    table.add_column("stage")
    for row in rows:
        table.add_column(case_name(row).replace(" ", "\n") + f"\nx{row['workers']}", justify="right")
    for stage in STAGES:
        table.add_row(stage, *(_ms(row["stages_ms"][stage]) if stage in row["stages_ms"] else "" for row in rows))
    return table


def _daemon_table(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """A column for each run."""
    names = {
        "without_detector": "without a detector",
        "saturated": "all it can",
        "paced": "in real time",
        "overload": "overload",
    }
    table = Table(title="The daemon: files in, events out", box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in runs:
        table.add_column(names[name], justify="right")
    rows: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("streams", lambda run: str(run["streams"])),
        ("frames/s in", lambda run: f"{run['fps_captured']:.1f}"),
        ("events/s out", lambda run: f"{run['fps_published']:.1f}"),
        ("frames dropped", lambda run: str(sum(run["frames_dropped"].values()))),
        ("latency p50, ms", lambda run: _mark(run, "p50")),
        ("latency p95, ms", lambda run: _mark(run, "p95")),
        ("latency p99, ms", lambda run: _mark(run, "p99")),
        ("CPU ms/frame", lambda run: "" if run["cpu_ms_per_frame"] is None else _ms(run["cpu_ms_per_frame"])),
        ("cores in use", lambda run: f"{run['cpu_cores']:.2f}"),
        ("memory, MB", lambda run: f"{run['memory_megabytes']:.0f}"),
    ]
    for heading, cell in rows:
        table.add_row(heading, *(cell(run) for run in runs.values()))
    return table


def _mark(run: Mapping[str, Any], name: str) -> str:
    return _ms(run["latency_ms"][name]) if run["latency_ms"] else ""


def _change(row: Mapping[str, Any], baseline: Mapping[Key, float]) -> str:
    before = baseline.get(tuple(row[key] for key in KEYS))
    return "new" if before is None else f"{row['ms_per_frame'] / before - 1:+.0%}"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


# From Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
_COLOURS = ("#999999", "#56b4e9", "#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7")
_DPI = 130


def check_picture(path: Path) -> None:
    """Raises an error of one line if no chart could be written, before anything is measured.

    Raises:
        StreamdetError: the library is missing, or the file has no place.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415, F401 - part of an extra
    except ImportError:
        msg = f"--out needs matplotlib: {how_to_install('train')}"
        raise StreamdetError(msg) from None
    if path.suffix.lower() not in {".png", ".svg", ".pdf"}:
        msg = f"--out {path}: the name must end in .png, .svg or .pdf"
        raise StreamdetError(msg)
    if not path.absolute().parent.is_dir():
        msg = f"--out {path}: there is no folder {path.parent}"
        raise StreamdetError(msg)


def write_picture(report: Mapping[str, Any], path: Path) -> None:
    """Draws stacked bars, one panel for each model, at the batch size that is fastest for it.

    Args:
        report: what `report.to_dict` returned; with rows of the detector.
        path: where to; its suffix says the format.

    Raises:
        StreamdetError: it cannot be written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - part of an extra
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    models = models_of(report)
    rows = {model: fastest_group_rows(report, model) for model in models}
    counts = [len(rows[model]) for model in models]
    style: Any = {"font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(9.5, 1.3 + sum(0.42 * count + 0.75 for count in counts)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(models), squeeze=False, height_ratios=[count + 1.0 for count in counts])[:, 0]
        for axes, model in zip(panels, models, strict=True):
            _draw_model(axes, rows[model])
        machine = report["machine"]
        where = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
        figure.suptitle(f"Time of a frame in the detector's stages: {where}, {machine['cores']} cores", fontsize=11)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(STAGES), frameon=False)
        try:
            figure.savefig(path, dpi=_DPI)
        except OSError as error:
            msg = f"cannot write {path}: {error.strerror}"
            raise StreamdetError(msg) from None


def _draw_model(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:  # noqa: ANN401 - matplotlib is an extra
    longest = max(row["ms_per_frame"] for row in rows)
    for place, row in enumerate(rows):
        left = 0.0
        # The stages of a row are medians on their own, and workers share the time: scaled to the row's own time.
        scale = row["ms_per_frame"] / max(sum(row["stages_ms"].values()), 1e-9)
        for stage, colour in zip(STAGES, _COLOURS, strict=True):
            width = scale * row["stages_ms"].get(stage, 0.0)
            axes.barh(place, width, left=left, color=colour, height=0.72, label=stage if place == 0 else None)
            left += width
        ratio = row["speedup_over_torchvision"]
        faster = "" if row["engine"] == REFERENCE or ratio is None else f"  ({ratio:.1f}x)"
        axes.text(left + 0.008 * longest, place, f"{row['ms_per_frame']:.1f} ms{faster}", va="center")
        if row["floor_share"] is not None:
            floor = row["floor_share"] * row["ms_per_frame"]
            axes.plot([floor, floor], [place - 0.42, place + 0.42], color="black", linewidth=1.6)
    axes.set_yticks(range(len(rows)), [case_name(row) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.16 * longest)
    axes.set_xlabel("ms per frame; the black line is the floor: arithmetic at the machine's measured peak", fontsize=8)
    title = f"{rows[0]['model'].removeprefix('fasterrcnn_')}, batches of {rows[0]['batch']}"
    axes.set_title(title, fontsize=9.5, fontweight="bold", loc="left")
