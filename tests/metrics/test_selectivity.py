"""Token selectivity and the variance that tokens explain, on planted latents: 1 for detectors, 0 for noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sae_faithful.metrics.intervals import mean_difference_interval
from sae_faithful.metrics.selectivity import (
    CONSTANT,
    ONE_HALF,
    RARER,
    SELDOM,
    SILENT,
    TokenSums,
    token_r2,
    token_selectivity,
)

Latents = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def summed(
    values: np.ndarray, tokens: np.ndarray, halves: np.ndarray, *, parts: int = 1, n_tokens: int | None = None
) -> TokenSums:
    """Sums of activations [positions, latents], taken in by parts."""
    n_tokens = int(tokens.max()) + 1 if n_tokens is None else n_tokens
    sums = TokenSums(values.shape[1], n_tokens)
    for part in np.array_split(np.arange(len(tokens)), parts):
        sums.add(torch.from_numpy(values[part]), tokens[part], halves[part])
    return sums


def zipf(n: int, vocabulary: int, make: Latents, seed: int = 0) -> TokenSums:
    """Latents on `n` tokens drawn by Zipf's law, in random halves; tokens of one half only are not kept apart."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, vocabulary + 1)
    tokens = rng.choice(vocabulary, n, p=weights / weights.sum())
    halves = rng.integers(0, 2, n)
    both = np.intersect1d(tokens[halves == 0], tokens[halves == 1])
    numbers = np.where(np.isin(tokens, both), np.searchsorted(both, tokens), len(both))
    return summed(make(tokens, rng).astype(np.float64), numbers, halves, n_tokens=len(both))


def noise(rate: float, n: int) -> Latents:
    """Activations that know nothing of tokens: exponential, on so large a share of positions."""
    return lambda tokens, rng: (rng.random((len(tokens), n)) < rate) * rng.exponential(size=(len(tokens), n))


# By hand


def by_hand() -> TokenSums:
    """Tokens 0 and 1, and others that are too rare to be kept apart (2).

    half 0: token 0: 4, 2, 3; token 1: 1, 0; other: 9    half 1: token 0: 2, 2; token 1: 0, 1, 2; other: 5
    """
    values = np.array([4, 2, 3, 1, 0, 9, 2, 2, 0, 1, 2, 5], np.float64)
    tokens = np.array([0, 0, 0, 1, 1, 2, 0, 0, 1, 1, 1, 2])
    halves = np.array([0] * 6 + [1] * 6)
    return summed(values[:, None], tokens, halves, n_tokens=2)


def test_sums_are_by_token_and_half() -> None:
    sums = by_hand()
    assert sums.counts.tolist() == [[3, 2, 1], [2, 3, 1]]
    assert sums.sums[:, :, 0].tolist() == [[9, 1, 9], [4, 3, 5]]
    # 16 + 4 + 9 + 1 + 4 + 4 + 1 + 4, those of other tokens left out.
    assert sums.squares.tolist() == [43]
    assert sums.active.tolist() == [10]


def test_selectivity_by_hand() -> None:
    # Both halves prefer token 0: means 3 against .5, and 2 against 1.
    # Differences 1 (of half 1, for half 0's choice) and 2.5; sums where chosen 3.5 and 3.
    (value,) = token_selectivity(by_hand(), 1).values
    assert value == pytest.approx(3.5 / 6.5)


def test_the_difference_is_taken_where_the_token_was_not_chosen() -> None:
    # Half 0 prefers token 0 (2 against 1), half 1 token 1 (3 against 1): in the other half each is the lesser.
    values = np.repeat([2.0, 1.0, 1.0, 3.0], 5)[:, None]
    sums = summed(values, np.repeat([0, 1, 0, 1], 5), np.repeat([0, 0, 1, 1], 5))
    # (1 − 3) + (1 − 2) over (2 + 1) + (3 + 1).
    assert token_selectivity(sums, 5).values[0] == pytest.approx(-3 / 7)


def test_r2_by_hand() -> None:
    # Means 3 and .5 in half 0, 2 and 1 in half 1; each token is half of the 10 positions that are looked at.
    # Covariance ½ · 1.25 · .5 + ½ · (−1.25)(−.5) = .625; variance 43/10 − (17/10)² = 1.41.
    (value,) = token_r2(by_hand()).values
    assert value == pytest.approx(0.625 / 1.41)


def test_taking_in_by_parts_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    values, tokens, halves = rng.random((300, 70)), rng.integers(0, 9, 300), rng.integers(0, 2, 300)
    whole, parts = summed(values, tokens, halves), summed(values, tokens, halves, parts=7)
    np.testing.assert_allclose(token_selectivity(parts, 3).values, token_selectivity(whole, 3).values)
    np.testing.assert_allclose(token_r2(parts).values, token_r2(whole).values)


def test_many_latents_at_a_time_are_measured_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    values, tokens, halves = rng.random((300, 150)), rng.integers(0, 9, 300), rng.integers(0, 2, 300)
    together = [
        score(summed(values, tokens, halves)).values
        for score in (lambda s: token_selectivity(s, 3), token_r2)
    ]
    for latent in (0, 63, 64, 149):
        alone = summed(values[:, [latent]], tokens, halves)
        assert token_selectivity(alone, 3).values[0] == pytest.approx(together[0][latent])
        assert token_r2(alone).values[0] == pytest.approx(together[1][latent])


# Planted latents


def test_a_detector_of_one_token_scores_one_on_both() -> None:
    sums = zipf(4_000, 300, lambda tokens, rng: tokens[:, None] == np.arange(12))
    np.testing.assert_allclose(token_selectivity(sums, 5).values, 1)
    np.testing.assert_allclose(token_r2(sums).values, 1)


def test_a_detector_of_two_tokens_is_less_selective_but_explained_by_them() -> None:
    sums = zipf(4_000, 300, lambda tokens, rng: np.isin(tokens, [3, 4])[:, None])
    (value,) = token_selectivity(sums, 5).values
    # The other token is part of the rest: with a share p of it, (1 − p) / (1 + p).
    counts = sums.counts[:, :-1][:, sums.counts[:, :-1].min(axis=0) >= 5].sum(axis=0)
    share = counts[4] / (counts.sum() - counts[3])
    assert value == pytest.approx((1 - share) / (1 + share), abs=0.002)
    assert 0.88 < value < 0.92
    assert token_r2(sums).values[0] == pytest.approx(1)


def test_a_detector_of_half_the_vocabulary_is_not_selective() -> None:
    sums = zipf(4_000, 300, lambda tokens, rng: (tokens % 2 == 0)[:, None])
    # It fires on .6 of the positions: (1 − .6) / (1 + .6) or so.
    assert 0.1 < token_selectivity(sums, 5).values[0] < 0.5
    assert token_r2(sums).values[0] == pytest.approx(1)


def test_a_function_of_the_token_with_noise_is_explained_to_that_share() -> None:
    # Variance 1 from the token, 3 from noise.
    def make(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        of_token = rng.normal(size=(300, 40))[tokens]
        of_token = (of_token - of_token.mean(axis=0)) / of_token.std(axis=0)
        return 50 + of_token + 3**0.5 * rng.normal(size=of_token.shape)

    values = token_r2(zipf(8_000, 300, make)).values
    assert values.mean() == pytest.approx(0.25, abs=0.01)


# Noise


@pytest.mark.parametrize("rate", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(("n", "vocabulary"), [(2_000, 300), (2_000, 3_000), (16_000, 300)])
def test_noise_scores_zero_at_any_rate_and_length(rate: float, n: int, vocabulary: int) -> None:
    sums = zipf(n, vocabulary, noise(rate, 600 if n < 10_000 else 250))
    r2 = token_r2(sums).values
    assert abs(np.nanmean(r2)) < 4 * np.nanstd(r2) / len(r2) ** 0.5 + 1e-3
    selectivity = token_selectivity(sums, 5).values
    known = selectivity[~np.isnan(selectivity)]
    if len(known) > 30:
        # By the bound of 1 a little is lost, less than .02.
        assert abs(known.mean()) < 4 * known.std() / len(known) ** 0.5 + 0.02


def test_what_is_chosen_and_measured_on_the_same_text_makes_noise_look_selective() -> None:
    """Why there are halves: the plain index of the same latents."""
    sums = zipf(2_000, 300, noise(0.01, 200))
    frequent = sums.counts[:, :-1].min(axis=0) >= 5
    counts, by_token = (
        sums.counts[:, :-1][:, frequent].sum(axis=0),
        sums.sums[:, :-1][:, frequent].sum(axis=0),
    )
    means = by_token / counts[:, None]
    rest = (by_token.sum(axis=0) - by_token.max(axis=0)) / counts.sum()
    assert ((means.max(axis=0) - rest) / (means.max(axis=0) + rest)).mean() > 0.7
    assert abs(np.nanmean(token_selectivity(sums, 5).values)) < 0.1


def test_selectivity_stays_within_its_bounds() -> None:
    for rate in (0.01, 0.1, 1.0):
        values = token_selectivity(zipf(2_000, 300, noise(rate, 300)), 2).values
        assert np.nanmax(np.abs(values)) <= 1


# No value


def planted_gaps() -> TokenSums:
    """Tokens 0 to 3, twenty of each in each half; 4 is everything else, ten in each half."""
    tokens = np.concatenate([np.repeat([0, 1, 2, 3], 20), np.repeat(4, 10)] * 2)
    halves = np.repeat([0, 1], 90)
    other = tokens == 4
    latents = np.zeros((180, 6))
    latents[(tokens == 1) & (halves == 0), 1] = 1  # in one half only
    latents[[0, 1, 90, 91], 2] = 1  # four times
    latents[other, 3] = 1  # never on a token that is kept apart
    latents[:, 4] = 2.5  # always
    latents[other | (tokens == 2), 5] = 1  # 20 of 30 on token 2
    return summed(latents, tokens, halves, n_tokens=4)


def test_latents_without_a_score_say_why_and_are_not_zero() -> None:
    selectivity, r2 = token_selectivity(planted_gaps(), 5), token_r2(planted_gaps())
    assert selectivity.reasons == [SILENT, ONE_HALF, SELDOM, RARER, None, None]
    assert r2.reasons == [SILENT, ONE_HALF, SELDOM, RARER, CONSTANT, None]
    for scores in (selectivity, r2):
        assert [reason is None for reason in scores.reasons] == (~np.isnan(scores.values)).tolist()
    # Always on: no token is preferred.
    np.testing.assert_allclose(selectivity.values[4:], [0, 1])
    assert r2.values[5] == pytest.approx(1)


def test_a_token_must_be_frequent_in_both_halves() -> None:
    assert set(token_selectivity(planted_gaps(), 20).reasons) == {SILENT, ONE_HALF, SELDOM, RARER, None}
    # No token occurs 21 times in a half: whoever could be scored no longer can.
    assert token_selectivity(planted_gaps(), 21).reasons == [SILENT, ONE_HALF, SELDOM, RARER, RARER, RARER]


def test_a_dense_latent_has_a_value_where_most_tokens_are_rare() -> None:
    # Three tokens that are kept apart, in 30 of 120 positions, with a mean of 1; all others are too rare.
    tokens = np.tile([0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3], 10)
    levels = np.array([1.2, 1.0, 0.8, 0.0])[tokens][:, None] + (tokens == 3)[:, None] * np.array(
        [1, 2.3, 2.4]
    )
    sums = summed(levels, tokens, np.repeat([0, 1], 60), n_tokens=3)
    # 1 against a mean over all of (1 + 3 · level) / 4: more than half of it up to a level of 7/3.
    for scores in (token_selectivity(sums, 5), token_r2(sums)):
        assert scores.reasons == [None, None, RARER]
    np.testing.assert_allclose(token_r2(sums).values[:2], 1)
    # 1.2 against .9.
    np.testing.assert_allclose(token_selectivity(sums, 5).values[:2], 1 / 7)


def test_one_token_alone_has_no_others_to_be_held_against() -> None:
    sums = summed(np.ones((40, 1)), np.zeros(40, np.int64), np.repeat([0, 1], 20))
    assert token_selectivity(sums, 5).reasons == [RARER]
    assert token_r2(sums).reasons == [CONSTANT]


def test_text_in_one_half_only_gives_no_value() -> None:
    sums = summed(np.ones((40, 1)), np.arange(40) % 4, np.zeros(40, np.int64))
    assert token_selectivity(sums, 5).reasons == [ONE_HALF]
    assert token_r2(sums).reasons == [ONE_HALF]


def test_silent_sums_have_the_same_tokens() -> None:
    sums = by_hand().silent()
    assert sums.counts.tolist() == [[3, 2, 1], [2, 3, 1]]
    assert not sums.sums.any()
    sums.add(torch.ones(1, 1), np.array([0]), np.array([0]))
    assert by_hand().counts[0, 0] == 3


# Intervals over latents


def random_directions(seed: int, n: int) -> Latents:
    """Rectified codes along random directions of activations that tokens explain by half."""
    rng = np.random.default_rng(seed)
    of_token, turn = rng.normal(size=(200, 64)), rng.normal(size=(64, n))
    turn /= np.linalg.norm(turn, axis=0)
    return lambda tokens, rng: np.maximum((of_token[tokens] + rng.normal(size=(len(tokens), 64))) @ turn, 0)


def test_an_interval_over_latents_holds_the_difference_as_often_as_it_says() -> None:
    """Two sets of random directions of the same activations on the same text: no difference between them."""
    held = np.zeros(2)
    for seed in range(60):
        sums = zipf(2_000, 200, random_directions(seed, 60), seed)
        for i, values in enumerate((token_selectivity(sums, 5).values, token_r2(sums).values)):
            one, other = (side[~np.isnan(side)].tolist() for side in (values[:30], values[30:]))
            low, high, _ = mean_difference_interval(one, other)
            assert low is not None
            assert high is not None
            held[i] += low <= 0 <= high
    # 57, less three standard errors of 1.7.
    assert (held >= 52).all(), held
