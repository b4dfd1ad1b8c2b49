"""Gives access to OpenVINO, an optional library: what is said when it is missing, how models are compiled."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from streamdet.errors import DetectorError

if TYPE_CHECKING:
    import openvino

OpenVinoPrecision = Literal["fp32", "bf16", "int8"]

# What OpenVINO computes with where the model itself does not say int8.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_TELEMETRY = "openvino_telemetry"


def is_installed() -> bool:
    """Whether OpenVINO can be imported; does not import it."""
    return importlib.util.find_spec("openvino") is not None


@cache
def load_openvino() -> ModuleType:
    """The module `openvino`.

    Raises:
        DetectorError: it is not installed.
    """
    return _load("openvino")


def load_nncf() -> ModuleType:
    """The module `nncf`, which quantises.

    Raises:
        DetectorError: it is not installed.
    """
    return _load("nncf")


def _load(name: str) -> ModuleType:
    # Importing openvino or nncf reports to their maker over the network, unless this module cannot be imported.
    sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type] # None is how Python spells "cannot be imported"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries about each other, nothing that a user could change
            return importlib.import_module(name)
    except ImportError as error:
        msg = f'{name} is not installed ({error}): install the extra, streamdet[openvino], or set engine = "torch"'
        raise DetectorError(msg) from None


@cache
def core() -> openvino.Core:
    """OpenVINO's own beginning; one for the process.

    Raises:
        DetectorError: OpenVINO is not installed.
    """
    made: openvino.Core = load_openvino().Core()
    return made


def cpu_precisions() -> set[OpenVinoPrecision]:
    """What the CPU computes with natively.

    Raises:
        DetectorError: OpenVINO is not installed.
    """
    names: dict[str, OpenVinoPrecision] = {"FP32": "fp32", "BF16": "bf16", "INT8": "int8"}
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {names[name] for name in capabilities if name in names}


def compile_model(
    model: openvino.Model, precision: OpenVinoPrecision, workers: int, threads: int
) -> openvino.CompiledModel:
    """Makes machine code of a model.

    Args:
        model: as read or converted, of one fixed shape.
        precision: to compute with; "int8" needs a quantised model.
        workers: threads that will infer at the same time; they share one copy of the weights.
        threads: CPU threads for one inference.

    Raises:
        ValueError: a side of an input is left open: in int8, such models end the process on CPUs with AMX.
    """
    if model.is_dynamic():
        msg = f"the shape of an input is not fixed: {', '.join(str(port.partial_shape) for port in model.inputs)}"
        raise ValueError(msg)
    return core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": workers,
            "INFERENCE_NUM_THREADS": workers * threads,
            # Pinned threads of several models, or of another process, would all sit on the first cores.
            "ENABLE_CPU_PINNING": False,
        },
    )
