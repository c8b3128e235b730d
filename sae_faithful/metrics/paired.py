"""Differences between two groups of SAEs that are paired by seed: intervals, and what would narrow them enough."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from sae_faithful.metrics.intervals import LEVEL, Interval, mean_interval
from sae_faithful.metrics.matching import mean_over_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Key = tuple[int, ...]
"""The seed of an SAE, or both seeds of a pair of SAEs."""
MOST_SEEDS = 1_000
"""A difference that would take more seeds than this is as good as none."""
SAME_DIFFERENCE = "every seed gives the same difference: it shows no spread"


def difference_interval(differences: Mapping[Key, float]) -> Interval:
    """95 % interval of the mean of paired differences, S − 1 degrees of freedom.

    Of one difference a seed: Student's t. Of one a pair of seeds: the jackknife of `mean_over_pairs`, which leaves
    a seed out of both groups at once. It covers what other seeds would change, and nothing else.
    """
    values = list(differences.values())
    mean = float(np.mean(values))
    pairs = {(key[0], key[1]): value for key, value in differences.items() if len(key) == 2}
    interval = mean_over_pairs(pairs)[1] if pairs else mean_interval(values)
    # Differences in the last bits are no spread; and no spread is no proof.
    if interval.low is not None and mean - interval.low <= 1e-12 * max(1.0, abs(mean)):
        return Interval(None, None, SAME_DIFFERENCE)
    return interval


class Estimate(NamedTuple):
    """A number with its standard error, and the degrees of freedom that this is known to."""

    value: float
    error: float
    degrees: float

    @staticmethod
    def of(value: float, low: float, high: float, degrees: float) -> Estimate:
        """From a 95 % interval by Student's t with `degrees`, or by the normal distribution (infinity)."""
        return Estimate(value, (high - low) / 2 / _t(degrees), degrees)


def combined(parts: Sequence[tuple[float, Estimate]]) -> tuple[float, Interval]:
    """Σ weight · estimate of independent estimates, and its 95 % interval.

    SE² = Σ weight² SE², bounds by Student's t with Welch and Satterthwaite's degrees of freedom, SE⁴ / Σ (weight SE)⁴ /
    degrees, but no more than those of the part with the largest error: noise that is better known, added, would else
    make an interval narrower.
    """
    value = sum(weight * one.value for weight, one in parts)
    variance = sum((weight * one.error) ** 2 for weight, one in parts)
    if variance == 0:
        return value, Interval(None, None, SAME_DIFFERENCE)
    squares = [((weight * one.error) ** 2, one.degrees) for weight, one in parts]
    welch = variance**2 / max(sum(square**2 / degrees for square, degrees in squares), sys.float_info.min)
    half = _t(min(welch, max(squares)[1])) * variance**0.5
    return value, Interval(value - half, value + half)


def spread_over_seeds(mean: float, low: float, n_seeds: int) -> float:
    """SD over seeds that an interval's lower bound implies: SE · √S."""
    return (mean - low) / _t(n_seeds - 1) * n_seeds**0.5


def seeds_to_decide(mean: float, spread: float) -> int | None:
    """The fewest seeds S with |mean| > t(.975, S − 1) · spread / √S; None: more than 1,000.

    An extrapolation: it takes the mean difference and the spread (SD over seeds) for the true ones.
    """
    seeds = np.arange(2, MOST_SEEDS + 1)
    enough = abs(mean) > stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * spread / np.sqrt(seeds)
    return int(seeds[enough.argmax()]) if enough.any() else None


def sampling_to_decide(mean: float, spread: float, n_seeds: int, sampling: float) -> float | None:
    """How many times as many tokens would decide at S seeds, where sampling them makes most of the spread.

    spread² = σ² + sampling, of which the latter falls as 1/tokens; it is enough when
    |mean| > t(.975, S − 1) · √((σ² + sampling / times) / S). SAEs measured on the same tokens share a part of
    their error, which cancels in the difference: `sampling` counts as spread² at most. It extrapolates as
    `seeds_to_decide` does.

    Args:
        mean: mean difference.
        spread: SD of the differences over seeds.
        n_seeds: S.
        sampling: variance that sampling tokens gives one seed's difference.

    Returns:
        None where seeds make most of the spread, or more tokens alone would not be enough.
    """
    sampling = min(sampling, spread**2)
    allowed = n_seeds * (mean / _t(n_seeds - 1)) ** 2 - (spread**2 - sampling)
    if sampling < spread**2 / 2 or allowed <= 0:
        return None
    return sampling / allowed


def _t(degrees: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))
