"""Products with a sparse matrix without kernels of our own: `embedding_bag`, the fastest on a CPU.

`sparse_triton` has the same functions for a GPU; `plan` is what `entries.group_by_feature` gives. Sums are float32's,
or float64's where an input is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int


def decode(
    indices: Int[torch.Tensor, " nnz"],
    row_offsets: Int[torch.Tensor, " n_rows_and_1"],
    values: Float[torch.Tensor, " nnz"],
    weight: Float[torch.Tensor, "n_features d"],
    bias: Float[torch.Tensor, " d"] | None,
    dtype: torch.dtype,
) -> Float[torch.Tensor, "n_rows d"]:
    """`out[n] = bias + Σ values[e] · weight[indices[e]]` over the entries e of row n."""
    held = indices >= 0
    if not bool(held.all()):
        before = F.pad(held.cumsum(0), (1, 0))
        indices, values, row_offsets = indices[held], values[held], before[row_offsets]
    out = _bags(indices, weight, row_offsets, values)
    return (out if bias is None else out + bias).to(dtype)


def decode_backward(
    grad: Float[torch.Tensor, "n_rows d"],
    values: Float[torch.Tensor, " nnz"],
    weight: Float[torch.Tensor, "n_features d"],
    plan: Sequence[torch.Tensor],
    *,
    want_values: bool,
    want_weight: bool,
) -> tuple[Float[torch.Tensor, " nnz"] | None, Float[torch.Tensor, "n_features d"] | None]:
    """The gradients of `decode`: per entry `grad[row] · weight[feature]`, per feature `Σ values[e] · grad[row]`."""
    g_values = _dots(grad, weight, plan) if want_values else None
    g_weight = outer(values, grad, plan, len(weight), weight.dtype)[0] if want_weight else None
    return g_values, g_weight


def outer(
    values: Float[torch.Tensor, " nnz"],
    rows_matrix: Float[torch.Tensor, "n_rows d"],
    plan: Sequence[torch.Tensor],
    n_features: int,
    dtype: torch.dtype,
) -> tuple[Float[torch.Tensor, "n_features d"], Float[torch.Tensor, " n_features"]]:
    """Per feature `Σ values[e] · rows_matrix[row of e]`, and `Σ values[e]`."""
    order, rows, features, starts = _without_empty_slots(plan)
    values = values[order]
    out = _bags(rows, rows_matrix, starts, values)
    sums = torch.bincount(features, weights=values.double(), minlength=n_features).to(out.dtype)
    return out.to(dtype), sums


def _without_empty_slots(plan: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    order, rows, features, starts = plan
    empty = int(starts[0])
    return order[empty:], rows[empty:], features[empty:], starts - empty


def _dots(
    rows_matrix: torch.Tensor, weight: torch.Tensor, plan: Sequence[torch.Tensor]
) -> Float[torch.Tensor, " nnz"]:
    order, rows, features, starts = _without_empty_slots(plan)
    dtype = _summed_in(rows_matrix, weight)
    dots = torch.zeros(plan[0].numel(), dtype=dtype, device=weight.device)
    if order.numel() and weight.shape[1]:
        # embedding_bag's own gradient: `rows` are its bags. Its public form would run the forward once more.
        dots[order] = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            rows_matrix.to(dtype).contiguous(), weight.to(dtype).contiguous(), features, starts, rows, 0
        )
    return dots


def _bags(
    indices: torch.Tensor, table: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    dtype = _summed_in(table, values)
    n_bags, width = offsets.numel() - 1, table.shape[1]
    if indices.numel() == 0 or width == 0:
        return torch.zeros(n_bags, width, dtype=dtype, device=table.device)
    return F.embedding_bag(
        indices,
        table.to(dtype).contiguous(),
        offsets.to(indices.dtype),
        mode="sum",
        per_sample_weights=values.to(dtype),
        include_last_offset=True,
    )


def _summed_in(*tensors: torch.Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
