"""How the matched cosines are spread: what a histogram beside the threshold and the null is drawn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sae_faithful_plugins.shared_features.pairs import Comparison, Pair

BINS = 100
"""From -1 to 1, so that every threshold of two decimals that is even stands at an edge."""


def cosine_counts(
    matched: Mapping[tuple[str, str, str], Comparison], thresholds: Sequence[float]
) -> dict[str, Any]:
    """Counts of the cosines of decoder directions matched between seeds, and of random dictionaries in their place.

    Args:
        matched: by source, hook and variant.
        thresholds: those of the ratio.
    """
    edges = np.linspace(-1, 1, BINS + 1).round(2)
    groups = [
        {
            "source": source,
            "hook": hook,
            "variant": variant,
            "edges": edges.tolist(),
            "n_pairs": len(comparison.pairs),
            "all": _counts(comparison.pairs.values(), "all", edges),
            "alive": _counts(comparison.pairs.values(), "alive", edges),
            "n_null_pairs": len(comparison.null),
            "null": _counts(comparison.null, "all", edges) if comparison.null else None,
            "null_alive": _counts(comparison.null, "alive", edges) if comparison.null else None,
        }
        for (source, hook, variant), comparison in matched.items()
    ]
    return {"thresholds": list(thresholds), "groups": groups}


def _counts(pairs: Iterable[Pair], subset: str, edges: np.ndarray) -> list[int]:
    """Over all pairs of SAEs; one with a cosine of exactly an edge is in the bin above it."""
    total = np.zeros(len(edges) - 1, np.int64)
    for pair in pairs:
        # Rounding may carry a cosine of equal directions past 1.
        cosines = np.clip(pair.match.cosines_among(*pair.weights, subset), -1, 1)
        total += np.histogram(cosines, edges)[0]
    return total.tolist()
