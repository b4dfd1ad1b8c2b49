"""Finds and checks the weights that a configuration names, with their categories."""

from __future__ import annotations

import difflib
import json
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from streamdet.assets import embedded_int8_weights, embedded_weights
from streamdet.config import DetectorConfig
from streamdet.detector.engines.openvino import FORMAT as OPENVINO_FORMAT
from streamdet.detector.engines.openvino import FORMAT_FAMILY as OPENVINO_FORMAT_FAMILY
from streamdet.detector.engines.openvino import (
    ExportedDense,
    dense_from_tensors,
    dense_to_tensors,
    is_part,
)
from streamdet.detector.weights.architectures import ARCHITECTURES, outline_model
from streamdet.detector.weights.state_dict import (
    MAX_CLASSES,
    as_float32,
    check_shapes,
    check_state,
    count_classes,
    read_state_dict,
)
from streamdet.detector.weights.torchvision import PUBLISHED, coco_labels, find_published, repair_published
from streamdet.errors import DetectorError

_FORMAT = "streamdet-weights-1"
MAX_FILE_BYTES = 1 << 30
"""The largest Faster R-CNN of torchvision's has 175 MB; what is larger is not read at all."""
SIZE_BOUNDS = (32, 4096)
"""Of the input, in pixels: the shortest and the longest side that weights may ask for."""

# A header of safetensors: 700 tensors take 80 kB.
_MAX_HEADER_BYTES = 4 << 20
MAX_LABEL_CHARACTERS = 100
_BACKGROUND, _UNUSED_LABEL = "__background__", "N/A"
RESERVED_LABELS = (_BACKGROUND, _UNUSED_LABEL)
"""Names that no class can have."""
MAX_CATEGORY_ID = 2**63 - 1


@dataclass(frozen=True)
class Weights:
    """Everything that a detector needs beside code.

    Attributes:
        architecture: a key of `weights.architectures.ARCHITECTURES`.
        state: the state dict, by torchvision's names; empty where `exported` is given.
        labels: name of each class in the order of the classifier; [0] is the background.
        category_ids: id of each class in its data set; [0] is 0.
        min_size: the input's shorter side in pixels, unless the longer one would pass `max_size`.
        max_size: the input's longer side in pixels, at most.
        exported: the dense parts for OpenVINO, of a file that `streamdet export` made.
    """

    architecture: str
    state: dict[str, Tensor]
    labels: tuple[str, ...]
    category_ids: tuple[int, ...]
    min_size: int
    max_size: int
    exported: ExportedDense | None = None


def weights_to_bytes(weights: Weights) -> bytes:
    """Serialises weights as safetensors whose metadata make the file complete in itself."""
    metadata = {
        "format": _FORMAT,
        "architecture": weights.architecture,
        "labels": json.dumps(weights.labels),
        "category_ids": json.dumps(weights.category_ids),
        "min_size": str(weights.min_size),
        "max_size": str(weights.max_size),
    }
    if weights.exported is not None:
        metadata |= {"format": OPENVINO_FORMAT, "precision": weights.exported.precision}
        return save(dense_to_tensors(weights.exported), metadata)
    return save({name: tensor.contiguous() for name, tensor in weights.state.items()}, metadata)


def make_model(weights: Weights) -> FasterRCNN:
    """Builds torchvision's model with these weights, on the CPU and for inference; it shares their memory.

    Args:
        weights: names and shapes of the state were checked when it was loaded. Where the dense parts were
            exported, the parameters that it does not name are undefined.
    """
    model = outline_model(weights.architecture, len(weights.labels), "cpu")
    model.transform.min_size, model.transform.max_size = (weights.min_size,), weights.max_size
    model.load_state_dict(weights.state, strict=False, assign=True)
    return model.eval().requires_grad_(requires_grad=False)


def load_weights(config: DetectorConfig) -> Weights:
    """Finds the weights that the configuration names, and checks that they are whole and fit their model.

    `weights` is "embedded", "coco" (torchvision's, with `model`) or a path: a file that streamdet made,
    which is complete in itself, or a state dict of torchvision's as .pth, which needs `model`.

    Raises:
        DetectorError: they cannot be found or downloaded, are damaged, or do not fit.
    """
    if config.weights == "embedded":
        return load_weights_file(embedded_weights())
    if config.weights == "coco":
        architecture = _model_of(config, PUBLISHED)
        return _load_pth(find_published(architecture), architecture)
    path = Path(config.weights).expanduser()
    _check_readable(path)
    if not _is_pth(path):
        return load_weights_file(path)
    return _load_pth(path, _model_of(config, tuple(ARCHITECTURES)))


def load_embedded_int8() -> Weights:
    """The embedded weights, quantised for OpenVINO.

    Raises:
        DetectorError: the file is missing or damaged.
    """
    return load_weights_file(embedded_int8_weights())


def load_weights_file(path: Path) -> Weights:
    """Reads a file that `weights_to_bytes` made; half-precision tensors come back as float32.

    A file of `streamdet export` has no state dict, but `exported`. The description and the shapes are checked before
    any tensor is read.

    Raises:
        DetectorError: the file is missing, damaged or of another kind, or contains NaN or infinity.
    """
    _check_readable(path)
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
            weights = _described(path, metadata)
            if not _is_export(metadata):
                check_shapes(path, weights.architecture, len(weights.labels), shapes)
            is_read = is_part if _is_export(metadata) else bool
            state = {name: file.get_tensor(name) for name in shapes if is_read(name)}
    except (OSError, SafetensorError) as error:
        msg = f"{path} is not a whole safetensors file: {str(error).partition(chr(10))[0][:200]}"
        raise DetectorError(msg) from None
    if not _is_export(metadata):
        check_state(path, weights.architecture, len(weights.labels), state)
        return replace(weights, state=as_float32(path, state))
    try:
        exported = dense_from_tensors(state, metadata.get("precision", ""))
    except ValueError as error:
        msg = f"{path} has a broken description of its model ({error}); make it again with `streamdet export`"
        raise DetectorError(msg) from None
    return replace(weights, exported=exported)


def _is_export(metadata: Mapping[str, str]) -> bool:
    return metadata.get("format") == OPENVINO_FORMAT


def _described(path: Path, metadata: Mapping[str, str]) -> Weights:
    """What the metadata say, checked; without any tensors."""
    is_export = _is_export(metadata)
    if not is_export and metadata.get("format", "").startswith(OPENVINO_FORMAT_FAMILY):
        msg = f"{path} was exported by another version of streamdet; make it again with `streamdet export`"
        raise DetectorError(msg)
    if metadata.get("format") != _FORMAT and not is_export:
        msg = f"{path} has no description of its model; make it with `streamdet train`"
        raise DetectorError(msg)
    try:
        weights = Weights(
            architecture=metadata["architecture"],
            state={},
            labels=_texts(json.loads(metadata["labels"])),
            category_ids=_ids(json.loads(metadata["category_ids"])),
            min_size=int(metadata["min_size"]),
            max_size=int(metadata["max_size"]),
        )
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        what = str(error)[:MAX_LABEL_CHARACTERS]
        command = "export" if is_export else "train"
        msg = f"{path} has a broken description of its model ({what!a}); make it again with `streamdet {command}`"
        raise DetectorError(msg) from None
    _check_description(path, weights)
    return weights


def _texts(value: object) -> tuple[str, ...]:
    """Labels out of JSON.

    Raises:
        ValueError: they are not fit for events, metrics and logs.
    """
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        msg = "the labels are not a list of strings"
        raise ValueError(msg)
    for label in value:
        if not is_label(label):
            msg = f"label {label[:20]!a}: 1 to {MAX_LABEL_CHARACTERS} printable characters are allowed"
            raise ValueError(msg)
    known = [label for label in value if label != _UNUSED_LABEL]
    if len(set(known)) < len(known):
        msg = f"label {next(label for label in known if known.count(label) > 1)!r} twice"
        raise ValueError(msg)
    return tuple(value)


def is_label(text: str) -> bool:
    """Whether a class may have this name: it is fit for events, metrics and logs."""
    return 0 < len(text) <= MAX_LABEL_CHARACTERS and text.isprintable()


def _ids(value: object) -> tuple[int, ...]:
    """Ids of categories out of JSON.

    Raises:
        ValueError: they are not ids of categories.
    """
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i <= MAX_CATEGORY_ID for i in value):
        msg = "the category ids are not a list of whole numbers from 0 to 2^63 - 1"
        raise ValueError(msg)
    return tuple(value)


def _check_readable(path: Path) -> None:
    try:
        status = path.stat()
        if path.is_dir():
            msg = f"weights must be a file, but {path} is a directory"
            raise DetectorError(msg)
        if not stat.S_ISREG(status.st_mode):
            msg = f"weights must be a file, but {path} is a pipe, socket or device"
            raise DetectorError(msg)
        with path.open("rb"):
            pass
    except FileNotFoundError:
        msg = f'there is no weights file {path}; use "embedded", "coco" or the path of a file'
        raise DetectorError(msg) from None
    except OSError as error:
        msg = f"cannot read the weights file {path}: {error.strerror}"
        raise DetectorError(msg) from None
    size = status.st_size
    if size == 0:
        msg = f"the weights file {path} is empty"
        raise DetectorError(msg)
    if size > MAX_FILE_BYTES:
        msg = f"the weights file {path} has {size >> 20} MiB; no Faster R-CNN has more than {MAX_FILE_BYTES >> 20}"
        raise DetectorError(msg)


def _check_header(path: Path) -> None:
    """Refuses a header that would take long or much memory to parse; whether it is one is left to safetensors."""
    with path.open("rb") as file:
        start = file.read(8)
    header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if header_bytes > _MAX_HEADER_BYTES:
        msg = (
            f"{path} is not a whole safetensors file: it claims {header_bytes} bytes of header, and no more than "
            f"{_MAX_HEADER_BYTES} are read; if it is a state dict of torch, call it .pth"
        )
        raise DetectorError(msg)


def _is_pth(path: Path) -> bool:
    """Whether the file was written by `torch.save`: a zip archive, or the bare pickle of old versions."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02") or path.suffix in {".pth", ".pt"}


def _model_of(config: DetectorConfig, known: tuple[str, ...]) -> str:
    """The architecture that the configuration names.

    Raises:
        DetectorError: it names none, or not one of `known`.
    """
    if config.model is None:
        msg = f"detector.model is needed with weights = {config.weights!r}; it is one of {', '.join(known)}"
        raise DetectorError(msg)
    if config.model not in known:
        near = difflib.get_close_matches(config.model, known, n=1, cutoff=0.0)[0]
        msg = f"detector.model: unknown {config.model!r}; did you mean {near!r}? Known are {', '.join(known)}"
        raise DetectorError(msg)
    return config.model


def _load_pth(path: Path, architecture: str) -> Weights:
    state = read_state_dict(path)
    classes = count_classes(path, state)
    check_state(path, architecture, classes, state)
    labels = coco_labels()
    singles = as_float32(path, state)
    if classes != len(labels):
        labels = (_BACKGROUND, *(f"class_{i}" for i in range(1, classes)))
    transform = outline_model(architecture, classes).transform
    return Weights(
        architecture=architecture,
        state=repair_published(architecture, path, singles),
        labels=labels,
        category_ids=tuple(range(classes)),
        min_size=transform.min_size[-1],
        max_size=transform.max_size,
    )


def _check_description(path: Path, weights: Weights) -> None:
    problem = None
    low, high = SIZE_BOUNDS
    if weights.architecture not in ARCHITECTURES:
        problem = f"the model {weights.architecture[:MAX_LABEL_CHARACTERS]!a} is not known to this version"
    elif not 2 <= len(weights.labels) <= MAX_CLASSES or len(weights.labels) != len(weights.category_ids):
        problem = f"{len(weights.labels)} labels and {len(weights.category_ids)} category ids"
    elif not low <= weights.min_size <= weights.max_size <= high:
        problem = f"the input size {weights.min_size} to {weights.max_size} pixels; {low} to {high} are allowed"
    if problem:
        msg = f"{path} cannot be used: {problem}"
        raise DetectorError(msg)
