"""`streamdet export`: a weights file with a detector that OpenVINO runs, in fp32 or int8."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from streamdet.cli.numbers import Number
from streamdet.cli.outputs import writing
from streamdet.config import DetectorConfig
from streamdet.config.models import Model
from streamdet.errors import ConfigError
from streamdet.security.files import stage, write_atomically

if TYPE_CHECKING:
    from streamdet.export.run import Report


@click.command(
    epilog="""\b
Examples:
  streamdet export --int8 --frames pictures/ --out yard-int8.safetensors
  streamdet export --int8 --frames rtsp://camera/1 --weights yard.safetensors --out y8.safetensors
  streamdet export --weights coco --model fasterrcnn_resnet50_fpn --out r50.safetensors

\b
Then, in the configuration:
  [detector]
  weights = "yard-int8.safetensors\""""
)
@click.option(
    "--weights", default="embedded", show_default=True, help="Export embedded, coco, a .safetensors or a .pth file."
)
@click.option(
    "--model", type=click.Choice(get_args(Model)), metavar="NAME",
    help=f"Name the architecture of coco or .pth weights: {', '.join(get_args(Model))}.",
)  # fmt: skip
@click.option("--int8", is_flag=True, help="Quantise to 8 bits; needs --frames.")
@click.option("--frames", metavar="DIR|VIDEO|URL", help="Calibrate with frames like those of later use: a folder of "
              "pictures, a video or a stream. A fifth of them is kept back for the comparison.")  # fmt: skip
@click.option(
    "--count", type=click.IntRange(10, 5000), default=300, show_default=True, help="Use this many frames at most."
)
@click.option("--every", "every_seconds", type=Number(0), default=1.0, show_default=True,
              help="Take one frame of a video or stream every N seconds.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Write this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(
    weights: str, model: Model | None, int8: bool, frames: str | None, count: int, every_seconds: float, out: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Export a detector into one file that OpenVINO runs faster on a CPU.

    With --int8 most arithmetic is done in 8 bits; their ranges are calibrated on --frames, which should come from the
    streams that will be watched. From a few dozen frames on, the box head is made smaller as well. The report compares
    speed and detections with the original.
    """
    if int8 and frames is None:
        raise ConfigError(["--int8 needs --frames: a folder of pictures, a video or a stream, to learn ranges from"])
    if out.suffix in {".pth", ".pt"}:
        raise ConfigError([f"--out: {out} would be read as a state dict of torch; let its name end in .safetensors"])
    if not out.parent.is_dir():
        raise ConfigError([f"--out: there is no folder {out.parent}"])
    with writing(out):  # find out now rather than after minutes
        stage(out, b"", mode=None, sync=False).discard()
    from streamdet.detector.engines.openvino import load_openvino
    from streamdet.detector.weights import load_weights
    from streamdet.export.frames import read_frames
    from streamdet.export.run import export

    load_openvino()  # likewise
    loaded = load_weights(DetectorConfig(weights=weights, model=model, engine="torch", device="cpu"))
    pictures = []
    if frames is not None:
        with _bar("reading frames") as on_progress:
            pictures = read_frames(frames, count, every_seconds, on_progress)
    content, report = export(loaded, pictures, int8=int8, bar=_bar)
    with writing(out):
        write_atomically(out, content, mode=None)
    if as_json:
        click.echo(json.dumps(report.to_dict() | {"file": str(out)}))
    else:
        _print(report, out)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print(report: Report, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("", "fp32, torch", "fp32, OpenVINO", report.precision)
    sizes = (report.bytes_before, None, report.bytes_after)
    table.add_row("megabytes", *("" if size is None else f"{size / 1e6:.1f}" for size in sizes))
    times = (report.milliseconds_before, report.milliseconds_openvino, report.milliseconds_after)
    if report.agreement is not None:
        table.add_row("ms per frame", *("" if t is None else f"{t:.1f}" for t in times))
    console.print(table)
    a = report.agreement
    if a is not None and not a.detections:
        console.print(
            f"fp32 detects nothing on {a.frames} frames that were kept back, so that there is nothing to compare: "
            "--frames should show what is to be detected.",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    elif a is not None:
        console.print(
            f"Of {a.detections} detections of fp32 on {a.frames} frames that were kept back, {a.kept} are kept "
            f"({a.kept_share:.1%}); {a.added} are new. Mean difference of the kept ones: {a.score_difference:.3f} in "
            f"score, {a.box_difference_pixels:.1f} pixels in the box.",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    if report.small_head:
        console.print("Its box head was made smaller; the comparison is with that.")
    console.print(f'{out} is ready: weights = "{out}" in [detector]', soft_wrap=True, markup=False, highlight=False)
