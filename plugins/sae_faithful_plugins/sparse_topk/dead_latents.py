"""The auxiliary loss of dead latents, computed on the dead latents alone."""

# ruff: noqa: ARG004 - autograd functions are called with all they may need
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class DeadLatents:
    """The dead latents' pre-activations and weights, one latent a row of the weights."""

    pre: Float[torch.Tensor, "n n_dead"]
    """Pre-activations, already known, without a gradient."""
    inputs: Float[torch.Tensor, "n d_in"]
    """The encoder's inputs, `shift` subtracted."""
    W_enc: Float[torch.Tensor, "n_dead d_in"]
    b_enc: Float[torch.Tensor, " n_dead"]
    shift: Float[torch.Tensor, " d_in"] | None
    """What was subtracted from the inputs, if it learns from that."""
    W_dec: Float[torch.Tensor, "n_dead d_in"]

    def auxiliary_loss(
        self, residual: Float[torch.Tensor, "n d_in"], norms: Float[torch.Tensor, " n_dead"] | None
    ) -> Float[torch.Tensor, ""]:
        """Squared error of the d_in / 2 highest dead latents in predicting what the living ones miss.

        Gao et al. (2024, arXiv 2406.04093, appendix A.2 and B.1) as SAELens has it: without dividing by the
        residual's variance, without a ReLU, and less for fewer than d_in / 2 dead latents.

        Args:
            residual: input minus reconstruction, without a gradient.
            norms: the decoder's norms, where latents are compared by activation times norm.
        """
        n_dead, d_in = self.W_dec.shape
        half = d_in // 2
        acts = _KnownLinear.apply(self.pre, self.inputs, self.W_enc, self.b_enc, self.shift)
        if n_dead > half:
            acts = acts * _highest(self.pre if norms is None else self.pre * norms, half)
        # Half of d_in latents are no longer few: here the dense product is the faster one.
        loss = (acts @ self.W_dec - residual).pow(2).sum(dim=-1).mean()
        return min(n_dead / half, 1.0) * loss


def rows_apart(
    weight: Float[torch.Tensor, "n d"], rows: Int[torch.Tensor, " m"] | None
) -> tuple[Float[torch.Tensor, "n d"], Float[torch.Tensor, "m d"]]:
    """`weight` and `weight[rows]`, whose gradients are added up in place: no second matrix of weight's size."""
    if rows is None:
        return weight, weight[:0]
    return _RowsApart.apply(weight, rows)  # pyright: ignore[reportReturnType]


def _highest(scores: Float[torch.Tensor, "n m"], k: int) -> Float[torch.Tensor, "n m"]:
    """1 at the k highest of every row, 0 elsewhere."""
    return torch.zeros_like(scores).scatter_(1, scores.topk(k, sorted=False).indices, 1.0)


class _RowsApart(torch.autograd.Function):
    @staticmethod
    def forward(weight: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return weight.view_as(weight), weight.index_select(0, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        whole, part = grads
        (rows,) = ctx.saved_tensors
        # In place: `whole` was made by the sparse gradient for this, and nobody else holds it.
        return whole.index_add_(0, rows, part.to(whole.dtype)), None


class _KnownLinear(torch.autograd.Function):
    """`inputs @ W.T + b` whose value is known; the gradient to the shift is one product of a vector with W."""

    @staticmethod
    def forward(
        pre: torch.Tensor,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        shift: torch.Tensor | None,
    ) -> torch.Tensor:
        return pre.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, rows, weight, bias, _ = inputs
        ctx.save_for_backward(rows, weight)
        ctx.bias_dtype = bias.dtype

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        rows, weight = ctx.saved_tensors
        sums = grad.sum(0)
        g_shift = -(sums.to(weight.dtype) @ weight) if ctx.needs_input_grad[4] else None
        return None, None, (grad.to(rows.dtype).T @ rows).to(weight.dtype), sums.to(ctx.bias_dtype), g_shift
