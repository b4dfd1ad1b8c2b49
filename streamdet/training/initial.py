"""Where a run's first weights come from."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from streamdet.detector.weights import load_weights_file
from streamdet.detector.weights.state_dict import as_float32, is_plain, read_state_dict
from streamdet.errors import DataError, DetectorError

_HEAD = "roi_heads.box_predictor."


@dataclass(frozen=True)
class Initial:
    """Which tensors of a model were taken from a file.

    Attributes:
        path: the file.
        taken: names of the tensors taken.
        total: number of the model's tensors.
        new_head: whether the classifier starts from nothing, because its classes are others.
        known: the classes of the file, without the background, where it says which it has.
        wanted: the classes of the model, without the background.
    """

    path: Path
    taken: tuple[str, ...]
    total: int
    new_head: bool
    known: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = "; the classes differ, so the classifier starts from nothing" if self.new_head else ""
        if head and self.known and set(self.known) <= set(self.wanted):
            head += f" (--categories {shlex.quote(','.join(self.known))} would keep it)"
        return f"{len(self.taken)} of {self.total} tensors taken from {self.path}{head}"


def is_own_format(path: Path) -> bool:
    """Whether a file is one of ours, with a description of its model and classes."""
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
        and (same_classes or not name.startswith(_HEAD))
    }
    try:
        fitting = as_float32(path, fitting)
    except DetectorError as error:
        raise DataError(str(error)) from None
    if not fitting:
        msg = f"no tensor of {path} fits the model"
        raise DataError(msg)
    model.load_state_dict(fitting, strict=False)
    has_head = any(name.startswith(_HEAD) for name in given)
    new_head = has_head and not any(name.startswith(_HEAD) for name in fitting)
    return Initial(path, tuple(fitting), len(own), new_head, tuple(known), tuple(labels))


def _tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the detector's names, and the names of their classes where the file says them."""
    if is_own_format(path):
        weights = load_weights_file(path)
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
