"""Non-maximum suppression, RoIAlign, and what follows a convolution, in one launch each, in Triton.

They compute the same as `suppress.suppress`, `align.weigh` and `packing.epilogue` in plain torch;
`choose.check_kernels` compares them before they are used.
"""
# Triton gives types to what its functions take, ruff and mypy know nothing of them:
# ruff: noqa: ANN001, ANN202, N803, PLR0917
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamdet.detector.boxes import float_not_above
from streamdet.detector.engines.packing import epilogue as plain_epilogue
from streamdet.detector.graph.align import Taps

_BLOCK = 64  # with 8 warps nothing spills out of the registers of compute capability 9.0
_WARPS = 8
_ELEMENTS = 4096  # of a program of `_epilogue`: 16 for each thread of 8 warps, two loads of 16 bytes in bf16
_MAX_CHANNELS = 256
_CODES = {"none": 0, "relu": 1, "hardtanh": 2, "hardswish": 3}


@triton.jit
def _overlaps(boxes, classes, row, column, inside, overlap):
    """Whether boxes of one class overlap too much: [rows, columns]; rounded as torch rounds."""
    ax1 = tl.load(boxes + row * 4, mask=row < inside, other=0.0)[:, None]
    ay1 = tl.load(boxes + row * 4 + 1, mask=row < inside, other=0.0)[:, None]
    ax2 = tl.load(boxes + row * 4 + 2, mask=row < inside, other=0.0)[:, None]
    ay2 = tl.load(boxes + row * 4 + 3, mask=row < inside, other=0.0)[:, None]
    bx1 = tl.load(boxes + column * 4, mask=column < inside, other=0.0)[None, :]
    by1 = tl.load(boxes + column * 4 + 1, mask=column < inside, other=0.0)[None, :]
    bx2 = tl.load(boxes + column * 4 + 2, mask=column < inside, other=0.0)[None, :]
    by2 = tl.load(boxes + column * 4 + 3, mask=column < inside, other=0.0)[None, :]
    a_class = tl.load(classes + row, mask=row < inside, other=-1)[:, None]
    b_class = tl.load(classes + column, mask=column < inside, other=-1)[None, :]
    width = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
    height = tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
    common = width * height
    areas = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
    return (tl.div_rn(common, areas - common) > overlap) & (a_class == b_class)


@triton.jit
def _suppress(boxes, classes, valid, keep, count, overlap, BLOCK: tl.constexpr):
    """One group: block after block of boxes, each against the blocks before it, and then within itself.

    Within a block, rounds are repeated until the fixed point that `suppress.py` describes is reached.
    """
    group = tl.program_id(0).to(tl.int64) * count
    boxes += group * 4
    classes += group
    valid += group
    keep += group
    index = tl.arange(0, BLOCK)
    for start in range(0, count, BLOCK):
        row = start + index
        alive = tl.load(valid + row, mask=row < count, other=0)
        for before in range(0, start, BLOCK):
            column = before + index
            kept_before = tl.load(keep + column)
            hits = _overlaps(boxes, classes, row, column, count, overlap) & (kept_before != 0)[None, :]
            alive = tl.where(tl.max(hits.to(tl.int32), axis=1) > 0, 0, alive)
        earlier = _overlaps(boxes, classes, row, row, count, overlap) & (index[None, :] < index[:, None])
        kept = alive
        changed = 1
        while changed > 0:
            hits = earlier & (kept != 0)[None, :]
            now = tl.where(tl.max(hits.to(tl.int32), axis=1) > 0, 0, alive)
            changed = tl.max((now != kept).to(tl.int32), axis=0)
            kept = now
        tl.store(keep + row, kept, mask=row < count)
        # The next blocks read what other threads of this program have stored.
        tl.debug_barrier()


@triton.jit
def _weigh(
    table,
    start,
    width,
    rows,
    row_weights,
    columns,
    column_weights,
    sums,
    channels,
    BINS: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One line of bins of one box: of each bin all channels at once, summed in float32."""
    box = tl.program_id(0).to(tl.int64)
    line = box * BINS + tl.program_id(1)
    channel = tl.arange(0, CHANNELS)
    inside = channel < channels
    first = tl.load(start + box)
    wide = tl.load(width + box)
    for bin_x in range(BINS):
        total = tl.zeros([CHANNELS], dtype=tl.float32)
        for tap_y in tl.static_range(TAPS):
            y = tl.load(rows + line * TAPS + tap_y)
            y_weight = tl.load(row_weights + line * TAPS + tap_y)
            for tap_x in tl.static_range(TAPS):
                tap = (box * BINS + bin_x) * TAPS + tap_x
                place = first + y * wide + tl.load(columns + tap)
                values = tl.load(table + place * channels + channel, mask=inside, other=0.0)
                total += y_weight * tl.load(column_weights + tap) * values.to(tl.float32)
        tl.store(sums + (line * BINS + bin_x) * channels + channel, total.to(sums.dtype.element_ty), mask=inside)


@triton.jit
def _epilogue(
    sums,
    bias,
    other,
    rows,
    channels,
    ACTIVATION: tl.constexpr,
    HAS_OTHER: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Some channels of some places; computed in float32."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    place = row[:, None] * channels + channel[None, :]
    total = tl.load(sums + place, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    if HAS_OTHER:
        total += tl.load(other + place, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == 1:
        total = tl.maximum(total, 0.0)
    elif ACTIVATION == 2:
        total = tl.minimum(tl.maximum(total, 0.0), 6.0)
    elif ACTIVATION == 3:
        total = total * tl.minimum(tl.maximum(total + 3.0, 0.0), 6.0) / 6.0
    tl.store(sums + place, total.to(sums.dtype.element_ty), mask=inside)


def epilogue(sums: Tensor, bias: Tensor, other: Tensor | None, activation: str) -> Tensor:
    """Like `packing.epilogue`, rounded once instead of after each step; fast where channels are contiguous."""
    channels_last = torch.channels_last
    if not sums.is_contiguous(memory_format=channels_last):
        return plain_epilogue(sums, bias, other, activation)
    batch, channels, height, width = sums.shape
    rows = batch * height * width
    wide = min(triton.next_power_of_2(channels), _MAX_CHANNELS)
    tall = _ELEMENTS // wide
    _epilogue[(triton.cdiv(rows, tall), triton.cdiv(channels, wide))](
        sums,
        bias,
        sums if other is None else other.contiguous(memory_format=channels_last),
        rows,
        channels,
        ACTIVATION=_CODES[activation],
        HAS_OTHER=other is not None,
        ROWS=tall,
        CHANNELS=wide,
        num_warps=8,
    )
    return sums


def suppress(boxes: Tensor, classes: Tensor, valid: Tensor, overlap: float) -> tuple[Tensor, Tensor]:
    """Like `suppress.suppress`, but every group is settled."""
    groups, count = valid.shape
    keep = torch.zeros_like(valid, dtype=torch.int32)
    limit = float_not_above(overlap)
    # Without fusion, products are rounded before they are added, as in torch. One stage: what is stored in one round
    # of the loop is loaded in the next.
    _suppress[(groups,)](
        boxes.contiguous(),
        classes.contiguous(),
        valid.to(torch.int32),
        keep,
        count,
        limit,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return keep != 0, torch.ones_like(valid[:, 0])


def weigh(table: Tensor, taps: Taps) -> Tensor:
    """Like `align.weigh`, with weights in float32 whatever the type of the table."""
    boxes, bins, count = taps.rows.shape
    channels = table.shape[1]
    sums = table.new_empty(boxes, bins, bins, channels)
    _weigh[(boxes, bins)](
        table.contiguous(),
        taps.start.contiguous(),
        taps.width.contiguous(),
        taps.rows.contiguous(),
        taps.row_weights.contiguous(),
        taps.columns.contiguous(),
        taps.column_weights.contiguous(),
        sums,
        channels,
        BINS=bins,
        TAPS=count,
        CHANNELS=triton.next_power_of_2(channels),
        num_warps=4,
        enable_fp_fusion=True,
    )
    return sums
