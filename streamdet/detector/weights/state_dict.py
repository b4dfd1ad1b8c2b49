"""Reads state dicts, and checks names, shapes and numbers of any state dict against its architecture.

Files are not trusted: shapes are checked before memory for them is allocated, and every error is one line.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor

from streamdet.detector.weights.architectures import ARCHITECTURES, outline_model
from streamdet.errors import DetectorError

_CLASSES_KEY = "roi_heads.box_predictor.cls_score.weight"
# Counted by nn.BatchNorm2d, unknown to FrozenBatchNorm2d, used by neither after training.
_UNUSED_SUFFIX = ".num_batches_tracked"
_SHOWN_KEYS = 2
_SHOWN_CHARACTERS = 80
MAX_CLASSES = 10_000
"""Of the classifier, with the background; the largest public data sets have some 1,200."""
_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_INTEGERS = {torch.int64, torch.int32}
_ZIP_START = b"PK"

Shapes = Mapping[str, tuple[int, ...]]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a file that `torch.save(model.state_dict(), path)` made; code in the file is never run.

    The tensors are as they lie in the file, of whatever type, and may claim more values than the file has
    (`expand`): copy none before `check_state` has passed.

    Raises:
        DetectorError: the file is damaged, holds something else, or would run code.
    """
    check_unpacked_size(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        msg = f"{path} contains more than tensors (code, or a whole model); save the state_dict() alone"
        raise DetectorError(msg) from None
    except Exception as error:  # noqa: BLE001 - torch documents no set: zip, pickle and memory all have their own
        msg = f"{path} cannot be read as a .pth file: {_first_line(error)}"
        raise DetectorError(msg) from None
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        msg = f"{path} contains no state dict; save model.state_dict() alone"
        raise DetectorError(msg)
    return {str(name): tensor for name, tensor in content.items()}


def check_unpacked_size(path: Path) -> None:
    """Refuses an archive that would fill the memory when it is unpacked: `torch.save` does not compress.

    Raises:
        DetectorError: it is such a one, or damaged.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP_START)) != _ZIP_START:
            return
    try:
        with ZipFile(path) as archive:
            unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # noqa: BLE001 - what zipfile raises for what is broken is of a dozen types
        # torch reads some archives that Python does not: what is in them cannot be known.
        msg = f"{path} cannot be read as a .pth file: its archive is damaged ({_first_line(error)})"
        raise DetectorError(msg) from None
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
    if not 2 <= classifier.shape[0] <= MAX_CLASSES:
        msg = f"{path} cannot be used: its classifier has {classifier.shape[0]} classes, not 2 to {MAX_CLASSES}"
        raise DetectorError(msg)
    return classifier.shape[0]


def check_state(path: Path, architecture: str, num_classes: int, state: Mapping[str, Tensor]) -> None:
    """Compares names, shapes and types with those of the architecture, before anything is built or copied.

    Raises:
        DetectorError: something is missing, left over, of another shape, or no plain numbers.
    """
    check_shapes(path, architecture, num_classes, {name: tuple(t.shape) for name, t in state.items()})
    odd = [f"{_shown(name)} ({what})" for name, tensor in state.items() if (what := _oddity(name, tensor))]
    if odd:
        msg = f"{path} cannot be used: {_some('no plain numbers', odd)}; save model.float().state_dict()"
        raise DetectorError(msg)


def check_shapes(path: Path, architecture: str, num_classes: int, shapes: Shapes) -> None:
    """Compares names and shapes with those of the architecture.

    Raises:
        DetectorError: something is missing, left over or of another shape.
    """
    wanted = {name: tuple(t.shape) for name, t in outline_model(architecture, num_classes).state_dict().items()}
    given = {name: shape for name, shape in shapes.items() if name in wanted or not _is_unused(name, shape)}
    problems = [
        _some("missing", [n for n in wanted if n not in given and not n.endswith(_UNUSED_SUFFIX)]),
        _some("not expected", [_shown(name) for name in given if name not in wanted]),
        _some(
            "of another shape",
            [
                f"{name} {_shown_shape(given[name])} instead of {list(shape)}"
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


def as_float32(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in single precision; to be called when `check_state` has passed.

    Raises:
        DetectorError: a number is infinite or none at all.
    """
    singles = {name: t.detach().float() if t.is_floating_point() else t.detach() for name, t in state.items()}
    broken = [name for name, t in singles.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        msg = (
            f"{path} cannot be used: {_some('numbers that are infinite or NaN', broken)}; "
            "its training diverged or the file is damaged: take an earlier checkpoint"
        )
        raise DetectorError(msg)
    return singles


def _is_unused(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith(_UNUSED_SUFFIX) and shape == ()


def is_plain(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is what its place in a model asks for: numbers one beside the other, of the right kind."""
    return _oddity(name, tensor) is None


def _oddity(name: str, tensor: Tensor) -> str | None:
    """Why a tensor is not what its place in a model asks for; None if it is."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return "sparse, quantised or without data"
    allowed = _INTEGERS if name.endswith(_UNUSED_SUFFIX) else _FLOATS
    return None if tensor.dtype in allowed else str(tensor.dtype).removeprefix("torch.")


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
    return f"{what}: {', '.join(names[:_SHOWN_KEYS])}{more}"


def _shown(name: str) -> str:
    """A name out of a file, fit for a line of a log."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _shown_shape(shape: tuple[int, ...]) -> str:
    return _shown(str(list(shape)))


def _first_line(error: Exception) -> str:
    if isinstance(error, LookupError):  # the number of an instruction that pickle does not have
        return "it is damaged"
    return _shown(str(error).partition("\n")[0]) or "it is damaged"
