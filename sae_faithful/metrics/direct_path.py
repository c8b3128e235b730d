"""What directions say to the model's output matrix, with nothing of the model in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float

NO_MATRIX = "the model's output matrix or final norm is not found"
MAX_NORM = 4.0
"""Rows of the output matrix longer than so many times the median belong to tokens that training never touched."""


@dataclass(frozen=True, eq=False)
class DirectPath:
    """f · W_U, the final norm's gain in it: how far a unit of f moves each token's logit, up to a factor."""

    matrix: Float[torch.Tensor, "vocab d_model"]
    kept: Bool[np.ndarray, " vocab"]
    """Tokens whose row is not of outlying length."""

    @classmethod
    def of(
        cls, matrix: Float[torch.Tensor, "vocab d_model"] | None, width: int, max_norm: float = MAX_NORM
    ) -> DirectPath | str:
        """For directions of that width; why not, where they do not live in what is unembedded.

        Args:
            matrix: `LanguageModel.unembedding`.
            width: entries of a direction.
            max_norm: tokens with rows longer than so many times the median are left out; 0: none.
        """
        import torch

        if matrix is None:
            return NO_MATRIX
        if width != matrix.shape[1]:
            return f"activations have {width} entries here, what is unembedded has {matrix.shape[1]}"
        with torch.no_grad():
            lengths = matrix.norm(dim=1).cpu().numpy()
        outlying = max_norm * float(np.median(lengths))
        return cls(matrix, np.ones(len(lengths), bool) if max_norm == 0 else lengths <= outlying)

    def scores(self, directions: Float[torch.Tensor, "n d_model"]) -> Float[torch.Tensor, "n vocab"]:
        """Of each direction for each token, kept or not; float32, where the matrix is."""
        import torch

        with torch.no_grad():
            return directions.float().to(self.matrix.device) @ self.matrix.T
