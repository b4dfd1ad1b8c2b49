"""`streamdet train`: trains or fine-tunes a detector, or resumes a run."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from streamdet.assets import embedded_weights
from streamdet.cli.categories import category_names
from streamdet.cli.numbers import Number
from streamdet.config.models import Model
from streamdet.errors import ConfigError, DataError
from streamdet.security.plain_text import plain_lines

if TYPE_CHECKING:
    from streamdet.training.dataset import Dataset
    from streamdet.training.processes import Group
    from streamdet.training.run import RunFolder, TrainConfig
    from streamdet.training.train import Run

# Of an input in pixels; what weights files may ask for (`streamdet.detector.weights.SIZE_BOUNDS`, which needs torch).
_INPUT_SIDE = click.IntRange(32, 4096)
_MANY = 7  # names of categories are too many for a line
_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_ARCHITECTURES = ("fasterrcnn_mobilenet_v2_fpn", *get_args(Model))


@dataclass(frozen=True)
class _Job:
    """Everything that a process of the group needs."""

    out: Path
    config: TrainConfig
    train: Dataset
    val: Dataset
    initial: Path | None
    resume: bool
    device: str

    def run(self, group: Group) -> Run:
        from streamdet.training.train import Run

        return Run(
            self.out, self.config, self.train, self.val,
            initial=self.initial, resume=self.resume, device=self.device, group=group,
        )  # fmt: skip


def _follow(job: _Job, group: Group) -> None:
    from streamdet.training.train import Listener

    job.run(group).train(Listener())


@click.command(
    epilog="""\b
Examples:
  streamdet train --data train.json --val val.json --images pictures --init embedded --out runs/y
  streamdet train --data train.json --val val.json --images pictures --out runs/y --resume
  streamdet train --data train.json --val val.json --images pictures --out runs/big \\
      --model fasterrcnn_resnet50_fpn --init fasterrcnn_resnet50_fpn_coco.pth \\
      --categories person,car"""
)
@click.option("--data", type=_FILE, required=True, help="Train on these annotations (COCO format).")
@click.option("--val", type=_FILE, required=True, help="Evaluate on these annotations after each epoch.")
@click.option("--images", type=_FOLDER, required=True, help="Look for pictures in this folder.")
@click.option("--val-images", type=_FOLDER, help="Look for the pictures of --val here, if not in --images.")
@click.option("--out", type=_FOLDER, required=True, help="Keep the run in this folder, which is created.")
@click.option("--resume", is_flag=True, help="Resume the run in --out where it stopped or was killed.")
@click.option(
    "--model",
    type=click.Choice(_ARCHITECTURES),
    metavar="NAME",
    help=f"Train this architecture: {', '.join(_ARCHITECTURES)}. Default: that of --init, else the embedded one.",
)
@click.option("--init", "initial", metavar="FILE", help="Start from these weights: embedded, .safetensors or .pth.")
@click.option("--categories", metavar="A,B,C", help="Train only these, in this order.")
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True, help="Train for this many epochs.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Use this many pictures per step."
)
@click.option("--learning-rate", type=Number(0, min_open=True), default=4e-4,
              show_default=True, help="Set AdamW's learning rate at its peak.")  # fmt: skip
@click.option("--image-size", type=click.IntRange(64), multiple=True, help="Set the side of the training canvas in "
              "pixels; several vary it from batch to batch. Default: from the model's input size.")  # fmt: skip
@click.option(
    "--min-size", type=_INPUT_SIDE, help="Set the shorter side of the input in pixels, for evaluation and use."
)
@click.option("--max-size", type=_INPUT_SIDE, help="Limit the longer side of the input, in pixels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed everything random.")
@click.option("--checkpoint-steps", type=click.IntRange(1), default=100, show_default=True,
              help="Save a checkpoint every N steps.")  # fmt: skip
@click.option("--evaluate-every", type=click.IntRange(1), default=1, show_default=True,
              metavar="EPOCHS", help="Evaluate every N epochs, and after the last one.")  # fmt: skip
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Train on this device.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="Train in this many processes. Default: one per core on a CPU, one on CUDA.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out broken pictures and boxes.")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - click passes them by name
    """Train or fine-tune a detector on pictures in COCO format.

    A run lives in --out: results.csv and curves.png grow epoch by epoch, predictions.png shows validation
    pictures, best.safetensors is what `weights` in the configuration of the daemon may name.
    """
    from streamdet.training.run import RunFolder

    folder = RunFolder(options["out"])
    folder.open(resume=options["resume"])
    with folder.locked():
        _train(context, folder, options)


def _train(context: click.Context, folder: RunFolder, options: dict[str, Any]) -> None:
    from streamdet.training.processes import group_of
    from streamdet.training.progress import TrainingProgress
    from streamdet.training.train import RunStoppedError

    resume: bool = options["resume"]
    initial = _initial(options["initial"])
    given = {name: value for name, value in options.items() if _is_given(context, name)}
    saved = folder.read_config() if resume else None
    config = _changed(saved[0], given) if saved else _new_config(options, initial)
    names = category_names(options["categories"]) or (saved[1] if saved else None)
    device = _device(options["device"])
    processes = _processes(options["processes"], device, config.batch_size)
    train, val = _load(options, names)
    job = _Job(folder.path, config, train, val, initial, resume, device)
    with group_of(processes, partial(_follow, job)) as group:
        run = job.run(group)
        with _stopping_on_interrupt(run), TrainingProgress(run, processes) as progress:
            try:
                run.train(progress)
            except RunStoppedError as stopped:
                msg = f"{stopped}; to go on: {_command_to_resume(options)}"
                raise RunStoppedError(msg) from None


@contextmanager
def _stopping_on_interrupt(run: Run) -> Iterator[None]:
    """Stops after the current step at Ctrl-C; a second Ctrl-C stops at once."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        run.stop()
        click.echo("\nstopping after this step or evaluation; Ctrl-C again stops at once and loses it", err=True)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _command_to_resume(options: dict[str, Any]) -> str:
    """The command that resumes the run; its other settings are in its folder."""
    names = ("data", "val", "images", "val_images", "out", "processes")
    given = [(f"--{name.replace('_', '-')}", str(options[name])) for name in names if options[name] is not None]
    skip_bad = ["--skip-bad"] if options["skip_bad"] else []
    return shlex.join(["streamdet", "train", *(part for pair in given for part in pair), *skip_bad, "--resume"])


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)


def _initial(name: str | None) -> Path | None:
    if name is None:
        return None
    path = embedded_weights() if name == "embedded" else Path(name)
    if not path.is_file():
        raise ConfigError([f"--init: there is no file {path}"])
    return path


def _new_config(options: dict[str, Any], initial: Path | None) -> TrainConfig:
    """The configuration of a new run: from the options and the model."""
    from streamdet.detector.weights import load_weights_file
    from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE, outline_model
    from streamdet.training.pictures import AugmentConfig
    from streamdet.training.run import TrainConfig, canvas_sizes, frozen_stages, is_own_format

    model, min_size, max_size = options["model"], options["min_size"], options["max_size"]
    if initial and is_own_format(initial):
        weights = load_weights_file(initial)
        model = model or weights.architecture
        if model == weights.architecture:
            min_size, max_size = min_size or weights.min_size, max_size or weights.max_size
    model = model or EMBEDDED_ARCHITECTURE
    transform: Any = outline_model(model, 2).transform
    shorter, longer = min_size or transform.min_size[0], max_size or transform.max_size
    if shorter > longer:
        raise ConfigError([f"--min-size {shorter} is more than --max-size {longer}"])
    return TrainConfig(
        model=model,
        epochs=options["epochs"],
        batch_size=options["batch_size"],
        learning_rate=options["learning_rate"],
        frozen_stages=frozen_stages(model, initialised=initial is not None),
        seed=options["seed"],
        checkpoint_steps=options["checkpoint_steps"],
        evaluate_every=options["evaluate_every"],
        min_size=min_size,
        max_size=max_size,
        augment=AugmentConfig(options["image_size"] or canvas_sizes(shorter)),
    )


def _changed(saved: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The configuration of a resumed run, with the options given this time; `Run` refuses differences."""
    names = (
        "model", "epochs", "batch_size", "learning_rate", "seed", "checkpoint_steps", "evaluate_every", "min_size",
        "max_size",
    )  # fmt: skip
    config = replace(saved, **{name: given[name] for name in names if name in given})
    if "image_size" in given:
        config = replace(config, augment=replace(config.augment, sizes=given["image_size"]))
    return config


def _device(name: str) -> str:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(["--device cuda: there is no CUDA device here; --device auto takes any device"])
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _processes(asked: int | None, device: str, batch_size: int) -> int:
    """How many processes share a batch: as given, else as many as the machine can use."""
    if asked is None:
        cores = len(os.sched_getaffinity(0)) if device == "cpu" else 1
        return max(n for n in range(1, cores + 1) if batch_size % n == 0)
    if device == "cuda" and asked > 1:
        raise ConfigError([f"--processes {asked}: on CUDA one process trains"])
    if batch_size % asked:
        raise ConfigError([f"--processes {asked}: a batch of {batch_size} cannot be shared evenly"])
    return asked


def _load(options: dict[str, Any], names: list[str] | None) -> tuple[Dataset, Dataset]:
    """Both data sets; the validation set has the categories of the training set, in the same order."""
    from streamdet.training.dataset import load_dataset
    from streamdet.training.progress import checking_pictures

    with checking_pictures(options["data"]) as on_progress:
        train, left_out = load_dataset(
            options["data"], options["images"], names, skip_bad=options["skip_bad"], on_progress=on_progress
        )
    names = [category.name for category in train.categories]
    if not any(len(sample.boxes) for sample in train.samples):
        what = f"of {', '.join(names)}" if len(names) < _MANY else f"of its {len(names)} categories"
        msg = f"{options['data']} has no box {what}: there is nothing to learn"
        raise DataError(msg)
    with checking_pictures(options["val"]) as on_progress:
        val, left_out_val = load_dataset(
            options["val"], options["val_images"] or options["images"], names,
            skip_bad=options["skip_bad"], on_progress=on_progress,
        )  # fmt: skip
    for path, problems in ((options["data"], left_out), (options["val"], left_out_val)):
        for line in problems.notes:
            click.echo(plain_lines(f"{path}: {line}"), err=True)
        for line in problems.lines():
            click.echo(plain_lines(f"left out of {path}: {line}"), err=True)
    return train, val
