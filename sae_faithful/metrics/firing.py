"""How often latents fire, and which are fake: active on random tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from sae_faithful.metrics.clusters import ClusterSums
from sae_faithful.metrics.intervals import (
    MIN_CLUSTERS,
    N_RESAMPLES,
    Interval,
    bootstrap_interval,
    too_few_clusters,
)

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float

RESAMPLES_PER_CHUNK = 64


class Exceedances:
    """Counts, per latent, of tokens on which its activation is above a threshold."""

    def __init__(self, n_rows: int, d_sae: int, threshold: float) -> None:
        self.threshold = threshold
        self.counts = ClusterSums(n_rows, d_sae)
        self.tokens = ClusterSums(n_rows, 1)

    def add(
        self,
        first_row: int,
        latents: Float[torch.Tensor, "rows context d_sae"],
        mask: Bool[torch.Tensor, "rows context"],
    ) -> None:
        """Take in the latents of some rows; only tokens where `mask` holds count."""
        above = (latents > self.threshold) & mask[..., None].to(latents.device)
        self.counts.add(first_row, above.sum(dim=1))
        self.tokens.add(first_row, mask.sum(dim=1, keepdim=True))

    @property
    def n_tokens(self) -> int:
        """Tokens that counted."""
        return int(self.tokens.total[0])

    @property
    def rates(self) -> Float[np.ndarray, " d_sae"]:
        """Share of tokens above the threshold, per latent."""
        return self.counts.total / max(self.n_tokens, 1)


class _Condition(Protocol):
    def __call__(
        self, random: Float[np.ndarray, "... d_sae"], own: Float[np.ndarray, "... d_sae"] | None
    ) -> Bool[np.ndarray, "... d_sae"]: ...


def fires_often(tau: float) -> _Condition:
    """Fake if active on more than `tau` of random tokens (Cho et al. 2025, with the threshold of the counts)."""

    def condition(random: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        del own
        return random > tau

    return condition


def fires_more_than_on_text(tau: float, ratio: float) -> _Condition:
    """Fake if active on more than `tau` of random tokens *and* on over `ratio` times its share of real text.

    A latent that is merely dense is no fake feature.
    """

    def condition(random: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        if own is None:
            raise ValueError("the contrast needs the latents' rates on real text")
        return (random > tau) & (random > ratio * own)

    return condition


def fake_ratio(
    random: Exceedances,
    own: Exceedances | None,
    condition: _Condition,
    among: Bool[np.ndarray, " d_sae"],
    rng: np.random.Generator,
) -> tuple[float, Interval]:
    """Share of the latents in `among` that meet `condition`, with its interval over sequences. Lower is better.

    The interval is a percentile bootstrap of the sequences of random tokens and, independently, of those of
    the SAE's own held-out text, where the condition looks at it.

    Args:
        random: counts on random tokens.
        own: counts of the same latents on held-out text, or None where the condition needs none.
        condition: `fires_often` or `fires_more_than_on_text`.
        among: at least one latent.
        rng: for the bootstrap.

    Returns:
        Share in [0, 1], and its 95 % interval.
    """
    estimate = float(condition(random.rates, own.rates if own else None)[among].mean())
    own_weights = _draws(own, rng) if own else None

    def statistic(weights: np.ndarray) -> np.ndarray:
        values: list[np.ndarray] = []
        for chunk in _chunks(len(weights)):
            text = _rates(own, own_weights[chunk]) if own and own_weights is not None else None
            values.append(condition(_rates(random, weights[chunk]), text)[:, among].mean(axis=1))
        return np.concatenate(values)

    if own and len(own.counts) < MIN_CLUSTERS:
        return estimate, too_few_clusters(len(own.counts))
    return estimate, bootstrap_interval(statistic, len(random.counts), rng)


def _draws(counts: Exceedances, rng: np.random.Generator) -> np.ndarray:
    n = len(counts.counts)
    return rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(np.float64)


def _rates(counts: Exceedances, weights: np.ndarray) -> np.ndarray:
    return (weights @ counts.counts.sums) / np.maximum(weights @ counts.tokens.sums, 1)


def _chunks(n: int) -> list[slice]:
    return [slice(start, start + RESAMPLES_PER_CHUNK) for start in range(0, n, RESAMPLES_PER_CHUNK)]
