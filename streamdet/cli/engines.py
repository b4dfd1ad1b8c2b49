"""`streamdet engines`: which engine is the fastest on this machine, and what each one was found to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from streamdet.config import DetectorConfig, load_config
from streamdet.config.explain import explain_options
from streamdet.errors import EXIT_FAILURE, ConfigError, DetectorError

if TYPE_CHECKING:
    from streamdet.detector.choice import Choice, Report, Result
    from streamdet.detector.state import Store


@click.command(
    epilog="""\b
Examples:
  streamdet engines
  streamdet engines --again
  streamdet engines --config /etc/streamdet/streamdet.toml
  streamdet engines --weights yard.safetensors --json
  ONEDNN_MAX_CPU_ISA=AVX2 streamdet engines

\b
The daemon does this at its first start, and keeps the result in $STATE_DIRECTORY or
$XDG_STATE_HOME/streamdet.
Exit codes: 0 an engine passed the trial, 1 none did, 2 the configuration is wrong, 69 weights or
device missing."""
)
@click.option(
    "--config", "-c", "config_path", type=click.Path(path_type=Path, readable=False),
    help="Take weights, device and engine from [detector] of this file.",
)  # fmt: skip
@click.option("--weights", help="Use these weights instead: embedded, coco, .safetensors or .pth.")
@click.option("--model", help="Name the architecture of coco or .pth weights.")
@click.option("--device", help="Use this device instead: auto, cpu, cuda or cuda:N.")
@click.option("--again", is_flag=True, help="Repeat the trial even if the result is known.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(
    config_path: Path | None, weights: str | None, model: str | None, device: str | None, again: bool, as_json: bool
) -> None:
    """Find the fastest engine, precision and batch size on this machine, or show the last result.

    Each candidate runs on real frames in its own process and is compared with torch in fp32: one that crashes, hangs
    or finds different objects is not used. The trial takes up to 25 s on an idle machine.
    """
    from streamdet.detector.choice import choose
    from streamdet.detector.state import Store
    from streamdet.detector.trial import Trial
    from streamdet.security.files import state_folder

    config = _config(config_path, {"weights": weights, "model": model, "device": device})
    _check(config)
    store = Store(state_folder())
    with Trial(config, store, again=again) as trial:
        was_known = trial.is_known
        report = trial.report()
    if report is None:
        msg = "the engines cannot be tried here; the line before this one says why"
        raise DetectorError(msg)
    choice = choose(config, report)
    if as_json:
        click.echo(json.dumps(_facts(report, choice, was_known=was_known, store=store), indent=2))
    else:
        _print(report, choice, config, was_known=was_known, store=store)
    if not choice.is_proven:
        click.echo("streamdet: no engine passed its trial", err=True)
        sys.exit(EXIT_FAILURE)


def _config(path: Path | None, options: dict[str, str | None]) -> DetectorConfig:
    given = {key: value for key, value in options.items() if value is not None}
    base: dict[str, Any] = {} if path is None else load_config(path).detector.model_dump()
    if "weights" in given:
        base.pop("model", None)
    try:
        return DetectorConfig.model_validate(base | given)
    except ValidationError as error:
        raise ConfigError(explain_options(error)) from None


def _check(config: DetectorConfig) -> None:
    """Reports a missing device or missing weights as the daemon would."""
    from streamdet.detector.device import choose_devices
    from streamdet.detector.weights import load_weights

    choose_devices(config.device)
    load_weights(config)


def _facts(report: Report, choice: Choice, *, was_known: bool, store: Store) -> dict[str, Any]:
    from streamdet.detector.choice import verdict

    taken = {**choice.candidate.model_dump(), "max_batch_size": choice.max_batch_size, "workers": choice.workers}
    return {
        "choice": {**taken, "proven": choice.is_proven},
        "known_before": was_known,
        "kept_in": str(store.path) if store.is_written else None,
        **report.model_dump(mode="json"),
        "results": [
            {**result.model_dump(mode="json"), "verdict": verdict(result, choice)} for result in report.results
        ],
    }


def _print(report: Report, choice: Choice, config: DetectorConfig, *, was_known: bool, store: Store) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from streamdet.detector.choice import BATCHES, verdict
    from streamdet.detector.load import choose_workers
    from streamdet.detector.trial import usable_cores

    console = Console()
    workers = sorted({t.workers for result in report.results for t in result.timings})
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("engine", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for batch in BATCHES:
        table.add_column(f"ms b{batch}", justify="right", no_wrap=True)
    for count in workers:
        table.add_column(f"fps w{count}", justify="right", no_wrap=True)
    for result in report.results:
        most = max(workers, default=1)
        table.add_row(
            result.candidate.name,
            verdict(result, choice),
            *(_milliseconds(result, batch, most) for batch in BATCHES),
            *(_fps(result, count) for count in workers),
            style="bold" if verdict(result, choice) == "fastest" else None,
        )
    console.print(table)
    console.print("ms: per frame, by batch size (b), all workers busy; fps: frames per second, by workers (w)")
    for result in report.results:
        failed = ", ".join(f"{width}x{height}" for height, width in result.failed_sizes)
        later = f"failed later with frames of {failed}" if failed else ""
        text = "; ".join(dict.fromkeys(filter(None, [result.reason, result.difference, later])))
        if text:
            console.print(f"{result.candidate.name}: {text}", markup=False, highlight=False, soft_wrap=True)
    count = config.workers or choice.workers or choose_workers(None, usable_cores())
    text = f"{choice.candidate.name}, batches of up to {choice.max_batch_size}, up to {count} at a time"
    console.print(f"runs by default on {report.device}: {text}", markup=False, soft_wrap=True)
    if any(t.is_disturbed for result in report.results for t in result.timings):
        console.print("other processes were busy: speeds are those of the CPU time", soft_wrap=True)
    if report.doubtful:
        names = ", ".join(candidate.name for candidate in report.doubtful)
        console.print(f"tried again at a later start, when this machine may be less busy: {names}", soft_wrap=True)
    how = "known since an earlier trial (--again repeats it)" if was_known else f"tried in {report.seconds:.0f} s"
    where = f"kept in {store.path}" if store.is_written else "not kept: there is no state directory to write to"
    console.print(f"{how}; {where}", markup=False, soft_wrap=True)


def _milliseconds(result: Result, batch: int, workers: int) -> str:
    """Of a frame, with all workers."""
    timing = next((t for t in result.timings if (t.batch, t.workers) == (batch, workers)), None)
    return "" if timing is None else f"{1000 / timing.frames_per_second:.1f}"


def _fps(result: Result, workers: int) -> str:
    """The best of all batch sizes."""
    fps = max((t.frames_per_second for t in result.timings if t.workers == workers), default=0.0)
    return f"{fps:.1f}" if fps else ""
