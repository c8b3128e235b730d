"""Which features matter: removed one by one while nothing is lost, as in ACDC on a flat graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Bool, Float, Int


class Pruned(NamedTuple):
    """An order of features in which every beginning is a set that pruning passed through, or ends in."""

    order: Int[np.ndarray, " features"]
    """Last the first to be removed; first those that were never removed, the dearest of them first."""
    kept: tuple[int, ...]
    """After each threshold, how many features were left: the first so many of `order`."""
    kl: tuple[float, ...]
    """After each threshold, KL with these."""
    evaluations: int
    """How many sets were tried."""


def prune(
    kl: Callable[[Bool[np.ndarray, " features"]], float],
    n: int,
    thresholds: Sequence[float],
    rng: np.random.Generator,
) -> Pruned:
    """Remove features whose removal costs less than a threshold (Conmy et al. 2023, arXiv 2304.14997, Alg. 4.1).

    From all features on, for each threshold, those that are left are visited once in random order; one is removed
    if KL without it exceeds KL before by less than the threshold. What one threshold leaves the next begins with,
    so the sets are nested. KL before is that of the set as it is now: many small losses may add up.

    A set is not tried twice: while nothing is removed, what a removal would cost stays as it was.

    Args:
        kl: of a set of features.
        n: number of features.
        thresholds: ascending, nats.
        rng: draws the orders of visits.
    """
    inside = np.ones(n, bool)
    now, tries = kl(inside), 1
    without, costs = np.full(n, np.nan), np.full(n, np.nan)
    fresh = np.zeros(n, bool)
    removed: list[int] = []
    kept: list[int] = []
    levels: list[float] = []
    for threshold in thresholds:
        for feature in rng.permutation(np.flatnonzero(inside)):
            if not fresh[feature]:
                inside[feature] = False
                without[feature] = kl(inside)
                costs[feature] = without[feature] - now
                inside[feature] = True
                fresh[feature] = True
                tries += 1
            if costs[feature] < threshold:
                inside[feature] = False
                now = float(without[feature])
                removed.append(int(feature))
                fresh[:] = False
        kept.append(int(inside.sum()))
        levels.append(now)
    left = np.flatnonzero(inside)
    dearest = left[np.argsort(-costs[left], kind="stable")]
    order = np.concatenate([dearest, np.array(removed[::-1], np.int64)])
    return Pruned(order, tuple(kept), tuple(levels), tries)


def strongest(effects: Float[np.ndarray, " features"], n: int) -> Int[np.ndarray, " candidates"]:
    """The features with the largest |effect|, at most `n`, in the order of their indices."""
    return np.sort(np.argsort(-np.abs(effects), kind="stable")[:n])


def set_sizes(n: int, area: int) -> list[int]:
    """Sizes at which a curve over `n` nested sets is measured: 0, 1, 2, 3, 4, 6, 8, 12, 16, ..., n; and `area`."""
    sizes, power = {0, n}, 1
    while power <= n:
        sizes |= {power, power + power // 2}
        power *= 2
    return sorted(size for size in sizes | {area} if size <= n)
