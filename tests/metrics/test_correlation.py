"""Correlations over a handful of sources: planted ones, worked out by hand, and what their intervals cover."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_faithful.metrics.correlation import (
    PERFECT,
    SEEDS_MAKE_THE_SPREAD,
    TOO_FEW_SEEDS,
    Correlation,
    pearson,
    permutation_p,
    sources_to_decide,
    spearman,
)
from sae_faithful.metrics.intervals import Interval

Values = list[dict[tuple[int, ...], float]]


def rank(scores: list[float], values: Values) -> Correlation:
    return spearman(scores, values, np.random.default_rng(0))


def singles(*of_sources: list[float]) -> Values:
    """A source's values by seed."""
    return [{(seed,): value for seed, value in enumerate(values)} for values in of_sources]


def around(means: list[float], spread: float = 0.01) -> Values:
    """Three seeds of each source, whose mean is the one given."""
    return singles(*([mean - spread, mean, mean + spread] for mean in means))


# Values


def test_a_rank_correlation_by_hand() -> None:
    # Ranks 2 1 4 3 5 against 1 ... 5: Σd² = 4, 1 - 6 · 4 / (5 · 24) = .8. Of 120 orders, 8 have .8 or more and 8 -.8
    # or less (one that leaves all in place, four neighbours exchanged, three pairs of them).
    found = rank([0.1, 0.2, 0.3, 0.4, 9.0], around([2.0, 1.0, 4.0, 3.0, 5.0]))
    assert found.value == pytest.approx(0.8)
    assert found.p_value == pytest.approx(16 / 120)
    assert found.over_sources == (None, None, None)


def test_a_linear_correlation_by_hand() -> None:
    # Scores 0 1 2 3 and values 0 2 1 3: Σ(x - 1.5)² = 5 of both, Σ(x - 1.5)(y - 1.5) = 2.25 - .25 - .25 + 2.25 = 4.
    found = pearson([0.0, 1.0, 2.0, 3.0], around([0.0, 2.0, 1.0, 3.0]))
    assert found.value == pytest.approx(0.8)
    # atanh .8 = 1.098612, less and more 1.959964: tanh -.861352 = -.696953, tanh 3.058576 = .995600.
    assert found.over_sources[:2] == pytest.approx((-0.696953, 0.995600), abs=1e-5)


def test_four_sources_in_order_are_two_orders_of_24() -> None:
    found = rank([1.0, 2.0, 3.0, 4.0], around([4.0, 3.0, 2.0, 1.0]))
    assert found.value == pytest.approx(-1.0)
    assert found.p_value == pytest.approx(2 / 24)
    assert rank([1.0, 2.0, 3.0, 4.0, 5.0], around([5.0, 4.0, 3.0, 2.0, 1.0])).p_value == pytest.approx(
        2 / 120
    )


def test_only_seeds_that_all_sources_have_count() -> None:
    values = around([1.0, 2.0, 3.0, 4.0])
    values[0][(7,)] = 1e6
    assert rank([1.0, 2.0, 3.0, 4.0], values) == rank([1.0, 2.0, 3.0, 4.0], around([1.0, 2.0, 3.0, 4.0]))


@given(
    scores=st.lists(st.integers(-20, 20), min_size=4, max_size=6),
    means=st.lists(st.integers(-20, 20), min_size=6, max_size=6),
    order=st.randoms(),
)
@settings(deadline=None, max_examples=60)
def test_the_order_of_sources_and_the_scale_change_nothing(
    scores: list[int], means: list[int], order: object
) -> None:
    x, y = [float(one) for one in scores], [float(one) for one in means[: len(scores)]]
    found, linear = rank(x, around(y)), pearson(x, around(y))
    index = list(range(len(x)))
    order.shuffle(index)  # pyright: ignore[reportAttributeAccessIssue]
    moved = rank([x[i] for i in index], around([y[i] for i in index]))
    assert (moved.value, moved.p_value, moved.reason) == pytest.approx(found[:1] + found[3:], nan_ok=True)
    turned = pearson([-2 * one + 1 for one in x], around([3 * one for one in y], spread=0.03))
    if linear.value is None:
        assert turned.value is None
    else:
        assert turned.value == pytest.approx(-linear.value, abs=1e-9)
        assert turned.p_value == pytest.approx(linear.p_value)
        assert -1 <= linear.value <= 1


# p


def test_a_permutation_p_is_the_share_of_orders() -> None:
    one, two = np.array([0.0, 1.0, 2.0, 5.0, 7.0]), np.array([0.3, 0.1, 0.4, 0.9, 0.2])
    found = abs(np.corrcoef(one, two)[0, 1])
    as_strong = [
        abs(np.corrcoef(one, two[list(order)])[0, 1]) >= found - 1e-9 for order in permutations(range(5))
    ]
    assert permutation_p(one, two) == pytest.approx(np.mean(as_strong))


def test_a_permutation_p_of_many_is_drawn_and_never_zero() -> None:
    one = np.arange(12.0)
    assert permutation_p(one, one) == pytest.approx(1 / 20_001)
    exact = permutation_p(np.arange(8.0), np.array([1.0, 0, 3, 2, 4, 5, 7, 6]))
    assert 0 < exact < 0.01


def test_without_a_relation_at_most_one_in_twenty_is_called_one() -> None:
    rng = np.random.default_rng(3)
    p_values = [permutation_p(rng.standard_normal(6), rng.standard_normal(6)) for _ in range(2_000)]
    # Three standard errors above .05.
    assert np.mean(np.array(p_values) < 0.05) < 0.05 + 3 * 0.0049
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.04)


# No value, or no interval


def test_what_has_no_correlation_says_why() -> None:
    assert (
        rank([1.0, 2.0, 3.0], around([1.0, 2.0, 3.0])).reason == "3 sources; a correlation needs at least 4"
    )
    assert pearson([1.0] * 4, around([1.0, 2.0, 3.0, 4.0])).reason == "all sources have the same score"
    assert pearson([1.0, 2.0, 3.0, 4.0], around([0.0] * 4)).reason == "all sources have the same value"
    apart = [{(i,): 1.0 * i} for i in range(4)]
    found = rank([1.0, 2.0, 3.0, 4.0], apart)
    assert found == (None, *[Interval(None, None, "the sources have no SAE seed in common")] * 2, None,
                     "the sources have no SAE seed in common")  # fmt: skip


def test_two_seeds_give_a_value_and_no_interval() -> None:
    values = singles([1.0, 1.1], [2.0, 2.1], [2.9, 3.0], [3.0, 4.0])
    for found in (rank([1.0, 2.0, 3.0, 4.0], values), pearson([1.0, 2.0, 3.0, 4.0], values)):
        assert found.value is not None
        assert found.over_seeds == (None, None, TOO_FEW_SEEDS)


def test_two_seeds_of_a_pair_give_none_either() -> None:
    values: Values = [{(0, 1): value} for value in (1.0, 2.0, 4.0, 3.0)]
    assert rank([1.0, 2.0, 3.0, 4.0], values).over_seeds.reason == TOO_FEW_SEEDS


def test_sources_that_differ_no_more_than_seeds_have_no_interval() -> None:
    means = [1.0, 2.0, 3.0, 5.0, 4.0]
    scores = [1.0, 2.0, 3.0, 4.0, 5.0]
    # Standard errors of spread/√3; variance of the means 2.5, a fifth of it .5: 1.2²/3 = .48, 1.25²/3 = .52.
    assert rank(scores, around(means, spread=1.2)).over_seeds.low is not None
    assert rank(scores, around(means, spread=1.25)).over_seeds.reason == SEEDS_MAKE_THE_SPREAD
    assert rank(scores, around(means, spread=2.0)).over_seeds.reason == SEEDS_MAKE_THE_SPREAD
    assert pearson(scores, around(means, spread=2.0)).over_seeds.reason == SEEDS_MAKE_THE_SPREAD


def test_points_on_a_line_have_no_interval() -> None:
    found = pearson([1.0, 2.0, 3.0, 4.0], around([1.0, 2.0, 3.0, 4.0]))
    assert (found.value, found.over_sources.reason) == (pytest.approx(1.0), PERFECT)


# Intervals


def planted(
    rng: np.random.Generator, n: int, seeds: int, noise: float, *, pairs: bool, shared: float = 0.0
) -> tuple[list[float], list[float], Values]:
    """Scores, true values of sources correlated by .6, and what seeds make of them."""
    scores = rng.standard_normal(n)
    truth = 0.6 * scores + 0.8 * rng.standard_normal(n)
    error = noise * (
        (1 - shared) ** 0.5 * rng.standard_normal((seeds, n)) + shared**0.5 * rng.standard_normal((seeds, 1))
    )
    keys = combinations(range(seeds), 2) if pairs else [(seed,) for seed in range(seeds)]
    keys = list(keys)
    values = [{key: truth[i] + sum(error[seed, i] for seed in key) for key in keys} for i in range(n)]
    return list(scores), list(truth), values


@pytest.mark.parametrize(
    ("n", "seeds", "noise", "pairs", "shared"),
    [(5, 3, 0.3, False, 0.0), (7, 5, 0.5, False, 0.0), (6, 5, 0.2, True, 0.0), (6, 3, 0.5, False, 0.9)],
)
def test_intervals_over_seeds_cover(n: int, seeds: int, noise: float, pairs: bool, shared: float) -> None:
    rng = np.random.default_rng(5)
    covered: dict[str, list[bool]] = {"spearman": [], "pearson": []}
    widths: list[float] = []
    for _ in range(150):
        scores, truth, values = planted(rng, n, seeds, noise, pairs=pairs, shared=shared)
        # One key, the truth: the correlation that SAEs without number would show.
        exact = singles(*([one] for one in truth))
        for name, found, true in (
            ("spearman", spearman(scores, values, rng), rank(scores, exact).value),
            ("pearson", pearson(scores, values), pearson(scores, exact).value),
        ):
            low, high, _ = found.over_seeds
            if low is not None and high is not None and true is not None:
                covered[name].append(low - 1e-9 <= true <= high + 1e-9)
                widths.append(high - low)
    assert len(covered["spearman"]) > 100
    # .95 less three standard errors of 100 to 150 simulations, .019 each.
    assert np.mean(covered["spearman"]) > 0.89
    assert np.mean(covered["pearson"]) > 0.87
    assert np.median(widths) < 1.2


def test_the_interval_over_sources_covers_where_sources_are_normal() -> None:
    rng = np.random.default_rng(6)
    covered: list[bool] = []
    for _ in range(400):
        scores, truth, _ = planted(rng, 6, 3, 0.0, pairs=False)
        low, high, _ = pearson(scores, singles(*([one] for one in truth))).over_sources
        assert low is not None
        assert high is not None
        covered.append(low <= 0.6 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.033)


def test_how_many_sources_would_decide() -> None:
    # t = .9 √(3/.19) = 3.576 > t(.975, 3) = 3.182 with five; .8: √2 · .8/.6 = 1.886 < 4.303 with four, with seven
    # .8 √5 / .6 = 2.981 > 2.571, with six 2.667 < 2.776.
    assert sources_to_decide(0.9) == 5
    assert sources_to_decide(-0.8) == 7
    assert sources_to_decide(1.0) == 5
    assert sources_to_decide(0.05) is None
