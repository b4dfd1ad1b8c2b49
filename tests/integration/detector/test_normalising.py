"""OpenVINO normalises pixels like the stage in torch, and rounds them in the same pass where the network rounds."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import pytest

from streamdet.assets import embedded_int8_weights
from streamdet.detector.engines.normalising import gain_and_offset, with_normalising
from streamdet.detector.engines.openvino import core, is_installed, load_openvino
from streamdet.detector.weights import load_weights_file

pytestmark = [pytest.mark.skipif(not is_installed(), reason="needs the extra, streamdet[openvino]"), pytest.mark.slow]

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPE = (1, 64, 96, 3)
FP32 = {"INFERENCE_PRECISION_HINT": "f32"}


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def normalised(given: np.ndarray) -> np.ndarray:
    gain, offset = gain_and_offset(MEAN, DEVIATION)
    return given.astype(np.float32) * gain + offset


def test_what_the_network_sees_is_the_same() -> None:
    load_openvino()
    from openvino import Model, opset13  # noqa: PLC0415 - an extra

    floats = opset13.parameter(SHAPE, np.float32)
    plain = Model([opset13.result(opset13.multiply(floats, np.float32(2)))], [floats], "plain")
    (found,) = core().compile_model(with_normalising(plain, MEAN, DEVIATION), "CPU", FP32)([pixels()]).values()
    np.testing.assert_allclose(found, 2 * (pixels() / 255 - MEAN) / DEVIATION, atol=1e-5)


def test_a_network_in_int8_says_the_same_and_its_zero_is_the_mean() -> None:
    exported = load_weights_file(embedded_int8_weights()).exported
    assert exported is not None
    model = core().read_model(*exported.features)
    model.reshape(SHAPE)
    given = pixels()
    given[:, 40:] = np.round(255 * np.array(MEAN))
    floats = normalised(given)
    floats[:, 40:] = 0
    wanted = core().compile_model(model.clone(), "CPU", FP32)([floats])
    compiled = core().compile_model(with_normalising(model, MEAN, DEVIATION), "CPU", FP32)
    found = compiled([given])
    assert all(np.array_equal(found[port], wanted[port]) for port in range(len(model.outputs)))
    # One pass from bytes to bytes stands before the first convolution.
    layers = [
        tuple(str(op.get_rt_info()[key].astype(str)) for key in ("layerType", "outputPrecisions"))
        for op in compiled.get_runtime_model().get_ordered_ops()
    ]
    before = takewhile(lambda layer: layer[0] != "Convolution", layers)
    assert [layer for layer in before if layer[0] == "Subgraph"] == [("Subgraph", "u8")]
