from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_faithful.metrics.firing import Exceedances, Firings


def test_firings_are_the_positive_activations_of_tokens_that_count() -> None:
    # Two rows of two tokens, three latents; the first token of row 0 does not count.
    latents = torch.tensor([[[9.0, 9.0, 9.0], [0.0, 2.0, -1.0]], [[0.5, 0.0, 0.0], [0.0, 0.0, 3.0]]])
    found = Firings.find(latents, torch.tensor([[False, True], [True, True]]))
    where = zip(found.rows.tolist(), found.positions.tolist(), found.latents.tolist(), strict=True)
    assert list(where) == [(0, 1, 1), (1, 0, 0), (1, 1, 2)]
    assert found.values.tolist() == [2.0, 0.5, 3.0]
    assert found.tokens.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_firings_of_any_type_come_as_float32(dtype: torch.dtype) -> None:
    found = Firings.find(torch.tensor([[[1.5]]], dtype=dtype), torch.tensor([[True]]))
    assert (found.values.dtype, found.values.tolist()) == (torch.float32, [1.5])


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


def test_every_latent_may_have_a_threshold_of_its_own() -> None:
    counts = Exceedances(1, 3, torch.tensor([0.0, 2.0, torch.inf]))
    counts.add(0, torch.tensor([[[1.0, 2.0, 5.0], [3.0, 2.5, 5.0]]]), torch.ones(1, 2, dtype=torch.bool))
    # Above 0 twice; above 2 once (2 itself is not); above infinity never.
    assert counts.counts.total.tolist() == [2, 1, 0]


# Errors and resamples


def test_resampled_rates_are_ratios_of_drawn_sums() -> None:
    # Row 0: two of two tokens; row 1: none of one.
    counts = Exceedances(2, 1)
    latents = torch.tensor([[[1.0], [1.0]], [[0.0], [1.0]]])
    counts.add(0, latents, torch.tensor([[True, True], [True, False]]))
    # Both once: 2/3. Row 0 twice: 4/4. Row 1 twice: 0/2. Row 0 once, row 1 three times: 2/5.
    rates = counts.resampled(np.array([[1.0, 1], [2, 0], [0, 2], [1, 3]]))
    assert rates[:, 0].tolist() == pytest.approx([2 / 3, 1, 0, 0.4])


def test_errors_are_the_larger_of_clustered_and_binomial() -> None:
    # Four rows of ten tokens. Latent 0 fires on all tokens of two rows: rate .5, residuals ±5 of 10,
    # SE² = 4/3 · 4 · 25 / 40² = 1/12. Latent 1 fires on five tokens of each row: no spread over rows, so the
    # binomial error at (20 + ½)/41 = ½: SE² = ¼/40. Latent 2 never fires: p = ½/41, SE² = p(1 − p)/40.
    latents = torch.zeros(4, 10, 3)
    latents[:2, :, 0] = 1.0
    latents[:, :5, 1] = 1.0
    counts = Exceedances(4, 3)
    counts.add(0, latents, torch.ones(4, 10, dtype=torch.bool))
    p = 0.5 / 41
    np.testing.assert_allclose(counts.errors**2, [1 / 12, 0.25 / 40, p * (1 - p) / 40], rtol=1e-12)
