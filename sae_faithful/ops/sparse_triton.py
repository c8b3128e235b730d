"""Products with a sparse matrix on a GPU: Triton kernels that read the rows they need once, and wait for nothing.

`sparse_eager` has the same functions for a CPU; `plan` is what `entries.group_by_feature` gives. Sums are float32's
whatever the dtypes, and none of them depends on which program comes first (there are no atomics): results are bitwise
reproducible. An index outside -1 … n_features - 1 is the caller's to prevent.
"""

# Triton's language has no types.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportUntypedFunctionDecorator=false
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int

CHUNK = 256
"""A feature's entries are cut at every multiple of this in the sorted list, so that a hot one keeps no program long."""

ENTRIES = 4
"""Rows that a program loads at once: enough to hide the memory's latency, few enough to stay in registers."""


@triton.jit
def _decode_kernel(
    indices, row_offsets, values, weight, bias, out, width, ENTRIES: tl.constexpr, BLOCK: tl.constexpr
):
    """Program (n, tile): columns tile·BLOCK and on of row n of the output."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros([BLOCK], tl.float32)
    if bias is not None:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    end = tl.load(row_offsets + row + 1)
    for first in range(tl.load(row_offsets + row), end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        feature = tl.load(indices + entry, mask=entry < end, other=-1).to(tl.int64)
        held = feature >= 0
        value = tl.load(values + entry, mask=held, other=0.0).to(tl.float32)
        places = (feature * width)[:, None] + column[None, :]
        rows = tl.load(weight + places, mask=held[:, None] & inside[None, :], other=0.0).to(tl.float32)
        total += tl.sum(value[:, None] * rows, axis=0)
    tl.store(out + row * width + column, total, mask=inside)


@triton.jit(do_not_specialize=["n_cuts", "nnz"])
def _by_feature_kernel(
    values, matrix, weight, order, rows, features, starts, out, sums, pieces, piece_sums, dots,
    n_cuts, nnz, width, CHUNK: tl.constexpr, ENTRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (p, tile): one piece of one feature's entries, in columns tile·BLOCK and on.

    The list of entries is cut at the multiples of CHUNK, at (c + 1)·CHUNK for the c-th. The first `n_cuts` programs
    each begin at a cut (and have nothing to do where a feature begins there): first, because they have most to do.
    The others begin where a feature does; each ends at the feature's end or at the next cut. The pieces of a feature
    that is cut go to `pieces`, the one that ends at its first cut c to row 2c, those that begin at a cut c to row
    2c + 1; `_join_kernel` adds them up.
    """
    program = tl.program_id(0)
    tile = tl.program_id(1)
    if program < n_cuts:
        begin = (program + 1) * CHUNK
        feature = tl.load(features + begin)
        if feature < 0:
            return
        if tl.load(starts + feature) == begin:
            return
        slot = 2 * program + 1
    else:
        feature = program - n_cuts
        begin = tl.load(starts + feature)
        slot = 2 * (begin // CHUNK)
    stop = tl.load(starts + feature + 1)
    end = tl.minimum(stop, (begin // CHUNK + 1) * CHUNK)
    is_piece = (program < n_cuts) | (end < stop)

    column = tile * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    direction = tl.zeros([BLOCK], tl.float32)
    if dots is not None:
        place = feature.to(tl.int64) * width + column
        direction = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    sum_of_values = tl.zeros([ENTRIES], tl.float32)
    for first in range(begin, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        held = entry < end
        source = tl.load(order + entry, mask=held, other=0)
        row = tl.load(rows + entry, mask=held, other=0).to(tl.int64)
        places = (row * width)[:, None] + column[None, :]
        some = tl.load(matrix + places, mask=held[:, None] & inside[None, :], other=0.0).to(tl.float32)
        if out is not None:
            value = tl.load(values + source, mask=held, other=0.0).to(tl.float32)
            total += tl.sum(value[:, None] * some, axis=0)
            sum_of_values += value
        if dots is not None:
            dot = tl.sum(some * direction[None, :], axis=1)
            tl.store(dots + tile.to(tl.int64) * nnz + source, dot, mask=held)

    if out is not None:
        if is_piece:
            tl.store(pieces + tl.cast(slot, tl.int64) * width + column, total, mask=inside)
        else:
            tl.store(out + feature.to(tl.int64) * width + column, total, mask=inside)
    if sums is not None:
        if is_piece:
            tl.store(piece_sums + slot, tl.sum(sum_of_values, axis=0), mask=tile == 0)
        else:
            tl.store(sums + feature, tl.sum(sum_of_values, axis=0), mask=tile == 0)


@triton.jit
def _join_kernel(
    features, starts, out, sums, pieces, piece_sums, width, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    """Program (c, tile): the feature that is cut at c for the first time, its pieces added up in their order."""
    cut = tl.program_id(0)
    tile = tl.program_id(1)
    feature = tl.load(features + (cut + 1) * CHUNK)
    if feature < 0:
        return
    begin = tl.load(starts + feature)
    if (begin < cut * CHUNK) | (begin == (cut + 1) * CHUNK):
        return
    column = tile * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    head = tl.cast(2 * cut, tl.int64)
    total = tl.load(pieces + head * width + column, mask=inside)
    sum_of_values = tl.zeros([], tl.float32)
    if sums is not None:
        sum_of_values = tl.load(piece_sums + head)
    for later in range(cut, (tl.load(starts + feature + 1) - 1) // CHUNK):
        slot = tl.cast(2 * later + 1, tl.int64)
        total += tl.load(pieces + slot * width + column, mask=inside)
        if sums is not None:
            sum_of_values += tl.load(piece_sums + slot)
    tl.store(out + feature.to(tl.int64) * width + column, total, mask=inside)
    if sums is not None:
        tl.store(sums + feature, sum_of_values, mask=tile == 0)


def decode(
    indices: Int[torch.Tensor, " nnz"],
    row_offsets: Int[torch.Tensor, " n_rows_and_1"],
    values: Float[torch.Tensor, " nnz"],
    weight: Float[torch.Tensor, "n_features d"],
    bias: Float[torch.Tensor, " d"] | None,
    dtype: torch.dtype,
) -> Float[torch.Tensor, "n_rows d"]:
    """`out[n] = bias + Σ values[e] · weight[indices[e]]` over the entries e of row n."""
    n_rows, width = row_offsets.numel() - 1, weight.shape[1]
    out = torch.empty(n_rows, width, dtype=dtype, device=weight.device)
    of_a_warp = _loaded_at_once(weight)
    block = _tile(width, 4 * of_a_warp, 2 * of_a_warp, of_a_warp)
    _launch(
        _decode_kernel, (n_rows, triton.cdiv(width, block)),
        indices.contiguous(), row_offsets.contiguous(), values.contiguous(), weight.contiguous(),
        None if bias is None else bias.contiguous(), out, width,
        ENTRIES=ENTRIES, BLOCK=block, num_warps=block // of_a_warp,
    )  # fmt: skip
    return out


def decode_backward(
    grad: Float[torch.Tensor, "n_rows d"],
    values: Float[torch.Tensor, " nnz"],
    weight: Float[torch.Tensor, "n_features d"],
    plan: Sequence[torch.Tensor],
    *,
    want_values: bool,
    want_weight: bool,
) -> tuple[Float[torch.Tensor, " nnz"] | None, Float[torch.Tensor, "n_features d"] | None]:
    """The gradients of `decode`: per entry `grad[row] · weight[feature]`, per feature `Σ values[e] · grad[row of e]`.

    The first in float32, 0 for an empty slot; the second in the weight's dtype. None for what is not wanted.
    """
    g_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device) if want_weight else None
    g_values = _by_feature(values, grad, weight, plan, len(weight), g_weight, None, want_dots=want_values)
    return g_values, g_weight


def outer(
    values: Float[torch.Tensor, " nnz"],
    rows_matrix: Float[torch.Tensor, "n_rows d"],
    plan: Sequence[torch.Tensor],
    n_features: int,
    dtype: torch.dtype,
) -> tuple[Float[torch.Tensor, "n_features d"], Float[torch.Tensor, " n_features"]]:
    """Per feature `Σ values[e] · rows_matrix[row of e]` in `dtype`, and `Σ values[e]` in float32."""
    device = rows_matrix.device
    out = torch.empty(n_features, rows_matrix.shape[1], dtype=dtype, device=device)
    sums = torch.empty(n_features, dtype=torch.float32, device=device)
    _by_feature(values, rows_matrix, None, plan, n_features, out, sums, want_dots=False)
    return out, sums


def _by_feature(
    values: Float[torch.Tensor, " nnz"],
    matrix: Float[torch.Tensor, "n_rows d"],
    weight: Float[torch.Tensor, "n_features d"] | None,
    plan: Sequence[torch.Tensor],
    n_features: int,
    out: Float[torch.Tensor, "n_features d"] | None,
    sums: Float[torch.Tensor, " n_features"] | None,
    *,
    want_dots: bool,
) -> Float[torch.Tensor, " nnz"] | None:
    """Fill `out` and `sums`, and return the dot product of every entry's row with its feature's weight if wanted."""
    order, rows, features, starts = plan
    nnz, width = values.numel(), matrix.shape[1]
    # One warp, as dot products over several would wait for each other; 512 columns want up to 218 registers a thread.
    block = _tile(width, 256, _loaded_at_once(matrix))
    # At least one, for `sums` where a row has no columns.
    tiles, n_cuts = max(triton.cdiv(width, block), 1), max(nnz - 1, 0) // CHUNK
    float32: Any = {"dtype": torch.float32, "device": matrix.device}
    # Nobody writes the dots of empty slots. A tile has its own: added up afterwards, always in the same order.
    dots = torch.zeros(tiles, nnz, **float32) if want_dots else None
    pieces, piece_sums = torch.empty(2 * n_cuts, width, **float32), torch.empty(2 * n_cuts, **float32)
    _launch(
        _by_feature_kernel, (n_cuts + n_features, tiles),
        values.contiguous(), matrix.contiguous(), None if weight is None else weight.contiguous(),
        order, rows, features, starts, out, sums, pieces, piece_sums, dots,
        n_cuts, nnz, width,
        CHUNK=CHUNK, ENTRIES=ENTRIES, BLOCK=block, num_warps=1,
    )  # fmt: skip
    if out is not None:
        _launch(
            _join_kernel, (n_cuts, tiles), features, starts, out, sums, pieces, piece_sums, width,
            CHUNK=CHUNK, BLOCK=block, num_warps=1,
        )  # fmt: skip
    return None if dots is None else dots.sum(0)


def _loaded_at_once(tensor: torch.Tensor) -> int:
    """Elements that a warp loads with one instruction, 16 bytes a thread."""
    return 32 * 16 // tensor.itemsize


def _tile(width: int, *widths: int) -> int:
    """The number of columns of which a program overhangs `width` the least: the first of equal ones."""
    return min(widths, key=lambda wide: triton.cdiv(width, wide) * wide)


def _launch(kernel: Any, grid: tuple[int, int], *arguments: Any, **options: Any) -> None:
    if all(grid):
        # Triton launches on the current device, which need not be the tensors'.
        with torch.cuda.device_of(arguments[0]):
            # The default of this changes with Triton 3.10.
            kernel[grid](*arguments, **options, enable_fp_fusion=True)
