"""What is kept while tokens stream past: sums by token for a sample of latents, and which latents are alive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_faithful import SAEHandle, derive_seed, special_token_mask
from sae_faithful.metrics.selectivity import TokenSums

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from jaxtyping import Bool, Int

    from sae_faithful import ActivationBatch, TokenSet

NO_DOCUMENT = -1
"""The document of a BOS that packing put in."""


@dataclass(frozen=True, eq=False)
class Neurons:
    """The entries of the activation at one hook, as latents."""

    source: str
    hook: str
    variant: str
    sign: Literal["split", "relu", "signed"]

    @property
    def identity(self) -> dict[str, Any]:
        """As an SAE's; there is no seed."""
        return {"source": self.source, "hook": self.hook, "variant": self.variant, "seed": None}

    def latents(self, activations: torch.Tensor) -> torch.Tensor:
        """Their codes [..., d_in], or with `split` [..., 2 · d_in]."""
        import torch

        if self.sign == "signed":
            return activations
        return (torch.cat([activations, -activations], -1) if self.sign == "split" else activations).relu()


class Halves:
    """The beginning of a text, cut into two halves of whole documents, and a number for each different token.

    Documents go into a half at random, since neighbours may be alike, and so that halves have about as many tokens.

    Args:
        tokens: the text.
        n_tokens: how much of it, in whole rows; special tokens, which do not count, included.
        special: ids of special tokens.
        seed: which documents go where.
    """

    def __init__(self, tokens: TokenSet, n_tokens: int, special: Sequence[int], seed: int) -> None:
        self.text = tokens
        ids, documents = tokens.head(-(-n_tokens // max(tokens.context_size, 1))).arrays()
        counts = special_token_mask(ids, special) & (documents != NO_DOCUMENT)
        self.halves: Int[np.ndarray, "rows context"] = _by_documents(documents, counts, seed)
        """0 or 1."""
        in_both = np.intersect1d(ids[counts & (self.halves == 0)], ids[counts & (self.halves == 1)])
        self.n_types = len(in_both)
        """Different tokens that occur in both halves."""
        place = np.searchsorted(in_both, ids)
        found = np.isin(ids, in_both)
        self.types: Int[np.ndarray, "rows context"] = np.where(found, place, self.n_types).astype(np.int32)
        """Number of each token among those; `n_types` for all others."""


def _by_documents(
    documents: Int[np.ndarray, "rows context"], counts: Bool[np.ndarray, "rows context"], seed: int
) -> Int[np.ndarray, "rows context"]:
    """Half of each position. Of two documents or more, each half has at least one."""
    numbers, place = np.unique(documents, return_inverse=True)
    place = place.reshape(documents.shape)
    sizes = np.bincount(place[counts], minlength=len(numbers))
    with_tokens = np.flatnonzero(sizes)
    order = np.random.default_rng(seed).permutation(with_tokens)
    # A document belongs to the half that its middle falls into when they stand in a row.
    middle = np.cumsum(sizes[order]) - sizes[order] / 2
    half = np.zeros(len(numbers), np.int8)
    half[order[middle >= sizes.sum() / 2]] = 1 if len(order) > 1 else 0
    return half[place]


class TokensOfLatents:
    """Sums by token and half of a sample of one SAE's latents, or of neurons.

    A latent whose activation is below 0 somewhere has two sides, which are measured as two latents would be.

    Args:
        latents: the SAE, or neurons.
        halves: the text.
        n_features: how many latents at most.
        seed: the experiment's.
    """

    def __init__(self, latents: SAEHandle | Neurons, halves: Halves, n_features: int, seed: int) -> None:
        self.latents, self.halves = latents, halves
        self.hook, self.tokens = latents.hook, halves.text
        self._n_features = n_features
        self._seed = derive_seed(seed, "polysemanticity", "features", latents.hook, latents.variant)
        self.chosen: Int[np.ndarray, " sampled"] = np.zeros(0, np.int64)
        """The sample, ascending; drawn with the first batch."""
        self.alive: Bool[np.ndarray, " d_sae"] = np.zeros(0, bool)
        """Latents that were active at all."""
        self.above: TokenSums | None = None
        self.below: TokenSums | None = None
        """Of activations below 0, with their sign turned; None where there are none."""

    def update(self, batch: ActivationBatch) -> None:
        """Take in one batch, until the text that is looked at has passed."""
        import torch

        rows = len(self.halves.halves) - batch.first_row
        if rows <= 0:
            return
        found = self._latents(batch)[:rows]
        mask = batch.mask[:rows].to(found.device)
        if self.above is None:
            self._start(found.shape[-1])
        assert self.above is not None
        self.alive |= ((found != 0) & mask[..., None]).flatten(0, 1).any(dim=0).cpu().numpy()
        where = slice(batch.first_row, batch.first_row + len(mask))
        kept = mask.cpu().numpy()
        types, halves = self.halves.types[where][kept], self.halves.halves[where][kept]
        sample = found[..., torch.from_numpy(self.chosen).to(found.device)][mask].float()
        if self.below is None and bool((sample < 0).any()):
            # Nothing that has passed was below 0.
            self.below = self.above.silent()
        self.above.add(sample.relu(), types, halves)
        if self.below is not None:
            self.below.add((-sample).relu(), types, halves)

    def _start(self, n: int) -> None:
        rng = np.random.default_rng(self._seed)
        self.chosen = np.sort(rng.choice(n, min(n, self._n_features), replace=False))
        self.alive = np.zeros(n, bool)
        self.above = TokenSums(len(self.chosen), self.halves.n_types)

    def _latents(self, batch: ActivationBatch) -> torch.Tensor:
        if isinstance(self.latents, Neurons):
            return self.latents.latents(batch.activations)
        return batch.latents(self.latents)
