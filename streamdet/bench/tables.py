"""The results for people: tables that fit into 80 columns, and sentences that say what follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from streamdet.bench.report import KEYS, Key, case_name, fastest_group_rows, models_of
from streamdet.monitoring.metrics import STAGES

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
    """What follows from the figures, and what to keep in mind, a line each."""
    lines = [*_capacity_lines(report), *_end_to_end_lines(report), *_machine_lines(report)]
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
    table = Table(title=title, box=box.SIMPLE_HEAD, caption="ms per frame, from the decoded picture to detections")
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
    names = {"without_detector": "without a detector", "saturated": "all it can", "paced": "in real time"}
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
