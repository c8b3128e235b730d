from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from sae_faithful.metrics.intervals import mean_interval
from sae_faithful.metrics.paired import (
    SAME_DIFFERENCE,
    Estimate,
    combined,
    difference_interval,
    sampling_to_decide,
    seeds_to_decide,
    spread_over_seeds,
)

# 97.5 % points of Student's t, from a printed table.
T_2, T_4 = 4.302653, 2.776445


def test_differences_of_pairs_leave_a_seed_out_of_both_sources() -> None:
    # Mean .3. Without seed 0 only pair (1, 2) is left: .6; without 1: .2; without 2: .1; mean .3.
    # Squares .09 + .01 + .04 = .14; SE² = 2/3 · .14, SE = .305505; half width 4.302653 · .305505.
    low, high, reason = difference_interval({(0, 1): 0.1, (0, 2): 0.2, (1, 2): 0.6})
    assert (low, high) == pytest.approx((0.3 - T_2 * 0.305505, 0.3 + T_2 * 0.305505), abs=1e-5)
    assert reason is None


def test_differences_of_single_saes_have_the_t_interval() -> None:
    # Differences 1, 2, 3: mean 2, SD 1, SE 1/√3.
    low, high, _ = difference_interval({(4,): 1.0, (7,): 2.0, (9,): 3.0})
    assert (low, high) == pytest.approx((2 - T_2 / 3**0.5, 2 + T_2 / 3**0.5), abs=1e-5)


def test_too_few_seeds_have_a_reason_instead() -> None:
    assert (
        difference_interval({(0, 1): 0.5}).reason
        == "fewer than three SAEs: one pair says nothing about the spread over SAEs"
    )
    assert difference_interval({(0,): 0.5}).reason == "one SAE says nothing about the spread between SAEs"


@pytest.mark.parametrize("keys", [[(0,), (1,)], [(0, 1), (0, 2), (1, 2)]])
def test_equal_differences_prove_nothing(keys: list[tuple[int, ...]]) -> None:
    # A third of 0.3 and of 0.1 + 0.2, equal but for the last bit, are no spread either.
    values = [0.3 / 3, (0.1 + 0.2) / 3, 0.1]
    assert difference_interval(dict(zip(keys, values, strict=False))) == (None, None, SAME_DIFFERENCE)


def test_the_spread_is_the_sd_that_made_the_interval() -> None:
    values = [0.1, 0.5, 0.2, 0.9, 0.4]
    low, _, _ = mean_interval(values)
    assert low is not None
    assert spread_over_seeds(float(np.mean(values)), low, 5) == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("mean", [1.0, -1.0])
def test_the_fewest_seeds_by_the_table(mean: float) -> None:
    # t/√S: six seeds 2.5706/2.4495 = 1.0494 > 1, seven 2.4469/2.6458 = .9249 < 1.
    assert seeds_to_decide(mean, 1.0) == 7
    # Just above and below what seven seeds bear.
    assert seeds_to_decide(mean, 1 / 0.9250) == 7
    assert seeds_to_decide(mean, 1 / 0.9248) == 8


def test_more_than_a_thousand_seeds_are_not_counted() -> None:
    # (1.962/.0621)² is 998; (1.962/.05)² is 1,540.
    assert seeds_to_decide(0.0621, 1.0) is not None
    assert seeds_to_decide(0.05, 1.0) is None
    assert seeds_to_decide(0.0, 1.0) is None


def test_tokens_decide_where_sampling_them_makes_the_spread() -> None:
    # Five seeds bear a variance of 5 · (.1/2.776445)² = .0064862. All of .2² is sampling: .04/.0064862 = 6.1669.
    assert sampling_to_decide(0.1, 0.2, 5, 0.04) == pytest.approx(T_4**2 * 0.04 / 0.05, rel=1e-5)
    # Nine tenths of it: .0064862 - .004 = .0024862 is left for .036.
    assert sampling_to_decide(-0.1, 0.2, 5, 0.036) == pytest.approx(0.036 / 0.0024862, rel=1e-3)
    # Rows' own intervals may show more than the differences have: what SAEs share cancels.
    assert sampling_to_decide(0.1, 0.2, 5, 1.0) == pytest.approx(T_4**2 * 0.04 / 0.05, rel=1e-5)


def test_tokens_are_not_named_where_they_would_not_decide() -> None:
    # Seeds alone give .01, more than the .0064862 that is bearable.
    assert sampling_to_decide(0.1, 0.2, 5, 0.03) is None
    # Bearable, but the smaller part of the spread.
    assert sampling_to_decide(0.24, 0.2, 5, 0.019) is None
    assert sampling_to_decide(0.24, 0.2, 5, 0.021) is not None


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize(("noise_of_pairs", "lowest", "highest"), [(0.0, 0.93, 0.97), (2.0, 0.95, 0.995)])
def test_coverage_of_the_paired_jackknife(
    n_seeds: int, noise_of_pairs: float, lowest: float, highest: float
) -> None:
    # Sources share what a seed's initialisation does, and each adds its own. Over 1,000 trials the binomial
    # SE at .95 is .007. What pairs add by themselves the jackknife counts too high: never too narrow.
    # Over 20,000 trials: .950 and .950 without it (S = 3 and 5), .976 and .967 with it.
    rng = np.random.default_rng(0)
    truth, covered = 0.1, 0
    for _ in range(1_000):
        init, own, other = rng.normal(size=(3, n_seeds))
        effect = (init + own) - (init + other)
        low, high, _ = difference_interval(
            {
                (i, j): truth + effect[i] + effect[j] + noise_of_pairs * rng.normal()
                for i, j in combinations(range(n_seeds), 2)
            }
        )
        assert low is not None
        assert high is not None
        covered += low <= truth <= high
    assert lowest < covered / 1_000 < highest


def test_independent_estimates_are_combined() -> None:
    # Half widths 4.302653 · 2 and 1.959964 · .5: SEs 2 and .5; 3 - 2 · 1 = 1, SE² = 4 + 4 · .25 = 5. Welch's degrees,
    # 25 / (16 / 2) = 3.1, would make it narrower than with the 2 of the larger part.
    seeds = Estimate.of(3.0, 3.0 - 4.302653 * 2, 3.0 + 4.302653 * 2, 2)
    null = Estimate.of(1.0, 1.0 - 1.959964 * 0.5, 1.0 + 1.959964 * 0.5, float("inf"))
    value, interval = combined([(1, seeds), (-2, null)])
    assert value == 1.0
    assert interval[:2] == pytest.approx((1 - T_2 * 5**0.5, 1 + T_2 * 5**0.5), abs=1e-4)


def test_a_small_error_that_is_hardly_known_changes_little() -> None:
    # One degree (a t of 12.7) would make the interval three times as wide: SEs 1 and .01, (1.0001)² / (1 / 2 + 1e-8).
    value, interval = combined([(1, Estimate(0.0, 1.0, 2)), (-1, Estimate(0.0, 0.01, 1))])
    assert interval.high == pytest.approx(T_2, rel=1e-3)
    assert value == 0


def test_estimates_without_error_have_no_interval() -> None:
    assert combined([(1, Estimate(0.5, 0.0, 2)), (-1, Estimate(0.25, 0.0, 4))])[1].reason == SAME_DIFFERENCE
