"""The typicality gap: is a text what the model itself would write?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_faithful.metrics.intervals import Interval, ratio_interval

if TYPE_CHECKING:
    from jaxtyping import Float, Int


LIMIT = 0.05
"""Nats per token: what a text of the model's own may differ by, by rounding in another engine, say."""
SURE_Z = 5.0
"""|z| from which chance is out of the question: one text of the model's own in 1.7 million has it."""
NORMAL = 1.96


@dataclass(frozen=True)
class TypicalityGap:
    """How much more surprised the model is than it expects to be, per token."""

    gap: float
    """Mean of −log p(x_t|x_<t) − H_t, nats a token. Zero in expectation exactly when the model wrote the text."""
    interval: Interval
    """95 % interval of the gap, documents as clusters."""
    z: float
    """Σ(nll − H) / √ΣV: standard normal when the model wrote the text. Grows as √n for any other."""
    n_tokens: int
    document_gaps: Float[np.ndarray, " documents"]
    """The gap of each document by itself."""
    document_tokens: Int[np.ndarray, " documents"]
    """How many of its tokens were scored."""

    @property
    def n_documents(self) -> int:
        """Documents scored."""
        return len(self.document_gaps)


def typicality_gap(
    surprise: Float[np.ndarray, " tokens"],
    entropy: Float[np.ndarray, " tokens"],
    variance: Float[np.ndarray, " tokens"],
    document: Int[np.ndarray, " tokens"],
) -> TypicalityGap:
    """The gap of a text under a model.

    For text sampled from the model at temperature 1, each term −log p(x_t|x_<t) − H_t has mean zero given
    what came before, and variance V_t = Var(log p); the terms are martingale differences, so z is standard
    normal for long texts whatever the dependence between tokens. Both too surprising and too predictable text
    (a top-p sample, say) move it. Nearer zero is more typical.

    Args:
        surprise: −log p(x_t|x_<t) of every scored token, nats.
        entropy: entropy H_t of the prediction it was scored by, nats.
        variance: variance V_t of log p under that prediction, nats².
        document: which document each token belongs to.

    Raises:
        ValueError: no tokens.
    """
    if len(surprise) == 0:
        raise ValueError("no tokens to score")
    difference = surprise.astype(np.float64) - entropy.astype(np.float64)
    _, cluster = np.unique(document, return_inverse=True)
    sums = np.bincount(cluster, weights=difference)
    counts = np.bincount(cluster).astype(np.float64)
    return TypicalityGap(
        gap=float(difference.mean()),
        interval=ratio_interval(sums, counts),
        z=float(difference.sum() / np.sqrt(max(float(variance.astype(np.float64).sum()), 1e-300))),
        n_tokens=len(difference),
        document_gaps=sums / counts,
        document_tokens=counts.astype(np.int64),
    )


def beyond(gap: float, low: float | None, high: float | None, z: float, limit: float) -> bool:
    """Whether a gap is certainly larger than `limit` nats per token, in either direction.

    Its whole 95 % interval lies beyond ±`limit`, and |z| is above `SURE_Z`. An interval of few documents is too short
    by chance now and then; z, whose variance is the model's own, is not. Where too few documents gave no interval, it
    is gap · (1 ± 1.96 / |z|), the one that z implies.
    """
    if abs(z) <= SURE_Z:
        return False
    if low is None or high is None:
        low, high = sorted((gap * (1 - NORMAL / abs(z)), gap * (1 + NORMAL / abs(z))))
    return low > limit or high < -limit
