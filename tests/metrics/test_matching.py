from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest

from sae_faithful.metrics.matching import (
    Match,
    Weights,
    match_directions,
    mean_max_cosine,
    mean_over_pairs,
    random_directions_like,
    top1_ratio,
)

D = 64
E = np.eye(D, dtype=np.float32)


def orthonormal(rng: np.random.Generator, d: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def firing(*rates: float) -> Weights:
    return Weights(np.array(rates))


def shared(match: Match, threshold: float = 0.7, subset: str = "all") -> float:
    """The ratio where every latent fires equally often."""
    a, b = (Weights(np.full(len(side), 0.5)) for side in match.nonzero)
    return match.shared_ratio(a, b, threshold, subset)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# The ratio over all latents


@pytest.mark.parametrize("subset", ["all", "alive", "firing_weighted"])
def test_a_permuted_and_rescaled_copy_shares_everything(rng: np.random.Generator, subset: str) -> None:
    a = rng.standard_normal((100, D))
    order = rng.permutation(100)
    b = a[order] * rng.uniform(0.1, 10, (100, 1))
    match = match_directions(a, b)
    assert shared(match, 0.999, subset) == pytest.approx(1)
    # Row order[j] of A became row j of B.
    np.testing.assert_array_equal(order[match.cols], match.rows)
    np.testing.assert_allclose(match.cosine, 1)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_a_planted_share_is_recovered_exactly(rng: np.random.Generator, fraction: float) -> None:
    # 60 orthonormal directions each, of which a share is common; every other cosine is 0.
    basis = orthonormal(rng, 128)
    n_shared = round(60 * fraction)
    a, b = basis[:60], np.vstack([basis[:n_shared], basis[60 : 120 - n_shared]])
    match = match_directions(a, b[rng.permutation(60)] * 3)
    for threshold in (0.5, 0.7, 0.9):
        assert shared(match, threshold) == pytest.approx(fraction)
    assert match.mean_cosine(Weights(np.ones(60)), Weights(np.ones(60)), "all") == pytest.approx(
        fraction, abs=1e-9
    )


def test_unrelated_random_directions_share_nothing(rng: np.random.Generator) -> None:
    # A cosine above .7 is 5.6 standard deviations (1/√64) away.
    match = match_directions(rng.standard_normal((80, D)), rng.standard_normal((80, D)))
    assert len(match.rows) == 80
    assert shared(match) == 0


def test_a_negated_direction_is_not_shared() -> None:
    # The first two rows are shared, the third is negated, the fourth unrelated.
    # Leaving −e₃ to e₄ and e₅ to e₃ (cosines 0) beats pairing e₃ with −e₃ (−1).
    match = match_directions(E[[1, 2, 3, 4]], np.stack([E[1], E[2], -E[3], E[5]]))
    assert shared(match) == 2 / 4
    assert sorted(match.cosine) == [0, 0, 1, 1]
    # With nothing else to match, the pair is made and does not count.
    opposite = match_directions(E[[3]], -E[[3]])
    assert opposite.cosine.tolist() == [-1]
    assert shared(opposite) == 0


def test_every_latent_is_matched_once_where_greedy_matching_would_not() -> None:
    # Cosines [[1, .6], [.8, 0]] of A = e₁, .8e₁ + .6e₃ and B = e₁, .6e₁ − .8e₃: the largest is 1, but
    # with it goes 0. The pairs (1, 2) and (2, 1) sum to 1.4.
    a = np.stack([E[1], 0.8 * E[1] + 0.6 * E[3]])
    match = match_directions(a, np.stack([E[1], 0.6 * E[1] - 0.8 * E[3]]))
    assert match.cols.tolist() == [1, 0]
    assert match.cosine.tolist() == pytest.approx([0.6, 0.8])
    # With .6e₁ + .8e₂ in its place the cosines are [[1, .6], [.8, .48]]: 1.48 is more than 1.4.
    match = match_directions(a, np.stack([E[1], 0.6 * E[1] + 0.8 * E[2]]))
    assert match.cols.tolist() == [0, 1]
    assert match.cosine.tolist() == pytest.approx([1, 0.48])


def test_sets_of_unequal_size_are_compared_by_their_mean_size() -> None:
    # Two of A's four directions are B's only two: 2 / ((4 + 2) / 2) = 2/3, either way round.
    a, b = E[[0, 1, 2, 3]], E[[3, 1]]
    match = match_directions(a, b)
    assert shared(match) == pytest.approx(2 / 3)
    assert shared(match_directions(b, a)) == pytest.approx(2 / 3)
    assert dict(zip(match.rows.tolist(), match.cols.tolist(), strict=True)) == {1: 1, 3: 0}
    assert match.cosine_of(0).tolist() == [0, 1, 0, 1]
    assert match.cosine_of(1).tolist() == [1, 1]


def test_the_matching_is_certified(rng: np.random.Generator) -> None:
    a = rng.standard_normal((100, D))
    match = match_directions(a, rng.standard_normal((120, D)))
    assert match.certified
    assert 0 <= match.gap <= 100 * 1e-6


# Directions of length zero


def test_zero_rows_match_nothing_and_give_no_nan() -> None:
    a, b = E[[0, 1, 2, 3]].copy(), E[[2, 0, 1, 4]].copy()
    a[1], b[3] = 0, 0
    match = match_directions(a, b)
    # A has e₀, e₂, e₃ and B has e₂, e₀, e₁: two shared of three each.
    assert shared(match) == pytest.approx(2 / 3)
    assert 1 not in match.rows
    assert 3 not in match.cols
    assert match.cosine_of(0).tolist() == [1, 0, 1, 0]
    assert match.cosine_of(1).tolist() == [1, 1, 0, 0]
    assert np.isfinite(match.cosine).all()


@pytest.mark.parametrize("subset", ["all", "alive", "firing_weighted"])
def test_directions_that_are_all_zero_share_nothing(subset: str) -> None:
    match = match_directions(np.zeros((3, D)), E[:3])
    silent, loud = firing(0, 0, 0), firing(0.5, 0.5, 0.5)
    assert len(match.rows) == 0
    assert match.shared_ratio(silent, loud, 0.7, subset) == 0
    assert match.mean_cosine(silent, loud, subset) == 0
    assert match.cosine_of(0).tolist() == [0, 0, 0]


# Subsets


def test_alive_counts_pairs_alive_on_both_sides() -> None:
    match = match_directions(E[:4], E[:4])
    # Alive are 0, 1, 2 of A and 0, 1 of B: two pairs over (3 + 2)/2.
    a, b = firing(0.1, 0.2, 0.3, 0), firing(0.4, 0.1, 0, 0)
    assert match.shared_ratio(a, b, 0.7, "alive") == pytest.approx(2 / 2.5)
    assert match.shared_ratio(a, b, 0.7, "all") == 1


def test_dead_shared_directions_do_not_raise_the_alive_ratio() -> None:
    # Directions 2 and 3 are shared but dead; of the alive 0 and 1 only 0 is shared.
    match = match_directions(E[[0, 1, 2, 3]], E[[0, 9, 2, 3]])
    alive = firing(0.1, 0.1, 0, 0)
    assert match.shared_ratio(alive, alive, 0.7, "all") == 3 / 4
    assert match.shared_ratio(alive, alive, 0.7, "alive") == 1 / 2


def test_firing_weighted_is_the_mean_share_of_firings() -> None:
    # Directions 0 and 1 are shared. They have .5 of A's .6 firings a token and .4 of B's .8:
    # (.5/.6 + .4/.8)/2 = (5/6 + 1/2)/2 = 2/3.
    match = match_directions(E[[0, 1, 2, 3]], E[[0, 1, 8, 9]])
    a, b = firing(0.4, 0.1, 0.1, 0), firing(0.2, 0.2, 0, 0.4)
    assert match.shared_ratio(a, b, 0.7, "firing_weighted") == pytest.approx(2 / 3)


@pytest.mark.parametrize("subset", ["alive", "firing_weighted"])
def test_a_silent_sae_shares_nothing(subset: str) -> None:
    match = match_directions(E[:3], E[:3])
    silent, loud = firing(0, 0, 0), firing(0.5, 0.1, 0.1)
    for a, b in ((silent, loud), (loud, silent), (silent, silent)):
        assert match.shared_ratio(a, b, 0.7, subset) == 0
        assert match.mean_cosine(a, b, subset) == 0


def test_mean_cosine_is_weighted_as_the_ratio() -> None:
    # Cosines 1 and .6: over all (1 + .6)/2 = .8; alive in both is the second alone: .6;
    # by firing, A has .1 and .3, B has 0 and .5: ((.1 + .18)/.4 + .3/.5)/2 = (.7 + .6)/2 = .65.
    match = match_directions(E[[0, 1]], np.stack([E[0], 0.6 * E[1] + 0.8 * E[2]]))
    a, b = firing(0.1, 0.3), firing(0, 0.5)
    assert match.mean_cosine(a, b, "all") == pytest.approx(0.8)
    assert match.mean_cosine(a, b, "alive") == pytest.approx(0.6)
    assert match.mean_cosine(a, b, "firing_weighted") == pytest.approx(0.65)
    # Only the first is above .7.
    assert match.shared_ratio(a, b, 0.7, "all") == 1 / 2
    assert match.shared_ratio(a, b, 0.5, "all") == 1


def test_an_unknown_subset_lists_the_choices() -> None:
    match = match_directions(E[:2], E[:2])
    with pytest.raises(ValueError, match="unknown subset 'dead'; choices: all, alive, firing_weighted"):
        shared(match, subset="dead")


def test_tensors_are_matched_as_arrays_are(rng: np.random.Generator) -> None:
    import torch

    a, b = rng.standard_normal((20, D)), rng.standard_normal((30, D))
    a[3], b[5:7] = 0, 0
    arrays, tensors = match_directions(a, b), match_directions(torch.tensor(a), torch.tensor(b))
    assert tensors.cols.tolist() == arrays.cols.tolist()
    for one, other in zip(tensors.nonzero, arrays.nonzero, strict=True):
        assert isinstance(one, np.ndarray)
        assert one.tolist() == other.tolist()
    assert (~tensors.nonzero[0]).nonzero()[0].tolist() == [3]


# Nearest neighbours


def test_top1_by_hand_in_every_subset() -> None:
    nearest = np.array([0.9, 0.71, 0.7, -np.inf, -0.2])
    weights = firing(0.1, 0.0, 0.3, 0.4, 0.0)
    # Over rows with a direction: .9 and .71 of four; at the threshold is not above it.
    assert top1_ratio(nearest, weights, 0.7, "all") == 2 / 4
    # Latents 0, 2 and 3 are alive, and 3 has no direction: one of three.
    assert top1_ratio(nearest, weights, 0.7, "alive") == pytest.approx(1 / 3)
    # .1 of .8 firings, or .1 + .3 of them above .6.
    assert top1_ratio(nearest, weights, 0.7, "firing_weighted") == pytest.approx(1 / 8)
    assert top1_ratio(nearest, weights, 0.6, "firing_weighted") == pytest.approx(4 / 8)
    # A zero row is above no threshold, however low.
    assert top1_ratio(nearest, weights, -1, "alive") == pytest.approx(2 / 3)


@pytest.mark.parametrize("subset", ["all", "alive", "firing_weighted"])
def test_top1_of_nothing_is_zero(subset: str) -> None:
    assert top1_ratio(np.full(3, -np.inf), firing(0, 0, 0), 0.5, subset) == 0


def test_top1_is_never_less_than_the_matched_share(rng: np.random.Generator) -> None:
    from sae_faithful.ops import nearest_cosines

    a, b = rng.standard_normal((200, 5)), rng.standard_normal((200, 5))
    match, nearest = match_directions(a, b), nearest_cosines(a, b)
    for threshold in (0.5, 0.7, 0.9):
        both = [top1_ratio(side, Weights(np.ones(200)), threshold, "all") for side in nearest]
        assert min(both) >= shared(match, threshold) > 0


# Mean of the nearest cosines


def mmcs(a: np.ndarray, b: np.ndarray) -> float:
    from sae_faithful.ops import nearest_cosines

    return mean_max_cosine(nearest_cosines(a, b)[0], Weights(np.ones(len(a))), "all")


def test_mmcs_by_hand_in_every_subset() -> None:
    nearest = np.array([0.9, 0.5, -np.inf, -0.2])
    weights = firing(0.1, 0.3, 0.4, 0.0)
    # A row without a direction has no cosine, whatever it fires.
    assert mean_max_cosine(nearest, weights, "all") == pytest.approx((0.9 + 0.5 - 0.2) / 3)
    assert mean_max_cosine(nearest, weights, "alive") == pytest.approx((0.9 + 0.5) / 2)
    assert mean_max_cosine(nearest, weights, "firing_weighted") == pytest.approx((0.09 + 0.15) / 0.4)


@pytest.mark.parametrize("subset", ["all", "alive", "firing_weighted"])
def test_mmcs_of_nothing_is_zero(subset: str) -> None:
    assert mean_max_cosine(np.full(3, -np.inf), firing(0.5, 0, 0), subset) == 0


def test_mmcs_with_itself_is_one_in_any_order_and_at_any_length(rng: np.random.Generator) -> None:
    a = rng.standard_normal((100, D))
    assert mmcs(a, a) == pytest.approx(1)
    assert mmcs(a, a[rng.permutation(100)] * rng.uniform(0.1, 10, (100, 1))) == pytest.approx(1)


def test_mmcs_sees_the_sign(rng: np.random.Generator) -> None:
    assert mmcs(E, -E) == 0
    a = rng.standard_normal((100, D))
    # What is left is chance: the largest of 100 cosines that spread by 1/8.
    assert mmcs(a, -a) < 0.5


def test_mmcs_of_nested_dictionaries_is_one_one_way_only() -> None:
    assert mmcs(E[:10], E[:40]) == 1
    assert mmcs(E[:40], E[:10]) == 10 / 40


# Means over pairs


def test_the_mean_over_pairs_of_three_seeds_by_hand() -> None:
    mean, (low, high, reason) = mean_over_pairs({(0, 1): 0.5, (0, 4): 0.25, (1, 4): 0.25})
    # Without seeds 0, 1, 4: .25, .25, .5; mean 1/3, Σ of squares 1/24, SE² = 2/3 · 1/24, SE = 1/6; t 4.302653.
    assert mean == pytest.approx(1 / 3)
    assert (low, high) == pytest.approx((1 / 3 - 0.717109, 1 / 3 + 0.717109), abs=1e-5)
    assert reason is None


def test_ordered_pairs_lose_both_saes_of_a_seed() -> None:
    # Without seed 0 remain (1, 2) and (2, 1): .3; without 1 (0, 2), (2, 0): .5; without 2 (0, 1), (1, 0): .1.
    values = {(1, 2): 0.2, (2, 1): 0.4, (0, 2): 0.5, (2, 0): 0.5, (0, 1): 0.0, (1, 0): 0.2}
    mean, (low, high, _) = mean_over_pairs(values)
    # Σ of squares 2 · .04, SE² = 2/3 · .08, SE = .230940, half width .993655.
    assert mean == pytest.approx(0.3)
    assert (low, high) == pytest.approx((0.3 - 0.993655, 0.3 + 0.993655), abs=1e-5)


def test_two_seeds_have_a_mean_and_no_interval() -> None:
    mean, (low, high, reason) = mean_over_pairs({(0, 1): 0.5, (1, 0): 0.25})
    assert mean == 0.375
    assert (low, high) == (None, None)
    assert reason is not None
    assert reason.startswith("fewer than three SAEs")


@pytest.mark.parametrize("across_sources", [False, True])
@pytest.mark.parametrize(("n_seeds", "sd_of_pairs"), [(3, 0.0), (5, 0.0), (5, 0.3)])
def test_the_interval_over_seeds_covers_the_truth_as_often_as_it_says(
    across_sources: bool, n_seeds: int, sd_of_pairs: float
) -> None:
    """Values θ + a_s + b_t + e_st: across sources a_s and b_s differ but go together, as one seed's SAEs may."""
    rng = np.random.default_rng(n_seeds)
    pairs = list((permutations if across_sources else combinations)(range(n_seeds), 2))
    covered = 0
    for _ in range(1_000):
        of_seed = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=n_seeds)
        a, b = of_seed[:, 0], of_seed[:, int(across_sources)]
        noise = sd_of_pairs * rng.standard_normal((n_seeds, n_seeds))
        _, (low, high, _) = mean_over_pairs({(s, t): 0.3 + a[s] + b[t] + noise[s, t] for s, t in pairs})
        assert low is not None
        assert high is not None
        covered += low <= 0.3 <= high
    # The binomial SE of a coverage of .95 is √(.95 · .05 / 1000) = .0069.
    assert 0.93 <= covered / 1_000 <= 0.97


def test_where_pairs_vary_by_themselves_the_interval_is_too_wide_rather_than_too_narrow() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1_000):
        _, (low, high, _) = mean_over_pairs(dict(zip(permutations(range(5), 2), rng.random(20), strict=True)))
        assert low is not None
        assert high is not None
        covered += low <= 0.5 <= high
    assert covered / 1_000 > 0.96


# The null


def test_random_directions_have_the_second_moments_of_the_given_ones(rng: np.random.Generator) -> None:
    # Crowded into few dimensions and off centre; a quarter of the rows are zero.
    n, d = 4_000, 12
    directions = rng.standard_normal((n, d)) * np.linspace(2, 0.1, d) + 0.5
    directions[::4] = 0
    drawn = random_directions_like(directions, rng)
    kept = directions[directions.any(axis=1)]
    unit = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    wanted = unit.T @ unit / len(unit)
    found = drawn.T @ drawn / len(unit)
    # An entry of the second moments of m Gaussian rows has variance (S_ii S_jj + S_ij²)/m; of 78 entries
    # none is off by 4.5 standard errors (probability 5e-4).
    error = np.sqrt((np.outer(wanted.diagonal(), wanted.diagonal()) + wanted**2) / len(unit))
    assert np.abs((found - wanted) / error).max() < 4.5
    # And they are not the given ones: a random pair in the leading dimensions is seldom this near.
    cosine = (drawn * directions).sum(axis=1)[directions.any(axis=1)]
    assert (
        cosine / np.linalg.norm(drawn[drawn.any(axis=1)], axis=1) / np.linalg.norm(kept, axis=1)
    ).mean() < 0.5


def test_random_directions_keep_zero_rows_type_and_subspace(rng: np.random.Generator) -> None:
    directions = np.zeros((10, D), np.float32)
    directions[3:, :3] = rng.standard_normal((7, 3))
    drawn = random_directions_like(directions, rng)
    assert drawn.dtype == np.float32
    assert drawn.shape == directions.shape
    assert drawn.any(axis=1).tolist() == [False] * 3 + [True] * 7
    # Directions that lie in three dimensions stay there.
    np.testing.assert_allclose(drawn[:, 3:], 0, atol=1e-6)


def test_random_directions_like_isotropic_ones_share_nothing_with_them(rng: np.random.Generator) -> None:
    directions = rng.standard_normal((100, D))
    assert shared(match_directions(directions, random_directions_like(directions, rng))) == 0


def test_random_directions_like_crowded_ones_show_what_crowding_alone_gives(rng: np.random.Generator) -> None:
    # In one dimension every cosine is 1 or −1: the null shares about all, and must not read 0.
    line = np.outer(rng.choice([-1.0, 1.0], 200), E[0])
    value = shared(match_directions(line, random_directions_like(line, rng)))
    # 200 signs each: the numbers of + differ by 10 on average, 50 would be 5 standard deviations.
    assert 0.75 < value <= 1


def test_random_directions_like_nothing_are_nothing(rng: np.random.Generator) -> None:
    assert not random_directions_like(np.zeros((5, D)), rng).any()
