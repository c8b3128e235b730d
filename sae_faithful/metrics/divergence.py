"""How far two texts' token frequencies are from each other, and how many kinds of token a text has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_faithful.metrics.jackknife import jackknife

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from sae_faithful.metrics.intervals import Interval


def count_types(
    tokens: Int[np.ndarray, " tokens"], clusters: Int[np.ndarray, " tokens"], types: Int[np.ndarray, " types"]
) -> Float[np.ndarray, "clusters types"]:
    """How often each token id of `types` (sorted, all that occur) stands in each cluster."""
    shape = (int(clusters.max(initial=-1)) + 1, len(types))
    flat = clusters * len(types) + np.searchsorted(types, tokens)
    return np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)


def jensen_shannon(p: Float[np.ndarray, " types"], q: Float[np.ndarray, " types"]) -> float:
    """Jensen–Shannon divergence ½ KL(P‖M) + ½ KL(Q‖M), M = (P + Q)/2, of two arrays of counts, in nats.

    0 for equal frequencies, ln 2 for texts with no token in common (Lin 1991).
    """
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    return (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2


def unigram_divergence(
    text: Float[np.ndarray, "clusters types"], reference: Float[np.ndarray, "clusters types"]
) -> tuple[float, Interval]:
    """Jensen–Shannon divergence of the two texts' token frequencies, nats, with its jackknife interval.

    Samples of one text differ too: compare with what its halves give at the same number of tokens.
    """
    return jackknife([text, reference], lambda totals: jensen_shannon(totals[0], totals[1]))


def unigram_excess(
    text: Float[np.ndarray, "clusters types"],
    null: Float[np.ndarray, "clusters types"],
    reference: Float[np.ndarray, "clusters types"],
) -> tuple[float, Interval]:
    """Divergence of `text` from `reference` less that of `null`, a sample of the reference's own kind; nats.

    About 0 for text like the reference, whatever the sample size. Lower is nearer to the reference.
    """
    return jackknife(
        [text, null, reference],
        lambda totals: jensen_shannon(totals[0], totals[2]) - jensen_shannon(totals[1], totals[2]),
    )


def coverage(counts: Float[np.ndarray, "clusters types"], vocabulary: int) -> tuple[float, Interval]:
    """Share of a vocabulary that occurs in a text. It grows with the number of tokens: compare at equal ones."""
    return jackknife([counts], lambda totals: float((totals[0] > 0).sum()) / vocabulary)


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> float:
    """KL(P‖Q) where Q is nowhere 0 that P is not."""
    occurs = p > 0
    return float((p[occurs] * np.log(p[occurs] / q[occurs])).sum())
