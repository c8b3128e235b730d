"""How surprising a text is to the model: per sequence against a reference, and at its first token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_faithful.metrics.auc import draw_weights, group_units, pair_counts, with_spread
from sae_faithful.metrics.intervals import (
    MIN_CLUSTERS,
    Interval,
    bootstrap_interval,
    ratio_interval,
    too_few_clusters,
)

if TYPE_CHECKING:
    from jaxtyping import Float

ACCEPTED = 0.95


def token_mean(
    sums: Float[np.ndarray, " sequences"], tokens: Float[np.ndarray, " sequences"]
) -> tuple[float, Interval]:
    """Mean over tokens from sums per sequence, with its interval over sequences (ratio of sums)."""
    return float(sums.sum() / tokens.sum()), ratio_interval(sums, tokens)


def auroc(
    text: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"], rng: np.random.Generator
) -> tuple[float, Interval]:
    """P(a sequence of the text scores higher than one of the reference) + ½ P(equal), and its interval.

    0.5 when the two are alike, 1 where every sequence of the text scores higher, 0 where lower.
    """
    counts = pair_counts(
        text, group_units(np.arange(len(text))), reference, group_units(np.arange(len(reference)))
    )
    return counts.auc, counts.interval(rng)


def fpr_at_95(
    text: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"], rng: np.random.Generator
) -> tuple[float, Interval]:
    """Share of the text's sequences accepted by the threshold that accepts 95 % of the reference's.

    Accepted are scores up to the threshold, the smallest of the reference's scores that lets at least 95 % of
    them through. About 0.95 when the two are alike, lower the better the score tells the text apart (0 at
    best); 1 is text that scores below the reference. Interval: percentile bootstrap of both.
    """
    text, reference = np.sort(text), np.sort(reference)

    def shares(of_text: np.ndarray, of_reference: np.ndarray) -> np.ndarray:
        through = of_reference.cumsum(axis=1)
        # Weights are whole numbers; the half keeps rounding of 0.95·m from asking for one more.
        index = (through < np.ceil(ACCEPTED * len(reference) - 1e-9) - 0.5).sum(axis=1)
        accepted = np.searchsorted(text, reference[index], side="right")
        sums = np.concatenate([np.zeros((len(of_text), 1)), of_text.cumsum(axis=1)], axis=1)
        return sums[np.arange(len(of_text)), accepted] / len(text)

    estimate = float(shares(np.ones((1, len(text))), np.ones((1, len(reference))))[0])
    fewest = min(len(text), len(reference))
    if fewest < MIN_CLUSTERS:
        return estimate, too_few_clusters(fewest)
    interval = bootstrap_interval(
        lambda weights: shares(weights, draw_weights(len(reference), len(weights), rng)), len(text), rng
    )
    return estimate, with_spread(interval)


def first_token_excess(
    surprise: Float[np.ndarray, " documents"], entropy: Float[np.ndarray, " documents"]
) -> tuple[float, Interval]:
    """Mean of −log p(first) − H(p), nats, p the model's prediction before any text, first a document's first token.

    0 in expectation for documents that the model wrote; positive where they begin as the model would not.
    """
    difference = surprise - entropy
    return token_mean(difference, np.ones_like(difference))
