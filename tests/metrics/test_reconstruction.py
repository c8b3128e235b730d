from __future__ import annotations

import numpy as np
import pytest
import torch
from sae_lens.evals import ExplainedVarianceCalculator
from sklearn.metrics import r2_score

from sae_faithful.metrics.clusters import ClusterSums
from sae_faithful.metrics.reconstruction import (
    ActivationVariance,
    ReconstructionSums,
    TokenErrors,
    alive_features,
    ce_difference,
    ce_loss_score,
    cosine,
    explained_variance,
    fvu,
    kl,
    l0,
    l2,
    next_token_divergences,
    next_token_log_probs,
    next_token_losses,
    perplexity,
    r2_per_dimension,
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
    variance, sums = ActivationVariance(len(x), x.shape[-1]), ReconstructionSums(len(x), x.shape[-1])
    errors = TokenErrors.of(x, reconstruction, torch.zeros(len(x), x.shape[1], 1))
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        variance.add(start, x[part], mask[part])
        sums.add(start, TokenErrors(*(values[part] for values in errors)), mask[part])
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


# R² per dimension


def test_r2_per_dimension_by_hand() -> None:
    # Dimension 0: 1, 3, 5, 7, Σ(x − x̄)² = 20, errors 1, 1, 0, 0: 1 − 2/20 = .9.
    # Dimension 1: 0, 0, 100, 100, Σ(x − x̄)² = 10,000, errors 0, 0, 0, 50²: 1 − .25 = .75.
    # Dimension 2 is .1 throughout and does not count, whatever its errors.
    x = torch.tensor([[[1, 0, 0.1], [3, 0, 0.1]], [[5, 100, 0.1], [7, 100, 0.1]]])
    error = torch.tensor([[[1, 0, 9], [-1, 0, 9]], [[0, 0, 9], [0, 50, 9]]])
    variance, sums = seen(x, x + error, torch.ones(2, 2, dtype=torch.bool))
    value, interval = r2_per_dimension(variance, sums)
    assert value == pytest.approx((0.9 + 0.75) / 2)
    assert interval == (None, None, "2 sequences; an interval needs at least 50")
    # Pooled, dimension 1 is all there is, and dimension 2's errors count.
    assert explained_variance(variance, sums, rng())[0] == pytest.approx(1 - (2 + 2_500 + 4 * 81) / 10_020)


@pytest.mark.parametrize("batch", [1, 7, ROWS])
def test_both_are_scikit_learns_r2_with_its_two_averages(batch: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = activations()
    mask = torch.rand(ROWS, CONTEXT, generator=generator) < 0.7
    x[~mask] = 1e6
    reconstruction = x + torch.randn(x.shape, generator=generator, dtype=torch.float64)
    reconstruction[~mask] = -1e6
    variance, sums = seen(x, reconstruction, mask, batch)
    for found, average in (
        (r2_per_dimension(variance, sums), "uniform_average"),
        (explained_variance(variance, sums, rng()), "variance_weighted"),
    ):
        oracle = r2_score(x[mask].numpy(), reconstruction[mask].numpy(), multioutput=average)
        assert found[0] == pytest.approx(oracle, rel=1e-9)
    # The dimension of SD .5 is lost in noise of SD 1, of which the pooled number knows little.
    assert r2_per_dimension(variance, sums)[0] < explained_variance(variance, sums, rng())[0] - 0.5


def test_the_interval_of_r2_is_as_wide_as_the_jackknife_has_it() -> None:
    generator = torch.Generator().manual_seed(2)
    x = activations()
    # Sequences differ in their means and in how much is lost of them.
    x += torch.randn(ROWS, 1, D_IN, generator=generator, dtype=torch.float64)
    lost = torch.rand(ROWS, 1, 1, generator=generator, dtype=torch.float64)
    reconstruction = x + lost * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    value, interval = r2_per_dimension(*seen(x, reconstruction, all_tokens()))

    def r2(rows: np.ndarray) -> float:
        parts = (values[rows].flatten(0, 1).numpy() for values in (x, reconstruction))
        return float(r2_score(*parts))

    left_out = np.array([r2(np.arange(ROWS) != row) for row in range(ROWS)])
    error = np.sqrt((ROWS - 1) / ROWS * np.square(left_out - left_out.mean()).sum())
    assert interval.low is not None
    assert interval.high is not None
    # Student's t with 59 degrees of freedom: 2.001.
    assert interval.high - value == pytest.approx(2.001 * error, rel=0.05)
    assert value - interval.low == pytest.approx(2.001 * error, rel=0.05)


@pytest.mark.parametrize(("error", "value"), [(0.0, 1.0), (1.0, 0.0)])
def test_where_nothing_varies_a_reconstruction_is_perfect_or_it_is_nothing(
    error: float, value: float
) -> None:
    # A tenth is no binary fraction: sums of its square and of itself would not cancel.
    x = torch.full((ROWS, CONTEXT, D_IN), 0.1, dtype=torch.float64)
    variance, sums = seen(x, x + error, all_tokens())
    assert r2_per_dimension(variance, sums) == (value, (value, value, None))
    assert explained_variance(variance, sums, rng())[0] == value


def test_variance_about_a_large_mean_keeps_its_digits() -> None:
    # 10⁸ ± 1, in equal numbers: variance 1, which Σx²/n − x̄² = 10¹⁶ − 10¹⁶ loses.
    x = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(ROWS, 3)[..., None] + 1e8
    variance, sums = seen(x, x + 0.5, torch.ones(ROWS, 6, dtype=torch.bool))
    assert r2_per_dimension(variance, sums)[0] == pytest.approx(0.75)
    assert explained_variance(variance, sums, rng())[0] == pytest.approx(0.75)


# L2 and cosine


def test_l2_and_cosine_by_hand() -> None:
    # (3, 4) → (0, 0): 5, no angle. (1, 0) → (1, 1): 1, cos 45°. (0, 2) → (0, 1): 1, cos 0°. The last one does not
    # count: (5 + 1 + 1)/3, and not the root of a mean square.
    x = torch.tensor([[[3.0, 4], [1, 0]], [[0, 2], [9, 9]]])
    reconstruction = torch.tensor([[[0.0, 0], [1, 1]], [[0, 1], [-9, -9]]])
    _, sums = seen(x, reconstruction, torch.tensor([[True, True], [True, False]]))
    assert l2(sums)[0] == pytest.approx(7 / 3)
    assert cosine(sums)[0] == pytest.approx((0 + 0.5**0.5 + 1) / 3)
    assert l2(sums)[1].reason == cosine(sums)[1].reason == "2 sequences; an interval needs at least 50"


# L0


def test_l0_counts_active_latents_of_the_tokens_that_count() -> None:
    # Active latents a token: 1, 2 | 3, 0; the second token does not count: (1 + 3 + 0)/3.
    latents = torch.tensor([[[1.0, 0, 0], [1, 1, 0]], [[0.1, 2, 3], [0, 0, 0]]])
    mask = torch.tensor([[True, False], [True, True]])
    sums = ReconstructionSums(2, 1)
    x = torch.zeros(2, 2, 1)
    sums.add(0, TokenErrors.of(x, x, latents), mask)
    value, interval = l0(sums)
    assert value == pytest.approx(4 / 3)
    assert interval.reason == "2 sequences; an interval needs at least 50"


def test_l0_of_a_top_k_sae_is_k_without_spread() -> None:
    latents = torch.zeros(ROWS, CONTEXT, 20)
    latents[..., :8] = 0.5
    x = activations()
    sums = ReconstructionSums(ROWS, D_IN)
    sums.add(0, TokenErrors.of(x, x, latents), all_tokens())
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


def test_losses_and_divergence_of_predictions_by_hand() -> None:
    # After the first token p = (1/4, 3/4), then (1/2, 1/2); the last prediction has no token to come.
    logits = torch.tensor([[[1.0, 3], [1, 1], [7, 9]]]).log()
    own = next_token_log_probs(logits)
    assert own.exp().tolist() == [[[pytest.approx(1 / 4), pytest.approx(3 / 4)], [0.5, 0.5]]]
    losses = next_token_losses(own, torch.tensor([[0, 1, 0]]))
    assert losses.tolist() == [[pytest.approx(np.log(4 / 3)), pytest.approx(np.log(2))]]
    # Put to uniform: ¼ log(¼ / ½) + ¾ log(¾ / ½), then nothing.
    divergences = next_token_divergences(own, torch.full((1, 2, 2), 0.5).log())
    expected = np.log(1 / 2) / 4 + 3 * np.log(3 / 2) / 4
    assert divergences.tolist() == [[pytest.approx(expected, abs=1e-6), pytest.approx(0, abs=1e-6)]]


def test_ce_difference_is_of_sums_and_its_interval_that_of_the_paired_difference() -> None:
    # (2 + 6 − 1 − 3) / (10 + 30).
    value, _ = ce_difference(sums_of([1, 3]), sums_of([2, 6]), sums_of([10, 30]))
    assert value == pytest.approx(4 / 40)
    # Sequences differ by much, but each loses the same, half a nat a token: no spread.
    clean = rng().normal(30, 10, ROWS)
    found = ce_difference(sums_of(list(clean)), sums_of(list(clean + 5)), sums_of([10.0] * ROWS))
    assert (found[0], *found[1][:2]) == pytest.approx((0.5, 0.5, 0.5))


def test_kl_is_a_mean_over_predictions() -> None:
    assert kl(sums_of([3, 1]), sums_of([10, 30]))[0] == pytest.approx(4 / 40)


def test_perplexity_and_its_bounds_are_exponentials_of_the_mean_losss() -> None:
    # Losses of 2 and 4 nats in turn, one prediction a sequence: mean 3, SD √(60/59), SE SD/√60, t 2.001.
    value, interval = perplexity(sums_of([2.0, 4.0] * 30), sums_of([1.0] * ROWS))
    half = 2.001 * (60 / 59) ** 0.5 / 60**0.5
    assert value == pytest.approx(np.exp(3))
    assert interval[:2] == pytest.approx((np.exp(3 - half), np.exp(3 + half)), rel=1e-4)
    assert perplexity(sums_of([2.0, 4.0]), sums_of([1.0, 1.0]))[1].low is None


def test_fvu_of_the_identity_is_zero_and_of_the_mean_one() -> None:
    x, mask = activations(), all_tokens()
    assert fvu(*seen(x, x, mask), rng())[0] == pytest.approx(0)
    mean = x.mean(dim=(0, 1)).expand_as(x)
    assert fvu(*seen(x, mean, mask), rng())[0] == pytest.approx(1)
    # Zero is farther off than the mean is: all of the mean square over its part about the mean.
    nothing = fvu(*seen(x, torch.zeros_like(x), mask), rng())[0]
    spread = (x - mean).square().mean()
    assert nothing == pytest.approx(float(x.square().mean() / spread))
    assert nothing > 1


def test_fvu_and_its_bounds_are_one_minus_explained_variance_turned_round() -> None:
    x = activations()
    other = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    found = seen(x, other, all_tokens())
    (lost, of_lost), (kept, of_kept) = fvu(*found, rng()), explained_variance(*found, rng())
    assert (lost, of_lost.low, of_lost.high) == (1 - kept, 1 - of_kept.high, 1 - of_kept.low)
    assert of_lost.low < lost < of_lost.high
    few = [seen(x[:9], other[:9], all_tokens()[:9])]
    assert fvu(*few[0], rng())[1].reason == "9 sequences; an interval needs at least 50"


def test_latents_are_alive_above_ten_firings_where_tokens_count() -> None:
    # 40 tokens in 4 rows. Latents fire on 10, on 11, on 11 of which one does not count, below 0 on 11, on none.
    latents = torch.zeros(4, 10, 5)
    flat = latents.view(40, 5)
    flat[:10, 0] = 1
    flat[:11, 1] = 1e-6
    flat[29:40, 2] = 1
    flat[3:14, 3] = -2
    mask = torch.ones(4, 10, dtype=torch.bool)
    mask[3, 9] = False
    x = torch.zeros(4, 10, 1)
    sums = ReconstructionSums(4, 1)
    for start in (0, 2):
        part = slice(start, start + 2)
        sums.add(start, TokenErrors.of(x[part], x[part], latents[part]), mask[part])
    assert sums.firings.tolist() == [10, 11, 10, 11, 0]
    value, interval = alive_features(sums, 10)
    assert (value, interval.low) == (2, None)
    assert alive_features(sums, 9)[0] == 4
    assert alive_features(sums, 0)[0] == 4
    assert alive_features(sums, 11)[0] == 0
    # As many as the numbers of active latents add up to.
    assert sums.active.total[0] == sums.firings.sum()
