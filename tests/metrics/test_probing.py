"""Probe metrics, their resampled values, and intervals of paired differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from sae_faithful.metrics.intervals import NO_SPREAD, percentile_interval
from sae_faithful.metrics.probing import (
    PROBE_METRICS,
    ProbeMetric,
    draw_texts,
    nested_interval,
    probe_metric,
    resampled_metric,
    texts_interval,
)


def test_metrics_by_hand() -> None:
    labels = np.array([1, 1, 1, 0, 0])
    scores = np.array([2.0, 1.0, -1.0, 1.0, -2.0])
    # Right: 1st, 2nd, 5th. tp 2, fn 1, fp 1, tn 1.
    assert probe_metric("accuracy", labels, scores) == pytest.approx(3 / 5)
    # F1 of class 1: 4 / (4 + 1 + 1); of class 0: 2 / (2 + 1 + 1).
    assert probe_metric("macro_f1", labels, scores) == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Of 6 pairs: 2 beats 1 and -2; 1 ties with 1, beats -2; -1 beats -2 alone: 2 + 1.5 + 1.
    assert probe_metric("auc", labels, scores) == pytest.approx(4.5 / 6)
    # (2·1 − 1·1) / √(3 · 3 · 2 · 2)
    assert probe_metric("mcc", labels, scores) == pytest.approx(1 / 6)


@pytest.mark.parametrize("metric", PROBE_METRICS)
def test_a_resampled_metric_is_the_metric_of_the_drawn_texts(metric: ProbeMetric) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 2
    scores = np.round(rng.standard_normal(30), 1)  # with ties
    weights = draw_texts(30, rng, 20)
    expected = [
        probe_metric(metric, np.repeat(labels, draw.astype(int)), np.repeat(scores, draw.astype(int)))
        for draw in weights
    ]
    np.testing.assert_allclose(resampled_metric(metric, labels, scores, weights), expected, atol=1e-12)


def test_constant_predictions_have_no_correlation_and_an_even_auc() -> None:
    labels, scores = np.array([0, 0, 1]), np.full(3, -1.0)
    assert probe_metric("mcc", labels, scores) == metrics.matthews_corrcoef(labels, [0, 0, 0]) == 0
    assert probe_metric("auc", labels, scores) == 0.5
    ones = np.ones((1, 3))
    assert resampled_metric("mcc", labels, scores, ones) == [0]
    assert resampled_metric("auc", labels, scores, ones) == [0.5]


def test_the_auc_of_a_draw_without_a_class_is_left_out() -> None:
    labels, scores = np.array([0, 1]), np.array([-1.0, 1.0])
    values = resampled_metric("auc", labels, scores, np.array([[2.0, 0.0], [1.0, 1.0]]))
    assert np.isnan(values[0])
    assert values[1] == 1


def test_the_interval_of_an_auc_is_symmetric_in_its_log_odds() -> None:
    labels = np.repeat([0, 1], [40, 10])
    # Logits of the draws are ln 4 ± 1: their standard deviation, n − 1 below, is √2; t(.975, 49) = 2.009575.
    draws = 1 / (1 + np.exp(-(np.log(4) + np.array([-1.0, 1.0]))))
    low, high, _ = texts_interval("auc", 0.8, np.array([*draws, np.nan]), labels)
    assert low is not None
    assert high is not None
    half = 2.009575 * 2**0.5
    assert np.log(low / (1 - low)) == pytest.approx(np.log(4) - half, abs=1e-5)
    assert np.log(high / (1 - high)) == pytest.approx(np.log(4) + half, abs=1e-5)


def test_an_auc_of_one_counts_as_half_a_pair_from_it() -> None:
    labels = np.repeat([0, 1], [40, 10])
    # 400 pairs: 1 becomes 1 − 1/800, its log odds ln 799; the other draw's are 0.
    low, high, _ = texts_interval("auc", 1.0, np.array([1.0, 0.5]), labels)
    assert low is not None
    assert high is not None
    half = 2.009575 * np.log(799) / 2**0.5
    assert np.log(low / (1 - low)) == pytest.approx(np.log(799) - half, abs=1e-4)
    # ln 799 + half is far beyond 1 − 1/800, and the value itself, 1, is inside.
    assert high == 1
    # Every draw alike shows no spread, whatever the rounding of its log odds.
    for positive in (17, 30, 50):
        labels = np.repeat([0, 1], [100 - positive, positive])
        assert texts_interval("auc", 1.0, np.ones(2_000), labels) == (None, None, NO_SPREAD)


def test_paired_bootstrap_by_hand() -> None:
    """One probe is right on both texts, the other on the first alone; the three kinds of draws of two texts."""
    labels = np.array([1, 0])
    weights = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    both = resampled_metric("accuracy", labels, np.array([1.0, -1.0]), weights)
    first = resampled_metric("accuracy", labels, np.array([1.0, 1.0]), weights)
    assert both.tolist() == [1, 1, 1]
    assert first.tolist() == [1, 0.5, 0]
    # Paired: the second text alone decides the difference.
    assert (both - first).tolist() == [0, 0.5, 1]
    # Tails for 50 texts: t(.975, 49) = 2.009575, times √(50/49) is 2.029977, and Φ(−2.029977) = .02118: that quantile
    # of 0, .5, 1, and the one as far from the other end.
    interval = percentile_interval(both - first, 50)
    assert interval[:2] == pytest.approx((0.02118, 0.97882), abs=1e-5)


def test_draws_are_shared_and_as_large_as_the_test_set() -> None:
    weights = draw_texts(7, np.random.default_rng(0), 11)
    assert weights.shape == (11, 7)
    assert (weights.sum(axis=1) == 7).all()


def test_nested_interval_by_hand() -> None:
    values = [0.1, 0.3]
    # Both SAEs move together by ±0.1 with the texts, the second by ±0.05 more: columns d and 1.5 d.
    d = np.array([0.1, -0.1, 0.1, -0.1])
    resampled = np.stack([0.1 + d, 0.3 + 1.5 * d], axis=1)
    # Sample variance of the values .02; over 2 SAEs .01. Covariance of the columns: 1.5 Σd² / 3 = 1.5 · .04 / 3 = .02.
    error = np.sqrt(0.01 + 0.02)
    # Satterthwaite: 1 · (.03 / .01)² = 9 degrees of freedom.
    half = stats.t.ppf(0.975, 9) * error
    interval = nested_interval(values, resampled, 50)
    assert interval[:2] == pytest.approx((0.2 - half, 0.2 + half))


def test_saes_without_spread_leave_the_texts() -> None:
    d = np.random.default_rng(0).standard_normal(500)
    interval = nested_interval([0.0, 0.0], np.stack([d, d], axis=1), 50)
    assert interval.high == pytest.approx(1.96 * np.std(d, ddof=1), rel=1e-3)
    assert nested_interval([0.5, 0.5], np.full((9, 2), 0.5), 50) == (0.5, 0.5, None)


def test_one_sae_and_few_texts_give_a_reason() -> None:
    one = nested_interval([0.5], np.zeros((3, 1)), 50)
    assert one == (None, None, "one SAE says nothing about the spread between SAEs")
    few = (None, None, "49 test texts; an interval needs at least 50")
    assert nested_interval([0.5, 0.6], np.zeros((3, 2)), 49) == few
    assert texts_interval("accuracy", 0.0, np.zeros(3), np.arange(49) % 2) == few


def coverage(n_saes: int, spread: float, n_simulations: int) -> float:
    """Share of nested intervals of a paired accuracy difference that hold the true mean over SAEs, 0."""
    rng = np.random.default_rng(0)
    n_texts, hits = 100, 0
    for _ in range(n_simulations):
        # What a text does to the difference, to all SAEs and to one; then what an SAE is worth.
        shared, own = rng.standard_normal((n_texts, 1)), rng.standard_normal((n_texts, n_saes))
        per_text = shared + own + spread * rng.standard_normal(n_saes)
        resampled = draw_texts(n_texts, rng, 200) @ per_text / n_texts
        low, high, _ = nested_interval(list(per_text.mean(axis=0)), resampled, n_texts)
        assert low is not None
        assert high is not None
        hits += low <= 0 <= high
    return hits / n_simulations


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("n_saes", "lowest"), [(3, 0.90), (5, 0.93)])
def test_coverage(n_saes: int, lowest: float, spread: float) -> None:
    # 95 % is meant; where the texts and the SAEs matter alike, three SAEs cannot say which: docs/metrics.md.
    assert lowest <= coverage(n_saes, spread, 1_000) <= 0.98
