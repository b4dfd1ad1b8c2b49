"""A training run as a folder: its configuration, its results, its checkpoint, and the weights it starts from."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamdet.detector.weights import load_weights_file
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE
from streamdet.detector.weights.state_dict import as_float32, check_unpacked_size, is_plain, read_state_dict
from streamdet.errors import ConfigError, DataError, DetectorError, StoreError
from streamdet.security.files import lock_directory, remove_leftovers, write_atomically
from streamdet.training.pictures import AugmentConfig

# Sides of the training canvas relative to the model's shorter side; each a multiple of the coarsest stride.
_CANVAS_FACTORS = (1.0, 1.1, 1.2, 1.3)
_STRIDE_PIXELS = 32
# First children of the backbone that keep what a good file taught them: torchvision's own choices for
# fine-tuning (three of a ResNet's five stages and three of a MobileNet's six are trained).
_FROZEN_STAGES = {
    EMBEDDED_ARCHITECTURE: 4,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 7,
    "fasterrcnn_mobilenet_v3_large_fpn": 7,
    "fasterrcnn_resnet50_fpn": 5,
    "fasterrcnn_resnet50_fpn_v2": 5,
}
CHECKPOINT = "last.pt"
CONFIG = "config.json"
RESULTS = "results.csv"
CURVES = "curves.png"
PREDICTIONS = "predictions.png"
LAST, BEST = "last.safetensors", "best.safetensors"
_OWN_FILES = (CHECKPOINT, CONFIG, RESULTS, CURVES, PREDICTIONS, LAST, BEST)
_CLASSIFIER = "roi_heads.box_predictor."


@dataclass(frozen=True)
class TrainConfig:
    """What defines a run; the same values give the same weights, bit by bit, on the same machine.

    Attributes:
        model: a key of `weights.architectures.ARCHITECTURES`.
        epochs: how often each photograph leads a training picture.
        batch_size: training pictures per step.
        learning_rate: AdamW's, at its peak.
        weight_decay: AdamW's, not for biases and normalisation.
        warm_up_steps: steps of linear growth to the peak, at most a tenth of the run; half a cosine follows.
        ema_decay: of the running mean of the weights, which is what is evaluated and saved.
        frozen_stages: first children of the backbone that stay as they are.
        seed: of everything random.
        checkpoint_steps: steps between checkpoints.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        min_size: input's shorter side in evaluation; the model's own when None.
        max_size: input's longer side in evaluation, at most; the model's own when None.
        augment: how training pictures are made.
    """

    model: str = EMBEDDED_ARCHITECTURE
    epochs: int = 12
    batch_size: int = 8
    learning_rate: float = 4e-4
    weight_decay: float = 0.05
    warm_up_steps: int = 200
    ema_decay: float = 0.998
    frozen_stages: int = 4
    seed: int = 0
    checkpoint_steps: int = 100
    evaluate_every: int = 1
    min_size: int | None = None
    max_size: int | None = None
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig((320, 352, 384, 416)))

    def evaluates(self, epoch: int) -> bool:
        """Whether this epoch, from 1, ends with an evaluation."""
        return epoch % self.evaluate_every == 0 or epoch == self.epochs

    def evaluations_after(self, epoch: int) -> int:
        """How many evaluations follow that of this epoch, from 0."""
        return sum(self.evaluates(later) for later in range(epoch + 1, self.epochs + 1))


def canvas_sizes(min_size: int) -> tuple[int, ...]:
    """Sides of training canvases for a model whose input's shorter side is `min_size` pixels."""
    sides = (max(round(min_size * f / _STRIDE_PIXELS), 2) * _STRIDE_PIXELS for f in _CANVAS_FACTORS)
    return tuple(dict.fromkeys(sides))


def frozen_stages(model: str, *, initialised: bool) -> int:
    """How many stages are frozen: none if training starts from random weights."""
    return _FROZEN_STAGES.get(model, 0) if initialised else 0


def learning_rate_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak; `step` counts from 0."""
    warm_up = min(config.warm_up_steps, total_steps // 10)
    if step < warm_up:
        return config.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(total_steps - warm_up, 1)
    return config.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay, biases and normalisation do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def frozen_norms_in(model: nn.Module, given: Iterable[str]) -> list[str]:
    """Names of the BatchNorm2d whose running statistics are among the `given` tensors.

    They saw far larger batches than a fine-tuning run has, so they keep their statistics.
    """
    names = set(given)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and f"{name}.running_mean" in names
    ]


def config_to_json(config: TrainConfig, categories: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run and the names of its categories, as plain values."""
    return {**asdict(config), "categories": list(categories)}


def config_from_json(values: dict[str, Any]) -> TrainConfig:
    """The configuration that `asdict` and JSON made of one; unknown keys are left out.

    Raises:
        TypeError: a value has another structure.
        KeyError: likewise.
    """
    augment: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["augment"].items()}
    known = {f.name: values[f.name] for f in fields(TrainConfig) if f.name in values}
    return replace(TrainConfig(**known), augment=AugmentConfig(**augment))


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """What differs between two configurations, one line each."""
    before, after = _flat(old), _flat(new)
    return [f"{name} was {before[name]}, now {after[name]}" for name in before if before[name] != after[name]]


def _flat(config: TrainConfig) -> dict[str, Any]:
    values = asdict(config)
    return {**{f"augment.{k}": v for k, v in values.pop("augment").items()}, **values}


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run.

    Attributes:
        path: the folder.
    """

    path: Path

    def open(self, *, resume: bool) -> None:
        """Makes sure that nothing is overwritten that should not be, and makes the folder.

        Raises:
            ConfigError: there is a run already and it must not be resumed, or the other way round.
        """
        if resume:
            if not (self.path / CHECKPOINT).is_file():
                msg = f"there is no run to resume in {self.path} ({CHECKPOINT} is missing); start without --resume"
                raise ConfigError([msg])
        elif there := [name for name in _OWN_FILES if (self.path / name).exists()]:
            msg = f"{self.path} already holds a run ({', '.join(there)}); go on with --resume or choose another --out"
            raise ConfigError([msg])
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._useless(error) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from the folder, which is there, for the block; clears what a killed writer left.

        Raises:
            ConfigError: another process has it, or it cannot be used.
        """
        with ExitStack() as stack:
            try:
                if (lock := self._lock()) is not None:
                    stack.callback(os.close, lock)
                remove_leftovers(self.path)
            except OSError as error:
                raise self._useless(error) from None
            yield

    def _lock(self) -> int | None:
        """The descriptor that keeps it locked; None on a file system without locks, such as some over a network."""
        try:
            return lock_directory(self.path)
        except OSError as error:
            if error.errno in {errno.EBUSY, errno.EACCES}:
                raise
            return None

    def _useless(self, error: OSError) -> ConfigError:
        return ConfigError([f"cannot use {self.path} as a folder for the run: {error.strerror}"])

    def write(self, name: str, data: bytes) -> None:
        """Writes one file, whole or not at all.

        Raises:
            StoreError: it cannot be written.
        """
        with _writing(self.path / name):
            write_atomically(self.path / name, data, mode=None)

    def write_config(self, config: TrainConfig, categories: Sequence[str]) -> None:
        """Writes the configuration of the run."""
        self.write(CONFIG, json.dumps(config_to_json(config, categories), indent=2).encode() + b"\n")

    def read_config(self) -> tuple[TrainConfig, list[str] | None] | None:
        """The configuration of the run and its categories; no categories where an old version wrote.

        The checkpoint has both, too, for a run that was killed before the file was written, or whose file is lost; None
        where an old version wrote that.

        Raises:
            DataError: the file is damaged, or it is missing and the checkpoint is damaged.
        """
        path = self.path / CONFIG
        try:
            content: dict[str, Any] | None
            if path.exists():
                content = json.loads(path.read_bytes())
            else:
                content = load_checkpoint(self.path / CHECKPOINT).get("config")
            return (config_from_json(content), content.get("categories")) if content is not None else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            msg = f"{path} is damaged ({type(error).__name__}: {error}); delete it: the checkpoint has a copy"
            raise DataError(msg) from None

    def check_same(self, config: TrainConfig) -> None:
        """Checks that a resumed run has the configuration with which it began.

        Raises:
            ConfigError: `config` differs from that of the run; every difference is named.
        """
        saved = self.read_config()
        if saved and (changed := differences(saved[0], config)):
            msg = f"{self.path} cannot be resumed with another configuration: {'; '.join(changed)}"
            raise ConfigError([msg])

    def write_results(self, results: Sequence[EpochResult]) -> None:
        """Writes results.csv, a line per epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(EpochResult)], lineterminator="\n")
        writer.writeheader()
        for result in results:
            writer.writerow({k: "" if v is None else round(v, 6) for k, v in asdict(result).items()})
        self.write(RESULTS, text.getvalue().encode())


@dataclass(frozen=True)
class EpochResult:
    """One line of the results; losses are means over the epoch, metrics those of the averaged weights.

    Epoch 0 is that of the weights that the run starts from: it has metrics alone.

    Attributes:
        map: mAP, -1 if there was nothing to count; None after an epoch that was not evaluated.
        map_50: likewise.
    """

    epoch: int
    step: int
    loss: float | None
    objectness: float | None
    rpn_box: float | None
    classifier: float | None
    box: float | None
    map: float | None
    map_50: float | None
    learning_rate: float | None
    images_per_second: float | None
    seconds: float


def best_of(results: Sequence[EpochResult]) -> EpochResult | None:
    """The first trained epoch of the highest mAP; None while none was evaluated."""
    return max((r for r in results if r.epoch and r.map is not None), key=lambda r: r.map or 0.0, default=None)


def start_of(results: Sequence[EpochResult]) -> EpochResult | None:
    """Epoch 0: the weights that the run started from; None where they could find nothing."""
    return next((r for r in results if r.epoch == 0), None)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says in one line that a file cannot be written.

    Raises:
        StoreError: it cannot.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch says of a file that takes no more only that it is shorter than it should be.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        msg = f"cannot write {path}: {cause.strerror}; what was saved before is still there, for --resume"
        raise StoreError(msg) from None


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves tensors and plain values.

    Raises:
        StoreError: the file cannot be written.
    """
    with _writing(path):
        write_atomically(path, lambda file: torch.save(state, file), mode=None)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Loads what `save_checkpoint` wrote, without executing any code from the file.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        check_unpacked_size(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        msg = f"there is no checkpoint {path}; start without --resume"
        raise DataError(msg) from None
    except Exception as error:
        # torch.load documents no set of errors for damaged files: zip, pickle and OS errors all occur.
        msg = f"{path} is not a checkpoint of streamdet: {type(error).__name__}"
        raise DataError(msg) from error
    return state


@dataclass(frozen=True)
class Initial:
    """Which tensors of a model were taken from a file.

    Attributes:
        path: the file.
        taken: names of the tensors taken.
        total: number of the model's tensors.
        new_head: whether the classifier starts from nothing.
        has_head: whether the file has one; a new one is needed for other classes then.
        known: the classes of the file, without the background, where it says which it has.
        wanted: the classes of the model, without the background.
    """

    path: Path
    taken: tuple[str, ...]
    total: int
    new_head: bool
    has_head: bool
    known: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()

    def __str__(self) -> str:
        why = "the classes differ, so " if self.has_head else ""
        head = f"; {why}the classifier starts from nothing" if self.new_head else ""
        if head and self.known and set(self.known) <= set(self.wanted):
            head += f" (--categories {shlex.quote(','.join(self.known))} would keep it)"
        return f"{len(self.taken)} of {self.total} tensors taken from {self.path}{head}"


def is_own_format(path: Path) -> bool:
    """Whether streamdet wrote the file, with a description of its model and classes."""
    return path.suffix == ".safetensors"


def load_initial(model: nn.Module, path: Path, labels: list[str]) -> Initial:
    """Starts from another file's tensors wherever name and shape agree.

    Args:
        model: gets the tensors.
        path: our .safetensors, or a state dict (.pth) of a detector, or of a classifier that is this
            detector's backbone.
        labels: names of the model's classes, without the background.

    Raises:
        DataError: not one of the tensors fits, or the .pth cannot be read.
        DetectorError: the .safetensors is missing or damaged.
    """
    given, known = _tensors(path)
    same_classes = not known or known == labels
    own = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in given.items()
        if name in own
        and is_plain(name, tensor)
        and own[name].shape == tensor.shape
        and (same_classes or not name.startswith(_CLASSIFIER))
    }
    try:
        fitting = as_float32(path, fitting)
    except DetectorError as error:
        raise DataError(str(error)) from None
    if not fitting:
        msg = f"no tensor of {path} fits the model"
        raise DataError(msg)
    model.load_state_dict(fitting, strict=False)
    has_head = any(name.startswith(_CLASSIFIER) for name in given)
    new_head = not any(name.startswith(_CLASSIFIER) for name in fitting)
    return Initial(path, tuple(fitting), len(own), new_head, has_head, tuple(known), tuple(labels))


def _tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the detector's names, and the names of their classes where the file says them."""
    if is_own_format(path):
        weights = load_weights_file(path)
        if weights.exported is not None:
            msg = f"{path} is an export, which cannot be trained; give the weights that it was made of"
            raise DataError(msg)
        return weights.state, list(weights.labels[1:])
    try:
        content = read_state_dict(path)
    except DetectorError as error:
        msg = f"{error}; to start from a run of `streamdet train`, give its best.safetensors"
        raise DataError(msg) from None
    return {
        name.replace("features.", "backbone.body.", 1) if name.startswith("features.") else name: tensor
        for name, tensor in content.items()
    }, []
