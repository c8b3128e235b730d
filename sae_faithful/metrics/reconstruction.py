"""How well reconstructions stand in for activations: explained variance, L0, CE-loss score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_faithful.metrics.clusters import ClusterSums
from sae_faithful.metrics.intervals import Interval, bootstrap_interval, ratio_interval

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float


class ActivationVariance:
    """First and second moments of activations, for the variance that reconstructions are to explain."""

    def __init__(self, n_rows: int, d_in: int) -> None:
        self.tokens = ClusterSums(n_rows, 1)
        self.sum = ClusterSums(n_rows, d_in)
        self.squares = ClusterSums(n_rows, 1)

    def add(
        self,
        first_row: int,
        activations: Float[torch.Tensor, "rows context d_in"],
        mask: Bool[torch.Tensor, "rows context"],
    ) -> None:
        """Take in some rows; only tokens where `mask` holds count."""
        kept = activations.double().where(mask[..., None], 0)
        self.tokens.add(first_row, mask.sum(dim=1, keepdim=True))
        self.sum.add(first_row, kept.sum(dim=1))
        self.squares.add(first_row, kept.square().sum(dim=(1, 2))[:, None])


class ReconstructionSums:
    """Squared errors and numbers of active latents of one SAE."""

    def __init__(self, n_rows: int) -> None:
        self.errors = ClusterSums(n_rows, 1)
        self.active = ClusterSums(n_rows, 1)
        self.tokens = ClusterSums(n_rows, 1)

    def add(
        self,
        first_row: int,
        activations: Float[torch.Tensor, "rows context d_in"],
        reconstruction: Float[torch.Tensor, "rows context d_in"],
        latents: Float[torch.Tensor, "rows context d_sae"],
        mask: Bool[torch.Tensor, "rows context"],
    ) -> None:
        """Take in some rows; only tokens where `mask` holds count."""
        errors = (activations.double() - reconstruction.double()).square().sum(dim=-1)
        active = (latents != 0).sum(dim=-1)
        self.errors.add(first_row, errors.where(mask, 0).sum(dim=1, keepdim=True))
        self.active.add(first_row, (active * mask).sum(dim=1, keepdim=True))
        self.tokens.add(first_row, mask.sum(dim=1, keepdim=True))


def explained_variance(
    variance: ActivationVariance, sums: ReconstructionSums, rng: np.random.Generator
) -> tuple[float, Interval]:
    """1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², pooled over tokens and dimensions (as SAELens); 1 is perfect.

    The interval is a bootstrap over sequences, in which x̄ moves with the sample.
    """

    def statistic(weights: np.ndarray) -> np.ndarray:
        errors = (weights @ sums.errors.sums)[:, 0]
        tokens = (weights @ variance.tokens.sums)[:, 0]
        squares = (weights @ variance.squares.sums)[:, 0]
        total = squares - np.square(weights @ variance.sum.sums).sum(axis=1) / tokens
        # Activations that never vary have nothing to explain (SAELens's convention).
        return np.where(total > 0, 1 - errors / np.where(total > 0, total, 1), errors <= 0)

    n = len(sums.errors)
    return float(statistic(np.ones((1, n)))[0]), bootstrap_interval(statistic, n, rng)


def l0(sums: ReconstructionSums) -> tuple[float, Interval]:
    """Mean number of active latents a token, with its interval over sequences."""
    active, tokens = sums.active.sums[:, 0], sums.tokens.sums[:, 0]
    return float(active.sum() / tokens.sum()), ratio_interval(active, tokens)


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
