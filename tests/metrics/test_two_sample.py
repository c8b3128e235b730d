from __future__ import annotations

import math

import numpy as np
import pytest

from sae_faithful.metrics.jackknife import NO_SPREAD
from sae_faithful.metrics.two_sample import classifier_auc, knn_distance, mahalanobis, mean_over_tokens


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    vectors[:, 0] += shift
    return vectors


def documents(n: int, tokens: int) -> np.ndarray:
    return np.repeat(np.arange(n), tokens)


def test_knn_distance_by_hand() -> None:
    references = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    vectors = np.array([[5.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    # Cosines: (1, 0, −1), (√½, √½, −√½), (0, 0, 0).
    assert knn_distance(vectors, references, 1) == pytest.approx([0, 1 - math.sqrt(0.5), 1])
    assert knn_distance(vectors, references, 2) == pytest.approx([1, 1 - math.sqrt(0.5), 1])
    assert knn_distance(vectors, references, 3) == pytest.approx([2, 1 + math.sqrt(0.5), 1])
    with pytest.raises(ValueError, match="k = 4 of 3 references"):
        knn_distance(vectors, references, 4)


def test_knn_distance_in_chunks_is_that_of_each_alone() -> None:
    vectors, references = normal(2_100, 8, 0), normal(50, 8, 1)
    whole = knn_distance(vectors, references, 3)
    assert whole[[0, 1_024, 2_099]] == pytest.approx(
        knn_distance(vectors[[0, 1_024, 2_099]], references, 3), abs=1e-6
    )


def test_mean_over_tokens_takes_documents_as_clusters() -> None:
    # 50 documents of two tokens, sums 0 and 4 in turn: mean 1, residuals ∓2: SE = √(50/49 · 200)/100 = 1/7.
    values = np.repeat(np.tile([0.0, 2.0], 25), 2)
    mean, (low, high, _) = mean_over_tokens(values, documents(50, 2))
    assert mean == 1
    assert (low, high) == pytest.approx((1 - 2.009575 / 7, 1 + 2.009575 / 7), abs=1e-6)


def test_mahalanobis_of_known_distributions() -> None:
    references = normal(4_000, 8, 0) * np.array([9, *[1] * 7], np.float32)
    same, moved = normal(2_000, 8, 1), normal(2_000, 8, 2, shift=4)
    for vectors in (same, moved):
        vectors[:, 0] *= 9
    # χ² with 8 degrees has the mean 8 and the SD 4: of 2,000, the mean over d is 1 ± .011.
    assert mahalanobis(same, references).mean() == pytest.approx(1, abs=0.06)
    # Four standard deviations along one axis add 16/8.
    assert mahalanobis(moved, references).mean() == pytest.approx(3, abs=0.12)


def test_the_classifier_finds_nothing_between_samples_of_one_distribution() -> None:
    units = documents(60, 4)
    covered, values = 0, []
    for seed in range(60):
        vectors, references = normal(240, 16, 2 * seed), normal(240, 16, 2 * seed + 1)
        value, (low, high, _) = classifier_auc(vectors, units, references, units, np.random.default_rng(0))
        assert low is not None and high is not None
        covered += low < 0.5 < high
        values.append(value)
    # An interval of the bootstrap's own width holds .5 in 52 of 60.
    assert covered >= 54
    # One has the SD .035 (measured): the mean of 60 stays within .5 ± 3 · .0045.
    assert abs(np.mean(values) - 0.5) < 0.0135


def test_the_classifier_finds_a_planted_shift() -> None:
    # Along one axis two SDs apart the best classifier has AUC Φ(2/√2) = .921.
    units = documents(100, 10)
    value, (low, high, _) = classifier_auc(
        normal(1_000, 16, 0, shift=2), units, normal(1_000, 16, 1), units, np.random.default_rng(0)
    )
    assert low is not None and high is not None
    assert low < 0.921 < high
    assert value == pytest.approx(0.921, abs=0.02)


def test_separable_sets_score_one_and_show_no_spread() -> None:
    units = documents(60, 4)
    found = classifier_auc(
        normal(240, 8, 0, shift=50), units, normal(240, 8, 1), units, np.random.default_rng(0)
    )
    assert found == (1, (None, None, NO_SPREAD))


def test_documents_are_never_on_both_sides_of_a_fold() -> None:
    # Each document's tokens stand close together around a point of its own, drawn alike on both sides: told by
    # document they would be told apart almost perfectly.
    units = documents(40, 20)
    sides = [
        np.repeat(normal(40, 64, seed) * 3, 20, axis=0) + normal(800, 64, seed + 2) * 0.1 for seed in (0, 1)
    ]
    value, interval = classifier_auc(sides[0], units, sides[1], units, np.random.default_rng(0))
    assert 0.3 < value < 0.7
    assert interval.reason == "40 sequences; an interval needs at least 50"


def test_too_few_documents_for_the_folds_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 5 documents"):
        classifier_auc(
            normal(8, 2, 0), documents(4, 2), normal(20, 2, 1), documents(10, 2), np.random.default_rng(0)
        )
