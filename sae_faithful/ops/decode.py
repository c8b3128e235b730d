"""Reconstructions from few active latents: a decoder that reads only the rows it needs."""

# ruff: noqa: ARG001 - every function of a registered operator takes all of its arguments
from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - torch reads an operator's schema from its annotations
from typing import TYPE_CHECKING, Any

import torch

from sae_faithful.ops.entries import Entries, check_entries, group_by_feature, implementation

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def sparse_decode(
    indices: Int[torch.Tensor, "n k"],
    values: Float[torch.Tensor, "n k"],
    weight: Float[torch.Tensor, "d_sae d_in"],
    bias: Float[torch.Tensor, " d_in"] | None = None,
) -> Float[torch.Tensor, "n d_in"]:
    """`out[n] = bias + Σ_j values[n, j] · weight[indices[n, j]]`, differentiable in all but the indices.

    Sums are float32's (float64's where values or weight are), and gradients are bitwise reproducible: every
    feature's entries are added up in the order of the rows.

    Args:
        indices: int32 or int64; -1 is an empty slot, and an index that a row holds twice counts twice. On a CPU
            an index outside the dictionary is refused; on a GPU the caller sees to it (`SAE_FAITHFUL_CHECK_INDICES=1`
            has it checked there too).
        values: activations, in any floating-point dtype.
        weight: one direction a row.
        bias: what every output begins with.

    Returns:
        In the dtype that values and weight promote to.

    Raises:
        ValueError: shapes that do not fit, indices that are not integers.
        IndexError: an index outside -1 … d_sae - 1.
    """
    if indices.shape != values.shape:
        raise ValueError(f"indices has shape {tuple(indices.shape)}, values {tuple(values.shape)}")
    return decode_entries(Entries.of_rows(indices, len(weight)), values.reshape(-1), weight, bias)


def decode_entries(
    entries: Entries,
    values: Float[torch.Tensor, " nnz"],
    weight: Float[torch.Tensor, "d_sae d_in"],
    bias: Float[torch.Tensor, " d_in"] | None = None,
) -> Float[torch.Tensor, "n d_in"]:
    """`sparse_decode` for rows with different numbers of entries.

    Raises:
        ValueError: shapes that do not fit.
        IndexError: as `sparse_decode`.
    """
    if weight.ndim != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: one direction a row is wanted")
    if values.shape != entries.indices.shape:
        raise ValueError(f"{entries.indices.numel()} entries, but values has shape {tuple(values.shape)}")
    if len(weight) != entries.n_features:
        raise ValueError(f"entries of {entries.n_features} features, but weight has {len(weight)} rows")
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, weight {tuple(weight.shape)}")
    return _decode(entries.indices, entries.row_offsets, values, weight, bias, entries.by_feature)


@torch.library.custom_op("sae_faithful::sparse_decode", mutates_args=())
def _decode(
    indices: torch.Tensor,
    row_offsets: torch.Tensor,
    values: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    by_feature: Sequence[torch.Tensor],
) -> torch.Tensor:
    check_entries(indices, row_offsets, len(weight))
    dtype = torch.promote_types(values.dtype, weight.dtype)
    return implementation(weight, values).decode(indices, row_offsets, values, weight, bias, dtype)


@_decode.register_fake
def _(
    indices: torch.Tensor,
    row_offsets: torch.Tensor,
    values: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    by_feature: Sequence[torch.Tensor],
) -> torch.Tensor:
    dtype = torch.promote_types(values.dtype, weight.dtype)
    return weight.new_empty(row_offsets.shape[0] - 1, weight.shape[1], dtype=dtype)


@torch.library.custom_op("sae_faithful::sparse_decode_backward", mutates_args=())
def decode_backward(
    grad: torch.Tensor,
    values: torch.Tensor,
    weight: torch.Tensor,
    by_feature: Sequence[torch.Tensor],
    want_values: bool,
    want_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of `decode_entries` to values and weight, in their dtypes; empty tensors for those not wanted."""
    g_values, g_weight = implementation(weight, grad, values).decode_backward(
        grad, values, weight, by_feature, want_values=want_values, want_weight=want_weight
    )
    return (
        values.new_empty(0) if g_values is None else g_values.to(values.dtype),
        weight.new_empty(0) if g_weight is None else g_weight,
    )


@decode_backward.register_fake
def _(
    grad: torch.Tensor,
    values: torch.Tensor,
    weight: torch.Tensor,
    by_feature: Sequence[torch.Tensor],
    want_values: bool,
    want_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        values.new_empty(values.shape if want_values else (0,)),
        weight.new_empty(weight.shape if want_weight else (0,)),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    indices, row_offsets, values, weight, bias, by_feature = inputs
    ctx.save_for_backward(indices, row_offsets, values, weight, *by_feature)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    indices, row_offsets, values, weight, *by_feature = ctx.saved_tensors
    _, _, want_values, want_weight, want_bias, _ = ctx.needs_input_grad
    g_values = g_weight = g_bias = None
    if want_values or want_weight:
        plan = by_feature or group_by_feature(indices, row_offsets, len(weight))
        g_values, g_weight = decode_backward(grad, values, weight, plan, want_values, want_weight)
    if want_bias:
        g_bias = grad.sum(0).to(ctx.bias_dtype)
    return (
        None,
        None,
        g_values if want_values else None,
        g_weight if want_weight else None,
        g_bias,
        [None] * len(by_feature),
    )


_decode.register_autograd(_backward, setup_context=_save_for_backward)
