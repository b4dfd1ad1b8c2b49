"""Decides whether a device runs the Triton kernels, or plain torch where they do not work."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

from streamdet.detector.engines import packing
from streamdet.detector.engines.packing import Epilogue
from streamdet.detector.graph import align, suppress
from streamdet.detector.graph.align import Taps, Weigh
from streamdet.detector.graph.suppress import Suppress

_log = logging.getLogger(__name__)


class FastParts(NamedTuple):
    """The fastest working functions for a device.

    Attributes:
        suppress: non-maximum suppression.
        weigh: the sums of RoIAlign.
        epilogue: bias, residual and activation after a convolution; None for torch's own.
    """

    suppress: Suppress
    weigh: Weigh
    epilogue: Epilogue | None


def fast_parts(device: torch.device) -> FastParts:
    """Returns the fastest parts that work on a CUDA device.

    The kernels are compiled on the machine, which needs Triton, a C compiler and a driver that works with both.
    So they are first tried and compared with plain torch.
    """
    try:
        from streamdet.detector.graph import kernels  # noqa: PLC0415 - Triton is not everywhere

        parts = FastParts(kernels.suppress, kernels.weigh, kernels.epilogue)
        with torch.cuda.device(device), torch.inference_mode():
            check_kernels(parts, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a compiler may raise, plain torch does the same work
        reason = str(error).partition("\n")[0] or type(error).__name__
        _log.warning("the Triton kernels do not work on %s (%s); plain torch is used, which is slower", device, reason)
        return FastParts(suppress.suppress, align.weigh, None)
    return parts


def check_kernels(parts: FastParts, device: torch.device) -> None:
    """Compares with plain torch, on random boxes, a random table and random maps.

    Raises:
        ValueError: something differs.
    """
    generator = torch.Generator().manual_seed(0)
    _check_suppression(parts.suppress, device, generator)
    _check_align(parts.weigh, device, generator)
    if parts.epilogue is not None:
        _check_epilogue(parts.epilogue, device, generator)


def _check_suppression(fast: Suppress, device: torch.device, generator: torch.Generator) -> None:
    groups, count = 3, 150
    corner = torch.rand(groups, count, 2, generator=generator) * 50
    boxes = torch.cat((corner, corner + 20 * torch.rand(groups, count, 2, generator=generator)), -1).to(device)
    classes = torch.randint(0, 2, (groups, count), generator=generator).to(device)
    valid = (torch.rand(groups, count, generator=generator) > 0.1).to(device)
    wanted, _ = suppress.suppress(boxes, classes, valid, 0.3, rounds=count)
    if not torch.equal(wanted, fast(boxes, classes, valid, 0.3)[0]):
        msg = "suppression differs from plain torch's"
        raise ValueError(msg)


def _check_align(fast: Weigh, device: torch.device, generator: torch.Generator) -> None:
    # Few, since each is a launch of its own for Triton's interpreter.
    side, channels, count = 20, 40, 2
    places = [torch.randint(0, side, (count, 7, 4), generator=generator).to(device) for _ in range(2)]
    weights = [torch.rand(count, 7, 4, generator=generator).to(device) for _ in range(2)]
    start = torch.randint(0, 2, (count,), generator=generator).to(device) * side**2
    taps = Taps(start, torch.full_like(start, side), places[0], weights[0], places[1], weights[1])
    table = torch.rand(2 * side**2, channels, generator=generator).to(device)
    if not torch.allclose(align.weigh(table, taps), fast(table, taps), atol=1e-4):
        msg = "RoIAlign differs from plain torch's"
        raise ValueError(msg)


def _check_epilogue(fast: Epilogue, device: torch.device, generator: torch.Generator) -> None:
    # More places and channels than one program takes, and neither a multiple of what it takes.
    shape = (2, 300, 5, 4)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.07)):
        sums, other = (
            (4 * torch.rand(shape, generator=generator) - 2).to(device, dtype, memory_format=torch.channels_last)
            for _ in range(2)
        )
        bias = torch.rand(shape[1], generator=generator).to(device, dtype)
        for activation in packing.ACTIVATIONS:
            for added in (None, other):
                wanted = packing.epilogue(sums.clone(), bias, added, activation)
                if not torch.allclose(wanted, fast(sums.clone(), bias, added, activation), atol=tolerance):
                    msg = f"what follows a convolution ({activation}) differs from plain torch's"
                    raise ValueError(msg)
