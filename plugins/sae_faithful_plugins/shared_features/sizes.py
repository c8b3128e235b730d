"""How much of a dictionary is in the next larger one."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sae_faithful import EvalResult
from sae_faithful.metrics.intervals import mean_interval
from sae_faithful.metrics.matching import mean_max_cosine, mean_over_pairs
from sae_faithful_plugins.shared_features.pairs import random_like

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sae_faithful.metrics.intervals import Interval
    from sae_faithful_plugins.shared_features.pairs import Dictionary

SUBSETS = ("all", "alive")


class Sizes(NamedTuple):
    """SAEs of one variant, and those of a variant of the next larger size, of the same source and hook."""

    place: dict[str, Any]
    """Source, hook, and the smaller ones' variant."""
    smaller: Sequence[Dictionary]
    variant: str
    larger: Sequence[Dictionary]


def next_sizes(variants: Mapping[tuple[str, str, str], Sequence[Dictionary]]) -> Iterator[Sizes]:
    """Every variant with each one of the next larger size.

    Args:
        variants: SAEs by source, hook and variant.
    """
    for (source, hook, variant), smaller in variants.items():
        size = len(smaller[0].directions)
        beside = {name: ones for (s, h, name), ones in variants.items() if (s, h) == (source, hook)}
        larger = sorted({len(ones[0].directions) for ones in beside.values()} - set(range(size + 1)))
        for name, ones in beside.items():
            if larger and len(ones[0].directions) == larger[0]:
                place = {"source": source, "hook": hook, "variant": variant}
                yield Sizes(place, smaller, name, ones)


def mmcs_rows(sizes: Sizes, null_draws: int, rng: np.random.Generator) -> Iterator[EvalResult]:
    """MMCS of the smaller ones' latents in the larger ones, over every two seeds that differ; and its null.

    Seeds must differ: the first rows of two dictionaries drawn under one seed point alike before any training.
    """
    from sae_faithful.ops import nearest_cosines

    pairs = [(a, b) for a, b in product(sizes.smaller, sizes.larger) if a.seed != b.seed]
    if not pairs:
        return
    nearest = {(a.seed, b.seed): nearest_cosines(a.directions, b.directions)[0] for a, b in pairs}
    weights = {a.seed: a.weights for a in sizes.smaller}
    drawn = [pairs[draw % len(pairs)] for draw in range(null_draws)]
    null = [
        (a.seed, nearest_cosines(random_like(a, rng).directions, random_like(b, rng).directions)[0])
        for a, b in drawn
    ]

    def row(metric: str, subset: str, value: float, interval: Interval, n: int) -> EvalResult:
        return EvalResult(
            metric=metric, value=value, unit="cosine", n=n, ci_low=interval.low, ci_high=interval.high,
            reason=interval.reason, subset=subset, condition=f"in SAEs of {sizes.variant}", **sizes.place,
        )  # fmt: skip

    for subset in SUBSETS:
        values = {seeds: mean_max_cosine(each, weights[seeds[0]], subset) for seeds, each in nearest.items()}
        yield row("mmcs_larger", subset, *mean_over_pairs(values), len(values))
        if null:
            chance = [mean_max_cosine(each, weights[seed], subset) for seed, each in null]
            mean = float(np.mean(chance))
            yield row("mmcs_larger_null", subset, mean, mean_interval(chance), len(chance))
