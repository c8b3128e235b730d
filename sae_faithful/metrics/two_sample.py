"""Whether two sets of activations come from one distribution: distances to neighbours, and a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_faithful.metrics.auc import group_units, pair_counts, within
from sae_faithful.metrics.intervals import Interval
from sae_faithful.metrics.surprise import token_mean

if TYPE_CHECKING:
    from jaxtyping import Float, Int

FOLDS = 5
PENALTY = 0.01
"""The classifier's C: strong enough that twenty or so steps settle it, weak beside the evidence of 1,000 vectors."""
QUERIES_PER_CHUNK = 1_024


def knn_distance(
    vectors: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"], k: int
) -> Float[np.ndarray, " n"]:
    """1 − cosine of each vector with its k-th nearest reference (Sun et al. 2022, arXiv 2204.06507).

    0 for directions seen before, 1 for orthogonal ones, as for vectors of length zero.

    Raises:
        ValueError: fewer references than `k`.
    """
    if not 1 <= k <= len(references):
        raise ValueError(f"k = {k} of {len(references)} references")
    vectors, references = _unit(vectors), _unit(references)
    distances = np.empty(len(vectors))
    for start in range(0, len(vectors), QUERIES_PER_CHUNK):
        cosine = vectors[start : start + QUERIES_PER_CHUNK] @ references.T
        distances[start : start + len(cosine)] = 1 - np.partition(cosine, -k, axis=1)[:, -k]
    return distances


def mahalanobis(
    vectors: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, " n"]:
    """Squared Mahalanobis distance of each vector from the references, divided by d.

    Mean and covariance are the references', the covariance shrunk after Ledoit & Wolf (2004). About 1 for
    vectors like the references.
    """
    from sklearn.covariance import LedoitWolf

    fitted: LedoitWolf = LedoitWolf().fit(references.astype(np.float64))
    return np.asarray(fitted.mahalanobis(vectors.astype(np.float64)), np.float64) / vectors.shape[1]


def mean_over_tokens(values: Float[np.ndarray, " n"], units: Int[np.ndarray, " n"]) -> tuple[float, Interval]:
    """Mean of one value a token, with its interval over the documents (`units`) that the tokens stand in."""
    clusters = group_units(units)
    return token_mean(np.bincount(clusters, weights=values), np.bincount(clusters).astype(np.float64))


def classifier_auc(
    vectors: Float[np.ndarray, "n d"],
    units: Int[np.ndarray, " n"],
    references: Float[np.ndarray, "m d"],
    reference_units: Int[np.ndarray, " m"],
    rng: np.random.Generator,
) -> tuple[float, Interval]:
    """AUC with which a logistic regression tells vectors from references it was not trained on; 0.5 = same.

    A classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545) with five folds. Documents (`units`)
    are never split between folds: tokens of one document resemble each other. Only scores of one fold are
    compared, since each fold has a classifier of its own.

    Interval: bootstrap over documents, classifiers given, widened by √2. Where the two are alike, a pair of folds
    enters twice, each as the other's training set: the AUC then has twice the variance that a bootstrap of its
    scores sees (no unbiased estimate exists: Bengio & Grandvalet 2004). Where they differ it is on the safe side.

    Raises:
        ValueError: fewer documents than folds on one side.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(len(np.unique(units)), len(np.unique(reference_units))) < FOLDS:
        raise ValueError(f"fewer than {FOLDS} documents on one side")
    clusters = group_units(units, FOLDS), group_units(reference_units, FOLDS)
    fold = np.concatenate(clusters) % FOLDS
    both = np.concatenate([vectors, references])
    label = np.arange(len(both)) < len(vectors)
    scores = np.empty(len(both))
    for held_out in range(FOLDS):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=500))
        classifier.fit(both[fold != held_out], label[fold != held_out])
        scores[fold == held_out] = classifier.decision_function(both[fold == held_out])
    counts = pair_counts(scores[label], clusters[0], scores[~label], clusters[1])
    folds = [np.arange(size) % FOLDS for size in counts.pairs.shape]
    counts = within(counts, folds[0][:, None] == folds[1][None, :])
    return counts.auc, _widened(counts.auc, counts.interval(rng))


def _widened(auc: float, interval: Interval) -> Interval:
    low, high, reason = interval
    if low is None or high is None:
        return Interval(None, None, reason)
    return Interval(max(0.0, auc + 2**0.5 * (low - auc)), min(1.0, auc + 2**0.5 * (high - auc)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
