"""The training loop: batches in, weights out, with a checkpoint, an evaluation and the running mean of the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

from streamdet.detector.device import device_errors
from streamdet.detector.graph.choose import fast_parts
from streamdet.detector.pipeline import FasterRcnnDetector
from streamdet.detector.weights import Weights, weights_to_bytes
from streamdet.detector.weights.architectures import build_model
from streamdet.errors import EXIT_INTERRUPTED, ConfigError, DataError, DetectorError, StreamdetError
from streamdet.training import run as run_folder
from streamdet.training.bf16 import bf16_pays
from streamdet.training.dataset import Category, Dataset
from streamdet.training.evaluate import Found, detect_all, evaluation_config
from streamdet.training.losses import Targets, detection_losses
from streamdet.training.metrics import Metrics, coco_metrics
from streamdet.training.pictures import Batch, TrainingPictures, feed
from streamdet.training.plots import curves_png, predictions_png
from streamdet.training.processes import Group
from streamdet.training.run import (
    EpochResult,
    Initial,
    RunFolder,
    TrainConfig,
    best_of,
    frozen_norms_in,
    learning_rate_at,
    load_checkpoint,
    load_initial,
    parameter_groups,
    save_checkpoint,
)

_AVERAGE_WARM_UP_STEPS = 20
LOSS_NAMES = ("objectness", "rpn_box", "classifier", "box")
_MAX_GRADIENT_NORM = 10.0


class Listener:
    """Receives the progress of a run; the default ignores it."""

    def on_step(self, step: int, total_steps: int, losses: dict[str, float], images_per_second: float) -> None:
        """A step is done; `step` counts from 1."""

    def on_evaluation(self, done: int, total: int) -> None:
        """Reports how many of the validation pictures are evaluated."""

    def on_epoch(self, results: list[EpochResult], metrics: Metrics | None, run: Run) -> None:
        """An epoch is done; its metrics, if it was evaluated."""


class RunStoppedError(StreamdetError):
    """A run was stopped before its last step; a checkpoint of its last step is there."""

    exit_code = EXIT_INTERRUPTED


class Run:
    """One training run in its folder.

    Args:
        directory: RUN; created when missing.
        config: what to do.
        train: pictures to learn from.
        val: pictures to evaluate on after each epoch.
        initial: file to start from; the weights are random when None.
        resume: go on from RUN/last.pt.
        device: where to compute.
        group: the processes that train together; each computes its share of every batch.

    Attributes:
        initial: what was taken from the file to start from.
        step: number of steps done.
        results: of the epochs done.

    Raises:
        ConfigError: the folder holds another run, or the configuration is impossible.
        DataError: the checkpoint is damaged or was trained on other data.
    """

    def __init__(
        self, directory: Path, config: TrainConfig, train: Dataset, val: Dataset, *,
        initial: Path | None = None, resume: bool = False, device: str = "cpu", group: Group | None = None,
    ) -> None:  # fmt: skip
        self.directory = directory
        self.config = config
        self.train_set, self.val_set = train, val
        self.device = torch.device(device)
        self._group = group or Group()
        if config.batch_size % self._group.size:
            msg = f"a batch of {config.batch_size} cannot be shared by {self._group.size} processes"
            raise ConfigError([msg])
        self._folder = RunFolder(directory)
        self._leads = self._group.rank == 0
        if self._leads:
            self._folder.open(resume=resume)
        if resume:
            self._folder.check_same(config)
        self.step = 0
        self.results: list[EpochResult] = []
        self._stop_requested = False
        self._sums = dict.fromkeys(LOSS_NAMES, 0.0)
        self._seconds = 0.0
        self._build_model(None if resume else initial)
        if resume:
            self._restore(load_checkpoint(directory / run_folder.CHECKPOINT))
        elif self._leads:
            self._save()
        if self._leads:
            self._folder.write_config(config, [c.name for c in train.categories])

    def _build_model(self, initial: Path | None) -> None:
        torch.manual_seed(self.config.seed)
        self.model = build_model(self.config.model, len(self.train_set.categories) + 1)
        self.initial: Initial | None = None
        if initial:
            self.initial = load_initial(self.model, initial, [c.name for c in self.train_set.categories])
        self._frozen_norms = frozen_norms_in(self.model, self.initial.taken) if self.initial else []
        for stage in list(self.model.backbone.body.children())[: self.config.frozen_stages]:
            stage.requires_grad_(requires_grad=False)
        fuse_frozen_norms(self.model)
        self.model.to(device=self.device, memory_format=torch.channels_last)
        self._batch_norm_statistics = [
            b for m in self.model.modules() if isinstance(m, torch.nn.BatchNorm2d) for b in m.buffers()
        ]
        groups = parameter_groups(self.model, self.config.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, self.config.learning_rate)
        self._average = WeightAverage(self.model, self.config.ema_decay)
        # Plain torch's and torchvision's are the faster ones on a CPU, the kernels on a GPU.
        self._suppress = fast_parts(self.device).suppress if self.device.type == "cuda" else None

    @property
    def steps_per_epoch(self) -> int:
        """Steps until each photograph has led a picture once."""
        return max(len(self.train_set.samples) // self.config.batch_size, 1)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    def train(self, listener: Listener | None = None) -> list[EpochResult]:
        """Trains to the end; results of all epochs, those before a resume included.

        Where the run starts from weights that know the classes, epoch 0 is what these find: a run that makes them worse
        shows.

        Raises:
            RunStoppedError: `stop` was called.
            StreamdetError: the loss is not finite, memory runs out, the folder takes no file, a picture has become
                unreadable, or another process ended.
        """
        try:
            with device_errors():
                self._train(listener or Listener())
        except MemoryError as error:
            msg = f"not enough memory on {self.device} ({error}); try a smaller --batch-size or --image-size"
            raise DetectorError(msg) from None
        return self.results

    def _train(self, listener: Listener) -> None:
        if self._leads and self.initial and not self.initial.new_head and not self.results:
            self._evaluate_start(listener)
        with closing(self._batches()) as batches:
            began = time.perf_counter()
            for pictures, targets in batches:
                losses = self._train_step(pictures, targets)
                took = time.perf_counter() - began
                self._seconds += took
                for name in LOSS_NAMES:
                    self._sums[name] += losses[name]
                self.step += 1
                if self._leads:
                    listener.on_step(self.step, self.total_steps, losses, self.config.batch_size / took)
                    self._save_when_due(listener)
                    if self._stop_requested and self.step < self.total_steps:
                        self._save()
                        msg = f"stopped after step {self.step} of {self.total_steps}"
                        raise RunStoppedError(msg)
                began = time.perf_counter()

    def stop(self) -> None:
        """Requests a stop after the current step, or after the evaluation; from a signal handler."""
        self._stop_requested = True

    def _evaluate_start(self, listener: Listener) -> None:
        found, metrics = self._evaluate(self.weights(), listener)
        self.results.append(EpochResult(
            epoch=0, step=0, loss=None, **dict.fromkeys(LOSS_NAMES), map=metrics.numbers["map"],
            map_50=metrics.numbers["map_50"], learning_rate=None, images_per_second=None, seconds=0.0,
        ))  # fmt: skip
        self._write_results(found)
        self._save()
        listener.on_epoch(self.results, metrics, self)

    def _evaluate(self, weights: Weights, listener: Listener) -> tuple[Found, Metrics]:
        detector = FasterRcnnDetector(weights, evaluation_config(device=str(self.device)))
        found = detect_all(detector, self.val_set, listener.on_evaluation)
        return found, coco_metrics(self.val_set, found.detections)

    def _save_when_due(self, listener: Listener) -> None:
        epoch_ended = self.step % self.steps_per_epoch == 0
        if epoch_ended:
            metrics = self._finish_epoch(listener)
            listener.on_epoch(self.results, metrics, self)
        if epoch_ended or self.step % self.config.checkpoint_steps == 0:
            self._save()

    def weights(self) -> Weights:
        """The averaged weights in the form that the detector loads, in half precision."""
        categories = [Category(0, "__background__"), *self.train_set.categories]
        transform: Any = self.model.transform
        return Weights(
            architecture=self.config.model,
            state={n: t.cpu().half() if t.is_floating_point() else t.cpu() for n, t in self._average.tensors.items()},
            labels=tuple(c.name for c in categories),
            category_ids=tuple(c.id for c in categories),
            min_size=self.config.min_size or transform.min_size[0],
            max_size=self.config.max_size or transform.max_size,
        )

    def _batches(self) -> Generator[Batch, None, None]:
        """This process's share of every batch that is left."""
        size = self.config.batch_size
        pictures = TrainingPictures(self.train_set, self.config.augment, size, self.config.seed)
        share = size // self._group.size
        offset = self._group.rank * share
        firsts = (step * size + offset for step in range(self.step, self.total_steps))
        return feed(pictures, [range(first, first + share) for first in firsts], self.device)

    def _train_step(self, pictures: Tensor, targets: Targets) -> dict[str, float]:
        # Samplers draw from the global generator: seeded by step, a resumed run draws the same.
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 1009 + self._group.rank)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.total_steps, self.config)
        self.model.train()
        for name in self._frozen_norms:
            self.model.get_submodule(name).eval()
        images = _normalised(self.model, pictures.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16_pays(self.device)):
            losses = detection_losses(self.model, images, targets.to(self.device), self._suppress)
        parts = torch.stack([losses[name] for name in LOSS_NAMES])
        values: list[float] = parts.detach().tolist()
        if not math.isfinite(sum(values)):
            msg = f"the loss is {sum(values)} at step {self.step + 1}; try a lower --learning-rate"
            raise StreamdetError(msg)
        self._optimizer.zero_grad(set_to_none=True)
        parts.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._group.average_gradients(self.model.parameters())
        self._group.share(self._batch_norm_statistics)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._average.update(self.model, self.step)
        return dict(zip(LOSS_NAMES, values, strict=True))

    def _finish_epoch(self, listener: Listener) -> Metrics | None:
        epoch = self.step // self.steps_per_epoch
        weights, found, metrics = self.weights(), None, None
        if self.config.evaluates(epoch):
            found, metrics = self._evaluate(weights, listener)
        means = {name: total / self.steps_per_epoch for name, total in self._sums.items()}
        self.results.append(EpochResult(
            epoch=epoch, step=self.step, loss=sum(means.values()), **means,
            map=metrics.numbers["map"] if metrics else None, map_50=metrics.numbers["map_50"] if metrics else None,
            learning_rate=learning_rate_at(self.step - 1, self.total_steps, self.config),
            images_per_second=self.steps_per_epoch * self.config.batch_size / max(self._seconds, 1e-9),
            seconds=self._seconds,
        ))  # fmt: skip
        self._sums = dict.fromkeys(LOSS_NAMES, 0.0)
        self._seconds = 0.0
        self._write_epoch(weights, found)
        return metrics

    def _write_epoch(self, weights: Weights, found: Found | None) -> None:
        data = weights_to_bytes(weights)
        self._folder.write(run_folder.LAST, data)
        if found and best_of(self.results) is self.results[-1]:
            self._folder.write(run_folder.BEST, data)
        self._write_results(found)

    def _write_results(self, found: Found | None) -> None:
        self._folder.write_results(self.results)
        self._folder.write(run_folder.CURVES, curves_png(self.results))
        if found:
            self._folder.write(run_folder.PREDICTIONS, predictions_png(self.val_set, found.detections))

    def _save(self) -> None:
        save_checkpoint(self.directory / run_folder.CHECKPOINT, {
            "model": self.model.state_dict(),
            "average": self._average.tensors,
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "sums": self._sums,
            "seconds": self._seconds,
            "results": [asdict(r) for r in self.results],
            "categories": [asdict(c) for c in self.train_set.categories],
            "frozen_norms": self._frozen_norms,
            "train_images": len(self.train_set.samples),
            "config": run_folder.config_to_json(self.config, [c.name for c in self.train_set.categories]),
        })  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        path = self.directory / run_folder.CHECKPOINT
        if "optimizer" not in state or "categories" not in state:
            msg = f"{path} is not a checkpoint of a training run"
            raise DataError(msg)
        before, now = [c["name"] for c in state["categories"]], [c.name for c in self.train_set.categories]
        if before != now:
            msg = f"{path} was trained on other categories: {', '.join(before)}; now they are {', '.join(now)}"
            raise ConfigError([msg])
        images = len(self.train_set.samples)
        if state.get("train_images", images) != images:
            msg = f"{path} was trained on {state['train_images']} pictures, now there are {images}"
            raise ConfigError([msg])
        try:
            self.model.load_state_dict(state["model"])
            self._average.tensors = {n: t.to(self.device) for n, t in state["average"].items()}
            self._optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            what = str(error).partition("\n")[0]
            msg = f"{path} does not fit {self.config.model}; repeat the options with which the run began ({what})"
            raise ConfigError([msg]) from None
        self._frozen_norms = state.get("frozen_norms", [])
        self.step = state["step"]
        self._sums, self._seconds = state["sums"], state["seconds"]
        self.results = [EpochResult(**r) for r in state["results"]]


def _normalised(model: FasterRCNN, pictures: Tensor) -> Tensor:
    """The model's input, float32 [B, 3, S, S], from uint8 pictures of the same shape."""
    transform: Any = model.transform
    mean, std = (
        torch.tensor(v, device=pictures.device)[:, None, None] for v in (transform.image_mean, transform.image_std)
    )
    return ((pictures.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


class WeightAverage:
    """Exponential moving average of a model's state (Tarvainen and Valpola 2017, arXiv:1703.01780).

    Attributes:
        tensors: the mean of each tensor of the state dict; counters are the latest.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.tensors: dict[str, Tensor] = {name: t.detach().clone() for name, t in model.state_dict().items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes the state after step number `step`, from 0."""
        # A short memory at first, so that the random start is forgotten.
        decay = min(self._decay, (1 + step) / (_AVERAGE_WARM_UP_STEPS + step))
        state = model.state_dict()
        numbers = [name for name, tensor in state.items() if tensor.is_floating_point()]
        # One launch on a GPU instead of one for each tensor.
        torch._foreach_lerp_([self.tensors[n] for n in numbers], [state[n] for n in numbers], 1 - decay)
        for name in state.keys() - set(numbers):
            self.tensors[name].copy_(state[name])


def fuse_frozen_norms(model: nn.Module) -> nn.Module:
    """Computes each convolution together with the FrozenBatchNorm2d that follows it in its Sequential.

    Parameters, their names and the results stay as they were.
    """
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for convolution, norm in pairwise(module):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d):
                convolution.forward = partial(_scaled_convolution, convolution, norm)  # type: ignore[method-assign]
                norm.forward = nn.Identity().forward
    return model


def _scaled_convolution(convolution: nn.Conv2d, norm: FrozenBatchNorm2d, x: Tensor) -> Tensor:
    """Convolution and frozen normalisation in one go: the scale goes into the weights.

    The weights are small and the maps are large, so scaling the weights again in every step costs
    next to nothing, and gradients reach the unscaled weights exactly as before.
    """
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    weight = convolution.weight * scale[:, None, None, None]
    return functional.conv2d(
        x, weight, shift, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    )
