"""Pairs of dictionaries of directions, matched, and random dictionaries in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_faithful import Trial
from sae_faithful.metrics.matching import match_directions, random_directions_like

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from jaxtyping import Float

    from sae_faithful.metrics.matching import Match, Weights


@dataclass(frozen=True, eq=False)
class Dictionary:
    """One SAE's decoder or encoder."""

    seed: int
    directions: Float[torch.Tensor, "d_sae d_in"]
    """Rows of any length, on the SAE's device; not copied."""
    weights: Weights
    """How often the SAE's latents fire."""


@dataclass(frozen=True)
class Pair:
    """How two dictionaries match."""

    weights: tuple[Weights, Weights]
    match: Match
    """One to one."""
    nearest: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]] | None
    """Each row's largest cosine with any row of the other dictionary, if asked for."""

    @classmethod
    def of(cls, a: Dictionary, b: Dictionary, *, top1: bool) -> Pair:
        """Match them; with `top1`, find nearest neighbours too."""
        from sae_faithful.ops import nearest_cosines

        nearest = nearest_cosines(a.directions, b.directions) if top1 else None
        return cls((a.weights, b.weights), match_directions(a.directions, b.directions), nearest)


@dataclass(frozen=True)
class Comparison:
    """All pairs of some SAEs, and the null."""

    pairs: dict[tuple[int, int], Pair]
    """By the seeds of the two."""
    null: list[Pair]
    """Random dictionaries, with the real ones' sizes, second moments and firing rates."""

    @classmethod
    def of(
        cls,
        pairs: Sequence[tuple[Dictionary, Dictionary]],
        null_draws: int,
        rng: np.random.Generator,
        *,
        top1: bool,
    ) -> Comparison:
        """Match every pair, and random ones in place of the pairs in turn."""
        drawn = [pairs[draw % len(pairs)] for draw in range(null_draws)]
        return cls(
            {(a.seed, b.seed): Pair.of(a, b, top1=top1) for a, b in pairs},
            [Pair.of(random_like(a, rng), random_like(b, rng), top1=top1) for a, b in drawn],
        )


TRIED_LATENTS = 1_024
"""A trial matches no more: the time of a matching grows with the square of their number."""


def matching_trial(d_in: int, d_sae: int, n: int) -> Trial:
    """One matching of random directions, in the place of `n` of that shape."""
    import torch

    tried = min(d_sae, TRIED_LATENTS)

    def match() -> None:
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(tried, d_in, generator=generator) for _ in range(2))
        match_directions(a, b)

    return Trial(run=match, times=n * (d_sae / tried) ** 2)


def random_like(one: Dictionary, rng: np.random.Generator) -> Dictionary:
    """A dictionary of random directions with the second moments and the rates of the given one."""
    import torch

    drawn = random_directions_like(one.directions.cpu().numpy(), rng)
    return Dictionary(one.seed, torch.from_numpy(drawn).to(one.directions.device), one.weights)
