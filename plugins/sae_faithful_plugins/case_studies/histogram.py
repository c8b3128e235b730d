"""What an activation is made of: counts by token and strength, and the share of it that is on one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sae_faithful.metrics.clusters import ClusterSums
from sae_faithful.metrics.intervals import NO_SPREAD, Interval, ratio_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int

N_BINS = 10
N_SERIES = 5


@dataclass(frozen=True)
class Histogram:
    """Active tokens by strength, the most frequent tokens apart (Cunningham et al. 2023, figure 3).

    A token that is among the most frequent is counted as itself in every bin, and every active position counts.
    """

    largest: float
    """The bins are of equal width and go from 0, which is outside, to this, which is inside."""
    tokens: list[int]
    """The most frequent ones over all active positions, most frequent first; of equal ones the lower id."""
    counts: Int[np.ndarray, "series bins"]
    """Of these tokens, and last of all others."""

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, " positions"],
        ids: Int[np.ndarray, " positions"],
        n_bins: int = N_BINS,
        n_series: int = N_SERIES,
    ) -> Histogram:
        """Of activations and the tokens they are on; those not above 0 are left out."""
        values, ids = values[values > 0].astype(np.float64), ids[values > 0]
        if not len(values):
            return cls(0.0, [], np.zeros((1, n_bins), np.int64))
        kinds, totals = np.unique(ids, return_counts=True)
        tokens = kinds[np.argsort(-totals, kind="stable")][:n_series]
        largest = float(values.max())
        bins = np.clip(np.ceil(values / largest * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
        series = np.full(len(ids), len(tokens))
        for i, token in enumerate(tokens):
            series[ids == token] = i
        counts = np.zeros((len(tokens) + 1, n_bins), np.int64)
        np.add.at(counts, (series, bins), 1)
        return cls(largest, [int(token) for token in tokens], counts)


class Share(NamedTuple):
    """How much of an activation is on the token that has most of it."""

    token: int
    of_activation: float
    interval: Interval
    of_positions: float
    """Of the active positions, those that are this token."""
    deviations: Float[np.ndarray, " clusters"]
    """What each cluster of rows adds to the share's error; their sum is 0."""

    @classmethod
    def of(
        cls, values: Float[np.ndarray, "rows context"], ids: Int[np.ndarray, "rows context"]
    ) -> Share | None:
        """Of activations, those not above 0 left out; None where there are none.

        The interval is that of a ratio of sums over rows, for the token as it was found.
        """
        values = np.maximum(values, 0).astype(np.float64)
        if not values.any():
            return None
        token = int(np.bincount(ids.ravel(), values.ravel()).argmax())
        there = ids == token
        sums = ClusterSums(len(values), 2)
        sums.add(0, np.stack([(values * there).sum(axis=1), values.sum(axis=1)], axis=1))
        share = float(sums.total[0] / sums.total[1])
        deviations = (sums.sums[:, 0] - share * sums.sums[:, 1]) / sums.total[1]
        active = values > 0
        return cls(
            token, share, mean_share_interval(share, [deviations]), float(there[active].mean()), deviations
        )


def mean_share_interval(
    value: float, deviations: Sequence[Float[np.ndarray, " clusters"]], signs: Sequence[int] | None = None
) -> Interval:
    """Interval of a mean of shares that were measured on the same rows, by linearisation.

    Args:
        value: the mean; or a difference of means.
        deviations: of each share.
        signs: +1, or −1 for those that are subtracted; the mean is over those with +1.
    """
    signs = [1] * len(deviations) if signs is None else signs
    n = len(deviations[0])
    each = sum(sign * one for sign, one in zip(signs, deviations, strict=True)) / signs.count(1)
    # As a ratio whose denominator is the same for every cluster, which is a mean.
    interval = ratio_interval(value + n * np.asarray(each), np.ones(n))
    if interval.low is not None and interval.high is not None and interval.high - interval.low < 1e-9:
        return Interval(None, None, NO_SPREAD)
    return interval
