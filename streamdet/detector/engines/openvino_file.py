"""A detector as one file, its dense parts for OpenVINO: made by `streamdet export`, run by `weights = "FILE"`.

The container is safetensors, as for all weights: nothing in it is executed, and its metadata describe the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from streamdet.detector.engines.openvino_runtime import OpenVinoPrecision

FORMAT_FAMILY = "streamdet-openvino-"
FORMAT = f"{FORMAT_FAMILY}2"

PARTS = ("features.xml", "features.bin", "box_head.xml", "box_head.bin")
"""Names of the tensors of such a file; others in it are not read."""

# The graph of the largest architecture has 1 MB.
_MAX_GRAPH_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class ExportedDense:
    """The dense parts of a detector, as OpenVINO writes them.

    Attributes:
        precision: that they were exported in.
        features: graph (XML) and its constants, of what `openvino_convert.convert_features` makes.
        box_head: the same, of what `openvino_convert.convert_box_head` makes.
    """

    precision: OpenVinoPrecision
    features: tuple[bytes, bytes]
    box_head: tuple[bytes, bytes]


def dense_to_tensors(dense: ExportedDense) -> dict[str, Tensor]:
    """The contents as named tensors of bytes, for a safetensors file."""
    contents = zip(PARTS, (*dense.features, *dense.box_head), strict=True)
    return {name: torch.from_numpy(np.frombuffer(content, np.uint8).copy()) for name, content in contents}


def dense_from_tensors(tensors: Mapping[str, Tensor], precision: str) -> ExportedDense:
    """The inverse of `dense_to_tensors`.

    Raises:
        ValueError: a part is missing or strange, or the precision is none of ours.
    """
    if precision not in {"fp32", "int8"}:
        msg = f"precision {precision!r}"
        raise ValueError(msg)
    missing = [name for name in PARTS if name not in tensors or tensors[name].dtype is not torch.uint8]
    if missing:
        msg = f"no {', '.join(missing)}"
        raise ValueError(msg)
    contents = [tensors[name].numpy().tobytes() for name in PARTS]
    for graph in (contents[0], contents[2]):
        if len(graph) > _MAX_GRAPH_BYTES or b"<!" in graph:
            msg = f"a graph of more than {_MAX_GRAPH_BYTES >> 20} MiB, or with declarations in its XML"
            raise ValueError(msg)
    return ExportedDense(cast("OpenVinoPrecision", precision), (contents[0], contents[1]), (contents[2], contents[3]))
