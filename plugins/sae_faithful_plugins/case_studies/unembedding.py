"""What a feature's direction says to the model's output matrix, with nothing of the model in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import stats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from sae_faithful import SAEHandle

NO_MATRIX = "the model's output matrix or final norm is not found"


class Agreement(NamedTuple):
    """Correlations over the vocabulary between minus what a direction says directly and what its ablation does."""

    pearson: float
    spearman: float


@dataclass(frozen=True)
class Unembedded:
    """f · W_U, the final norm's gain in it: how far a unit of the feature moves each token's logit, up to a factor."""

    scores: Float[np.ndarray, " vocab"]
    kept: Bool[np.ndarray, " vocab"]
    """Tokens whose unembedding is not of outlying length (untrained ones can be)."""

    @classmethod
    def of(
        cls,
        handle: SAEHandle,
        latent: int,
        matrix: Float[torch.Tensor, "vocab d_model"] | None,
        max_norm: float,
    ) -> Unembedded | str:
        """Of one latent's decoder row; why not, where the hook's activations are not what is unembedded.

        Args:
            handle: the SAE.
            latent: which.
            matrix: `LanguageModel.unembedding`.
            max_norm: tokens with rows longer than so many times the median are left out; 0: none.
        """
        if matrix is None:
            return NO_MATRIX
        direction = handle.W_dec[latent].float().to(matrix.device)
        if len(direction) != matrix.shape[1]:
            return f"activations have {len(direction)} entries here, what is unembedded has {matrix.shape[1]}"
        with torch.no_grad():
            lengths = matrix.norm(dim=1).cpu().numpy()
            scores = (matrix @ direction).cpu().numpy()
        typical = float(np.median(lengths))
        kept = np.ones(len(lengths), bool) if max_norm == 0 else lengths <= max_norm * typical
        return cls(scores, kept)

    def agreement(self, effects: Float[np.ndarray, " vocab"]) -> Agreement | None:
        """With the mean effects of an ablation; 1 where it takes away what the direction says. None where one of the
        two is the same for all tokens."""
        said, done = -self.scores[self.kept].astype(np.float64), effects[self.kept]
        if len(said) < 2 or np.ptp(said) == 0 or np.ptp(done) == 0:
            return None
        pearson, spearman = (
            float(one.statistic) for one in (stats.pearsonr(said, done), stats.spearmanr(said, done))
        )
        return Agreement(pearson, spearman)
