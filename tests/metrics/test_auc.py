from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sae_faithful.metrics.auc import PairCounts, draw_weights, group_units, pair_counts, within
from sae_faithful.metrics.jackknife import NO_SPREAD


def alone(n: int) -> np.ndarray:
    return np.arange(n)


def test_wins_by_hand() -> None:
    # 1 against 1 and 0: ½ and 1; 2 against both: 1 and 1.
    counts = pair_counts(np.array([1.0, 2.0]), alone(2), np.array([1.0, 0.0]), alone(2))
    assert counts.wins.tolist() == [[0.5, 1], [1, 1]]
    assert counts.auc == 3.5 / 4


def test_clusters_hold_the_sums_of_their_pairs() -> None:
    rng = np.random.default_rng(0)
    text, reference = rng.integers(0, 5, 30).astype(float), rng.integers(0, 5, 40).astype(float)
    counts = pair_counts(text, alone(30) % 3, reference, alone(40) // 10)
    assert counts.pairs.tolist() == [[100] * 4] * 3
    wins = (text[:, None] > reference) + (text[:, None] == reference) / 2
    assert counts.wins[1, 2] == wins[1::3, 20:30].sum()
    assert counts.auc == pytest.approx(wins.mean())


def test_only_pairs_that_may_be_compared_count() -> None:
    counts = PairCounts(np.array([[1.0, 9.0], [9.0, 3.0]]), np.full((2, 2), 10.0))
    assert within(counts, np.eye(2, dtype=bool)).auc == (1 + 3) / 20


def test_alike_scores_give_one_half_and_apart_ones_one_without_an_interval() -> None:
    rng = np.random.default_rng(0)
    same = pair_counts(np.ones(50), alone(50), np.ones(50), alone(50))
    assert (same.auc, same.interval(rng)) == (0.5, (None, None, NO_SPREAD))
    apart = pair_counts(np.ones(50), alone(50), np.zeros(50), alone(50))
    assert (apart.auc, apart.interval(rng)) == (1.0, (None, None, NO_SPREAD))
    few = pair_counts(np.arange(50.0), alone(50), np.arange(49.0), alone(49))
    assert few.interval(rng).reason == "49 sequences; an interval needs at least 50"


def test_intervals_cover_a_planted_auc() -> None:
    rng = np.random.default_rng(0)
    # Two normals, a standard deviation apart: AUC = Φ(1/√2) = .76.
    truth = stats.norm.cdf(0.5**0.5)
    covered = 0
    for _ in range(100):
        text, reference = rng.normal(1, 1, 80), rng.normal(0, 1, 80)
        low, high, _ = pair_counts(text, alone(80), reference, alone(80)).interval(rng)
        assert low is not None and high is not None
        covered += low < truth < high
    assert covered >= 88


def test_units_are_grouped_in_runs() -> None:
    assert group_units(np.array([4, 4, 7, 9])).tolist() == [0, 0, 1, 2]
    # Seven units in a multiple of five clusters.
    assert group_units(np.arange(7), 5).tolist() == [0, 0, 1, 2, 2, 3, 4]
    many = group_units(np.arange(1_000))
    assert np.bincount(many).tolist() == [5] * 200


def test_every_resample_draws_as_many_clusters() -> None:
    weights = draw_weights(60, 10, np.random.default_rng(0))
    assert weights.sum(axis=1).tolist() == [60] * 10
