"""What a feature's direction says to the model's output matrix, with nothing of the model in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from sae_faithful.metrics.direct_path import DirectPath

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float

    from sae_faithful import SAEHandle


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
        path = DirectPath.of(matrix, handle.W_dec.shape[1], max_norm)
        if isinstance(path, str):
            return path
        return cls(path.scores(handle.W_dec[latent][None])[0].cpu().numpy(), path.kept)

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
