"""The picture: for each model and engine a bar of its stages, torchvision's on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamdet.bench.cases import REFERENCE
from streamdet.bench.report import case_name, fastest_group_rows, models_of
from streamdet.errors import StreamdetError
from streamdet.monitoring.metrics import STAGES

# From Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
_COLOURS = ("#999999", "#56b4e9", "#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7")
_DPI = 130


def check_picture(path: Path) -> None:
    """Tells in one line why there could be no picture, before anything is measured.

    Raises:
        StreamdetError: the library is missing, or the file has no place.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415, F401 - part of an extra
    except ImportError:
        msg = "--out needs matplotlib: pip install 'streamdet[train]'"
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
