"""The floor: the arithmetic of a model over the highest arithmetic speed that was measured on this machine.

No implementation of the same model in the same precision can be faster; the distance to the floor shows how much can
still be gained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from streamdet.detector.device import use_threads
from streamdet.detector.engines.openvino import is_installed, load_openvino
from streamdet.detector.stages.input import read_pictures
from streamdet.types import Picture

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Sides of square matrices, and (batch, channels, height and width) of 3x3 convolutions: one of them suits every cache.
_MATRICES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
_CONVOLUTIONS = {"cpu": ((4, 128, 64), (4, 256, 56)), "cuda": ((64, 256, 56), (32, 512, 56))}
_MIN_REPETITIONS = 3
_LAYERS = 8  # so many in a row that quantising the input hardly counts


@torch.inference_mode()
def flops_of(model: torch.nn.Module, picture: Picture, device: torch.device) -> int:
    """Floating point operations for one frame: of convolutions and matrix products, a multiply-add counts as two.

    Args:
        model: torchvision's own, not in half precision.
        picture: decides the size of the input and how many proposals there are.
        device: where the model is.
    """
    with FlopCounterMode(display=False) as counter:
        model([image.float() / 255 for image in read_pictures([picture], device)])
    total: int = counter.get_total_flops()
    return total


def floor_seconds(flops: float, peak_flops_per_second: float) -> float:
    """The shortest time that this number of operations can take."""
    return flops / peak_flops_per_second


@torch.inference_mode()
def measure_peak(
    precision: str,
    device: torch.device,
    threads: int,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float | None:
    """The highest number of operations per second that matrix products or convolutions reach.

    Args:
        precision: "fp32", "bf16" or "int8".
        device: what is measured.
        threads: CPU threads to use.
        seconds: how long to try, all sizes together.
        clock: what times are measured with; `time.process_time` for one thread on a busy machine.

    Returns:
        None where there is nothing to measure this precision with.
    """
    use_threads(threads)
    if precision == "int8":
        return _peak_int8(seconds, threads, clock) if device.type == "cpu" else None
    dtype = _DTYPES[precision]
    matrices, convolutions = _MATRICES[device.type], _CONVOLUTIONS[device.type]
    each = seconds / (len(matrices) + len(convolutions))
    best = 0.0
    for side in matrices:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        best = max(best, 2 * side**3 / _fastest(partial(torch.matmul, left, right), each, device, clock))
    for batch, channels, side in convolutions:
        maps = _channels_last(torch.randn(batch, channels, side, side, device=device).to(dtype))
        kernel = _channels_last(torch.randn(channels, channels, 3, 3, device=device).to(dtype))
        work = _fastest(partial(functional.conv2d, maps, kernel, padding=1), each, device, clock)
        best = max(best, 18 * channels**2 * side**2 * batch / work)
    return best


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _peak_int8(seconds: float, threads: int, clock: Callable[[], float]) -> float | None:
    """Measured with OpenVINO, which is what runs int8 here; None where it is not installed."""
    if not is_installed():
        return None
    openvino, best = load_openvino(), 0.0
    shapes: Sequence[tuple[int, int, int]] = _CONVOLUTIONS["cpu"]
    for batch, channels, side in shapes:
        model = _quantised_convolutions(openvino, batch, channels, side)
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        maps = np.random.default_rng(0).random((batch, channels, side, side), np.float32)
        took = _fastest(partial(request.infer, [maps]), seconds / len(shapes), torch.device("cpu"), clock)
        best = max(best, _LAYERS * 18 * channels**2 * side**2 * batch / took)
    return best


def _quantised_convolutions(openvino: ModuleType, batch: int, channels: int, side: int) -> object:
    """Convolutions of 3x3 whose inputs and kernels are rounded to 8 bits, which OpenVINO runs in int8."""
    ops, generator = openvino.opset13, np.random.default_rng(0)
    maps = given = ops.parameter([batch, channels, side, side], np.float32)
    limits = [np.array(value, np.float32) for value in (0.0, 1.0, 0.0, 1.0)]
    signed = [np.array(value, np.float32) for value in (-1.0, 127 / 128, -1.0, 127 / 128)]
    for _ in range(_LAYERS):
        values = generator.integers(-128, 128, (channels, channels, 3, 3)).astype(np.float32) / 128
        kernel = ops.fake_quantize(ops.constant(values), *map(ops.constant, signed), 256)
        rounded = ops.fake_quantize(maps, *map(ops.constant, limits), 256)
        maps = ops.relu(ops.convolution(rounded, kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
    return openvino.Model([maps], [given], "peak")


def _fastest(work: Callable[[], object], seconds: float, device: torch.device, clock: Callable[[], float]) -> float:
    """The shortest of several times, in seconds."""
    best, began, repetitions = float("inf"), time.perf_counter(), -1  # the first one warms up
    while repetitions < _MIN_REPETITIONS or time.perf_counter() - began < seconds:
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repetitions >= 0:
            best = min(best, clock() - started)
        repetitions += 1
    return best
