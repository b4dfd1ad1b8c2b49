"""The Triton kernels mean what plain torch does, compile, and are compared before they are used."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from streamdet.detector.engines import packing
from streamdet.detector.graph import align, suppress
from streamdet.detector.graph.choose import FastParts, check_kernels, fast_parts

pytestmark = pytest.mark.slow

pytest.importorskip("triton")

# Triton looks at the variable when it is imported, so this needs a process of its own.
INTERPRET = """
import torch
from streamdet.detector.graph import choose, kernels
from streamdet.detector.graph.suppress import suppress

cpu = torch.device("cpu")
choose.check_kernels(choose.FastParts(kernels.suppress, kernels.weigh, kernels.epilogue), cpu)
# Boxes that only touch, that are equal, that are empty; more than a block; a chain from block to block.
start = torch.arange(99.0) * 3
chain = torch.stack((start, start * 0, start + 10, start * 0 + 10), 1)
boxes = torch.stack((chain, chain.flip(0), torch.cat((chain[:33], chain[:33], chain[:33] * 0))))
classes = torch.arange(297).reshape(3, 99) % 2 * (torch.arange(3) == 2)[:, None]
valid = torch.ones(3, 99, dtype=torch.bool)
for overlap in (0.5,):
    wanted, settled = suppress(boxes, classes, valid, overlap, rounds=99)
    assert settled.all()
    assert torch.equal(wanted, kernels.suppress(boxes, classes, valid, overlap)[0])
print("equal")
"""

COMPILE = """
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from streamdet.detector.graph import kernels

suppress = {"boxes": "*fp32", "classes": "*i64", "valid": "*i32", "keep": "*i32", "count": "i32", "overlap": "fp32"}
taps = ("start", "width", "rows", "row_weights", "columns", "column_weights")
weigh = {name: "*fp32" if name.endswith("weights") else "*i64" for name in taps}
for capability in map(int, sys.argv[1:]):
    target = GPUTarget("cuda", capability, 32)
    sizes = {"BLOCK": kernels._BLOCK}
    source = ASTSource(kernels._suppress, {**suppress, **dict.fromkeys(sizes, "constexpr")}, constexprs=sizes)
    options = {"num_warps": kernels._WARPS, "num_stages": 1, "enable_fp_fusion": False}
    ptx = triton.compile(source, target=target, options=options).asm["ptx"]
    assert "div.rn.f32" in ptx and "fma" not in ptx
    for dtype in ["*bf16"]:
        sizes = {"BINS": 7, "TAPS": 4, "CHANNELS": 256}
        signature = {"table": dtype, **weigh, "sums": dtype, "channels": "i32"}
        source = ASTSource(kernels._weigh, {**signature, **dict.fromkeys(sizes, "constexpr")}, constexprs=sizes)
        assert triton.compile(source, target=target, options={"enable_fp_fusion": True}).asm["cubin"]
    names = {"sums": "*bf16", "bias": "*bf16", "other": "*bf16", "rows": "i32", "channels": "i32"}
    sizes = {"ACTIVATION": 1, "HAS_OTHER": True, "ROWS": 16, "CHANNELS": 256}
    aligned = {(number,): [["tt.divisibility", 16]] for number in range(5)}
    signature = {**names, **dict.fromkeys(sizes, "constexpr")}
    source = ASTSource(kernels._epilogue, signature, constexprs=sizes, attrs=aligned)
    ptx = triton.compile(source, target=target, options={"num_warps": 8}).asm["ptx"]
    # 16 bytes at a time.
    assert ptx.count("ld.global.v4.b32") >= 4 and ptx.count("st.global.v4.b32") == 2, ptx
    print(capability)
"""


def run(code: str, *arguments: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_interpreted_kernels_equal_plain_torch() -> None:
    assert run(INTERPRET, TRITON_INTERPRET="1") == ["equal"]


def test_kernels_compile_without_a_gpu(tmp_path: os.PathLike[str]) -> None:
    """For compute capability 9.0; products are not fused with sums, divisions are rounded."""
    assert run(COMPILE, "90", TRITON_CACHE_DIR=str(tmp_path)) == ["90"]


def test_plain_torch_where_kernels_do_not_work(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parts = fast_parts(torch.device("cuda", 7)) if not torch.cuda.is_available() else None
    if parts is None:
        pytest.skip("there is a CUDA device, where they work")
    assert parts == (suppress.suppress, align.weigh, None)
    (record,) = caplog.records
    assert "the Triton kernels do not work on cuda:7" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_the_check_takes_plain_torch_for_right() -> None:
    cpu = torch.device("cpu")
    plain = FastParts(suppress.suppress, align.weigh, packing.epilogue)
    check_kernels(plain, cpu)

    def keeps_all(boxes: Tensor, classes: Tensor, valid: Tensor, overlap: float) -> tuple[Tensor, Tensor]:
        return valid, valid[:, 0]

    def forgets_the_bias(sums: Tensor, bias: Tensor, other: Tensor | None, activation: str) -> Tensor:
        return packing.epilogue(sums, bias * 0, other, activation)

    with pytest.raises(ValueError, match="suppression differs"):
        check_kernels(plain._replace(suppress=keeps_all), cpu)
    with pytest.raises(ValueError, match="RoIAlign differs"):
        check_kernels(plain._replace(weigh=lambda table, taps: align.weigh(table, taps) + 1), cpu)
    with pytest.raises(ValueError, match="follows a convolution"):
        check_kernels(plain._replace(epilogue=forgets_the_bias), cpu)
