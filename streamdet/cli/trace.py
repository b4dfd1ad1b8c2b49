"""`streamdet trace`: explains the seven stages of the detector on one picture."""

from __future__ import annotations

import json
from pathlib import Path

import click
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from streamdet.config import DetectorConfig
from streamdet.config.explain import explain_options
from streamdet.errors import ConfigError, StreamdetError
from streamdet.security.redact import redact
from streamdet.trace.page import human_bytes, human_shape, render_page
from streamdet.trace.read import read_picture
from streamdet.trace.report import Datum, Trace
from streamdet.trace.run import trace_picture


@click.command(
    "trace",
    epilog="""\b
Examples:
  streamdet trace street.jpg --out trace
  streamdet trace rtsp://192.0.2.5/stream1 --out trace --score-threshold 0.3
  streamdet trace clip.mp4 --frame 120 --out trace --json""",
)
@click.argument("source", metavar="IMAGE|URL")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for trace.html.")
@click.option("--weights", default="embedded", show_default=True, help='"embedded", "coco" or the path of a file.')
@click.option("--model", help='Model, with "coco" or a .pth file.')
@click.option("--score-threshold", default=0.5, show_default=True, type=click.FloatRange(0, 1))
@click.option("--device", default="auto", show_default=True, help='"auto", "cpu", "cuda" or "cuda:N".')
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "torch", "openvino"]),
    help="What runs the model; only these have seven stages to show.",
)
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "bf16", "int8"]))
@click.option("--frame", default=1, show_default=True, type=click.IntRange(1), help="Which frame of a video.")
@click.option("--json", "as_json", is_flag=True, help="Print everything but the pictures as JSON.")
def command(  # noqa: PLR0917 - click passes them by name
    source: str,
    out: Path,
    weights: str,
    model: str | None,
    score_threshold: float,
    device: str,
    engine: str,
    precision: str,
    frame: int,
    *,
    as_json: bool,
) -> None:
    """Explain the seven stages of the detector on one picture.

    IMAGE|URL is a picture, a video, or any stream that streamdet reads. The page OUT/trace.html explains Faster R-CNN
    with the pictures and numbers of each stage, to someone who has never seen it.
    """
    page = out / "trace.html"
    picture = read_picture(source, frame)
    config = _config(
        weights=weights, model=model, score_threshold=score_threshold, device=device, engine=engine, precision=precision
    )
    trace = trace_picture(config, picture, redact(source))
    try:
        out.mkdir(parents=True, exist_ok=True)
        page.write_text(render_page(trace), "utf-8")
    except OSError as error:
        msg = f"cannot write {page}: {error.strerror}"
        raise StreamdetError(msg) from None
    if as_json:
        click.echo(json.dumps(trace.to_dict() | {"page": str(page)}, indent=2))
    else:
        console = Console()
        console.print(_table(trace))
        console.print(f"{len(trace.detections)} detections; the explanation is in {page}", soft_wrap=True, markup=False)


def _config(**values: object) -> DetectorConfig:
    try:
        return DetectorConfig.model_validate({**values, "max_batch_size": 1})
    except ValidationError as error:
        raise ConfigError(explain_options(error)) from None


def _table(trace: Trace) -> Table:
    table = Table(title=f"{trace.width}x{trace.height}, {trace.architecture} on {trace.device}")
    for heading in ("stage", "in", "out"):
        table.add_column(heading)
    table.add_column("ms", justify="right")
    for stage in trace.stages:
        table.add_row(stage.name, _lines(stage.inputs), _lines(stage.outputs), f"{stage.milliseconds:.2f}")
    table.add_section()
    table.add_row("all", "", "", f"{trace.milliseconds:.2f}")
    return table


def _lines(data: tuple[Datum, ...]) -> str:
    """One line for each; the feature maps, which differ in height and width alone, share one."""
    maps = [datum for datum in data if datum.name.startswith("feature map")]
    others = [datum for datum in data if datum not in maps]
    lines = [f"{d.name}: {human_shape(d.shape)} {d.dtype}, {human_bytes(d.bytes)}" for d in others]
    if maps:
        sizes = f"{human_shape(maps[0].shape)} to {human_shape(maps[-1].shape[-2:])}"
        total = human_bytes(sum(datum.bytes for datum in maps))
        lines.insert(0, f"{len(maps)} feature maps: {sizes} {maps[0].dtype}, {total}")
    return "\n".join(lines)
