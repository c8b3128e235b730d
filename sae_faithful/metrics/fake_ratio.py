"""Which latents are fake (active on tokens that mean nothing), their share, and how many are not settled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from sae_faithful.metrics.intervals import (
    LEVEL,
    MIN_CLUSTERS,
    N_RESAMPLES,
    Interval,
    percentile_interval,
    too_few_clusters,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Bool, Float

    from sae_faithful.metrics.firing import Exceedances

RESAMPLES_PER_CHUNK = 64


class Criterion(NamedTuple):
    """When a latent is fake."""

    counts: str
    """Which counts it looks at."""
    tau: float
    """Fake if active on more than this share of the meaningless tokens (Cho et al. 2025)."""
    ratio: float | None = None
    """If given: *and* on over so many times its share of real text. A latent that is merely dense is no fake."""

    def holds(
        self, rates: Float[np.ndarray, "... d_sae"], own: Float[np.ndarray, "... d_sae"]
    ) -> Bool[np.ndarray, "... d_sae"]:
        """Which latents are fake, from their rates on meaningless tokens and on their own text."""
        often = rates > self.tau
        return often if self.ratio is None else often & (rates > self.ratio * own)


class Estimate(NamedTuple):
    """A share and its interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class FakeRatios:
    """Shares of fake latents of one SAE on one set of meaningless tokens."""

    counts: Mapping[str, Exceedances]
    """Counts at several thresholds, all on that one token set, by name."""
    own: Exceedances
    """Firings on the SAE's own held-out text."""
    among: Mapping[str, Bool[np.ndarray, " d_sae"]]
    """Subsets of latents, each of at least one."""

    def fake(self, criterion: Criterion) -> Bool[np.ndarray, " d_sae"]:
        """Which latents are fake."""
        return criterion.holds(self.counts[criterion.counts].rates, self.own.rates)

    def shares(
        self, criteria: Sequence[Criterion], rng: np.random.Generator
    ) -> dict[tuple[Criterion, str], Estimate]:
        """Share of each subset that meets each criterion, with its interval over sequences. Lower is better.

        The interval is a percentile bootstrap of the sequences of meaningless tokens and, independently, of
        those of the SAE's own held-out text where the criterion looks at it. All criteria see the same draws.
        """
        n, n_own = len(next(iter(self.counts.values())).counts), len(self.own.counts)
        draws = _draws(n, rng) if n >= MIN_CLUSTERS else None
        own_draws = _draws(n_own, rng) if n_own >= MIN_CLUSTERS else None
        resampled = self._resampled(criteria, draws, own_draws)
        found: dict[tuple[Criterion, str], Estimate] = {}
        for i, criterion in enumerate(criteria):
            fake = self.fake(criterion)
            for j, (subset, among) in enumerate(self.among.items()):
                if draws is None:
                    interval = too_few_clusters(n)
                elif criterion.ratio is not None and own_draws is None:
                    interval = too_few_clusters(n_own)
                else:
                    interval = percentile_interval(resampled[:, i, j], self.n_clusters(criterion))
                found[criterion, subset] = Estimate(float(fake[among].mean()), interval)
        return found

    def unsettled(self, criterion: Criterion) -> Bool[np.ndarray, " d_sae"] | None:
        """Latents of which the counts do not decide whether they are fake; None with too few sequences to tell.

        A latent is settled if some condition of the criterion fails, or all hold, with 95 % intervals clear of
        the threshold: |rate − τ| > t·SE, and |rate − ratio · own rate| > t·SE of that difference, SE over
        sequences (`Exceedances.errors`), Student's t.
        """
        counts = self.counts[criterion.counts]
        n = self.n_clusters(criterion)
        if n < MIN_CLUSTERS:
            return None
        quantile = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
        margins = [(counts.rates - criterion.tau, counts.errors)]
        if criterion.ratio is not None:
            error = np.hypot(counts.errors, criterion.ratio * self.own.errors)
            margins.append((counts.rates - criterion.ratio * self.own.rates, error))
        fails = np.any([margin < -quantile * error for margin, error in margins], axis=0)
        holds = np.all([margin > quantile * error for margin, error in margins], axis=0)
        return ~np.logical_or(fails, holds)

    def n_clusters(self, criterion: Criterion) -> int:
        """Clusters of sequences that the criterion rests on: the fewer, where it looks at two token sets."""
        n = len(self.counts[criterion.counts].counts)
        return n if criterion.ratio is None else min(n, len(self.own.counts))

    def _resampled(
        self, criteria: Sequence[Criterion], draws: np.ndarray | None, own_draws: np.ndarray | None
    ) -> Float[np.ndarray, "resamples criteria subsets"]:
        members = np.stack(list(self.among.values()), axis=1).astype(np.float32)
        sizes = members.sum(axis=0, dtype=np.float64)
        shares = np.zeros((N_RESAMPLES, len(criteria), len(sizes)))
        if draws is None:
            return shares
        needed = {criterion.counts for criterion in criteria}
        for start in range(0, N_RESAMPLES, RESAMPLES_PER_CHUNK):
            chunk = slice(start, start + RESAMPLES_PER_CHUNK)
            rates = {name: self.counts[name].resampled(draws[chunk]) for name in needed}
            own = self.own.rates if own_draws is None else self.own.resampled(own_draws[chunk])
            for i, criterion in enumerate(criteria):
                fake = criterion.holds(rates[criterion.counts], own)
                shares[chunk, i] = (fake.astype(np.float32) @ members) / sizes
        return shares


def _draws(n: int, rng: np.random.Generator) -> Float[np.ndarray, "resamples clusters"]:
    """How often each cluster is drawn."""
    return rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(np.float32)
