"""Reads a torchvision state dict from a .pth file, and checks any state dict against its architecture."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from streamdet.detector.models import ARCHITECTURES, build_model
from streamdet.errors import DetectorError

_CLASSES_KEY = "roi_heads.box_predictor.cls_score.weight"
# Counted by nn.BatchNorm2d, unknown to FrozenBatchNorm2d, used by neither after training.
_UNUSED_SUFFIX = ".num_batches_tracked"
_SHOWN_KEYS = 2


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a file that `torch.save(model.state_dict(), path)` made; code in the file is never run.

    Raises:
        DetectorError: the file is damaged, holds something else, or would run code.
    """
    _check_unpacked_size(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        msg = f"{path} holds more than tensors (code, or a whole model); save the state_dict() alone"
        raise DetectorError(msg) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, BadZipFile) as error:
        msg = f"{path} cannot be read as a .pth file: {str(error).partition(chr(10))[0] or 'it is damaged'}"
        raise DetectorError(msg) from None
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        msg = f"{path} holds no state dict; save model.state_dict() alone"
        raise DetectorError(msg)
    return {str(name): tensor.float() if tensor.is_floating_point() else tensor for name, tensor in content.items()}


def _check_unpacked_size(path: Path) -> None:
    """Refuses an archive that would fill the memory when it is unpacked: `torch.save` does not compress."""
    if not is_zipfile(path):
        return
    try:
        with ZipFile(path) as archive:
            unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
    except BadZipFile:
        return  # what is wrong with it is said by who reads it
    if unpacked_bytes > 2 * path.stat().st_size:
        msg = f"{path} is compressed, and would be {unpacked_bytes >> 20} MiB unpacked; save it with torch.save()"
        raise DetectorError(msg)


def count_classes(path: Path, state: Mapping[str, Tensor]) -> int:
    """Number of classes with the background, from the shape of the classifier.

    Raises:
        DetectorError: there is no classifier of a Faster R-CNN.
    """
    classifier = state.get(_CLASSES_KEY)
    if classifier is None or classifier.ndim != 2:
        msg = f"{path} is not a Faster R-CNN of torchvision's: it has no tensor {_CLASSES_KEY}"
        raise DetectorError(msg)
    return classifier.shape[0]


def check_state(path: Path, architecture: str, num_classes: int, state: Mapping[str, Tensor]) -> None:
    """Compares names and shapes with those of the architecture, before anything is built.

    Raises:
        DetectorError: something is missing, left over or of another shape.
    """
    with torch.device("meta"):
        wanted = {name: t.shape for name, t in build_model(architecture, num_classes).state_dict().items()}
    wanted = {name: shape for name, shape in wanted.items() if not name.endswith(_UNUSED_SUFFIX)}
    given = {name: t.shape for name, t in state.items() if not name.endswith(_UNUSED_SUFFIX)}
    problems = [
        _some("missing", [name for name in wanted if name not in given]),
        _some("not expected", [name for name in given if name not in wanted]),
        _some(
            "of another shape",
            [
                f"{name} {list(given[name])} instead of {list(shape)}"
                for name, shape in wanted.items()
                if name in given and given[name] != shape
            ],
        ),
    ]
    found = "; ".join(problem for problem in problems if problem)
    if found:
        others = ", ".join(name for name in ARCHITECTURES if name != architecture)
        msg = f"{path} does not fit {architecture}: {found} (is the model one of {others}?)"
        raise DetectorError(msg)


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
    return f"{what}: {', '.join(names[:_SHOWN_KEYS])}{more}"
