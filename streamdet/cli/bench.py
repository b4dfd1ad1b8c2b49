"""`streamdet bench`: how fast the detector and the daemon are here, and how many streams this machine can take."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from streamdet.cli.numbers import Number
from streamdet.errors import EXIT_INTERRUPTED

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_MODELS = ("embedded", "fasterrcnn_mobilenet_v3_large_320_fpn")


def _size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d{2,5})x(\d{2,5})", value)
    if found is None or any(int(side) % 2 or not 16 <= int(side) <= 8192 for side in found.groups()):
        msg = f"{value!r} is not a size; write WIDTHxHEIGHT with even numbers from 16 to 8192, such as 1920x1080"
        raise click.BadParameter(msg)
    return int(found[1]), int(found[2])


@click.command(
    "bench",
    epilog="""\b
Examples:
  streamdet bench
  streamdet bench --capacity
  streamdet bench --out bench.png
  streamdet bench --model embedded --batch 1 --seconds 30 --json > bench.json
  streamdet bench --model yard.safetensors --frames yard.mp4 --baseline bench.json
  streamdet bench --model fasterrcnn_resnet50_fpn --engine torch --batch 1 --no-daemon""",
)
@click.option("--model", "models", multiple=True, metavar="NAME|FILE",
              help='Measure "embedded", an architecture of torchvision\'s, or a weights file; may be repeated. The '
              f'daemon runs the first one. Default: {" and ".join(_MODELS)}.')  # fmt: skip
@click.option("--engine", "engines", multiple=True, type=click.Choice(["reference", "torch", "graph", "openvino"]),
              help="Measure only these, and torchvision's own for comparison.")  # fmt: skip
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["fp32", "bf16", "int8"]),
              help="Measure only these. Default: all that this machine supports.")  # fmt: skip
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 64),
    help="Measure these batch sizes. Default: 1, 4, 8 and 16.",
)
@click.option("--workers", multiple=True, type=click.IntRange(1, 64),
              help="Detect this many batches at once, one thread each. Default: one per core.")  # fmt: skip
@click.option("--seconds", type=Number(1, 36000),
              help="Measure for this long; loading is extra. Default: 120; with --capacity: 40.")  # fmt: skip
@click.option("--capacity", "only_capacity", is_flag=True,
              help="Measure only how many frames per second the daemon can detect with the first model.")  # fmt: skip
@click.option("--exported", type=_FILE, help="Compare this file of `streamdet export` with its model.")
@click.option("--frames", type=_FILE, help="Use this video instead of the sample clip.")
@click.option(
    "--size",
    callback=_size,
    metavar="WxH",
    help="Scale frames to this size. Default: 1920x1080; with --frames: its own.",
)
@click.option(
    "--fps",
    type=Number(0.1, 1000),
    help="Play each stream at this rate. Default: 10; with --frames: its own.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 256),
    help="Run the daemon with this many streams. Default: as many as should fit.",
)
@click.option(
    "--daemon/--no-daemon", default=True, help="Measure the daemon and the capacity, too, or the detector alone."
)
@click.option("--device", default="auto", show_default=True, help='Use "auto", "cpu", "cuda" or "cuda:N".')
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a chart (.png, .svg, .pdf).")
@click.option("--baseline", type=_FILE, help="Show the change against this output of an earlier --json.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(
    *, as_json: bool, out: Path | None, baseline: Path | None, only_capacity: bool, seconds: float | None,
    **options: object,
) -> None:  # fmt: skip
    """Measure how fast the detector and the daemon are on this machine, and how many streams it can take.

    Every engine and precision that this machine has is compared with torchvision's own forward, in turns, on real
    frames, stage by stage; then the real daemon runs, end to end, beside a plain loop of OpenCV and torchvision.
    Ctrl-C prints what has been measured so far. docs/performance.md explains the figures.
    """
    # As the daemon does: threads of OpenMP that wait actively take the cores away from others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from streamdet.detector.memory import keep_memory

    keep_memory()
    from rich.console import Console

    if only_capacity and (out or baseline or not options["daemon"]):
        message = "--capacity goes with neither --out, --baseline nor --no-daemon"
        raise click.UsageError(message)
    from streamdet.bench.capacity import SECONDS, measure_capacity
    from streamdet.bench.report import check_picture, read_baseline, sentences, tables, to_dict, write_picture
    from streamdet.bench.run import Bench, Options, choose_as_daemon

    if out is not None:
        check_picture(out)
    before = None if baseline is None else read_baseline(baseline)
    options["models"] = options["models"] or _MODELS
    options["seconds"] = seconds or (SECONDS if only_capacity else 120.0)
    checked = Options(**options)  # type: ignore[arg-type] # click has checked them
    if only_capacity:
        with sigterm_as_ctrl_c(), progress() as (on_plan, on_step):
            capacity = measure_capacity(checked, on_plan, on_step)
        how = f"{capacity['model']}, {capacity['engine']} {capacity['precision']}"
        text = f"{capacity['fps_of_all_streams']:g} frames per second ({how}, {capacity['width']}x{capacity['height']})"
        click.echo(json.dumps(capacity) if as_json else text)
        return
    choice = choose_as_daemon(checked)
    with sigterm_as_ctrl_c(), progress() as (on_plan, on_step):
        bench = Bench(checked, on_plan, on_step, choice)
        bench.run()
    report = to_dict(bench.results)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        Console().print(*tables(report, before), sep="\n")
        click.echo("\n".join(sentences(report)))
    if out is not None and report["detector"]:
        write_picture(report, out)
        click.echo(f"the picture is in {out}", err=True)
    if bench.results.error is not None:
        raise bench.results.error
    if bench.results.interrupted:
        sys.exit(EXIT_INTERRUPTED)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Treats SIGTERM as Ctrl-C: prints the results so far, and leaves no daemon behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


OnPlan = Callable[[float], None]
OnStep = Callable[[str, float], None]


@contextmanager
def progress() -> Iterator[tuple[OnPlan, OnStep]]:
    """Shows a bar on standard error; if that is not a terminal, prints a line for each step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    said: list[str] = []
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("loading the models", total=1.0)

        def on_plan(seconds: float) -> None:
            from streamdet.config.values import in_words

            console.print(f"this will take about {in_words(seconds)}", highlight=False)

        def on_step(text: str, share: float) -> None:
            bar.update(task, description=text, completed=share)
            if not console.is_terminal and text not in said:
                said.append(text)
                console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield on_plan, on_step
