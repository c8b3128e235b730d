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
    """The dead latents' weights, one latent a row."""

    W_enc: Float[torch.Tensor, "n_dead d_in"]
    b_enc: Float[torch.Tensor, " n_dead"]
    W_dec: Float[torch.Tensor, "n_dead d_in"]
    norms: Float[torch.Tensor, " n_dead"] | None
    """The decoder's norms, where latents are compared by activation times norm."""

    def auxiliary_loss(
        self,
        inputs: Float[torch.Tensor, "n d_in"],
        shift: Float[torch.Tensor, " d_in"] | None,
        residual: Float[torch.Tensor, "n d_in"],
    ) -> Float[torch.Tensor, ""]:
        """Squared error of the d_in / 2 highest dead latents in predicting what the living ones miss.

        Gao et al. (2024, arXiv 2406.04093, appendix A.2 and B.1) as SAELens has it: without dividing by the
        residual's variance, without a ReLU, and less for fewer than d_in / 2 dead latents.

        Args:
            inputs: the encoder's, `shift` subtracted, without a gradient.
            shift: what was subtracted, if it learns from that.
            residual: input minus reconstruction, without a gradient.
        """
        n_dead, d_in = self.W_dec.shape
        half = d_in // 2
        bias = self.b_enc
        if shift is not None:
            # Subtracts 0, and gives the shift its gradient by one product of a vector: summed over tokens anyway.
            bias = bias - (shift - shift.detach()) @ self.W_enc.T
        acts = inputs @ self.W_enc.T + bias
        if n_dead > half:
            scores = acts.detach() if self.norms is None else acts.detach() * self.norms
            acts = acts * _highest(scores, half)
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
