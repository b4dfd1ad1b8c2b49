"""What would keep the detector from being loaded, as far as it can be told without torch."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from streamdet.assets import embedded_weights
from streamdet.config.locate import Path as KeyPath
from streamdet.config.tables.detector import DetectorConfig

# The header of a safetensors file is JSON behind its length in eight bytes; ours has a few kilobytes.
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 20
_UNUSED_LABEL = "N/A"  # COCO's ids have gaps
_PRECISIONS = {"torch": ("auto", "fp32", "bf16"), "graph": ("auto", "fp32", "bf16"), "reference": ("auto", "fp32")}


def detector_problems(table: object) -> Iterator[tuple[KeyPath, str]]:
    """Tells what is wrong with `[detector]` beyond its single values; nothing while one of these is wrong.

    Args:
        table: the table as it was written, its paths made absolute.
    """
    try:
        config = DetectorConfig.model_validate(table)
    except ValidationError:
        return
    yield from _contradictions(config)
    path = weights_path(config.weights)
    if path is None:
        return
    try:
        labels = labels_of(path)
    except ValueError as error:
        yield ("detector", "weights"), str(error)
        return
    if labels is not None:
        yield from _unknown_labels(config, labels)


def weights_path(weights: str) -> Path | None:
    """The file that is meant; None for weights that torchvision publishes."""
    if weights == "embedded":
        return embedded_weights()
    return None if weights == "coco" else Path(weights)


def labels_of(path: Path) -> list[str] | None:
    """Which labels the weights of a file know; None for a file that does not say it, such as a .pth, or is missing.

    Raises:
        ValueError: it cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH_BYTES)
            size = int.from_bytes(start, "little")
            header = file.read(min(size, _MAX_HEADER_BYTES))
            file_bytes = os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None  # told by who looks for missing files
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}; let this user read it"
        raise ValueError(message) from None
    if path.suffix != ".safetensors":
        return None
    try:
        tables: dict[str, Any] = json.loads(header)
        ends = [tensor["data_offsets"][1] for name, tensor in tables.items() if name != "__metadata__"]
        is_whole = _LENGTH_BYTES + size + max(ends, default=0) == file_bytes
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        is_whole = False
    if not is_whole:
        message = f"{path} is not a whole safetensors file; copy it again"
        raise ValueError(message)
    try:
        labels = json.loads(tables["__metadata__"]["labels"])
        return [str(label) for label in labels[1:] if label != _UNUSED_LABEL]
    except (ValueError, KeyError, TypeError):
        message = f"{path} carries no description of its model; make it with `streamdet train`"
        raise ValueError(message) from None


def _contradictions(config: DetectorConfig) -> Iterator[tuple[KeyPath, str]]:
    precisions = _PRECISIONS.get(config.engine)
    if precisions and config.precision not in precisions:
        able = ", ".join(f'"{precision}"' for precision in precisions)
        yield (
            ("detector", "precision"),
            f'is "{config.precision}"; with engine = "{config.engine}" it must be one of {able}',
        )
    if config.device == "cuda:all" and config.engine != "graph":
        yield ("detector", "device"), 'is "cuda:all", which goes with engine = "graph" alone; write "cuda" or "cuda:0"'
    if Path(config.weights).suffix in {".pth", ".pt"} and config.model is None:
        example = 'such as model = "fasterrcnn_resnet50_fpn"'
        yield ("detector", "model"), f"is missing; a .pth file does not say what it is of and needs a model, {example}"


def _unknown_labels(config: DetectorConfig, known: list[str]) -> Iterator[tuple[KeyPath, str]]:
    named: list[tuple[KeyPath, str]] = [(("detector", "labels", n), label) for n, label in enumerate(config.labels)]
    named += [(("detector", "score_thresholds", label), label) for label in config.score_thresholds]
    for path, label in named:
        if label not in known:
            near = difflib.get_close_matches(label, known, 1, cutoff=0.6)
            meant = f'did you mean "{near[0]}"?' if near else f"they know {', '.join(known)}"
            yield path, f'"{label[:40]}" is no label that the weights know; {meant}'
