"""How often latents fire: activations above a threshold, found once and counted by cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_faithful.metrics.clusters import ClusterSums

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Firings:
    """The activations above 0 of some rows, at the tokens that count.

    They are few among all, and one search serves every count made of them.
    """

    rows: Int[torch.Tensor, " firings"]
    """Row within the batch."""
    positions: Int[torch.Tensor, " firings"]
    """Position within the row."""
    latents: Int[torch.Tensor, " firings"]
    values: Float[torch.Tensor, " firings"]
    """Activations, float32."""
    tokens: Int[torch.Tensor, " rows"]
    """How many tokens of each row count."""

    @classmethod
    def find(
        cls, latents: Float[torch.Tensor, "rows context d_sae"], mask: Bool[torch.Tensor, "rows context"]
    ) -> Firings:
        """Those of a batch of latents; only tokens where `mask` holds count."""
        _, context, d_sae = latents.shape
        mask = mask.to(latents.device)
        flat = latents.flatten()
        index = (flat > 0).nonzero().squeeze(1)
        token = index // d_sae
        counts = mask.flatten()[token]
        index, token = index[counts], token[counts]
        return cls(
            rows=token // context,
            positions=token % context,
            latents=index - token * d_sae,
            values=flat[index].float(),
            tokens=mask.sum(dim=1),
        )


class Exceedances:
    """Counts, per latent, of tokens on which its activation is above a threshold.

    Args:
        n_rows: of the token set.
        d_sae: number of latents.
        threshold: at least 0; one for all latents, or one for each.
    """

    def __init__(
        self, n_rows: int, d_sae: int, threshold: float | Float[torch.Tensor, " d_sae"] = 0.0
    ) -> None:
        self.threshold = threshold
        self.counts = ClusterSums(n_rows, d_sae, np.float32)
        self.tokens = ClusterSums(n_rows, 1)

    def add(
        self,
        first_row: int,
        latents: Float[torch.Tensor, "rows context d_sae"],
        mask: Bool[torch.Tensor, "rows context"],
    ) -> None:
        """Take in the latents of some rows; only tokens where `mask` holds count."""
        self.add_firings(first_row, Firings.find(latents, mask))

    def add_firings(self, first_row: int, found: Firings) -> None:
        """Take in what fired in some rows."""
        rows, latents = found.rows, found.latents
        if not isinstance(self.threshold, float | int):
            above = found.values > self.threshold.to(found.values.device)[latents]
            rows, latents = rows[above], latents[above]
        elif self.threshold > 0:
            above = found.values > self.threshold
            rows, latents = rows[above], latents[above]
        self.counts.count(first_row, len(found.tokens), rows, latents)
        self.tokens.add(first_row, found.tokens[:, None])

    @property
    def n_tokens(self) -> int:
        """Tokens that counted."""
        return int(self.tokens.total[0])

    @property
    def rates(self) -> Float[np.ndarray, " d_sae"]:
        """Share of tokens above the threshold, per latent."""
        return self.counts.total / max(self.n_tokens, 1)

    def resampled(
        self, weights: Float[np.ndarray, "resamples clusters"]
    ) -> Float[np.ndarray, "resamples d_sae"]:
        """Rates when cluster c is drawn weights[:, c] times, float32 (counts below 2²⁴ are exact in it)."""
        drawn = weights.astype(np.float32)
        return (drawn @ self.counts.sums) / np.maximum(drawn @ self.tokens.sums.astype(np.float32), 1)

    @property
    def errors(self) -> Float[np.ndarray, " d_sae"]:
        """Standard errors of the rates over clusters, by linearisation (Cochran 1977, 6.3).

        Never below the binomial error of (count + ½)/(tokens + 1): few firings spread over few clusters, or
        none, would else pass for certain.
        """
        n, tokens = len(self.counts), max(self.n_tokens, 1)
        residuals = self.counts.sums - self.rates * self.tokens.sums
        over_clusters = n / max(n - 1, 1) * np.square(residuals).sum(axis=0) / tokens**2
        shrunk = (self.counts.total + 0.5) / (tokens + 1)
        return np.sqrt(np.maximum(over_clusters, shrunk * (1 - shrunk) / tokens))
