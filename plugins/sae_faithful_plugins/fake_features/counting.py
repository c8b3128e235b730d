"""What is kept while tokens stream past: counts by cluster, histograms, and the strongest contexts."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sae_faithful import derive_seed, special_token_mask
from sae_faithful.metrics.fake_ratio import FakeRatios
from sae_faithful.metrics.firing import Exceedances, Firings
from sae_faithful.metrics.firing_median import FiringMedians
from sae_faithful.metrics.random_sae import RandomTopK
from sae_faithful.metrics.top_activations import TopActivations

if TYPE_CHECKING:
    from typing import Protocol

    import numpy as np
    import torch
    from jaxtyping import Bool

    from sae_faithful import ActivationBatch, EvalContext, SAEHandle, TokenSet

    class Encoder(Protocol):
        """Something with latents: an SAE, or what stands beside it."""

        @property
        def hook(self) -> str:
            """Where it reads."""
            ...

        @property
        def d_sae(self) -> int:
            """Number of latents."""
            ...

        def latents(self, batch: ActivationBatch) -> torch.Tensor:
            """Its latents [rows, context, d_sae]."""
            ...


CONTEXTS_PER_LATENT = 5
TOKENS_FOR_L0 = 2_000
"""An SAE without a `k` has its active latents counted on so many of its held-out tokens."""


@dataclass(eq=False)
class Trained:
    """The latents of an SAE, which the host computes once for all evaluators."""

    handle: SAEHandle

    @property
    def hook(self) -> str:
        """Where it reads."""
        return self.handle.hook

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.handle.d_sae

    def latents(self, batch: ActivationBatch) -> torch.Tensor:
        """Its latents."""
        return batch.latents(self.handle)


@dataclass(eq=False)
class RandomSAE:
    """The latents of a randomly initialised SAE, computed once for all observers of a batch."""

    hook: str
    sae: RandomTopK
    _last: tuple[weakref.ref[ActivationBatch], torch.Tensor] | None = None

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.sae.d_sae

    def latents(self, batch: ActivationBatch) -> torch.Tensor:
        """Its latents."""
        if self._last is None or self._last[0]() is not batch:
            # A batch holds every SAE's latents: kept alive, there would be two at once.
            self._last = None
            self._last = (weakref.ref(batch), self.sae.encode(batch.activations))
        return self._last[1]


class OwnText:
    """One SAE, or its random counterpart, on the held-out text of its own source.

    Args:
        handle: the SAE.
        encoder: its latents, or those of its random counterpart.
        tokens: the text.
        contexts: whether to keep each latent's strongest ones.
    """

    def __init__(self, handle: SAEHandle, encoder: Encoder, tokens: TokenSet, *, contexts: bool) -> None:
        self.hook, self.tokens, self.handle, self.encoder = encoder.hook, tokens, handle, encoder
        self.firings = Exceedances(len(tokens), encoder.d_sae)
        self.medians = FiringMedians(encoder.d_sae)
        self.strongest = TopActivations(encoder.d_sae, CONTEXTS_PER_LATENT) if contexts else None
        self._rows_left = len(tokens)
        self._thresholds: np.ndarray | None = None

    def update(self, batch: ActivationBatch) -> None:
        """Count one batch."""
        found = Firings.find(self.encoder.latents(batch), batch.mask)
        self.firings.add_firings(batch.first_row, found)
        self.medians.add(found)
        if self.strongest is not None:
            self.strongest.add(batch.first_row, found)
        self._rows_left -= len(batch.tokens)

    @property
    def complete(self) -> bool:
        """Whether all of the text has passed."""
        return self._rows_left == 0

    @property
    def thresholds(self) -> np.ndarray:
        """What an activation must exceed to be above its latent's median (`FiringMedians.thresholds`)."""
        if self._thresholds is None:
            self._thresholds = self.medians.thresholds()
        return self._thresholds

    @property
    def alive(self) -> Bool[np.ndarray, " d_sae"]:
        """Latents that fired at least once."""
        return self.firings.counts.total > 0


class Meaningless:
    """The SAE of an `OwnText` on tokens that mean nothing.

    Medians are known when the SAE's own text has passed. The host drives token sets in the order in which
    observers name them, own text first; in any other order, what fired waits here, sparse, until they are.
    """

    def __init__(
        self, own: OwnText, kind: Literal["random", "shuffled"], tokens: TokenSet, activation: float
    ) -> None:
        self.hook, self.tokens, self.own, self.kind = own.hook, tokens, own, kind
        d_sae = own.encoder.d_sae
        self.any = Exceedances(len(tokens), d_sae)
        self.above = Exceedances(len(tokens), d_sae, activation)
        self._relative: Exceedances | None = None
        self._waiting: list[tuple[int, Firings]] = []

    def update(self, batch: ActivationBatch) -> None:
        """Count one batch."""
        found = Firings.find(self.own.encoder.latents(batch), batch.mask)
        self.any.add_firings(batch.first_row, found)
        self.above.add_firings(batch.first_row, found)
        self._waiting.append((batch.first_row, found))
        if self.own.complete:
            self._count_waiting()

    @property
    def relative(self) -> Exceedances:
        """Activations above each latent's own median, once both token sets have passed."""
        return self._count_waiting()

    def ratios(self) -> FakeRatios:
        """The shares of fake latents that these counts give."""
        alive = self.own.alive
        among = {"all": alive | True, "alive": alive}
        counts = {"above": self.above, "any": self.any, "relative": self.relative}
        return FakeRatios(counts, self.own.firings, {name: one for name, one in among.items() if one.any()})

    def _count_waiting(self) -> Exceedances:
        import torch

        if self._relative is None:
            thresholds = torch.from_numpy(self.own.thresholds)
            self._relative = Exceedances(len(self.tokens), len(thresholds), thresholds)
        for first_row, found in self._waiting:
            self._relative.add_firings(first_row, found)
        self._waiting.clear()
        return self._relative


def random_counterparts(context: EvalContext) -> list[OwnText]:
    """A randomly initialised SAE beside those of each source, hook and variant, on the same text.

    It is as wide as the first of them, with as many active latents; those of one hook and shape are one.
    """
    made: dict[tuple[str, int, int], RandomSAE] = {}
    counterparts: dict[tuple[str, str, str], OwnText] = {}
    for handle in context.handles:
        group = (handle.source, handle.hook, handle.variant)
        if group in counterparts:
            continue
        shape = (handle.hook, handle.d_sae, _active_latents(handle, context))
        if shape not in made:
            seed = derive_seed(context.seed, "fake_features", "random_sae", *shape)
            made[shape] = RandomSAE(handle.hook, RandomTopK(handle.W_dec.shape[1], *shape[1:], seed=seed))
        text = context.held_out[handle.source]
        counterparts[group] = OwnText(handle, made[shape], text, contexts=False)
    return list(counterparts.values())


def _active_latents(handle: SAEHandle, context: EvalContext) -> int:
    """The SAE's k or, where it has none, its mean number of active latents on some of its text."""
    import torch

    k: object = getattr(handle.sae.cfg, "k", None)
    if isinstance(k, int):
        return k
    tokens, model = context.held_out[handle.source], context.language_model
    ids = tokens.rows(0, max(1, TOKENS_FOR_L0 // tokens.context_size))
    activations = model.activations(torch.from_numpy(ids), [handle.hook])[handle.hook]
    ordinary = torch.from_numpy(special_token_mask(ids, model.special_token_ids)).to(activations.device)
    active = (handle.encode(activations[ordinary]) > 0).sum(dim=-1)
    return max(1, round(float(active.float().mean())))
