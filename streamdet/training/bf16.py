"""Measures whether training in bf16 is fast enough on this hardware to justify its lower precision."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch.nn import functional

# A matrix product as in a box head; large enough for the arithmetic to decide, some milliseconds of one core.
_ROWS, _COLUMNS = 256, 1024
_ROUNDS = 5
# Of the time in fp32. Where the arithmetic is twice as fast it is about half, and about twice where it is emulated.
_WORTH_IT = 0.8


@cache
def bf16_pays(device: torch.device) -> bool:
    """Whether this hardware computes faster in bf16 than in fp32.

    Instructions for bf16 do not suffice: some CPUs have them and multiply at half the speed of fp32. So it is timed,
    once for the process.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    is_native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[no-untyped-call] # noqa: SLF001 - torch has no public question
    if not is_native:
        return False
    fp32, bf16 = _fastest_seconds()
    return bf16 < _WORTH_IT * fp32


@torch.inference_mode()
def _fastest_seconds() -> tuple[float, float]:
    """The shortest of several times of one matrix product in fp32 and in bf16, measured in turns."""
    operands = [
        (torch.ones(_ROWS, _COLUMNS, dtype=dtype), torch.ones(_COLUMNS, _COLUMNS, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for left, right in operands:
        functional.linear(left, right)
    fastest = [float("inf"), float("inf")]
    for _ in range(_ROUNDS):
        for number, (left, right) in enumerate(operands):
            began = time.perf_counter()
            functional.linear(left, right)
            fastest[number] = min(fastest[number], time.perf_counter() - began)
    return fastest[0], fastest[1]
