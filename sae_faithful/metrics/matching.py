"""One-to-one matching of two sets of directions, and the shares of features found in both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_faithful.metrics.intervals import Interval, jackknife_interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from jaxtyping import Bool, Float, Int

SUBSETS = ("all", "alive", "firing_weighted")


@dataclass(frozen=True)
class Weights:
    """How much each latent counts in a subset."""

    rates: Float[np.ndarray, " d_sae"]
    """Share of held-out tokens on which each latent fires."""

    def of(self, subset: str, nonzero: Bool[np.ndarray, " d_sae"]) -> Float[np.ndarray, " d_sae"]:
        """Weights in one subset: `all` (directions that are not zero), `alive` (fired at least once), or by rate."""
        if subset == "all":
            return nonzero.astype(np.float64)
        if subset == "alive":
            return (self.rates > 0).astype(np.float64)
        if subset == "firing_weighted":
            return self.rates.astype(np.float64)
        raise ValueError(f"unknown subset '{subset}'; choices: {', '.join(SUBSETS)}")


@dataclass(frozen=True)
class Match:
    """The assignment of rows of A to rows of B with the largest total cosine."""

    rows: Int[np.ndarray, " pairs"]
    """Matched rows of A."""
    cols: Int[np.ndarray, " pairs"]
    """Their partners in B."""
    cosine: Float[np.ndarray, " pairs"]
    """Signed cosine of each pair."""
    nonzero: tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " m"]]
    """Which rows of A and of B have a direction at all; the others match nothing."""
    certified: bool = True
    """Whether it is proven that no assignment has a larger total, to within 1e-6 a pair."""
    gap: float = 0.0
    """Proven upper bound on what the largest total exceeds this one's by."""

    def shared_ratio(self, a: Weights, b: Weights, threshold: float, subset: str) -> float:
        """Share of the features that both SAEs have: weight of pairs with cosine above `threshold`, over all weight.

        For `all` and `alive` a pair counts when both its latents are in the subset, and the denominator is the
        mean of the two subsets' sizes (Dice's coefficient); `firing_weighted` averages, over the two SAEs, the
        share of firings that belong to shared features. 1 when the SAEs are permutations of each other; higher is
        more reproducible. Zero when a subset is empty.
        """
        return self._weighted(a, b, subset, self.cosine > threshold)

    def mean_cosine(self, a: Weights, b: Weights, subset: str) -> float:
        """Mean cosine of matched pairs, weighted as in `shared_ratio` (PW-MCC of arXiv 2505.20254 for `all`)."""
        inside = self._weighted(a, b, subset, np.ones_like(self.cosine))
        return self._weighted(a, b, subset, self.cosine) / inside if inside else 0.0

    def cosine_of(self, side: int) -> Float[np.ndarray, " d_sae"]:
        """Each latent's matched cosine, for A (0) or B (1); 0 where it matched nothing."""
        values = np.zeros(len(self.nonzero[side]))
        values[self.cols if side else self.rows] = self.cosine
        return values

    def partner_of(self, side: int) -> Float[np.ndarray, " d_sae"]:
        """The row of the other side that each row of A (0) or B (1) was matched with; NaN where it matched nothing."""
        partners = np.full(len(self.nonzero[side]), np.nan)
        ours, theirs = (self.cols, self.rows) if side else (self.rows, self.cols)
        partners[ours] = theirs
        return partners

    def cosines_among(self, a: Weights, b: Weights, subset: str) -> Float[np.ndarray, " pairs"]:
        """Cosines of the matched pairs of which both have any weight in the subset."""
        weight_a, weight_b = a.of(subset, self.nonzero[0]), b.of(subset, self.nonzero[1])
        return self.cosine[(weight_a[self.rows] > 0) & (weight_b[self.cols] > 0)]

    def _weighted(self, a: Weights, b: Weights, subset: str, values: np.ndarray) -> float:
        weight_a, weight_b = a.of(subset, self.nonzero[0]), b.of(subset, self.nonzero[1])
        of_a, of_b = weight_a[self.rows], weight_b[self.cols]
        if subset == "firing_weighted":
            total_a, total_b = weight_a.sum(), weight_b.sum()
            if not (total_a and total_b):
                return 0.0
            return float(((of_a * values).sum() / total_a + (of_b * values).sum() / total_b) / 2)
        denominator = (weight_a.sum() + weight_b.sum()) / 2
        return float((of_a * of_b * values).sum() / denominator) if denominator else 0.0


def match_directions(
    a: Float[torch.Tensor | np.ndarray, "n d"], b: Float[torch.Tensor | np.ndarray, "m d"]
) -> Match:
    """Match the rows of `a` to those of `b`, one to one, so that the sum of cosines is largest.

    Rows of length zero (latents that were never trained) match nothing. With unequal numbers the smaller side
    is matched fully. Never holds n·m cosines; runs where `a` is; raises ValueError for entries that are not finite.
    """
    from sae_faithful.ops import match_features

    found = match_features(a, b)
    return Match(found.rows, found.cols, found.cosine, (_nonzero(a), _nonzero(b)), found.certified, found.gap)


def _nonzero(directions: torch.Tensor | np.ndarray) -> Bool[np.ndarray, " n"]:
    found = (directions != 0).any(1)
    return found if isinstance(found, np.ndarray) else found.cpu().numpy()


def top1_ratio(
    nearest: Float[np.ndarray, " d_sae"], weights: Weights, threshold: float, subset: str
) -> float:
    """Share of one SAE's latents whose nearest direction of the other SAE has a cosine above `threshold`.

    Σ_i w_i [max_j cos(a_i, b_j) > τ] / Σ_i w_i, with w_i the weight of latent i of A in the subset, and j over all
    latents of B. Nothing is one to one, so many latents of A may share one neighbour: never less than the share
    of A's latents that `Match` pairs above the threshold. Higher is more reproducible. Zero for an empty subset.

    Args:
        nearest: each latent's largest cosine, −∞ where its direction is zero (`sae_faithful.ops.nearest_cosines`).
        weights: of the same SAE.
        threshold: a cosine.
        subset: as in `Weights.of`.
    """
    weight = weights.of(subset, np.isfinite(nearest))
    total = weight.sum()
    return float((weight * (nearest > threshold)).sum() / total) if total else 0.0


def mean_max_cosine(nearest: Float[np.ndarray, " d_sae"], weights: Weights, subset: str) -> float:
    """Mean over one SAE's latents of their largest cosine with any latent of the other: MMCS.

    Σ_i w_i max_j cos(a_i, b_j) / Σ_i w_i (Cunningham et al. 2023, arXiv 2309.08600, who weigh all alike; Sharkey
    et al. 2022). Signed, so that a feature's opposite is no match. Asymmetric: where B has all directions of A and
    more, A in B is 1 and B in A is not. Higher is more alike. Zero for an empty subset.

    Args:
        nearest: each latent's largest cosine, −∞ where its direction is zero (`sae_faithful.ops.nearest_cosines`).
        weights: of the same SAE.
        subset: as in `Weights.of`; latents whose direction is zero are left out.
    """
    known = np.isfinite(nearest)
    weight = weights.of(subset, known) * known
    total = weight.sum()
    return float((weight * np.where(known, nearest, 0)).sum() / total) if total else 0.0


def mean_over_pairs(values: Mapping[tuple[int, int], float]) -> tuple[float, Interval]:
    """Mean of a statistic of pairs of SAEs, with its interval by the jackknife over seeds.

    SE² = (S−1)/S · Σ_s (θ₍₋ₛ₎ − θ̄)², where θ₍₋ₛ₎ is the mean of the pairs without seed s and S the number of seeds.
    Leaving out a seed leaves out all that was drawn with it. Where pairs are of two sources, those are two
    SAEs, which began with the same weights; so these are U-statistics of order two in independent seeds, for
    which the jackknife's variance is not too small in expectation (Efron & Stein 1981). It needs three seeds.

    Args:
        values: by the seeds of the two SAEs, which differ.
    """
    mean = float(np.mean(list(values.values())))
    seeds = sorted({seed for pair in values for seed in pair})
    rests = [[value for pair, value in values.items() if seed not in pair] for seed in seeds]
    return mean, jackknife_interval(mean, [float(np.mean(rest)) for rest in rests if rest])


def random_directions_like(
    directions: Float[np.ndarray, "n d"], rng: np.random.Generator
) -> Float[np.ndarray, "n d"]:
    """As many random directions, Gaussian with the second moments of the unit `directions`: the null of an SFR.

    It keeps that decoders crowd into few dimensions, which alone makes some pairs similar; zero rows stay zero.
    """
    exact = directions.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    unit = np.divide(exact, lengths, out=np.zeros_like(exact), where=lengths > 0)
    # Rows of Z·√Λ·Qᵀ, Z standard normal, have the second moments UᵀU/n = QΛQᵀ.
    moments, basis = np.linalg.eigh(unit.T @ unit / max(1, int((lengths > 0).sum())))
    drawn = (rng.standard_normal(unit.shape) * np.sqrt(moments.clip(0))) @ basis.T
    return (drawn * (lengths > 0)).astype(directions.dtype)
