"""`streamdet trace`: explains the seven stages of the detector on one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamdet.cli.numbers import Number
from streamdet.cli.outputs import writing
from streamdet.errors import ConfigError
from streamdet.security.files import write_atomically
from streamdet.security.redact import redact

if TYPE_CHECKING:
    from rich.table import Table

    from streamdet.config import DetectorConfig
    from streamdet.trace.report import Datum, Trace


@click.command(
    "trace",
    epilog="""\b
Examples:
  streamdet trace street.jpg --out trace
  streamdet trace rtsp://192.0.2.5/stream1 --out trace --score-threshold 0.3
  streamdet trace clip.mp4 --frame 120 --out trace --json""",
)
@click.argument("source", metavar="IMAGE|URL")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Write trace.html into this folder."
)
@click.option("--weights", default="embedded", show_default=True, help='Use "embedded", "coco" or a file.')
@click.option("--model", help="Name the architecture of coco or .pth weights.")
@click.option("--score-threshold", default=0.5, show_default=True, type=Number(0, 1),
              help="Keep detections from this score on.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help='Use "auto", "cpu", "cuda" or "cuda:N".')
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "torch", "openvino"]),
    help="Run the model with this engine.",
)
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "bf16", "int8"]),
              help="Compute in this precision.")  # fmt: skip
@click.option(
    "--frame", default=1, show_default=True, type=click.IntRange(1), help="Take this frame of a video or stream."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything except the pictures as JSON.")
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
    with the pictures and numbers of each stage to a reader who has never seen it.
    """
    from rich.console import Console

    from streamdet.trace.page import render_page
    from streamdet.trace.read import read_picture
    from streamdet.trace.run import trace_picture

    page = out / "trace.html"
    picture = read_picture(source, frame)
    config = _config(
        weights=weights, model=model, score_threshold=score_threshold, device=device, engine=engine, precision=precision
    )
    trace = trace_picture(config, picture, redact(source))
    with writing(page):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(page, render_page(trace).encode(), mode=None)
    if as_json:
        click.echo(json.dumps(trace.to_dict() | {"page": str(page)}, indent=2))
    else:
        console = Console()
        console.print(_table(trace))
        console.print(f"{len(trace.detections)} detections; the explanation is in {page}", soft_wrap=True, markup=False)


def _config(**values: object) -> DetectorConfig:
    from pydantic import ValidationError

    from streamdet.config import DetectorConfig
    from streamdet.config.explain import explain_options

    try:
        return DetectorConfig.model_validate({**values, "max_batch_size": 1})
    except ValidationError as error:
        raise ConfigError(explain_options(error)) from None


def _table(trace: Trace) -> Table:
    from rich.table import Table

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
    """One line per item; the feature maps, which differ only in height and width, share one."""
    from streamdet.trace.page import human_bytes, human_shape

    maps = [datum for datum in data if datum.name.startswith("feature map")]
    others = [datum for datum in data if datum not in maps]
    lines = [f"{d.name}: {human_shape(d.shape)} {d.dtype}, {human_bytes(d.bytes)}" for d in others]
    if maps:
        sizes = f"{human_shape(maps[0].shape)} to {human_shape(maps[-1].shape[-2:])}"
        total = human_bytes(sum(datum.bytes for datum in maps))
        lines.insert(0, f"{len(maps)} feature maps: {sizes} {maps[0].dtype}, {total}")
    return "\n".join(lines)
