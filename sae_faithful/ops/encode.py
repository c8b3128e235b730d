"""Gradients of an encoder whose pre-activations are known, and of which only few are used."""

# ruff: noqa: ARG004 - autograd functions are called with all they may need
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sae_faithful.ops.decode import decode_entries
from sae_faithful.ops.entries import Entries
from sae_faithful.ops.outer import sparse_outer

if TYPE_CHECKING:
    from jaxtyping import Float


def sparse_encode(
    entries: Entries,
    values: Float[torch.Tensor, " nnz"],
    inputs: Float[torch.Tensor, "n d_in"],
    weight: Float[torch.Tensor, "d_sae d_in"],
    bias: Float[torch.Tensor, " d_sae"],
    shift: Float[torch.Tensor, " d_in"] | None = None,
) -> Float[torch.Tensor, " nnz"]:
    """The pre-activations at `entries`, with gradients to the encoder that read and write only what they need.

    To choose the entries all pre-activations were computed, without a gradient; this gives the chosen ones theirs.
    The gradient to `shift` is one product of a vector with `weight`, because it is summed over rows anyway.

    Args:
        entries: which pre-activations.
        values: what they are: `inputs[row] · weight[feature] + bias[feature]`, taken from the dense product.
        inputs: the encoder's inputs, `shift` subtracted.
        weight: one reading direction a row (SAELens's `W_enc`, transposed).
        bias: SAELens's `b_enc`.
        shift: what was subtracted from the inputs (SAELens's `b_dec`), if it learns from that.

    Raises:
        ValueError: shapes that do not fit.
    """
    n_rows, d_sae = entries.row_offsets.numel() - 1, entries.n_features
    shapes = (values.shape, inputs.shape[:-1], weight.shape, bias.shape)
    if shapes != (entries.indices.shape, (n_rows,), (d_sae, inputs.shape[-1]), (d_sae,)):
        raise ValueError(
            f"{entries.indices.numel()} entries in {n_rows} rows of {d_sae}, but values, inputs, weight and bias "
            f"have shapes {', '.join(str(tuple(each.shape)) for each in (values, inputs, weight, bias))}"
        )
    return _Encode.apply(values, inputs, weight, bias, shift, entries)  # pyright: ignore[reportReturnType]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        values: torch.Tensor,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        shift: torch.Tensor | None,
        entries: Entries,
    ) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, rows, weight, bias, _, entries = inputs
        ctx.save_for_backward(entries.indices, entries.row_offsets, rows, weight, *entries.by_feature)
        ctx.bias_dtype = bias.dtype

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        indices, row_offsets, rows, weight, *by_feature = ctx.saved_tensors
        _, want_inputs, want_weight, want_bias, want_shift, _ = ctx.needs_input_grad
        entries = Entries(indices, row_offsets, len(weight), by_feature)
        g_inputs = decode_entries(entries, grad, weight).to(rows.dtype) if want_inputs else None
        g_weight, sums = sparse_outer(entries, grad, rows)
        g_shift = None
        if want_shift:
            # A backward pass begun under autocast would round this product to its dtype.
            with torch.autocast(weight.device.type, enabled=False):
                g_shift = -(sums.to(weight.dtype) @ weight)
        return (
            None,
            g_inputs,
            g_weight.to(weight.dtype) if want_weight else None,
            sums.to(ctx.bias_dtype) if want_bias else None,
            g_shift,
            None,
        )
