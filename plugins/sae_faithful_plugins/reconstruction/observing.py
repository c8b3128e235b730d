"""Sums of one text at one hook, for every SAE there, and the numbers they give."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sae_faithful import EvalResult, derive_seed
from sae_faithful.metrics.reconstruction import (
    ActivationVariance,
    ReconstructionSums,
    TokenErrors,
    alive_features,
    ce_difference,
    ce_loss_score,
    cosine,
    explained_variance,
    fvu,
    kl,
    l0,
    l2,
    perplexity,
    r2_per_dimension,
)
from sae_faithful_plugins.reconstruction.losses import LossSums, add_losses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from sae_faithful import ActivationBatch, EvalContext, LanguageModel, SAEHandle, TokenSet
    from sae_faithful.metrics.intervals import Interval

WITH_BOS = "with BOS"
"""The condition under which BOS counts, and is replaced where an SAE stands in."""


class Measure(NamedTuple):
    """One number of an SAE, or of the model itself, on one text."""

    metric: str
    condition: str | None
    n: int
    value: float
    interval: Interval

    def row(self, units: Mapping[str, str], **place: Any) -> EvalResult:
        """The row of results."""
        low, high, reason = self.interval
        return EvalResult(
            metric=self.metric, condition=self.condition, n=self.n, value=self.value, ci_low=low, ci_high=high,
            reason=reason, unit=units[self.metric], **place,
        )  # fmt: skip


class Observed:
    """Sums of one text at one hook, for every SAE there.

    Args:
        hook: where activations are taken and replaced.
        dataset: the text's name.
        tokens: the text.
        context: with the SAEs and the model.
        ce_tokens: for each condition to measure, how many tokens losses are made from (0: none).
        alive_firings: a latent is alive if it fires more often than this.
    """

    def __init__(
        self,
        hook: str,
        dataset: str,
        tokens: TokenSet,
        context: EvalContext,
        ce_tokens: Mapping[str | None, int],
        alive_firings: int,
    ) -> None:
        self.hook = hook
        self.alive_firings = alive_firings
        self.tokens = tokens
        self.dataset = dataset
        self.handles: list[SAEHandle] = [handle for handle in context.handles if handle.hook == hook]
        self.conditions = list(ce_tokens)
        self.model: LanguageModel = context.language_model
        self.variance: dict[str | None, ActivationVariance] = {}
        self.sums: dict[tuple[str | None, SAEHandle], ReconstructionSums] = {}
        self.losses = {
            condition: LossSums(min(len(tokens), max(1, n // tokens.context_size)), self.handles)
            for condition, n in ce_tokens.items()
            if n > 0
        }

    def update(self, batch: ActivationBatch) -> None:
        """Take in one batch: errors of every row, losses of the first rows."""
        masks: dict[str | None, torch.Tensor] = {None: batch.mask}
        if WITH_BOS in self.conditions:
            masks[WITH_BOS] = batch.mask | self._bos(batch)
        if not self.variance:
            self._start(batch.activations.shape[-1])
        for condition, mask in masks.items():
            self.variance[condition].add(batch.first_row, batch.activations, mask)
        losing = max((sums.n_rows for sums in self.losses.values()), default=0) - batch.first_row
        reconstructions: dict[SAEHandle, torch.Tensor] = {}
        for handle in self.handles:
            latents = batch.latents(handle)
            reconstruction = handle.decode(latents, batch.activations).to(batch.activations.device)
            errors = TokenErrors.of(batch.activations, reconstruction, latents)
            for condition, mask in masks.items():
                self.sums[condition, handle].add(batch.first_row, errors, mask)
            if losing > 0:
                reconstructions[handle] = reconstruction[:losing]
        if losing > 0:
            add_losses(self.losses, masks, self.model, self.hook, batch, reconstructions)

    def measures(self, handle: SAEHandle, seed: int) -> Iterator[Measure]:
        """Each number of one SAE."""
        for condition in self._measured():
            variance, sums = self.variance[condition], self.sums[condition, handle]
            # Named as it was before there were conditions: the same rows draw the same resamples.
            streams = partial(derive_seed, seed, "reconstruction")
            place = (self.dataset, *handle.key, *([condition] if condition else []))
            activation_space = {
                # Of the same draws: one is exactly 1 − the other.
                **{
                    name: measure(
                        variance, sums, np.random.default_rng(streams("explained_variance", *place))
                    )
                    for name, measure in {"explained_variance": explained_variance, "fvu": fvu}.items()
                },
                "r2_per_dimension": r2_per_dimension(variance, sums),
                "l2": l2(sums),
                "cosine": cosine(sums),
                "l0": l0(sums),
                "alive_features": alive_features(sums, self.alive_firings),
            }
            n_tokens = int(sums.tokens.total[0])
            for metric, (value, interval) in activation_space.items():
                yield Measure(metric, condition, n_tokens, value, interval)
            if condition not in self.losses:
                continue
            losses = self.losses[condition]
            substituted, n = losses.substituted[handle], losses.predictions
            predictions = {
                "ce_loss_score": ce_loss_score(
                    losses.clean, losses.ablated, substituted,
                    np.random.default_rng(streams("ce_loss_score", *place)),
                ),
                "ce_difference": ce_difference(losses.clean, substituted, n),
                "kl": kl(losses.divergences[handle], n),
                "perplexity": perplexity(substituted, n),
            }  # fmt: skip
            for metric, (value, interval) in predictions.items():
                yield Measure(metric, condition, int(n.total[0]), value, interval)

    def measures_of_text(self) -> Iterator[Measure]:
        """The model's own perplexity, over the tokens that each condition's losses are made from."""
        for condition in self._measured():
            if condition in self.losses:
                losses = self.losses[condition]
                n = int(losses.predictions.total[0])
                yield Measure("perplexity_clean", condition, n, *perplexity(losses.clean, losses.predictions))

    def _start(self, d_in: int) -> None:
        """Sums for each condition and SAE: the length of an activation is known only now."""
        for condition in self.conditions:
            self.variance[condition] = ActivationVariance(len(self.tokens), d_in)
            for handle in self.handles:
                self.sums[condition, handle] = ReconstructionSums(len(self.tokens), d_in)

    def _measured(self) -> list[str | None]:
        """The conditions that differ: a text without a BOS is the same with it."""
        n_tokens = {condition: one.tokens.total[0] for condition, one in self.variance.items()}
        return [one for one in self.conditions if one is None or n_tokens[one] > n_tokens[None]]

    def _bos(self, batch: ActivationBatch) -> torch.Tensor:
        """True [rows, context] at every BOS at a position that the SAEs were trained on."""
        trained = np.ones(batch.tokens.shape[1], bool)
        for handle in self.handles:
            positions = np.zeros(len(trained), bool)
            # The batch's mask cannot tell a BOS outside `seqpos_slice` from one inside.
            positions[slice(*(handle.sae.cfg.metadata.seqpos_slice or (None,)))] = True
            trained &= positions
        is_bos = batch.tokens == self.model.bos_token_id
        return is_bos & is_bos.new_tensor(trained)
