"""Quantises a detector to int8 by what it computes for real pictures; NNCF does the arithmetic."""

from __future__ import annotations

import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torchvision.models.detection import FasterRCNN

from streamdet.detector.engines.openvino import (
    ExportedDense,
    Precision,
    convert_box_head,
    convert_features,
    load_nncf,
    load_openvino,
)
from streamdet.detector.pipeline import FasterRcnnDetector
from streamdet.types import Picture

if TYPE_CHECKING:
    import openvino

# Neighbouring regions of a picture are alike; these are enough to know the range of values.
_REGIONS_OF_PICTURE = 32

OnProgress = Callable[[int, int], None]
Array = NDArray[np.float32]


def export_fp32(model: FasterRCNN) -> ExportedDense:
    """Converts the dense parts as they are.

    Args:
        model: prepared by `pipeline.prepare_model`, on the CPU.
    """
    return _exported("fp32", convert_features(model), convert_box_head(model))


def quantise(
    model: FasterRCNN, detector: FasterRcnnDetector, pictures: Sequence[Picture], on_progress: OnProgress | None = None
) -> ExportedDense:
    """Converts the dense parts and quantises every convolution and matrix product.

    Weights get one scale for each output channel. On CPUs without VNNI, sums of two products of 8 bits can overflow
    16 bits; so weights use half of their range, everywhere, and a file gives the same answers on every CPU.

    Args:
        model: prepared by `pipeline.prepare_model`, on the CPU.
        detector: of the same weights, in fp32: what it computes is what the ranges of values are taken from.
        pictures: to calibrate with; such as will be detected later, some hundred.
        on_progress: called with the number of pictures that are done, and of all.

    Raises:
        DetectorError: NNCF is not installed.
    """
    batches: list[Array] = []
    regions: list[Array] = []
    for number, picture in enumerate(pictures, start=1):
        outputs = detector.run([picture])
        batches.append(outputs.batch.tensor.permute(0, 2, 3, 1).contiguous().numpy())
        if len(outputs.regions):
            step = -(-len(outputs.regions) // _REGIONS_OF_PICTURE)
            regions.append(outputs.regions[::step].float().permute(0, 2, 3, 1).contiguous().numpy())
        if on_progress:
            on_progress(number, len(pictures))
    features = _quantised(convert_features(model), batches)
    box_head = convert_box_head(model)
    return _exported("int8", features, _quantised(box_head, regions) if regions else box_head)


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


def _exported(precision: Precision, features: openvino.Model, box_head: openvino.Model) -> ExportedDense:
    return ExportedDense(precision, _contents(features), _contents(box_head))


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
