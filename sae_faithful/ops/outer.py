"""Sums of rows by feature: the gradient of weights that few latents of each row used."""

# ruff: noqa: ARG001 - every function of a registered operator takes all of its arguments
from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - torch reads an operator's schema from its annotations
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from sae_faithful.ops.decode import decode_backward, decode_entries
from sae_faithful.ops.entries import Entries, check_entries, group_by_feature, implementation

if TYPE_CHECKING:
    from jaxtyping import Float


def sparse_outer(
    entries: Entries, values: Float[torch.Tensor, " nnz"], rows: Float[torch.Tensor, "n d"]
) -> tuple[Float[torch.Tensor, "n_features d"], Float[torch.Tensor, " n_features"]]:
    """Per feature `Σ values[e] · rows[row of e]` and `Σ values[e]` over its entries e, differentiable in both.

    The transposed sparse matrix times `rows`, and its column sums: what an encoder's weights and bias receive.
    Accumulated and reproducible as `sparse_decode`'s gradients are.

    Returns:
        In the dtype of `rows` and in float32 (float64 where an input is float64).

    Raises:
        ValueError: shapes that do not fit.
        IndexError: as `sparse_decode`.
    """
    if values.shape != entries.indices.shape:
        raise ValueError(f"{entries.indices.numel()} entries, but values has shape {tuple(values.shape)}")
    if rows.ndim != 2 or len(rows) != entries.row_offsets.numel() - 1:
        raise ValueError(
            f"entries of {entries.row_offsets.numel() - 1} rows, but rows has {tuple(rows.shape)}"
        )
    plan = entries.grouped().by_feature
    return _outer(entries.indices, entries.row_offsets, values, rows, entries.n_features, plan)


@torch.library.custom_op("sae_faithful::sparse_outer", mutates_args=())
def _outer(
    indices: torch.Tensor,
    row_offsets: torch.Tensor,
    values: torch.Tensor,
    rows: torch.Tensor,
    n_features: int,
    by_feature: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    check_entries(indices, row_offsets, n_features)
    return implementation(rows, values).outer(values, rows, by_feature, n_features, rows.dtype)


@_outer.register_fake
def _(
    indices: torch.Tensor,
    row_offsets: torch.Tensor,
    values: torch.Tensor,
    rows: torch.Tensor,
    n_features: int,
    by_feature: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    exact = torch.float64 in (rows.dtype, values.dtype)
    return (
        rows.new_empty(n_features, rows.shape[1]),
        rows.new_empty(n_features, dtype=torch.float64 if exact else torch.float32),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    indices, row_offsets, values, rows, ctx.n_features, by_feature = inputs
    ctx.save_for_backward(indices, row_offsets, values, rows, *by_feature)


def _backward(ctx: Any, g_out: torch.Tensor, g_sums: torch.Tensor) -> tuple[Any, ...]:
    indices, row_offsets, values, rows, *by_feature = ctx.saved_tensors
    _, _, want_values, want_rows, _, _ = ctx.needs_input_grad
    entries = Entries(indices, row_offsets, ctx.n_features, by_feature)
    g_values = g_rows = None
    if want_values:
        # Dot products of the rows with the features', as those that `values` of a decoder receive.
        plan = by_feature or group_by_feature(indices, row_offsets, ctx.n_features)
        dots = decode_backward(rows, values.to(g_sums.dtype), g_out, plan, True, False)[0]
        # An empty slot, -1, takes the 0 that is put in front.
        g_values = (dots + F.pad(g_sums, (1, 0))[indices + 1]).to(values.dtype)
    if want_rows:
        g_rows = decode_entries(entries, values, g_out).to(rows.dtype)
    return None, None, g_values, g_rows, None, [None] * len(by_feature)


_outer.register_autograd(_backward, setup_context=_save_for_backward)
