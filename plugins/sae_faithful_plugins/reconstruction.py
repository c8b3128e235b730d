"""Evaluator `reconstruction`: what an SAE keeps of the activations, on every text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_faithful import EvalResult, derive_seed, hookimpl
from sae_faithful.metrics.clusters import ClusterSums
from sae_faithful.metrics.intervals import Interval, mean_interval
from sae_faithful.metrics.reconstruction import (
    ActivationVariance,
    ReconstructionSums,
    ce_loss_score,
    explained_variance,
    l0,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from sae_faithful import ActivationBatch, EvalContext, LanguageModel, SAEHandle, TokenSet

TOKENS_PER_FORWARD = 1_024
UNITS = {"explained_variance": "share", "l0": "latents/token", "ce_loss_score": "share"}


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("reconstruction", Reconstruction)


@dataclass
class Reconstruction:
    """Explained variance, L0 and CE-loss score of every SAE on held-out tokens of every source and dataset.

    BOS and other special tokens do not count, and keep their own activations where an SAE stands in: their huge
    norm would flatter every number. As in SAELens, ablation zeroes every position, and the losses that count are
    those of predictions made at ordinary tokens.
    """

    ce_tokens: int = 50_000
    """Tokens of each text that the CE-loss score is made from: each SAE costs one whole forward of them."""

    def observers(self, context: EvalContext) -> list[Observed]:
        """One observer a hook and text, for all SAEs at that hook."""
        hooks = dict.fromkeys(handle.hook for handle in context.handles)
        return [
            Observed(hook, name, tokens, context, self.ce_tokens)
            for hook in hooks
            for name, tokens in context.held_out.items()
        ]

    def evaluate(self, context: EvalContext, observers: Sequence[Observed]) -> Iterator[EvalResult]:
        """Rows of every SAE on every text, and of every source on every text."""
        values: dict[tuple[str, ...], list[float]] = {}
        for observer in observers:
            for handle in observer.handles:
                for metric, n, value, interval in observer.measures(handle, context.seed):
                    yield EvalResult(
                        metric=metric, value=value, unit=UNITS[metric], n=n,
                        ci_low=interval.low, ci_high=interval.high, reason=interval.reason,
                        dataset=observer.dataset, **handle.identity,
                    )  # fmt: skip
                    key = (metric, handle.source, handle.hook, handle.variant, observer.dataset)
                    values.setdefault(key, []).append(value)
        for (metric, source, hook, variant, dataset), seeds in values.items():
            low, high, reason = mean_interval(seeds)
            yield EvalResult(
                metric=metric, value=float(np.mean(seeds)), unit=UNITS[metric], n=len(seeds), ci_low=low,
                ci_high=high, reason=reason, source=source, hook=hook, variant=variant, dataset=dataset,
            )  # fmt: skip


class Observed:
    """Sums of one text at one hook, for every SAE there."""

    def __init__(
        self, hook: str, dataset: str, tokens: TokenSet, context: EvalContext, ce_tokens: int
    ) -> None:
        self.hook = hook
        self.tokens = tokens
        self.dataset = dataset
        self.handles: list[SAEHandle] = [handle for handle in context.handles if handle.hook == hook]
        self.model: LanguageModel = context.language_model
        self.ce_rows = min(len(tokens), max(1, ce_tokens // tokens.context_size))
        self.variance: ActivationVariance | None = None
        self.sums = {id(handle): ReconstructionSums(len(tokens)) for handle in self.handles}
        # The CE-loss score has fewer rows, so its clusters are its own.
        self.clean, self.ablated, self.predicted = (ClusterSums(self.ce_rows, 1) for _ in range(3))
        self.substituted = {id(handle): ClusterSums(self.ce_rows, 1) for handle in self.handles}

    def update(self, batch: ActivationBatch) -> None:
        """Take in one batch: errors of every row, losses of the first rows."""
        if self.variance is None:
            self.variance = ActivationVariance(len(self.tokens), batch.activations.shape[-1])
        self.variance.add(batch.first_row, batch.activations, batch.mask)
        reconstructions: dict[int, torch.Tensor] = {}
        for handle in self.handles:
            latents = batch.latents(handle)
            reconstruction = handle.decode(latents, batch.activations).to(batch.activations.device)
            reconstructions[id(handle)] = reconstruction
            self.sums[id(handle)].add(batch.first_row, batch.activations, reconstruction, latents, batch.mask)
        rows = min(len(batch.tokens), self.ce_rows - batch.first_row)
        step = max(1, TOKENS_PER_FORWARD // self.tokens.context_size)
        for start in range(0, max(rows, 0), step):
            self._add_losses(batch, slice(start, min(start + step, rows)), reconstructions)

    def measures(self, handle: SAEHandle, seed: int) -> Iterator[tuple[str, int, float, Interval]]:
        """Each metric of one SAE: name, tokens it is made from, value, interval."""
        sums, variance = self.sums[id(handle)], self.variance
        assert variance is not None  # every token set has a row
        n_tokens, n_losses = int(sums.tokens.total[0]), int(self.predicted.total[0])

        def rng(metric: str) -> np.random.Generator:
            return np.random.default_rng(
                derive_seed(seed, "reconstruction", metric, self.dataset, *handle.key)
            )

        yield "explained_variance", n_tokens, *explained_variance(variance, sums, rng("explained_variance"))
        yield "l0", n_tokens, *l0(sums)
        score = ce_loss_score(self.clean, self.ablated, self.substituted[id(handle)], rng("ce_loss_score"))
        yield "ce_loss_score", n_losses, *score

    def _add_losses(
        self, batch: ActivationBatch, rows: slice, reconstructions: dict[int, torch.Tensor]
    ) -> None:
        """The clean and the ablated forward once, then one forward an SAE."""
        import torch

        tokens, mask = batch.tokens[rows], batch.mask[rows]
        first = batch.first_row + rows.start

        def losses(logits: torch.Tensor) -> torch.Tensor:
            targets = tokens[:, 1:].to(logits.device)
            per_token = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none"
            ).view(targets.shape)
            return (per_token * mask[:, :-1].to(logits.device)).sum(dim=1, keepdim=True)

        def replaced_by(values: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
            # Special tokens keep what the model computed.
            return lambda own: torch.where(
                mask[..., None].to(own.device), values.to(own.device, own.dtype), own
            )

        self.predicted.add(first, mask[:, :-1].sum(dim=1, keepdim=True))
        self.clean.add(first, losses(self.model.logits(tokens)))
        self.ablated.add(first, losses(self.model.logits_with_edit(tokens, self.hook, torch.zeros_like)))
        for key, reconstruction in reconstructions.items():
            edited = self.model.logits_with_edit(tokens, self.hook, replaced_by(reconstruction[rows]))
            self.substituted[key].add(first, losses(edited))
