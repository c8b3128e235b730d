"""How often latents fire, and which are fake: active on random tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from sae_faithful.metrics.clusters import ClusterSums
from sae_faithful.metrics.intervals import Interval, bootstrap_interval

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
        self, random: Float[np.ndarray, "... d_sae"], own: Float[np.ndarray, "... d_sae"]
    ) -> Bool[np.ndarray, "... d_sae"]: ...


def fires_often(tau: float) -> _Condition:
    """Fake if active on more than `tau` of random tokens (Cho et al. 2025, with the threshold of the counts)."""

    def condition(random: np.ndarray, own: np.ndarray) -> np.ndarray:
        del own
        return random > tau

    return condition


def fires_more_than_on_text(tau: float, ratio: float) -> _Condition:
    """Fake if active on more than `tau` of random tokens *and* on over `ratio` times its share of real text.

    A latent that is merely dense is no fake feature.
    """

    def condition(random: np.ndarray, own: np.ndarray) -> np.ndarray:
        return (random > tau) & (random > ratio * own)

    return condition


def fake_ratio(
    random: Exceedances,
    own: Exceedances,
    condition: _Condition,
    among: Bool[np.ndarray, " d_sae"],
    rng: np.random.Generator,
) -> tuple[float, Interval]:
    """Share of the latents in `among` that meet `condition`, with its interval over sequences. Lower is better.

    The interval is a percentile bootstrap of the sequences of random tokens and, independently, of those of
    the SAE's own held-out text. `random` and `own` count the same latents.

    Returns:
        Share in [0, 1], and its 95 % interval.
    """
    estimate = float(condition(random.rates, own.rates)[among].mean())
    own_weights = _draws(own, rng)

    def statistic(weights: np.ndarray) -> np.ndarray:
        values = [
            condition(_rates(random, weights[chunk]), _rates(own, own_weights[chunk]))[:, among].mean(axis=1)
            for chunk in _chunks(len(weights))
        ]
        return np.concatenate(values)

    return estimate, bootstrap_interval(statistic, len(random.counts), rng)


def _draws(counts: Exceedances, rng: np.random.Generator) -> np.ndarray:
    from sae_faithful.metrics.intervals import N_RESAMPLES

    n = len(counts.counts)
    return rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(np.float64)


def _rates(counts: Exceedances, weights: np.ndarray) -> np.ndarray:
    return (weights @ counts.counts.sums) / np.maximum(weights @ counts.tokens.sums, 1)


def _chunks(n: int) -> list[slice]:
    return [slice(start, start + RESAMPLES_PER_CHUNK) for start in range(0, n, RESAMPLES_PER_CHUNK)]
