"""Which of a feature's fragments it is explained by and which it is judged by (Bills et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful_plugins.autointerp.fragments import FeatureRecords, Record

N_TOP = 20
"""Fragments with the largest activation; a feature that is active in fewer is skipped."""
N_RANDOM = 20
"""Fragments drawn from all others in which the feature is active."""
N_INACTIVE = 10
"""Fragments in which it is not: what detection must tell apart."""
PER_SPLIT = 5
TOP_STRIDE, RANDOM_STRIDE = 4, 3
"""Top fragments are dealt to explanation, calibration, validation and test; random ones have no first part."""


def top_ranks(split: int) -> list[int]:
    """Ranks of the top fragments in split 0 (explanation), 1 (calibration), 2 (validation) or 3 (test)."""
    return [split + TOP_STRIDE * i for i in range(PER_SPLIT)]


def random_ranks(split: int) -> list[int]:
    """Places of the random fragments in split 0 (calibration), 1 (validation) or 2 (test)."""
    return [split + RANDOM_STRIDE * i for i in range(PER_SPLIT)]


@dataclass(frozen=True)
class Split:
    """The fragments of one feature that are used; no calibration is done, and the test split is never seen."""

    latent: int
    n_active: int
    train: Sequence[Record]
    """Shown to the explainer."""
    valid_top: Sequence[Record]
    valid_random: Sequence[Record]
    """Empty where the feature has too few other active fragments to fill its split."""
    inactive: Sequence[Record]

    @property
    def valid(self) -> list[Record]:
        """What the feature is judged by: top ones first."""
        return [*self.valid_top, *self.valid_random]

    @classmethod
    def of(cls, records: FeatureRecords) -> Split | None:
        """The splits of a feature; None for one that is active in too few fragments."""
        if len(records.top) < N_TOP:
            return None
        enough = len(records.random) > random_ranks(1)[-1]
        return cls(
            latent=records.latent,
            n_active=records.n_active,
            train=[records.top[i] for i in top_ranks(0)],
            valid_top=[records.top[i] for i in top_ranks(2)],
            valid_random=[records.random[i] for i in random_ranks(1)] if enough else [],
            inactive=records.inactive,
        )


def choose_features(n_active: np.ndarray, n: int, selection: str, seed: int) -> np.ndarray:
    """Latents to be measured, ascending.

    Args:
        n_active: for every latent, in how many fragments it is active.
        n: at most so many.
        selection: `random` among those that are active at all, or the `first` indices, dead or not.
        seed: of the draw.
    """
    if selection == "first":
        return np.arange(min(n, len(n_active)))
    alive = np.flatnonzero(n_active)
    return np.sort(np.random.default_rng(seed).choice(alive, min(n, len(alive)), replace=False))
