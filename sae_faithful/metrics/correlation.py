"""Correlation of a number of SAEs with a score of the texts they were trained on, over a handful of sources."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from sae_faithful.metrics.intervals import (
    LEVEL,
    N_RESAMPLES,
    Interval,
    jackknife_interval,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float, Int

    from sae_faithful.metrics.paired import Key

MIN_SOURCES = 4
"""Through three points some line always goes."""
DECIDING_SOURCES = 5
"""Of four orders in 24 the most extreme two are 8 %: no arrangement of four sources is decided at 5 %."""
MOST_SOURCES = 100
"""More sources than this are as good as none."""
MIN_RELIABILITY = 0.8
"""Where SAE seeds make more of the variance between sources than the rest, correlations come out too near 0."""
EXACT_SOURCES = 8
"""Up to 8! = 40,320 orders are all tried."""
N_ORDERS = 20_000
"""Of more sources so many random orders are tried."""
SAME = 1e-12
NO_COMMON_SEED = "the sources have no SAE seed in common"
SAME_SCORES = "all sources have the same score"
SAME_VALUES = "all sources have the same value"
SAME_SEEDS = "every SAE seed gives the same value: it shows no spread"
TOO_FEW_SEEDS = "fewer than three SAE seeds say too little about what seeds change"
SEEDS_MAKE_THE_SPREAD = "SAE seeds make more than a fifth of the variance between sources"
PERFECT = "a perfect correlation has no interval"


class Correlation(NamedTuple):
    """A correlation over sources, and two answers to two questions about it."""

    value: float | None
    over_seeds: Interval
    """Of the correlation that these sources would have if every one had SAEs without number: what seeds change."""
    over_sources: Interval
    """Of the correlation among all sources that these are a sample of, taken as normal; of Pearson's alone."""
    p_value: float | None
    """How often sources that have nothing to do with their scores would correlate so strongly, in either direction."""
    reason: str | None
    """Why there is no value."""


def spearman(
    scores: Sequence[float], values: Sequence[Mapping[Key, float]], rng: np.random.Generator
) -> Correlation:
    """Rank correlation of `scores` with the sources' means over the SAE seeds (or pairs) that all of them have.

    The interval over seeds: each source's mean plus its standard error (jackknife over its seeds) times Student's t
    with S − 1 degrees of freedom, drawn 2,000 times, each source for itself; quantiles of the ranks' correlations.
    Seeds that do the same to every source leave ranks alone, so that it is on the safe side there. Simulated coverage
    is in tests/metrics/test_correlation.py. The scores are taken as measured without error.

    Args:
        scores: one a source.
        values: of each source by seed, or by pair of seeds.
        rng: where the draws come from.
    """
    found = _Means.of(scores, values)
    if isinstance(found, str):
        return _no_value(found)
    ranks = stats.rankdata(found.scores)
    value = _correlate(ranks, stats.rankdata(found.means))
    interval = found.refusal() or _rank_interval(ranks, found, rng)
    return Correlation(
        value, interval, Interval(None, None), permutation_p(ranks, stats.rankdata(found.means)), None
    )


def pearson(scores: Sequence[float], values: Sequence[Mapping[Key, float]]) -> Correlation:
    """Linear correlation r of `scores` with the sources' means, as `spearman` takes them.

    The interval over seeds is by the jackknife of atanh r, a seed left out of all sources at once: seeds may do the
    same to every source. The interval over sources is Fisher's, tanh(atanh r ± 1.96 / √(n − 3)).
    """
    found = _Means.of(scores, values)
    if isinstance(found, str):
        return _no_value(found)
    value = _correlate(found.scores, found.means)
    p_value = permutation_p(found.scores, found.means)
    if 1 - abs(value) < SAME:
        none = Interval(None, None, PERFECT)
        return Correlation(value, none, none, p_value, None)
    interval = found.refusal() or _jackknifed(value, found)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) / (len(scores) - 3) ** 0.5
    z = np.arctanh(value)
    return Correlation(
        value, interval, Interval(float(np.tanh(z - half)), float(np.tanh(z + half))), p_value, None
    )


def permutation_p(one: Float[np.ndarray, " n"], two: Float[np.ndarray, " n"]) -> float:
    """Share of the orders of `two` that correlate with `one` at least as strongly as the given one, in size.

    Exact for up to 8 values: all n! orders. Of more, 20,000 random ones and the given one (Phipson & Smyth 2010).
    It needs no distribution: only that, without a relation, any source could have had any other's value. The smallest
    it can be is 2/n! (.083 for 4 values, .017 for 5).
    """
    a, b = one - one.mean(), two - two.mean()
    limit = abs(float(a @ b)) - SAME * float(np.sqrt((a @ a) * (b @ b)))
    if len(a) <= EXACT_SOURCES:
        return float(np.mean(np.abs(b[_orders(len(a))] @ a) >= limit))
    rng = np.random.default_rng(0)
    drawn = rng.permuted(np.tile(b, (N_ORDERS, 1)), axis=1)
    return float((1 + np.count_nonzero(np.abs(drawn @ a) >= limit)) / (1 + N_ORDERS))


def sources_to_decide(value: float) -> int | None:
    """The fewest sources n with |r| √((n − 2) / (1 − r²)) > t(.975, n − 2); None: more than 100.

    An extrapolation: it takes the correlation found for the true one. At least 5: with 4 no order is decided.
    """
    n = np.arange(DECIDING_SOURCES, MOST_SOURCES + 1)
    statistic = abs(value) * np.sqrt((n - 2) / max(1 - value**2, SAME))
    enough = statistic > stats.t.ppf((1 + LEVEL) / 2, n - 2)
    return int(n[enough.argmax()]) if enough.any() else None


class _Means(NamedTuple):
    """What correlations are made of."""

    scores: Float[np.ndarray, " sources"]
    means: Float[np.ndarray, " sources"]
    left_out: Float[np.ndarray, "seeds sources"]
    """The means without each seed in turn."""

    @staticmethod
    def of(scores: Sequence[float], values: Sequence[Mapping[Key, float]]) -> _Means | str:
        """Over the seeds, or pairs, that all sources have; or why there is no correlation."""
        if len(scores) < MIN_SOURCES:
            return f"{len(scores)} sources; a correlation needs at least {MIN_SOURCES}"
        keys = sorted(set(values[0]).intersection(*values[1:]))
        if not keys:
            return NO_COMMON_SEED
        table = np.array([[one[key] for one in values] for key in keys], np.float64)
        found = np.asarray(scores, np.float64), table.mean(axis=0)
        for what, reason in zip(found, (SAME_SCORES, SAME_VALUES), strict=True):
            if np.ptp(what) <= SAME * max(1.0, float(np.abs(what).max())):
                return reason
        seeds = sorted({seed for key in keys for seed in key})
        kept = [[seed not in key for key in keys] for seed in seeds]
        left_out = [table[rows].mean(axis=0) for rows in kept if any(rows)]
        return _Means(*found, np.array(left_out).reshape(-1, len(scores)))

    @property
    def errors(self) -> Float[np.ndarray, " sources"]:
        """Standard error of each source's mean, by the jackknife over seeds."""
        n = len(self.left_out)
        return np.sqrt((n - 1) / n * np.square(self.left_out - self.left_out.mean(axis=0)).sum(axis=0))

    def refusal(self) -> Interval | None:
        """Why seeds give no interval; none if they do."""
        if len(self.left_out) < 3:
            return Interval(None, None, TOO_FEW_SEEDS)
        errors = np.square(self.errors)
        if errors.mean() > (1 - MIN_RELIABILITY) * self.means.var(ddof=1):
            return Interval(None, None, SEEDS_MAKE_THE_SPREAD)
        if np.sqrt(errors).max() <= SAME * max(1.0, float(np.abs(self.means).max())):
            return Interval(None, None, SAME_SEEDS)
        return None


def _rank_interval(ranks: Float[np.ndarray, " sources"], found: _Means, rng: np.random.Generator) -> Interval:
    noise = rng.standard_t(len(found.left_out) - 1, (N_RESAMPLES, len(ranks)))
    drawn = stats.rankdata(found.means + found.errors * noise, axis=1)
    centred = ranks - ranks.mean()
    norms = np.sqrt(np.square(drawn - drawn.mean(axis=1, keepdims=True)).sum(axis=1) * (centred @ centred))
    low, high = np.quantile(drawn @ centred / norms, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _jackknifed(value: float, found: _Means) -> Interval:
    left_out = [_correlate(found.scores, means) for means in found.left_out]
    # One seed fewer may happen to lie on a line: as near to it as numbers can be told apart.
    limit = 1 - SAME
    interval = jackknife_interval(
        float(np.arctanh(value)), [float(np.arctanh(np.clip(one, -limit, limit))) for one in left_out]
    )
    if interval.low is None or interval.high is None:
        return interval
    return Interval(float(np.tanh(interval.low)), float(np.tanh(interval.high)))


def _correlate(one: Float[np.ndarray, " n"], two: Float[np.ndarray, " n"]) -> float:
    return float(np.corrcoef(one, two)[0, 1])


@cache
def _orders(n: int) -> Int[np.ndarray, "orders n"]:
    return np.array(list(permutations(range(n))))


def _no_value(reason: str) -> Correlation:
    none = Interval(None, None, reason)
    return Correlation(None, none, none, None, reason)
