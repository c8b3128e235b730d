from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_faithful.metrics.firing import Exceedances, fake_ratio, fires_more_than_on_text, fires_often

ROWS, CONTEXT = 60, 5


def constant(rates: list[float], rows: int = ROWS) -> Exceedances:
    """Latents that each fire on a given share of every row's ten tokens."""
    latents = torch.zeros(rows, 10, len(rates))
    for index, rate in enumerate(rates):
        latents[:, : round(10 * rate), index] = 1.0
    counts = Exceedances(rows, len(rates), 0.0)
    counts.add(0, latents, torch.ones(rows, 10, dtype=torch.bool))
    return counts


def all_of(counts: Exceedances) -> np.ndarray:
    return np.ones(len(counts.rates), bool)


# Counting


def test_only_activations_above_the_threshold_count() -> None:
    counts = Exceedances(2, 3, 1.0)
    latents = torch.tensor([[[1.0, 1.5, 0.0], [2.0, 0.5, 0.0]], [[0.0, 9.0, -3.0], [1.0, 1.1, 0.0]]])
    counts.add(0, latents, torch.ones(2, 2, dtype=torch.bool))
    # Above 1 (1 itself is not): latent 0 on one of four tokens, latent 1 on three, latent 2 on none.
    assert counts.counts.sums.tolist() == [[1, 1, 0], [0, 2, 0]]
    assert counts.rates.tolist() == [0.25, 0.75, 0.0]


def test_masked_positions_are_in_neither_count_nor_denominator() -> None:
    # Position 0 (BOS, where everything fires) and one token of the second row do not count.
    latents = torch.zeros(2, 3, 2)
    latents[:, 0] = 100.0
    latents[0, 1, 0] = 1.0
    latents[1, 2, 0] = 100.0
    mask = torch.tensor([[False, True, True], [False, True, False]])
    counts = Exceedances(2, 2, 0.0)
    counts.add(0, latents, mask)
    # Three tokens count; latent 0 fires on one of them, latent 1 on none.
    assert counts.n_tokens == 3
    assert counts.tokens.sums.tolist() == [[2], [1]]
    assert counts.rates.tolist() == [1 / 3, 0.0]


@pytest.mark.parametrize("rows", [7, 430])
def test_counts_agree_over_batch_splits(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, 6, 11, generator=generator)
    mask = torch.rand(rows, 6, generator=generator) < 0.8
    whole = Exceedances(rows, 11, 0.5)
    whole.add(0, latents, mask)
    assert whole.rates.min() > 0
    for size in (1, 3, rows - 1):
        pieces = Exceedances(rows, 11, 0.5)
        for start in range(0, rows, size):
            pieces.add(start, latents[start : start + size], mask[start : start + size])
        np.testing.assert_array_equal(whole.counts.sums, pieces.counts.sums)
        np.testing.assert_array_equal(whole.tokens.sums, pieces.tokens.sums)


def test_nothing_seen_has_rate_zero_and_no_nan() -> None:
    counts = Exceedances(4, 2, 0.0)
    assert counts.n_tokens == 0
    assert counts.rates.tolist() == [0, 0]


# Conditions


def test_a_rate_at_the_threshold_is_not_above_it() -> None:
    rates = np.array([0.0, 0.1, 0.11])
    assert fires_often(0.1)(random=rates, own=rates).tolist() == [False, False, True]


def test_firing_more_than_on_text_takes_both_conditions() -> None:
    random = np.array([0.05, 0.50, 0.50, 0.41, 0.40, 0.50])
    own = np.array([0.00, 0.00, 0.50, 0.20, 0.20, 0.30])
    # Over .1, and over twice the share on text: no (rare), yes, no (dense), yes, no (just twice), no.
    condition = fires_more_than_on_text(0.1, 2.0)
    assert condition(random=random, own=own).tolist() == [False, True, False, True, False, False]


# The ratio


def test_planted_fake_latents_are_counted_exactly() -> None:
    # Of eight latents two always fire on random tokens and never on text, one fires always on both.
    random = constant([1, 1, 1, 0, 0, 0, 0, 0])
    own = constant([0, 0, 1, 1, 0.2, 0, 0, 0])
    rng = np.random.default_rng(0)
    value, interval = fake_ratio(random, own, fires_often(0.1), all_of(random), rng)
    # Every sequence says the same, and so does every resample.
    assert (value, interval) == (3 / 8, (3 / 8, 3 / 8, None))


def test_a_dense_latent_is_not_fake_where_text_is_compared() -> None:
    random = constant([1, 1, 1, 0, 0, 0, 0, 0])
    own = constant([0, 0, 1, 1, 0.2, 0, 0, 0])
    rng = np.random.default_rng(0)
    value, interval = fake_ratio(random, own, fires_more_than_on_text(0.1, 2.0), all_of(random), rng)
    assert (value, interval) == (2 / 8, (2 / 8, 2 / 8, None))


def test_silent_latents_give_zero() -> None:
    silent = constant([0, 0, 0, 0])
    for condition in (fires_often(0.1), fires_more_than_on_text(0.1, 2.0)):
        value, interval = fake_ratio(silent, silent, condition, all_of(silent), np.random.default_rng(0))
        assert (value, interval) == (0, (0, 0, None))


def test_the_denominator_is_the_subset() -> None:
    # Among the alive (0, 2, 3) one of three is fake; latent 1 is fake but not among them.
    random = constant([1, 1, 0, 0])
    own = constant([0.1, 0, 0.5, 1])
    alive = own.rates > 0
    value, interval = fake_ratio(random, own, fires_often(0.1), alive, np.random.default_rng(0))
    assert value == pytest.approx(1 / 3)
    assert interval[:2] == pytest.approx((1 / 3, 1 / 3))


def test_a_borderline_latent_widens_the_interval_by_itself_alone() -> None:
    # Latent 0 fires everywhere in 8 of 60 rows: .133 of tokens. A resample draws Binomial(60, .133) of
    # those rows; at most 6 (a rate of at most .1) has probability .27, so both answers are inside 95 %.
    latents = torch.zeros(ROWS, CONTEXT, 4)
    latents[:8, :, 0] = 1.0
    latents[:, :, 1] = 1.0
    random = Exceedances(ROWS, 4, 0.0)
    random.add(0, latents, torch.ones(ROWS, CONTEXT, dtype=torch.bool))
    own = constant([0, 0, 0, 0], rows=70)
    for condition in (fires_often(0.1), fires_more_than_on_text(0.1, 2.0)):
        value, interval = fake_ratio(random, own, condition, all_of(random), np.random.default_rng(0))
        assert (value, interval) == (0.5, (0.25, 0.5, None))


def test_the_interval_follows_the_text_too() -> None:
    # Random tokens say .5 for certain; on text latent 0 fires in 15 of 60 rows, .25 of tokens: twice
    # that is just .5, and half of the resamples of the text fall on either side.
    latents = torch.zeros(ROWS, CONTEXT, 2)
    latents[:15, :, 0] = 1.0
    own = Exceedances(ROWS, 2, 0.0)
    own.add(0, latents, torch.ones(ROWS, CONTEXT, dtype=torch.bool))
    random = constant([0.5, 0])
    among = all_of(random)
    _, interval = fake_ratio(random, own, fires_more_than_on_text(0.1, 2.0), among, np.random.default_rng(0))
    assert interval == (0, 0.5, None)
    _, interval = fake_ratio(random, own, fires_often(0.1), among, np.random.default_rng(0))
    assert interval == (0.5, 0.5, None)


def test_few_sequences_give_a_value_without_an_interval() -> None:
    random, own = constant([1, 0], rows=49), constant([0, 0])
    value, interval = fake_ratio(random, own, fires_often(0.1), all_of(random), np.random.default_rng(0))
    assert value == 0.5
    assert interval == (None, None, "49 sequences; an interval needs at least 50")
