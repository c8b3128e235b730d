"""95 % intervals: over sequences (clusters), over SAEs, and by the jackknife for pairs of SAEs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float

LEVEL = 0.95
MIN_CLUSTERS = 50
"""Fewer sequences than this say too little about their own spread for an interval."""
N_RESAMPLES = 2_000
WEIGHTS_AT_ONCE = 2**19
"""Of all resamples that a statistic is shown together (4 MiB), so that memory does not grow with the clusters."""
NO_SPREAD_OF_VALUES = "all values of both samples are equal: they show no spread"
NO_SPREAD = "every resample gives the same value: it shows no spread"


class Interval(NamedTuple):
    """Bounds of a 95 % interval, or the reason there is none."""

    low: float | None
    high: float | None
    reason: str | None = None


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of a mean of independent values (one an SAE): S − 1 degrees of freedom."""
    if len(values) < 2:
        return Interval(None, None, "one SAE says nothing about the spread between SAEs")
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return _t_interval(mean, error, len(values) - 1)


def mean_difference_interval(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Interval of mean(values) − mean(others), two independent samples that may differ in spread (Welch 1947).

    SE² = s²/n + s'²/n', bounds by Student's t with Welch and Satterthwaite's degrees of freedom,
    SE⁴ / (s⁴/(n²(n − 1)) + s'⁴/(n'²(n' − 1))).
    """
    samples = [np.asarray(each, np.float64) for each in (values, others)]
    if min(map(len, samples)) < 2:
        return Interval(None, None, "one value says nothing about the spread between values")
    parts = [float(each.var(ddof=1)) / len(each) for each in samples]
    error = sum(parts) ** 0.5
    if error == 0:
        return Interval(None, None, NO_SPREAD_OF_VALUES)
    degrees = sum(parts) ** 2 / sum(
        part**2 / (len(each) - 1) for part, each in zip(parts, samples, strict=True)
    )
    return _t_interval(float(samples[0].mean() - samples[1].mean()), error, degrees)


def jackknife_interval(estimate: float, left_out: Sequence[float]) -> Interval:
    """Interval of a statistic of S SAEs from its values with each SAE left out.

    SE² = (S−1)/S · Σ(θ₍₋ᵢ₎ − θ̄)², bounds by Student's t with S − 1 degrees of freedom. It is for statistics
    of pairs (an SFR), whose pairs share SAEs and so are not independent.
    """
    n = len(left_out)
    if n < 3:
        return Interval(None, None, "fewer than three SAEs: one pair says nothing about the spread over SAEs")
    values = np.asarray(left_out, np.float64)
    error = float(np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum()))
    return _t_interval(estimate, error, n - 1)


def ratio_interval(
    numerators: Float[np.ndarray, " clusters"], denominators: Float[np.ndarray, " clusters"]
) -> Interval:
    """Interval of Σ numerators / Σ denominators over independent clusters, by linearisation (Cochran 1977, 6.3)."""
    n = len(numerators)
    if n < MIN_CLUSTERS:
        return too_few_clusters(n)
    ratio = numerators.sum() / denominators.sum()
    residuals = numerators - ratio * denominators
    error = float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / denominators.sum())
    return _t_interval(float(ratio), error, n - 1)


def bootstrap_interval(
    statistic: Callable[[Float[np.ndarray, "resamples clusters"]], Float[np.ndarray, " resamples"]],
    n_clusters: int,
    rng: np.random.Generator,
    n_resamples: int = N_RESAMPLES,
) -> Interval:
    """Percentile bootstrap over clusters, its tails by `percentile_interval`.

    Args:
        statistic: its values for rows of weights: how often each cluster was drawn (each row sums to
            `n_clusters`). Statistics of sums need one matrix product for all resamples that they are shown together.
        n_clusters: number of clusters (sequences, or groups of them).
        rng: where the draws come from.
        n_resamples: how many draws.
    """
    if n_clusters < MIN_CLUSTERS:
        return too_few_clusters(n_clusters)
    at_once = max(1, WEIGHTS_AT_ONCE // n_clusters)
    values: list[np.ndarray] = []
    for start in range(0, n_resamples, at_once):
        size = min(at_once, n_resamples - start)
        weights = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=size)
        values.append(statistic(weights.astype(np.float64)))
    return percentile_interval(np.concatenate(values), n_clusters)


def percentile_interval(values: Float[np.ndarray, " resamples"], n_clusters: int) -> Interval:
    """Bounds from the values of a statistic in bootstrap resamples of `n_clusters` clusters; NaN counts as none.

    The tails are α/2 = Φ(−√(n/(n−1)) · t(.975, n−1)), a little less than .025 each (the expanded percentile
    interval, Hesterberg 2015, arXiv 1411.5279): resamples spread by √((n−1)/n) of what samples do, and have normal
    quantiles where a spread that is itself estimated asks for Student's. For a mean, bounds are then its t interval.
    """
    n = n_clusters
    tail = float(stats.norm.cdf(-((n / (n - 1)) ** 0.5) * stats.t.ppf((1 + LEVEL) / 2, n - 1)))
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _t_interval(centre: float, error: float, degrees: float) -> Interval:
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * error
    return Interval(centre - half, centre + half)


def too_few_clusters(n: int) -> Interval:
    """No interval, and why."""
    return Interval(None, None, f"{n} sequences; an interval needs at least {MIN_CLUSTERS}")
