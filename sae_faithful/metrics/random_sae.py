"""A randomly initialised SAE: what a measurement gives when nothing was learned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float


@dataclass(eq=False)
class RandomTopK:
    """A randomly initialised SAE: as many Gaussian unit directions, of which the k most active fire.

    k is the SAE's own, or its mean number of active latents on some text, so that any architecture has a
    counterpart of its own sparsity.
    """

    d_in: int
    d_sae: int
    k: int
    seed: int

    @property
    def key(self) -> tuple[int, ...]:
        """Equal for equal latents."""
        return (self.d_sae, self.k, self.seed)

    @cached_property
    def directions(self) -> Float[torch.Tensor, "d_sae d_in"]:
        """Encoder rows."""
        import torch

        rng = np.random.default_rng(self.seed)
        rows = rng.standard_normal((self.d_sae, self.d_in), np.float32)
        return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def encode(self, activations: Float[torch.Tensor, "... d_in"]) -> Float[torch.Tensor, "... d_sae"]:
        """Latents, at most k of them above 0."""
        import torch

        # Kept where they are used: a wide SAE's are too many to send with every batch.
        self.directions = self.directions.to(activations.device)
        projected = activations.float() @ self.directions.T
        top = projected.topk(min(self.k, self.d_sae), dim=-1)
        return torch.zeros_like(projected).scatter_(-1, top.indices, top.values.clamp(min=0))
