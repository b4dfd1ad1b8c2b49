"""`streamdet evaluate`: the accuracy of a detector on annotated pictures."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from streamdet.cli.categories import category_names
from streamdet.cli.numbers import Number
from streamdet.cli.outputs import writing
from streamdet.config.models import Model
from streamdet.errors import ConfigError
from streamdet.security.files import write_atomically
from streamdet.security.plain_text import plain_lines

if TYPE_CHECKING:
    from streamdet.training.dataset import Dataset
    from streamdet.training.evaluate import Found
    from streamdet.training.metrics import Metrics

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
# Pictures and confusions show detections as a user sees them: those that are more likely right than wrong.
_SHOWN_SCORE = 0.5
_SHOWN_NAMES = 6
_MEANING = {
    "map": "mAP, IoU 0.50 to 0.95", "map_50": "mAP@.50", "map_75": "mAP@.75",
    "map_small": "mAP, small (below 32x32 px)", "map_medium": "mAP, medium", "map_large": "mAP, large (from 96x96 px)",
    "mar_1": "mean recall, 1 per picture", "mar_10": "mean recall, 10 per picture",
    "mar_100": "mean recall, 100 per picture", "mar_small": "mean recall, small",
    "mar_medium": "mean recall, medium", "mar_large": "mean recall, large",
}  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  streamdet evaluate --data val.json --images pictures
  streamdet evaluate --weights best.safetensors --data val.json --images pictures --out report
  streamdet evaluate --data val.json --images pictures --categories person,car --json
  streamdet evaluate --weights yard-int8.safetensors --data val.json --images pictures"""
)
@click.option(
    "--weights", default="embedded", show_default=True, help="Evaluate embedded, coco, a .safetensors or a .pth file."
)
@click.option(
    "--model", type=click.Choice(get_args(Model)), metavar="NAME",
    help=f"Name the architecture of coco or .pth weights: {', '.join(get_args(Model))}.",
)  # fmt: skip
@click.option("--data", type=_FILE, required=True, help="Read annotations (COCO format) from this file.")
@click.option("--images", type=_FOLDER, required=True, help="Look for pictures in this folder.")
@click.option("--categories", metavar="A,B,C", help="Evaluate only these. Default: all that the weights know.")
@click.option("--skip-bad", is_flag=True, help="Leave out broken pictures and boxes.")
@click.option("--score-threshold", type=Number(0, 1), default=0.05, show_default=True,
              help="Ignore detections below this score.")  # fmt: skip
@click.option("--engine", type=click.Choice(["auto", "torch", "openvino", "reference"]), default="auto",
              show_default=True, help="Run this engine, as in the configuration.")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "int8"]), default="auto", show_default=True,
              help="Compute in this precision, as in the configuration.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="Use auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--out", type=_FOLDER, help="Write precision_recall.png, confusion.png and predictions.png here.")
def command(  # noqa: PLR0917 - click passes them by name
    weights: str, model: str | None, data: Path, images: Path, categories: str | None, skip_bad: bool,
    score_threshold: float, engine: str, precision: str, device: str, as_json: bool, out: Path | None,
) -> None:  # fmt: skip
    """Measure a detector's accuracy on pictures in COCO format, with the pipeline that the daemon runs."""
    from rich.console import Console

    from streamdet.detector.pipeline import FasterRcnnDetector, load_detector
    from streamdet.detector.reference import ReferenceDetector
    from streamdet.detector.weights import load_weights
    from streamdet.training.dataset import load_dataset
    from streamdet.training.evaluate import detect_all, evaluation_config
    from streamdet.training.metrics import coco_metrics
    from streamdet.training.progress import bar, checking_pictures

    config = evaluation_config(
        weights=weights, model=model, device=device, score_threshold=score_threshold, engine=engine, precision=precision
    )
    names = category_names(categories)
    if out:
        with writing(out):  # find out now rather than after many pictures
            out.mkdir(parents=True, exist_ok=True)
    with checking_pictures(data) as on_progress:
        dataset, left_out = load_dataset(data, images, names, skip_bad=skip_bad, on_progress=on_progress)
    detector = ReferenceDetector(load_weights(config), config) if engine == "reference" else load_detector(config)
    if isinstance(detector, FasterRcnnDetector):
        detector.check_weights()
    for line in (*left_out.notes, *(f"left out: {line}" for line in left_out.lines())):
        click.echo(plain_lines(line), err=True)
    if names is None:
        dataset = _known_alone(dataset, detector.labels)
    elif unknown := _unknown(dataset, detector.labels):
        click.echo(f"the weights do not know {_some(unknown)}: they will not be found", err=True)
    with bar("detecting", Console(stderr=True)) as on_progress:
        found = detect_all(detector, dataset, on_progress)
    metrics = coco_metrics(dataset, found.detections)
    if as_json:
        click.echo(json.dumps(_summary(dataset, found, metrics)))
    else:
        _print_tables(dataset, found, metrics)
    if out:
        _write_pictures(out, dataset, found, metrics)
        if not as_json:
            click.echo(f"precision_recall.png, confusion.png and predictions.png are in {out}")


def _some(names: Sequence[str]) -> str:
    """All of them if there are few, else the first ones."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _unknown(dataset: Dataset, labels: Collection[str]) -> list[str]:
    return [category.name for category in dataset.categories if category.name not in labels]


def _known_alone(dataset: Dataset, labels: Collection[str]) -> Dataset:
    """The data set without categories that the detector does not know, which would make every mean meaningless."""
    unknown = _unknown(dataset, labels)
    if not unknown:
        return dataset
    known = dataset.keeping(labels)
    if not known.samples:
        msg = f"the weights know {_some(list(labels))}; the data set has {_some(unknown)}: nothing to evaluate"
        raise ConfigError([msg])
    click.echo(
        f"the weights do not know {_some(unknown)}: evaluated without them; name them in --categories to count them",
        err=True,
    )
    return known


def _summary(dataset: Dataset, found: Found, metrics: Metrics) -> dict[str, object]:
    return {
        **metrics.numbers,
        "per_class": metrics.per_class,
        "images": len(dataset.samples),
        "images_per_second": round(found.images_per_second, 3),
    }


def _write_pictures(out: Path, dataset: Dataset, found: Found, metrics: Metrics) -> None:
    from streamdet.training.metrics import confusion_matrix
    from streamdet.training.plots import confusion_png, precision_recall_png, predictions_png

    confusion = confusion_matrix(dataset, found.detections, _SHOWN_SCORE)
    pictures = {
        "precision_recall.png": precision_recall_png(metrics),
        "confusion.png": confusion_png(confusion, [c.name for c in dataset.categories], _SHOWN_SCORE),
        "predictions.png": predictions_png(dataset, found.detections, _SHOWN_SCORE),
    }
    for name, content in pictures.items():
        with writing(out / name):
            write_atomically(out / name, content, mode=None)


def _text(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _print_tables(dataset: Dataset, found: Found, metrics: Metrics) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from streamdet.training.metrics import COCO_NUMBERS

    console = Console()
    numbers = Table("all categories", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COCO_NUMBERS:
        numbers.add_row(_MEANING[name], _text(metrics.numbers[name]), style="bold" if name == "map_50" else None)
    classes = Table("category", "objects", "AP", "AP@.50", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in classes.columns[1:]:
        column.justify = "right"
    for label, category in enumerate(dataset.categories, start=1):
        count = sum(int((s.labels == label).sum()) for s in dataset.samples if s.labelled[label])
        values = metrics.per_class[category.name]
        classes.add_row(Text(category.name), str(count), _text(values["ap"]), _text(values["ap_50"]))
    console.print(numbers, classes)
    console.print(f"{len(dataset.samples)} pictures, {found.images_per_second:.1f} images/s")
