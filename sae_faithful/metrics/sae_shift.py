"""What changes in an SAE from one text to another: its error, and how often each latent fires."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_faithful.metrics.jackknife import jackknife

if TYPE_CHECKING:
    from jaxtyping import Float

    from sae_faithful.metrics.intervals import Interval


def fvu(sums: Float[np.ndarray, " width"]) -> float:
    """Fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − x̄‖²; 0 is perfect.

    Args:
        sums: number of tokens, Σ‖x − x̂‖², Σ‖x‖², then Σx.
    """
    tokens, error, squares = sums[:3]
    variance = squares - np.square(sums[3:]).sum() / tokens
    # Activations that never vary have nothing to explain (SAELens's convention).
    return float(error / variance) if variance > 0 else float(error > 0)


def fvu_excess(
    text: Float[np.ndarray, "clusters width"], reference: Float[np.ndarray, "clusters width"]
) -> tuple[float, Interval]:
    """FVU on the text − FVU on the reference, each against its own variance, with its jackknife interval.

    Positive where the SAE keeps less of the text than of the reference. Rows are the sums that `fvu` takes.
    """
    return jackknife([text, reference], lambda totals: fvu(totals[0]) - fvu(totals[1]))


def firing_shift(
    text: Float[np.ndarray, "clusters width"], reference: Float[np.ndarray, "clusters width"]
) -> tuple[float, Interval]:
    """Σ_j KL(Bern ρ_j‖Bern ρ'_j), nats a token, of firing rates on the text from those on the reference.

    Rates are (firings + ½) / (tokens + 1), so that a latent which never fired on the reference costs a finite
    sum. Samples of one text differ too (by about one n-th of a nat for each live latent at n tokens): compare with
    what its halves give.

    Args:
        text: for each cluster, the number of tokens, then each latent's firings.
        reference: the same.
    """

    def shift(totals: tuple[np.ndarray, ...] | list[np.ndarray]) -> float:
        p, q = ((sums[1:] + 0.5) / (sums[0] + 1) for sums in totals)
        return float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum())

    return jackknife([text, reference], lambda totals: shift(list(totals)))
