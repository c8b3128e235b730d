from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sae_faithful.metrics.intervals import (
    N_RESAMPLES,
    Interval,
    bootstrap_interval,
    jackknife_interval,
    mean_difference_interval,
    mean_interval,
    percentile_interval,
    ratio_interval,
)

# 97.5 % points of Student's t, from a printed table.
T_2, T_49 = 4.302653, 2.009575


def mean_of(values: np.ndarray) -> Any:
    """The statistic that a bootstrap of a mean needs."""
    return lambda weights: weights @ values / weights.sum(axis=1)


# Over SAEs


def test_t_interval_of_three_values() -> None:
    # Mean 2, SD 1, standard error 1/√3 = .577350; half width 4.302653 · .577350 = 2.484138.
    low, high, reason = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert reason is None


def test_t_interval_of_equal_values_has_no_width() -> None:
    assert mean_interval([0.25, 0.25]) == Interval(0.25, 0.25)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_one_sae_has_no_interval_but_a_reason(values: list[float]) -> None:
    assert mean_interval(values) == (None, None, "one SAE says nothing about the spread between SAEs")


def test_difference_of_two_means_by_hand() -> None:
    # Means 2 and 5; variances 1 (n = 3) and (2 + 2)/1 = 4 (n = 2).
    # SE² = 1/3 + 4/2 = 7/3. Degrees = (7/3)² / ((1/3)²/2 + 2²/1) = 5.4444 / 4.05556 = 1.342466.
    values, others = [1.0, 2.0, 3.0], [5 - 2**0.5, 5 + 2**0.5]
    low, high, reason = mean_difference_interval(values, others)
    assert reason is None
    assert low is not None and high is not None
    assert (low + high) / 2 == pytest.approx(-3)
    # Student's t is wider the fewer degrees: between those of 1 (12.706) and 2 (4.303).
    assert 4.303 < (high - low) / 2 / (7 / 3) ** 0.5 < 12.706


def test_difference_of_two_means_with_known_degrees() -> None:
    # Of equal sizes and variances there are n - 1 + n - 1 = 48 degrees.
    values = np.arange(25.0)
    low, high, _ = mean_difference_interval(list(values + 1), list(values))
    s2 = 25 * 26 / 12  # of 0, 1, ..., 24: n (n + 1) / 12
    t_48 = 2.010635
    half = t_48 * (2 * s2 / 25) ** 0.5
    assert (low, high) == pytest.approx((1 - half, 1 + half), abs=1e-5)


@pytest.mark.parametrize(
    ("values", "others"), [([1.0], [1.0, 2.0]), ([1.0, 2.0], []), ([3.0, 3.0], [1.0, 1.0])]
)
def test_no_spread_gives_no_interval_of_a_difference(values: list[float], others: list[float]) -> None:
    low, high, reason = mean_difference_interval(values, others)
    assert (low, high) == (None, None)
    assert reason


def test_difference_of_two_means_covers_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2_000):
        low, high, _ = mean_difference_interval(list(rng.normal(1, 3, 12)), list(rng.normal(0, 1, 40)))
        assert low is not None and high is not None
        covered += low <= 1 <= high
    # ± 3 standard errors of a share of 2,000.
    assert abs(covered / 2_000 - 0.95) < 3 * (0.95 * 0.05 / 2_000) ** 0.5


def test_jackknife_of_three_saes() -> None:
    # Left out: .2, .3, .4; mean .3, squares .01 + 0 + .01 = .02; SE² = 2/3 · .02, SE = .115470;
    # half width 4.302653 · .115470 = .496828, about the estimate, not about the mean of the left out.
    low, high, reason = jackknife_interval(0.35, [0.2, 0.3, 0.4])
    assert (low, high) == pytest.approx((0.35 - 0.496828, 0.35 + 0.496828), abs=1e-5)
    assert reason is None


def test_jackknife_of_a_mean_is_the_t_interval_of_the_mean() -> None:
    # Left-one-out means are (Σx − xᵢ)/(S − 1), for which SE² becomes s²/S: Quenouille's identity.
    values = np.array([0.1, 0.5, 0.2, 0.9, 0.4])
    left_out = (values.sum() - values) / 4
    assert jackknife_interval(values.mean(), list(left_out))[:2] == pytest.approx(
        mean_interval(list(values))[:2]
    )


@pytest.mark.parametrize("left_out", [[], [0.5], [0.5, 0.6]])
def test_one_pair_of_saes_has_no_interval_but_a_reason(left_out: list[float]) -> None:
    low, high, reason = jackknife_interval(0.5, left_out)
    assert (low, high) == (None, None)
    assert reason is not None
    assert reason.startswith("fewer than three SAEs")


# Over sequences


def test_ratio_interval_by_hand() -> None:
    # 50 clusters of one token, sums 0 and 2 in turn: ratio 1, residuals ∓1, Σr² = 50;
    # SE = √(50/49 · 50)/50 = 1/7; half width 2.009575/7 = .287082.
    low, high, reason = ratio_interval(np.tile([0.0, 2.0], 25), np.ones(50))
    assert (low, high) == pytest.approx((1 - T_49 / 7, 1 + T_49 / 7), abs=1e-6)
    assert reason is None


def test_ratio_interval_of_a_constant_ratio_has_no_width() -> None:
    # However unequal the clusters, each has the ratio 1/4.
    sizes = np.arange(1.0, 61.0)
    assert ratio_interval(sizes / 4, sizes)[:2] == pytest.approx((0.25, 0.25), abs=1e-12)


def test_fewer_than_50_sequences_have_no_interval_but_a_reason() -> None:
    rng = np.random.default_rng(0)
    reason = "49 sequences; an interval needs at least 50"
    assert ratio_interval(np.ones(49), np.ones(49)) == (None, None, reason)
    assert bootstrap_interval(mean_of(np.ones(49)), 49, rng) == (None, None, reason)
    assert ratio_interval(np.ones(50), np.ones(50)).reason is None
    assert bootstrap_interval(mean_of(np.ones(50)), 50, rng).reason is None


def test_ratio_interval_covers_the_truth_95_times_in_100() -> None:
    # Clusters of 1 to 20 tokens whose sums share an effect of the cluster: tokens are not independent.
    # Over 2,000 trials the binomial SE of a coverage of .95 is √(.95 · .05 / 2000) = .0049;
    # .93 to .97 are 4 of them on either side.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2_000):
        sizes = rng.integers(1, 21, 100).astype(float)
        sums = sizes * (3.0 + rng.normal(size=100)) + np.sqrt(sizes) * rng.normal(size=100)
        low, high, _ = ratio_interval(sums, sizes)
        assert low is not None
        assert high is not None
        covered += low <= 3.0 <= high
    assert 0.93 < covered / 2_000 < 0.97


def test_bootstrap_covers_the_truth_95_times_in_100() -> None:
    # Normal values, whose t interval the tails are made for; 400 resamples take about .002 off .95. Over 2,000
    # trials the binomial SE is .0049: .93 and .965 are more than 3 away.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2_000):
        values = rng.normal(3.0, 1.0, 80)
        low, high, _ = bootstrap_interval(mean_of(values), 80, rng, n_resamples=400)
        assert low is not None
        assert high is not None
        covered += low <= 3.0 <= high
    assert 0.93 < covered / 2_000 < 0.965


def test_bootstrap_draws_as_many_clusters_as_there_are() -> None:
    seen: list[np.ndarray] = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights[:, 0]

    bootstrap_interval(statistic, 60, np.random.default_rng(0), n_resamples=2_000)
    weights = np.concatenate(seen)
    assert weights.shape == (2_000, 60)
    assert (weights.sum(axis=1) == 60).all()
    # Each cluster is drawn once on average; the variance of a mean of 2,000 draws of about
    # Poisson(1) is 1/2000, and 5 · √(1/2000) = .112.
    assert np.abs(weights.mean(axis=0) - 1).max() < 0.112


def test_bootstrap_bounds_are_the_quantiles_of_the_statistic() -> None:
    # The values 0 … 1000, each once. Tails for 60 clusters: t(.975, 59) = 2.000995, times √(60/59) is 2.017882, and
    # Φ(−2.017882) = .0218.
    low, high, _ = bootstrap_interval(
        lambda weights: np.arange(len(weights), dtype=float), 60, np.random.default_rng(0), n_resamples=1_001
    )
    assert (low, high) == pytest.approx((21.80, 978.20), abs=0.01)


def test_bootstrap_repeats_itself_with_the_same_seed() -> None:
    values = np.random.default_rng(1).normal(size=80)
    first, second, other = (
        bootstrap_interval(mean_of(values), 80, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert first == second
    assert first != other


def test_many_clusters_are_resampled_in_parts_that_hold_no_more_than_so_many_weights() -> None:
    n = 5_000
    values = np.random.default_rng(1).normal(3, 2, n)
    shown: list[tuple[int, int]] = []

    def mean(weights: np.ndarray) -> np.ndarray:
        shown.append(weights.shape)
        assert (weights.sum(axis=1) == n).all()
        return weights @ values / n

    interval = bootstrap_interval(mean, n, np.random.default_rng(0))
    assert sum(rows for rows, _ in shown) == N_RESAMPLES
    assert max(rows * columns for rows, columns in shown) <= 2**19
    # The same draws as all at once, and bounds near 1.96 standard errors.
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)
    assert interval == percentile_interval(weights @ values / n, n)
    assert interval.low is not None
    assert interval.low == pytest.approx(values.mean() - 1.96 * 2 / n**0.5, abs=0.005)
