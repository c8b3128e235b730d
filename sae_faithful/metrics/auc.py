"""Area under the ROC curve, by pairs of clusters, so that every resample is one product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_faithful.metrics.clusters import MAX_CLUSTERS
from sae_faithful.metrics.intervals import MIN_CLUSTERS, Interval, bootstrap_interval, too_few_clusters
from sae_faithful.metrics.jackknife import NO_SPREAD

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class PairCounts:
    """Pairs of one score of a text with one of the reference, by clusters; and how many the text's score wins."""

    wins: Float[np.ndarray, "text reference"]
    """Pairs in which the text's score is higher; ties count half."""
    pairs: Float[np.ndarray, "text reference"]

    @property
    def auc(self) -> float:
        """P(text's score > reference's) + ½ P(equal): 0.5 when the two are alike."""
        return float(self.wins.sum() / self.pairs.sum())

    def interval(self, rng: np.random.Generator) -> Interval:
        """Percentile bootstrap over the clusters of both sides, independently."""
        n_text, n_reference = self.pairs.shape
        if min(n_text, n_reference) < MIN_CLUSTERS:
            return too_few_clusters(min(n_text, n_reference))

        def statistic(weights: np.ndarray) -> np.ndarray:
            other = draw_weights(n_reference, len(weights), rng)
            won = ((weights @ self.wins) * other).sum(axis=1)
            return won / ((weights @ self.pairs) * other).sum(axis=1)

        return with_spread(bootstrap_interval(statistic, n_text, rng))


def with_spread(interval: Interval) -> Interval:
    """The interval, unless resamples all agree: two texts that never overlap would be given one of no width."""
    if interval.low is not None and interval.high is not None and interval.high - interval.low < 1e-12:
        return Interval(None, None, NO_SPREAD)
    return interval


def pair_counts(
    text: Float[np.ndarray, " n"],
    text_clusters: Int[np.ndarray, " n"],
    reference: Float[np.ndarray, " m"],
    reference_clusters: Int[np.ndarray, " m"],
) -> PairCounts:
    """Compare every score of the text with every one of the reference.

    Args:
        text: scores, at least one.
        text_clusters: the cluster, from 0, of each.
        reference: scores, at least one.
        reference_clusters: the cluster, from 0, of each.
    """
    n_text = np.bincount(text_clusters).astype(np.float64)
    n_reference = np.bincount(reference_clusters).astype(np.float64)
    wins = np.zeros((len(n_text), len(n_reference)))
    for cluster in range(len(n_reference)):
        scores = np.sort(reference[reference_clusters == cluster])
        below = np.searchsorted(scores, text, side="left") + np.searchsorted(scores, text, side="right")
        wins[:, cluster] = np.bincount(text_clusters, weights=below / 2, minlength=len(n_text))
    return PairCounts(wins, np.outer(n_text, n_reference))


def within(counts: PairCounts, comparable: Bool[np.ndarray, "text reference"]) -> PairCounts:
    """Only the pairs of clusters that may be compared: those scored by one classifier, say."""
    return PairCounts(counts.wins * comparable, counts.pairs * comparable)


def draw_weights(
    n_clusters: int, n_resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, "resamples clusters"]:
    """How often each cluster is drawn in each bootstrap resample."""
    draws = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=n_resamples)
    return draws.astype(np.float64)


def group_units(units: Int[np.ndarray, " n"], multiple_of: int = 1) -> Int[np.ndarray, " n"]:
    """Clusters, numbered from 0, of the documents (say) that things belong to: neighbours together, at most 200.

    Args:
        units: any number for each document, increasing in reading order.
        multiple_of: the number of clusters is a multiple of this; there must be as many units.
    """
    _, index = np.unique(units, return_inverse=True)
    n_units = int(index.max(initial=-1)) + 1
    n_clusters = min(n_units, MAX_CLUSTERS) // multiple_of * multiple_of
    return index * n_clusters // max(n_units, 1)
