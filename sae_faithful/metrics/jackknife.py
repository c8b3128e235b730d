"""Intervals, by the jackknife, of statistics of sums that resampling would bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from sae_faithful.metrics.intervals import LEVEL, MIN_CLUSTERS, NO_SPREAD, Interval, too_few_clusters

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float


def jackknife(
    samples: Sequence[Float[np.ndarray, "clusters width"]],
    statistic: Callable[[Sequence[Float[np.ndarray, " width"]]], float],
) -> tuple[float, Interval]:
    """A statistic of the sums of independent samples, and its 95 % interval over clusters.

    SE² = Σ_k (n_k − 1)/n_k · Σᵢ (θ₍ₖ,₋ᵢ₎ − θ̄ₖ)², where θ₍ₖ,₋ᵢ₎ leaves cluster i of sample k out (Efron & Stein
    1981: on the safe side in expectation); bounds by Student's t with min n_k − 1 degrees of freedom. A
    bootstrap draws some clusters twice and others never, so that its samples have fewer types of token and
    noisier rates: divergences and counts of types come out biased, which leaving one out avoids.

    Args:
        samples: one matrix of sums per cluster for each sample.
        statistic: its value from each sample's total.
    """
    totals = [sums.sum(axis=0) for sums in samples]
    estimate = statistic(totals)
    fewest = min(len(sums) for sums in samples)
    if fewest < MIN_CLUSTERS:
        return estimate, too_few_clusters(fewest)
    variance = 0.0
    for k, sums in enumerate(samples):
        left_out = np.array(
            [statistic([*totals[:k], totals[k] - cluster, *totals[k + 1 :]]) for cluster in sums]
        )
        variance += (len(sums) - 1) / len(sums) * float(np.square(left_out - left_out.mean()).sum())
    # Differences in the last bits are no spread.
    if variance <= (1e-12 * max(1.0, abs(estimate))) ** 2:
        return estimate, Interval(None, None, NO_SPREAD)
    half = float(stats.t.ppf((1 + LEVEL) / 2, fewest - 1)) * variance**0.5
    return estimate, Interval(estimate - half, estimate + half)
