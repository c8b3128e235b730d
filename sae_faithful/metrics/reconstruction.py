"""How well reconstructions stand in for activations: in activation space, and in what the model then predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sae_faithful.metrics.clusters import ClusterSums
from sae_faithful.metrics.intervals import Interval, bootstrap_interval, ratio_interval

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int


class ActivationVariance:
    """First and second moments of activations, for the variance that reconstructions are to explain."""

    def __init__(self, n_rows: int, d_in: int) -> None:
        self.tokens = ClusterSums(n_rows, 1)
        self.sum = ClusterSums(n_rows, d_in)
        self.squares = ClusterSums(n_rows, d_in)
        self._origin: Float[torch.Tensor, " d_in"] | None = None

    def add(
        self,
        first_row: int,
        activations: Float[torch.Tensor, "rows context d_in"],
        mask: Bool[torch.Tensor, "rows context"],
    ) -> None:
        """Take in some rows; only tokens where `mask` holds count.

        Moments are about the first activation that counts: no variance depends on it, a dimension that never
        varies has exactly none, and a mean far off zero costs no digits.
        """
        if self._origin is None:
            if not mask.any():
                return
            self._origin = activations[mask][0].double()
        kept = (activations.double() - self._origin).where(mask[..., None], 0)
        self.tokens.add(first_row, mask.sum(dim=1, keepdim=True))
        self.sum.add(first_row, kept.sum(dim=1))
        self.squares.add(first_row, kept.square().sum(dim=1))


class TokenErrors(NamedTuple):
    """What an SAE does to each token's activation."""

    squared: Float[torch.Tensor, "rows context d_in"]
    norm: Float[torch.Tensor, "rows context"]
    cosine: Float[torch.Tensor, "rows context"]
    active: Int[torch.Tensor, "rows context"]
    """How many latents are not 0."""
    fired: Bool[torch.Tensor, "rows context d_sae"]
    """Which they are; on the SAE's device."""

    @classmethod
    def of(
        cls,
        activations: Float[torch.Tensor, "rows context d_in"],
        reconstruction: Float[torch.Tensor, "rows context d_in"],
        latents: Float[torch.Tensor, "rows context d_sae"],
    ) -> TokenErrors:
        """(x − x̂)² of each dimension, ‖x − x̂‖, cos(x, x̂) (0 where either is 0), latents that are not 0."""
        import torch

        own, sae = activations.double(), reconstruction.to(activations.device).double()
        squared = (own - sae).square()
        cosine = torch.nn.functional.cosine_similarity(own, sae, dim=-1)
        fired = latents != 0
        # The SAE may be on another device than the model.
        active = fired.sum(dim=-1).to(own.device)
        return cls(squared, squared.sum(dim=-1).sqrt(), cosine, active, fired)


class ReconstructionSums:
    """Sums of one SAE's errors and numbers of active latents, and how often each latent was active."""

    def __init__(self, n_rows: int, d_in: int) -> None:
        self.errors = ClusterSums(n_rows, d_in)
        self.norms, self.cosines, self.active, self.tokens = (ClusterSums(n_rows, 1) for _ in range(4))
        self.firings: Int[np.ndarray, " d_sae"] = np.zeros(1, np.int64)

    def add(self, first_row: int, errors: TokenErrors, mask: Bool[torch.Tensor, "rows context"]) -> None:
        """Take in some rows; only tokens where `mask` holds count."""
        self.errors.add(first_row, errors.squared.where(mask[..., None], 0).sum(dim=1))
        self.norms.add(first_row, errors.norm.where(mask, 0).sum(dim=1, keepdim=True))
        self.cosines.add(first_row, errors.cosine.where(mask, 0).sum(dim=1, keepdim=True))
        self.active.add(first_row, errors.active.where(mask, 0).sum(dim=1, keepdim=True))
        self.tokens.add(first_row, mask.sum(dim=1, keepdim=True))
        firings = (errors.fired & mask.to(errors.fired.device)[..., None]).sum(dim=(0, 1))
        self.firings = self.firings + firings.cpu().numpy()


def explained_variance(
    variance: ActivationVariance, sums: ReconstructionSums, rng: np.random.Generator
) -> tuple[float, Interval]:
    """1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², pooled over tokens and dimensions (as SAELens); 1 is perfect.

    The interval is a bootstrap over sequences, in which x̄ moves with the sample.
    """
    errors_of, squares_of = sums.errors.sums.sum(axis=1), variance.squares.sums.sum(axis=1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        errors, tokens = weights @ errors_of, (weights @ variance.tokens.sums)[:, 0]
        total = weights @ squares_of - np.square(weights @ variance.sum.sums).sum(axis=1) / tokens
        # Activations that never vary have nothing to explain (SAELens's convention).
        return np.where(total > 0, 1 - errors / np.where(total > 0, total, 1), errors <= 0)

    n = len(sums.errors)
    return float(statistic(np.ones((1, n)))[0]), bootstrap_interval(statistic, n, rng)


def fvu(
    variance: ActivationVariance, sums: ReconstructionSums, rng: np.random.Generator
) -> tuple[float, Interval]:
    """Fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − x̄‖² = 1 − `explained_variance`; 0 is perfect.

    Cunningham et al. (2023, arXiv 2309.08600) plot it against L0. Their x̄ is a batch's mean, this one the whole
    text's. x̂ = x̄ everywhere gives 1; worse than that is above 1.
    """
    value, interval = explained_variance(variance, sums, rng)
    if interval.low is None or interval.high is None:
        return 1 - value, interval
    return 1 - value, Interval(1 - interval.high, 1 - interval.low)


def alive_features(sums: ReconstructionSums, firings: int) -> tuple[float, Interval]:
    """How many latents were active (not 0) on more than `firings` tokens, as Cunningham et al. (2023) count them.

    It grows with the number of tokens: no mean over them, and no interval.
    """
    reason = "how many latents fired often enough on these tokens is no estimate"
    return float((sums.firings > firings).sum()), Interval(None, None, reason)


def r2_per_dimension(variance: ActivationVariance, sums: ReconstructionSums) -> tuple[float, Interval]:
    """Mean over dimensions of 1 − Σ(x_d − x̂_d)² / Σ(x_d − x̄_d)²; 1 is perfect.

    scikit-learn's `r2_score` with `uniform_average`, of which `explained_variance` is the `variance_weighted`:
    here a few dimensions of huge variance weigh no more than others. Dimensions that never vary are left out.
    The interval over sequences is by linearisation, in which x̄ moves with the sample.
    """
    n_tokens = variance.tokens.total[0]
    mean = variance.sum.total / n_tokens
    # What each cluster adds to Σ(x_d − x̄_d)², x̄ the mean of all.
    spread = variance.squares.sums - 2 * mean * variance.sum.sums + mean**2 * variance.tokens.sums
    varies = variance.squares.total - n_tokens * mean**2 > 0
    n, errors, spread = len(spread), sums.errors.sums[:, varies], spread[:, varies]
    if not varies.any():
        # Nothing to explain, as in `explained_variance`.
        value = float(sums.errors.total.sum() <= 0)
        return value, ratio_interval(np.full(n, value), np.ones(n))
    total = spread.sum(axis=0)
    lost = errors.sum(axis=0) / total
    value = float(np.mean(1 - lost))
    # The derivative of the value to each cluster's weight: residuals about a mean of n such terms.
    influence = ((lost * spread - errors) / total).mean(axis=1)
    return value, ratio_interval(value + n * influence, np.ones(n))


def l0(sums: ReconstructionSums) -> tuple[float, Interval]:
    """Mean number of active latents a token, with its interval over sequences."""
    return _mean(sums.active.sums, sums.tokens.sums)


def l2(sums: ReconstructionSums) -> tuple[float, Interval]:
    """Mean ‖x − x̂‖ of a token, in units of the activations, with its interval over sequences; lower is better."""
    return _mean(sums.norms.sums, sums.tokens.sums)


def cosine(sums: ReconstructionSums) -> tuple[float, Interval]:
    """Mean cos(x, x̂) of a token, with its interval over sequences; 1 is perfect in direction."""
    return _mean(sums.cosines.sums, sums.tokens.sums)


def next_token_log_probs(
    logits: Float[torch.Tensor, "rows context vocab"],
) -> Float[torch.Tensor, "rows context-1 vocab"]:
    """log p of every token of the vocabulary, at every position that has a next token."""
    return logits[:, :-1].float().log_softmax(dim=-1)


def next_token_losses(
    log_probs: Float[torch.Tensor, "rows context-1 vocab"], tokens: Int[torch.Tensor, "rows context"]
) -> Float[torch.Tensor, "rows context-1"]:
    """−log p of the tokens that came, nats."""
    return -log_probs.gather(-1, tokens[:, 1:, None].to(log_probs.device)).squeeze(-1)


def next_token_divergences(
    own: Float[torch.Tensor, "rows context-1 vocab"], substituted: Float[torch.Tensor, "rows context-1 vocab"]
) -> Float[torch.Tensor, "rows context-1"]:
    """KL(own ‖ substituted) of two predictions given as log-probabilities, nats; 0 where they are the same."""
    import torch

    return torch.nn.functional.kl_div(substituted, own, reduction="none", log_target=True).sum(dim=-1)


def ce_loss_score(
    clean: ClusterSums, ablated: ClusterSums, substituted: ClusterSums, rng: np.random.Generator
) -> tuple[float, Interval]:
    """(CE of zeroed activations − CE of reconstructions) / (CE of zeroed − CE of the model's own); 1 is perfect.

    The three are sums of next-token losses over the same tokens. The interval is a bootstrap over sequences.
    """

    def statistic(weights: np.ndarray) -> np.ndarray:
        own, zeroed, sae = ((weights @ sums.sums)[:, 0] for sums in (clean, ablated, substituted))
        return (zeroed - sae) / (zeroed - own)

    n = len(clean)
    return float(statistic(np.ones((1, n)))[0]), bootstrap_interval(statistic, n, rng)


def ce_difference(
    clean: ClusterSums, substituted: ClusterSums, predictions: ClusterSums
) -> tuple[float, Interval]:
    """CE of reconstructions − CE of the model's own, nats a token; 0 is perfect, negative better than the model.

    The losses are of the same tokens, so the interval over sequences is that of their paired difference.

    Args:
        clean: sums of the model's own losses.
        substituted: the same with reconstructions in place of the activations.
        predictions: how many losses there are.
    """
    return _mean(substituted.sums - clean.sums, predictions.sums)


def kl(divergences: ClusterSums, predictions: ClusterSums) -> tuple[float, Interval]:
    """Mean of `next_token_divergences`, nats a token, with its interval over sequences; 0 is perfect."""
    return _mean(divergences.sums, predictions.sums)


def perplexity(losses: ClusterSums, predictions: ClusterSums) -> tuple[float, Interval]:
    """exp(mean loss); lower is better. The bounds are exponentials of the mean loss's."""
    mean, interval = _mean(losses.sums, predictions.sums)
    if interval.low is None or interval.high is None:
        return float(np.exp(mean)), interval
    return float(np.exp(mean)), Interval(float(np.exp(interval.low)), float(np.exp(interval.high)))


def _mean(
    sums: Float[np.ndarray, "clusters 1"], counts: Float[np.ndarray, "clusters 1"]
) -> tuple[float, Interval]:
    return float(sums.sum() / counts.sum()), ratio_interval(sums[:, 0], counts[:, 0])
