"""Each latent's median activation, from a histogram that grows with nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

    from sae_faithful.metrics.firing import Firings

LOWEST, HIGHEST = -16, 16
"""The histogram has bins of their own for activations from 2⁻¹⁶ to 2¹⁶; what lies outside goes to the end bins."""
BITS = 4
"""2⁴ equal bins for every power of two: no bin's upper edge is more than 1/16 above its lower one."""
N_BINS = (HIGHEST - LOWEST) << BITS
_SHIFT = 23 - BITS
_FIRST = (127 + LOWEST) << BITS
LATENTS_PER_CHUNK = 4_096


class FiringMedians:
    """Histogram of every latent's positive activations, 512 bins a latent whatever the number of tokens.

    A positive float32 read as an integer orders as the float does, and its leading bits are its power of two
    and the first digits of its mantissa: they are the bin.
    """

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae
        self._counts: torch.Tensor | None = None

    def add(self, found: Firings) -> None:
        """Take in what fired."""
        import torch

        if self._counts is None:
            self._counts = torch.zeros(self.d_sae * N_BINS, dtype=torch.int32, device=found.values.device)
        bins = ((found.values.view(torch.int32) >> _SHIFT) - _FIRST).clamp(0, N_BINS - 1)
        one = torch.ones((), dtype=torch.int32, device=bins.device).expand(len(bins))
        self._counts.index_add_(0, found.latents * N_BINS + bins, one)

    def thresholds(self) -> Float[np.ndarray, " d_sae"]:
        """The largest activation in the bin of each latent's median (the lower of two), float32.

        What is above it is above the median; what is above the median but not above it is within 1/16 of the
        median. 0 for latents that never fired: they have nothing to be measured by, so that any firing is
        above. Infinite where the median is above 2¹⁶.
        """
        if self._counts is None:
            return np.zeros(self.d_sae, np.float32)
        counts = self._counts.view(self.d_sae, N_BINS).cpu().numpy()
        chunks = [
            _median_bins(counts[start : start + LATENTS_PER_CHUNK])
            for start in range(0, self.d_sae, LATENTS_PER_CHUNK)
        ]
        bins = np.concatenate(chunks) if chunks else np.zeros(0, np.int64)
        # The float just below the lower edge of the next bin.
        largest = (((bins + 1 + _FIRST) << _SHIFT) - 1).astype(np.int32).view(np.float32)
        return np.where(bins < 0, 0, np.where(bins == N_BINS - 1, np.inf, largest)).astype(np.float32)


def _median_bins(counts: np.ndarray) -> np.ndarray:
    """Bin of the ⌈n/2⌉-th of n activations, or −1 where there are none."""
    below = counts.cumsum(axis=1, dtype=np.int64)
    total = below[:, -1]
    return np.where(total > 0, (2 * below >= total[:, None]).argmax(axis=1), -1)
