"""What is kept while the text streams past: each latent's strongest places, and which tokens count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_faithful.metrics.firing import Firings
from sae_faithful.metrics.top_activations import TopActivations

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool

    from sae_faithful import ActivationBatch, SAEHandle, TokenSet


class Strongest:
    """One SAE on the held-out text of its own source.

    Args:
        handle: the SAE.
        tokens: the text.
        n_contexts: rows that are kept of each latent.
        mask: [rows, context] of the text, filled while it passes: where a token counts.
    """

    def __init__(
        self, handle: SAEHandle, tokens: TokenSet, n_contexts: int, mask: Bool[np.ndarray, "rows context"]
    ) -> None:
        self.handle, self.hook, self.tokens, self.mask = handle, handle.hook, tokens, mask
        self.top = TopActivations(handle.d_sae, n_contexts)

    def update(self, batch: ActivationBatch) -> None:
        """Take in one batch."""
        self.mask[batch.first_row : batch.first_row + len(batch.tokens)] = batch.mask.cpu().numpy()
        self.top.add(batch.first_row, Firings.find(batch.latents(self.handle), batch.mask))

    @property
    def alive(self) -> Bool[np.ndarray, " d_sae"]:
        """Latents that fired at least once."""
        return self.top.values[:, 0] > 0
