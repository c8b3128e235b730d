"""Baselines `ica` and `topk_ica`: directions along which activations are as little Gaussian as can be."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_faithful import Directions
from sae_faithful_plugins.baselines.pca import centred_blocks, check_positive, principal_components

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

    from sae_faithful_plugins.baselines.pca import Components

NEGLIGIBLE = 1e-10
"""Components with a smaller share of the largest variance are rounding error, and cannot be scaled to variance 1."""


@dataclass
class ICA:
    """Independent components by scikit-learn's FastICA, mapped back from its whitened space to activations."""

    dims: int | None = 64
    """Principal components that are unmixed, and so independent ones that are found; none: all, as in the
    paper. The time of an iteration grows with its square: for 50,000 activations and 64 components a fit that
    converged took 5 seconds on one core."""
    max_iter: int = 200
    """Iterations at most; whether they were enough is `converged` in `baseline.json`, and not printed."""
    tol: float = 1e-4
    """Iterations end when no row of the unmixing matrix turns by more than this."""
    sign: Literal["split", "relu", "signed"] = "split"
    """Codes below 0 are latents of their own, dropped, or kept signed (the authors' code)."""
    every_seed: bool = True
    """Fit once for each of `sae_seeds`, since where FastICA starts is drawn."""

    def __post_init__(self) -> None:
        _check(self.dims, self.max_iter, self.tol)

    def fit(self, activations: Float[torch.Tensor, "n d_in"], seed: int) -> Directions:
        """The components, those with the largest part of the variance first."""
        return independent_components(
            activations, dims=self.dims, max_iter=self.max_iter, tol=self.tol, seed=seed, sign=self.sign
        )


@dataclass
class TopKICA:
    """The k largest of the codes along ± the independent components, those below 0 dropped."""

    k: int
    """How many latents of a token are kept at most; the paper takes the mean L0 of the SAE beside it."""
    dims: int | None = 64
    """As for `ica`."""
    max_iter: int = 200
    """As for `ica`."""
    tol: float = 1e-4
    """As for `ica`."""
    every_seed: bool = True
    """As for `ica`."""

    def __post_init__(self) -> None:
        check_positive("k", self.k)
        _check(self.dims, self.max_iter, self.tol)

    def fit(self, activations: Float[torch.Tensor, "n d_in"], seed: int) -> Directions:
        """As `ica` with `split`, and the k."""
        return independent_components(
            activations, dims=self.dims, max_iter=self.max_iter, tol=self.tol, seed=seed, k=self.k
        )


def independent_components(
    activations: Float[torch.Tensor, "n d_in"],
    *,
    dims: int | None,
    max_iter: int,
    tol: float,
    seed: int,
    sign: Literal["split", "relu", "signed"] = "split",
    k: int | None = None,
) -> Directions:
    """FastICA of the activations' principal components (Hyvärinen & Oja 2000), in activation space.

    With P the components and D their standard deviations, whitened activations are z = D⁻¹ P (x − mean) and sources
    s = W z with an orthogonal W. So W D⁻¹ P reads a source and the rows of W D P write it; both are scaled so that
    the latter have length 1 and codes are in units of the activations. The standardisation of the paper's code
    makes no difference to what is whitened afterwards, as long as no component is left out.
    """
    import torch

    found = principal_components(activations, dims)
    kept = found.variances > NEGLIGIBLE * found.variances[0]
    rows, scales = found.rows[kept], found.variances[kept].sqrt()
    if not len(rows):
        raise ValueError("ica: the activations do not vary")
    whitener = rows / scales[:, None]
    whitened = torch.cat([block @ whitener.T for block in centred_blocks(activations, found.mean)]).numpy()
    unmixing, n_iter, converged = _fast_ica(whitened, max_iter, tol, seed)
    # The sign of a source is arbitrary: its longer tail goes above 0, for `relu` keeps that half.
    skew = np.power(whitened @ unmixing.T, 3).mean(axis=0)
    unmixing *= np.where(skew < 0, -1.0, 1.0)[:, None]
    rotation = torch.from_numpy(unmixing)
    write = rotation @ (rows * scales[:, None])
    lengths = write.norm(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    return Directions(
        read=((rotation @ whitener) * lengths[:, None])[order].float(),
        write=(write / lengths[:, None])[order].float(),
        mean=found.mean.float(),
        sign=sign,
        k=k,
        card={**_card(found, len(rows)), "n_iter": n_iter, "converged": converged},
    )


def _fast_ica(
    whitened: Float[np.ndarray, "n dims"], max_iter: int, tol: float, seed: int
) -> tuple[Float[np.ndarray, "dims dims"], int, bool]:
    """The orthogonal unmixing matrix, the iterations it took, and whether they ended by themselves."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    # scikit-learn takes seeds of 32 bits.
    options: dict[str, Any] = {"whiten": False, "random_state": seed % 2**32}
    ica = FastICA(max_iter=max_iter, tol=tol, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        ica.fit(whitened)
    converged = not any(issubclass(one.category, ConvergenceWarning) for one in caught)
    return np.array(ica.components_, np.float64), int(ica.n_iter_), converged


def _card(found: Components, n_kept: int) -> dict[str, object]:
    return {**found.card(), "components": n_kept}


def _check(dims: int | None, max_iter: int, tol: float) -> None:
    check_positive("dims", dims)
    check_positive("max_iter", max_iter)
    if tol <= 0:
        raise ValueError(f"tol {tol} is not positive")
