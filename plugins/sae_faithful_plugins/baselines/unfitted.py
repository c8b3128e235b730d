"""Baselines that look at no activation: the neurons themselves, and random directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sae_faithful import Directions

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float


@dataclass
class Neurons:
    """The standard basis: every entry of the activation for itself, not centred."""

    sign: Literal["split", "relu", "signed"] = "split"
    """Codes below 0 are latents of their own, dropped (the paper's), or kept signed."""

    def fit(self, activations: Float[torch.Tensor, "n d_in"], seed: int) -> Directions:
        """The unit vectors."""
        import torch

        del seed  # nothing is drawn
        d_in = activations.shape[1]
        return Directions(read=torch.eye(d_in), write=torch.eye(d_in), mean=torch.zeros(d_in), sign=self.sign)


@dataclass
class RandomDirections:
    """Random unit directions, normally distributed before they are scaled; not centred."""

    n: int | None = None
    """How many; none: as many as the activation has entries."""
    sign: Literal["split", "relu", "signed"] = "split"
    """Codes below 0 are latents of their own, dropped (the paper's), or kept signed."""
    every_seed: bool = True
    """Draw them once for each of `sae_seeds`."""

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ValueError(f"n {self.n} is not positive")

    def fit(self, activations: Float[torch.Tensor, "n d_in"], seed: int) -> Directions:
        """Directions drawn under `seed`; they write along what they read along."""
        import torch

        d_in = activations.shape[1]
        rows = np.random.default_rng(seed).standard_normal((self.n or d_in, d_in))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        unit = torch.from_numpy(rows).float()
        return Directions(read=unit, write=unit, mean=torch.zeros(d_in), sign=self.sign)
