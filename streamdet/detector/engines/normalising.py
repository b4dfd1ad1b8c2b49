"""Normalising pixels as operations of OpenVINO, in front of a network in one model.

A network in int8 rounds what goes into it to bytes, so that floats between the pixels and it are written and read for
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamdet.detector.engines.opset import make_graph, operations

if TYPE_CHECKING:
    import openvino

Floats = NDArray[np.float32]


def with_normalising(model: openvino.Model, mean: Sequence[float], deviation: Sequence[float]) -> openvino.Model:
    """Lets a model take pixels as they are.

    Args:
        model: its only input is float32 [1, height, width, 3], zero mean and unit deviation; is used up.
        mean: of each colour, 0 to 1.
        deviation: of each colour.

    Returns:
        a model whose input is uint8 [1, height, width, 3], 0 to 255.
    """
    ops = operations()
    (old,) = model.get_parameters()
    shape = list(old.output(0).shape)
    pixels = ops.parameter(shape, np.uint8, name=old.get_friendly_name())
    # A row of pixels is a row of numbers, which have a gain and an offset each: OpenVINO computes many at once.
    rows = ops.reshape(pixels, [shape[0], shape[1], math.prod(shape[2:])], special_zero=False)
    gain, offset = (np.tile(part, shape[2]) for part in gain_and_offset(mean, deviation))
    normalised = ops.add(ops.multiply(ops.convert(rows, "f32"), gain), offset)
    for consumer in old.output(0).get_target_inputs():
        node = consumer.get_node()
        if node.get_type_name() == "FakeQuantize" and all(
            math.prod(port.get_source_output().shape) == 1 for port in node.inputs()[1:]
        ):
            # Together with rounding it is one pass; behind a change of shape it would be two.
            ranges = [port.get_source_output() for port in node.inputs()[1:]]
            rounded = ops.fake_quantize(normalised, *ranges, node.get_attributes()["levels"])
            node.output(0).replace(ops.reshape(rounded, shape, special_zero=False).output(0))
        else:
            consumer.replace_source_output(ops.reshape(normalised, shape, special_zero=False).output(0))
    return make_graph(model.get_results(), [pixels], model)


def gain_and_offset(mean: Sequence[float], deviation: Sequence[float]) -> tuple[Floats, Floats]:
    """What a byte is multiplied by, and what is added to it, of each colour."""
    deviations = np.asarray(deviation, np.float32)
    return np.float32(1) / (np.float32(255) * deviations), -np.asarray(mean, np.float32) / deviations
