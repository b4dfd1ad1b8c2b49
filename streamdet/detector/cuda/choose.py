"""Whether the kernels work on a device; plain torch where they do not."""

from __future__ import annotations

import logging

import torch

from streamdet.detector.fixed import align, suppress
from streamdet.detector.fixed.align import Taps, Weigh
from streamdet.detector.fixed.suppress import Suppress

_log = logging.getLogger(__name__)


def fast_parts(device: torch.device) -> tuple[Suppress, Weigh]:
    """Suppression and RoIAlign for a CUDA device.

    The kernels are compiled where they run, which needs Triton, a C compiler and a driver that gets along with both.
    So they are tried, and compared with plain torch, before they are trusted.
    """
    try:
        from streamdet.detector.cuda import kernels  # noqa: PLC0415 - Triton is not everywhere

        with torch.cuda.device(device), torch.inference_mode():
            check_kernels(kernels.suppress, kernels.weigh, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a compiler may raise, plain torch does the same work
        reason = str(error).partition("\n")[0] or type(error).__name__
        _log.warning("the Triton kernels do not work on %s (%s); plain torch is used, which is slower", device, reason)
        return suppress.suppress, align.weigh
    return kernels.suppress, kernels.weigh


def check_kernels(fast_suppress: Suppress, fast_weigh: Weigh, device: torch.device) -> None:
    """Compares with plain torch, on random boxes and a random table.

    Raises:
        ValueError: something differs.
    """
    generator = torch.Generator().manual_seed(0)
    groups, count = 3, 150
    corner = torch.rand(groups, count, 2, generator=generator) * 50
    boxes = torch.cat((corner, corner + 20 * torch.rand(groups, count, 2, generator=generator)), -1).to(device)
    classes = torch.randint(0, 2, (groups, count), generator=generator).to(device)
    valid = (torch.rand(groups, count, generator=generator) > 0.1).to(device)
    wanted, _ = suppress.suppress(boxes, classes, valid, 0.3, rounds=count)
    if not torch.equal(wanted, fast_suppress(boxes, classes, valid, 0.3)[0]):
        msg = "suppression differs from plain torch's"
        raise ValueError(msg)
    # Few, since each is a launch of its own for Triton's interpreter.
    side, channels, count = 20, 40, 2
    places = [torch.randint(0, side, (count, 7, 4), generator=generator).to(device) for _ in range(2)]
    weights = [torch.rand(count, 7, 4, generator=generator).to(device) for _ in range(2)]
    start = torch.randint(0, 2, (count,), generator=generator).to(device) * side**2
    taps = Taps(start, torch.full_like(start, side), places[0], weights[0], places[1], weights[1])
    table = torch.rand(2 * side**2, channels, generator=generator).to(device)
    if not torch.allclose(align.weigh(table, taps), fast_weigh(table, taps), atol=1e-4):
        msg = "RoIAlign differs from plain torch's"
        raise ValueError(msg)
