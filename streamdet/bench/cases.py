"""What is compared: models, engines, precisions, batch sizes, workers; and which of them this machine has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from streamdet.assets import embedded_weights
from streamdet.bench.calibrated import calibrated_weights
from streamdet.config import DetectorConfig
from streamdet.detector.engines import openvino_runtime
from streamdet.detector.missing import cache_folders
from streamdet.detector.weights import Weights, load_embedded_int8, load_weights, load_weights_file
from streamdet.detector.weights.architectures import ARCHITECTURES, build_model
from streamdet.detector.weights.state_dict import check_state, count_classes, read_state_dict
from streamdet.detector.weights.torchvision import PUBLISHED, coco_labels, published_weights
from streamdet.errors import DetectorError
from streamdet.training.bf16 import bf16_pays

REFERENCE = "reference"
ENGINES = (REFERENCE, "torch", "graph", "openvino")
PRECISIONS = ("fp32", "bf16", "int8")
_HAS = {"torch": ("fp32", "bf16"), "graph": ("fp32", "bf16"), "openvino": ("fp32", "bf16", "int8")}
_NOT_ON = {"cpu": "graph", "cuda": "openvino"}

# What torchvision's RPN keeps of an ordinary street picture with its published weights.
_PROPOSALS = {"fasterrcnn_mobilenet_v3_large_320_fpn": 100, "fasterrcnn_mobilenet_v3_large_fpn": 300}
_FOUND_SHARE = 0.1


@dataclass(frozen=True)
class Model:
    """What is measured.

    Attributes:
        name: what it is called in the results.
        weights: the parameters.
        origin: "embedded", "published", "calibrated random" or "file".
        exported: the same as a file of `streamdet export`, to be compared; None where there is none.
    """

    name: str
    weights: Weights
    origin: str
    exported: Weights | None = None


@dataclass(frozen=True, order=True)
class Case:
    """One way to run a model.

    Attributes:
        engine: of `ENGINES`; "reference" is torchvision's own forward.
        precision: of `PRECISIONS`.
        batch: frames per batch.
        workers: batches at the same time, a thread each; the reference has one, which uses every core.
    """

    engine: str
    precision: str
    batch: int
    workers: int


def load_model(name: str) -> Model:
    """Finds weights without downloading any.

    Args:
        name: "embedded", an architecture of torchvision's (with or without "fasterrcnn_" before it), or a file.

    Raises:
        DetectorError: there is no such model, or the file is no good.
    """
    if name == "embedded":
        return Model(name, load_weights_file(embedded_weights()), "embedded")
    architecture = name if name in PUBLISHED else f"fasterrcnn_{name}"
    if architecture in PUBLISHED:
        return _published(architecture)
    path = Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(("embedded", *PUBLISHED))
        msg = f"--model {name}: no such model or file; there are {known}, or give the path of a weights file"
        raise DetectorError(msg)
    if path.suffix in {".pth", ".pt"}:
        return Model(path.name, load_weights(_config(str(path), _architecture_of(path))), "file")
    weights = load_weights_file(path)
    if weights.exported is not None:
        msg = f"--model {path}: a file of `streamdet export`; give it with --exported, and what it is of with --model"
        raise DetectorError(msg)
    return Model(path.name, weights, "file")


def load_exported(path: Path) -> Weights:
    """Reads a file of `streamdet export`.

    Raises:
        DetectorError: it is none.
    """
    weights = load_weights_file(path)
    if weights.exported is None:
        msg = f"--exported {path}: not a file of `streamdet export`; give other weights with --model"
        raise DetectorError(msg)
    return weights


def _published(architecture: str) -> Model:
    """Torchvision's weights where they have been downloaded before, else random ones that behave like them."""
    file_name = published_weights(architecture).url.rpartition("/")[2]
    if any((folder / file_name).is_file() for folder in cache_folders()):
        return Model(architecture, load_weights(_config("coco", architecture)), "published")
    with torch.device("meta"):
        transform = build_model(architecture, 2).transform
    weights = calibrated_weights(
        architecture,
        labels=coco_labels(),
        sizes=(transform.min_size[-1], transform.max_size),
        proposals=_PROPOSALS.get(architecture),
        found_share=_FOUND_SHARE,
    )
    return Model(architecture, weights, "calibrated random")


def _config(weights: str, architecture: str) -> DetectorConfig:
    # Unchecked: a configuration may not name every architecture that a file may have.
    return DetectorConfig.model_construct(weights=weights, model=architecture)  # type: ignore[arg-type]


def _architecture_of(path: Path) -> str:
    """The architecture whose names and shapes a state dict has.

    Raises:
        DetectorError: none of them.
    """
    state = read_state_dict(path)
    classes = count_classes(path, state)
    for architecture in ARCHITECTURES:
        try:
            check_state(path, architecture, classes, state)
        except DetectorError:
            continue
        return architecture
    msg = f"{path} fits none of {', '.join(ARCHITECTURES)}"
    raise DetectorError(msg)


def with_int8(model: Model, engines: tuple[str, ...], precisions: tuple[str, ...], device: torch.device) -> Model:
    """Adds to the embedded weights what the daemon makes of them by itself where it may: int8.

    Args:
        model: any.
        engines: that were asked for; empty for all.
        precisions: likewise.
        device: where it runs.
    """
    is_wanted = "openvino" in (engines or ENGINES) and "int8" in (precisions or PRECISIONS)
    if is_wanted and model.origin == "embedded" and device.type == "cpu" and openvino_runtime.is_installed():
        return replace(model, exported=load_embedded_int8())
    return model


def ways(engines: tuple[str, ...], precisions: tuple[str, ...], device: torch.device) -> list[tuple[str, str]]:
    """Engines and precisions to try, fp32 first; the reference always, because all others are compared with it.

    Args:
        engines: that were asked for; empty for all.
        precisions: likewise; empty for all that need no export and are fast on this hardware.
        device: where it runs.
    """
    # int8 has to be exported, with frames of one's own; bf16 is slower than fp32 on many CPUs.
    fast = precisions or (("fp32", "bf16") if bf16_pays(device) else ("fp32",))
    chosen = [engine for engine in engines or ENGINES if engine not in {REFERENCE, _NOT_ON[device.type]}]
    pairs = [(engine, precision) for engine in chosen for precision in _HAS[engine] if precision in fast]
    return [(REFERENCE, "fp32"), *pairs]
