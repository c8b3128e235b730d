from __future__ import annotations

import numpy as np
import pytest
import torch
from sae_lens.evals import ExplainedVarianceCalculator

from sae_faithful.metrics.clusters import ClusterSums
from sae_faithful.metrics.reconstruction import (
    ActivationVariance,
    ReconstructionSums,
    ce_loss_score,
    explained_variance,
    l0,
)

ROWS, CONTEXT, D_IN = 60, 6, 7


def activations() -> torch.Tensor:
    """Far off centre and of unequal spread, as residual streams are."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.5, 4, D_IN, dtype=torch.float64)
    return torch.randn(ROWS, CONTEXT, D_IN, generator=generator, dtype=torch.float64) * spread + 30


def all_tokens() -> torch.Tensor:
    return torch.ones(ROWS, CONTEXT, dtype=torch.bool)


def seen(
    x: torch.Tensor, reconstruction: torch.Tensor, mask: torch.Tensor, batch: int = ROWS
) -> tuple[ActivationVariance, ReconstructionSums]:
    variance, sums = ActivationVariance(len(x), x.shape[-1]), ReconstructionSums(len(x))
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        variance.add(start, x[part], mask[part])
        sums.add(start, x[part], reconstruction[part], torch.zeros(len(x[part]), x.shape[1], 1), mask[part])
    return variance, sums


def sums_of(values: list[float]) -> ClusterSums:
    sums = ClusterSums(len(values), 1)
    sums.add(0, np.array(values)[:, None])
    return sums


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# Explained variance


def test_explained_variance_by_hand() -> None:
    # Values 1, 3, 5, 7 have mean 4 and Σ(x − x̄)² = 9 + 1 + 1 + 9 = 20; errors 1, 1, 0, 0: 1 − 2/20.
    x = torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]])
    reconstruction = torch.tensor([[[2.0], [2.0]], [[5.0], [7.0]]])
    value, interval = explained_variance(*seen(x, reconstruction, torch.ones(2, 2, dtype=torch.bool)), rng())
    assert value == pytest.approx(0.9)
    assert interval == (None, None, "2 sequences; an interval needs at least 50")


@pytest.mark.parametrize("batch", [1, 7, ROWS])
def test_explained_variance_is_saelens_own_over_the_tokens_that_count(batch: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = activations()
    mask = torch.rand(ROWS, CONTEXT, generator=generator) < 0.7
    # What does not count must not matter: the norm at BOS is huge in real models.
    x[~mask] = 1e6
    reconstruction = x + torch.randn(x.shape, generator=generator, dtype=torch.float64)
    reconstruction[~mask] = -1e6
    oracle = ExplainedVarianceCalculator()
    oracle.add_batch(reconstruction[mask][:100], x[mask][:100])
    oracle.add_batch(reconstruction[mask][100:], x[mask][100:])
    value, interval = explained_variance(*seen(x, reconstruction, mask, batch), rng())
    assert value == pytest.approx(oracle.compute(), rel=1e-9)
    assert 0 < value < 1
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < value < interval.high


def test_a_perfect_reconstruction_explains_everything() -> None:
    x = activations()
    assert explained_variance(*seen(x, x, all_tokens()), rng()) == (1, (1, 1, None))


def test_the_mean_explains_nothing() -> None:
    x = activations()
    mean = x.mean(dim=(0, 1)).expand_as(x)
    value, interval = explained_variance(*seen(x, mean, all_tokens()), rng())
    assert value == pytest.approx(0, abs=1e-9)
    # In a resample x̄ moves, which can only make the variance about it smaller: never above 0.
    assert interval.high is not None
    assert interval.high < 1e-9


def test_worse_than_the_mean_is_below_zero() -> None:
    # x has variance Σ(x − x̄)²; its mirror image about the mean has the errors 2(x − x̄): 1 − 4.
    x = activations()
    mirrored = 2 * x.mean(dim=(0, 1)) - x
    assert explained_variance(*seen(x, mirrored, all_tokens()), rng())[0] == pytest.approx(-3)


def test_low_precision_activations_are_summed_in_double() -> None:
    # In float16 the squares of 300 (90,000) are infinite.
    x = torch.tensor([[[300.0], [302.0]]], dtype=torch.float16)
    value, _ = explained_variance(*seen(x, x - 1, torch.ones(1, 2, dtype=torch.bool)), rng())
    # Errors 1 + 1, Σ(x − x̄)² = 2: 1 − 2/2.
    assert value == pytest.approx(0)


# L0


def test_l0_counts_active_latents_of_the_tokens_that_count() -> None:
    # Active latents a token: 1, 2 | 3, 0; the second token does not count: (1 + 3 + 0)/3.
    latents = torch.tensor([[[1.0, 0, 0], [1, 1, 0]], [[0.1, 2, 3], [0, 0, 0]]])
    mask = torch.tensor([[True, False], [True, True]])
    sums = ReconstructionSums(2)
    x = torch.zeros(2, 2, 1)
    sums.add(0, x, x, latents, mask)
    value, interval = l0(sums)
    assert value == pytest.approx(4 / 3)
    assert interval.reason == "2 sequences; an interval needs at least 50"


def test_l0_of_a_top_k_sae_is_k_without_spread() -> None:
    latents = torch.zeros(ROWS, CONTEXT, 20)
    latents[..., :8] = 0.5
    sums = ReconstructionSums(ROWS)
    x = activations()
    sums.add(0, x, x, latents, all_tokens())
    assert l0(sums) == (8, (8, 8, None))


def test_l0_of_silent_latents_is_zero() -> None:
    x = activations()
    _, sums = seen(x, x, all_tokens())
    assert l0(sums)[0] == 0


# The loss of next-token predictions


def test_ce_loss_score_by_hand() -> None:
    # Sums over sequences: own 1 + 3 = 4, zeroed 5 + 15 = 20, reconstructed 2 + 6 = 8: (20 − 8)/(20 − 4).
    value, interval = ce_loss_score(sums_of([1, 3]), sums_of([5, 15]), sums_of([2, 6]), rng())
    assert value == pytest.approx(0.75)
    assert interval.reason == "2 sequences; an interval needs at least 50"


@pytest.mark.parametrize(("substituted", "score"), [(2.0, 1.0), (10.0, 0.0), (4.0, 0.75), (12.0, -0.25)])
def test_ce_loss_score_runs_from_the_zeroed_to_the_models_own(substituted: float, score: float) -> None:
    # Own loss 2 and zeroed 10 in every sequence: no spread.
    parts = (sums_of([value] * ROWS) for value in (2.0, 10.0, substituted))
    value, interval = ce_loss_score(*parts, rng())
    assert value == pytest.approx(score)
    assert interval[:2] == pytest.approx((score, score))


def test_ce_loss_score_interval_is_about_the_ratio_of_sums() -> None:
    # Sequences of very different lengths: the ratio of sums is .5, the mean of ratios .25 or so.
    lengths = np.tile([1.0, 19.0], 30)
    scores = np.tile([0.025, 0.525], 30)
    clean, ablated = sums_of(list(lengths)), sums_of(list(3 * lengths))
    substituted = sums_of(list(3 * lengths - 2 * lengths * scores))
    value, interval = ce_loss_score(clean, ablated, substituted, rng())
    # (.025 · 1 + .525 · 19)/20 = .5.
    assert value == pytest.approx(0.5)
    assert interval.low is not None
    assert interval.high is not None
    assert 0.45 < interval.low < 0.5 < interval.high < 0.55
