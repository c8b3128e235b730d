"""Baselines `pca` and `topk_pca`: directions of largest variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sae_faithful import Directions

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from jaxtyping import Float

ROWS_AT_ONCE = 8_192
"""Activations are turned into float64 so many at a time."""


@dataclass
class PCA:
    """Principal components, centred, those of largest variance first."""

    n_components: int | None = None
    """How many; none: all."""
    sign: Literal["split", "relu", "signed"] = "split"
    """Codes below 0 are latents of their own, dropped, or kept signed (the authors' code)."""

    def __post_init__(self) -> None:
        check_positive("n_components", self.n_components)

    def fit(self, activations: Float[torch.Tensor, "n d_in"], seed: int) -> Directions:
        """The components: orthonormal, so that codes read and write along the same rows."""
        del seed  # nothing is drawn
        return components_as_directions(activations, self.n_components, self.sign)


@dataclass
class TopKPCA:
    """The k largest of the codes along ± the principal components, those below 0 dropped."""

    k: int
    """How many latents of a token are kept at most; the paper takes the mean L0 of the SAE beside it."""
    n_components: int | None = None
    """How many components; none: all."""

    def __post_init__(self) -> None:
        check_positive("k", self.k)
        check_positive("n_components", self.n_components)

    def fit(self, activations: Float[torch.Tensor, "n d_in"], seed: int) -> Directions:
        """As `pca` with `split`, and the k."""
        del seed  # nothing is drawn
        return components_as_directions(activations, self.n_components, "split", self.k)


def check_positive(name: str, value: int | None) -> None:
    """Refuse a count below 1.

    Raises:
        ValueError: naming the option.
    """
    if value is not None and value < 1:
        raise ValueError(f"{name} {value} is not positive")


def components_as_directions(
    activations: Float[torch.Tensor, "n d_in"],
    n_components: int | None,
    sign: Literal["split", "relu", "signed"],
    k: int | None = None,
) -> Directions:
    """Principal components, each turned so that its codes have their longer tail above 0.

    The turn says which half `relu` keeps; without it that would be chance.
    """
    import torch

    found = principal_components(activations, n_components)
    third = torch.zeros(len(found.rows), dtype=torch.float64)
    for block in centred_blocks(activations, found.mean):
        third += (block @ found.rows.T).pow(3).sum(0)
    rows = found.rows * torch.where(third < 0, -1.0, 1.0)[:, None]
    return Directions(
        read=rows.float(), write=rows.float(), mean=found.mean.float(), sign=sign, k=k, card=found.card()
    )


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of some activations, float64."""

    mean: Float[torch.Tensor, " d_in"]
    rows: Float[torch.Tensor, "components d_in"]
    """Orthonormal, by variance from the largest."""
    variances: Float[torch.Tensor, " components"]
    total: float
    """Variance along all components, those left out included."""

    def card(self) -> dict[str, object]:
        """How many there are, and how much of the variance is theirs."""
        share = float(self.variances.sum()) / self.total if self.total > 0 else 1.0
        return {"components": len(self.rows), "variance_share": share}


def principal_components(activations: Float[torch.Tensor, "n d_in"], n_components: int | None) -> Components:
    """Eigenvectors of the covariance, which is summed in float64 about the mean found first.

    At most n − 1: along other directions the activations, fewer than they have entries, do not vary.

    Raises:
        ValueError: fewer than two activations.
    """
    import torch

    n, d_in = activations.shape
    if n < 2:
        raise ValueError(f"components of {n} activations; at least 2 are needed")
    mean = torch.zeros(d_in, dtype=torch.float64)
    for block in activations.split(ROWS_AT_ONCE):
        mean += block.double().sum(0)
    mean /= n
    covariance = torch.zeros(d_in, d_in, dtype=torch.float64)
    for block in centred_blocks(activations, mean):
        covariance.addmm_(block.T, block)
    covariance /= n - 1
    variances, columns = torch.linalg.eigh(covariance)
    kept = min(n_components or d_in, d_in, n - 1)
    return Components(
        mean=mean,
        rows=columns.T.flip(0)[:kept].contiguous(),
        variances=variances.flip(0)[:kept].clamp(min=0),
        total=float(covariance.trace()),
    )


def centred_blocks(
    activations: Float[torch.Tensor, "n d_in"], mean: Float[torch.Tensor, " d_in"]
) -> Iterator[Float[torch.Tensor, "rows d_in"]]:
    """Some activations after others, less the mean, float64."""
    for block in activations.split(ROWS_AT_ONCE):
        yield block.double() - mean
