"""Quantises a detector to int8 by what it computes for real pictures; NNCF does the arithmetic."""

from __future__ import annotations

import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.detection import FasterRCNN

from streamdet.detector.engines.openvino import (
    ExportedDense,
    Precision,
    convert_box_head,
    convert_features,
    convert_small_head,
    load_nncf,
    load_openvino,
)
from streamdet.detector.engines.small_head import Answers, SmallHead
from streamdet.detector.pipeline import FasterRcnnDetector
from streamdet.types import Picture

if TYPE_CHECKING:
    import openvino

# Neighbouring regions of a picture are alike; these are enough to know the range of values.
_REGIONS_OF_PICTURE = 32
# Of regions that are kept, all pictures together.
_ANSWERS_BYTES = 1 << 30

OnProgress = Callable[[int, int], None]
Array = NDArray[np.float32]


def export_fp32(model: FasterRCNN) -> ExportedDense:
    """Converts the dense parts as they are.

    Args:
        model: prepared by `pipeline.prepare_model`, on the CPU.
    """
    return _exported("fp32", convert_features(model), convert_box_head(model))


@dataclass(frozen=True)
class Observed:
    """What a detector computed for real pictures.

    Attributes:
        batches: float32 [1, height, width, 3], what went into the features of each picture.
        answers: of its box head to regions of all pictures, of one picture after the other.
    """

    batches: list[Array]
    answers: Answers


def observe(
    detector: FasterRcnnDetector, pictures: Sequence[Picture], on_progress: OnProgress | None = None
) -> Observed:
    """Runs a detector on pictures and keeps what an export is made from.

    Args:
        detector: in fp32.
        pictures: such as will be detected later, some hundred.
        on_progress: called with the number of pictures that are done, and of all.
    """
    batches: list[Array] = []
    answers: list[Answers] = []
    for number, picture in enumerate(pictures, start=1):
        outputs = detector.run([picture])
        batches.append(outputs.batch.tensor.permute(0, 2, 3, 1).contiguous().numpy())
        regions = outputs.regions.permute(0, 2, 3, 1)
        most = max(1, _ANSWERS_BYTES // (len(pictures) * regions[:1].numel() * 2)) if len(regions) else 1
        some = torch.arange(0, len(regions), step=max(1, -(-len(regions) // most)))
        answers.append(Answers(regions[some].half(), outputs.classified.scores[some], outputs.classified.deltas[some]))
        if on_progress:
            on_progress(number, len(pictures))
    return Observed(batches, Answers.joined(answers))


def quantise(model: FasterRCNN, observed: Observed, small_head: SmallHead | None = None) -> ExportedDense:
    """Converts the dense parts and quantises every convolution and matrix product.

    Weights get one scale for each output channel. On CPUs without VNNI, sums of two products of 8 bits can overflow
    16 bits; so weights use half of their range, everywhere, and a file gives the same answers on every CPU.

    Args:
        model: prepared by `pipeline.prepare_model`, on the CPU.
        observed: of the same weights: what the ranges of values are taken from.
        small_head: takes the place of the model's own box head.

    Raises:
        DetectorError: NNCF is not installed.
    """
    features = _quantised(convert_features(model), observed.batches)
    box_head = convert_small_head(small_head) if small_head else convert_box_head(model)
    count = len(observed.answers)
    if not count:
        return _exported("int8", features, box_head)
    step = max(1, count // (_REGIONS_OF_PICTURE * len(observed.batches)))
    regions = torch.split(observed.answers.regions[::step].float(), _REGIONS_OF_PICTURE)
    return _exported("int8", features, _quantised(box_head, [some.numpy() for some in regions]), small_head)


def _quantised(model: openvino.Model, inputs: list[Array]) -> openvino.Model:
    nncf: Any = load_nncf()
    parameters = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    with _bars_on_stderr():
        result: openvino.Model = nncf.quantize(
            model,
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(inputs),
            advanced_parameters=parameters,
        )
    return result


def _exported(
    precision: Precision, features: openvino.Model, box_head: openvino.Model, small_head: SmallHead | None = None
) -> ExportedDense:
    return ExportedDense(precision, _contents(features), _contents(box_head), small_head)


def _contents(model: openvino.Model) -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        load_openvino().save_model(model, str(path), compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


@contextmanager
def _bars_on_stderr() -> Iterator[None]:
    """NNCF draws its progress on standard output, which belongs to results; it goes to a person at a terminal.

    What it logs does not help users, nor does what torch logs when NNCF imports a part of it.
    """
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
