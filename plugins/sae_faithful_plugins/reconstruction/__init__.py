"""Evaluator `reconstruction`: what an SAE keeps of the activations, on every text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sae_faithful import Artifact, EvalResult, Work, hookimpl
from sae_faithful.metrics.intervals import mean_interval
from sae_faithful_plugins.reconstruction.observing import WITH_BOS, Observed
from sae_faithful_plugins.reconstruction.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sae_faithful import EvalContext

UNITS = {
    "explained_variance": "share",
    "fvu": "share",
    "r2_per_dimension": "share",
    "l2": "activation units",
    "cosine": "cosine",
    "l0": "latents/token",
    "alive_features": "latents",
    "ce_loss_score": "share",
    "ce_difference": "nats/token",
    "kl": "nats/token",
    "perplexity": "perplexity",
    "perplexity_clean": "perplexity",
}
HEADLINES = ("explained_variance", "l0", "ce_loss_score", "ce_difference")


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("reconstruction", Reconstruction)


@dataclass
class Reconstruction:
    """What every SAE keeps of held-out activations, and of the model's predictions, on every source and dataset.

    BOS and other special tokens do not count, and keep their own activations where an SAE stands in: their huge
    norm would flatter every number. Beside those rows stand the same with BOS, under a condition of that name.
    As in SAELens, ablation zeroes every position, and the losses that count are those of predictions made at
    tokens that count.
    """

    ce_tokens: int = 50_000
    """Tokens of each text that losses are made from, its first rows, one at least: each SAE costs one whole
    forward of them; 0: no losses, and no whole forward."""
    bos: bool = True
    """Measure everything with BOS, too."""
    bos_ce_tokens: int = 10_000
    """Of these tokens, at most so many for the losses with BOS: one more whole forward an SAE; 0: none."""
    alive_firings: int = 10
    """A latent counts among `alive_features` if it fires on more tokens of a text than this."""

    monitor_budget: ClassVar[dict[str, Any]] = {"ce_tokens": 0, "bos": False}
    """Options inside training: what no whole forward is needed for."""

    def __post_init__(self) -> None:
        for name in ("ce_tokens", "bos_ce_tokens", "alive_firings"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is below 0")

    def work(self, context: EvalContext) -> Work:
        """All latents on all texts; forwards, clean and ablated, for each hook, and each SAE's with and without BOS."""
        forwards = 0
        for tokens in context.held_out.values():
            n = min(self.ce_tokens, tokens.n_tokens)
            with_bos = min(n, self.bos_ce_tokens) if self.bos else 0
            hooks = {handle.hook for handle in context.handles}
            forwards += len(hooks) * 2 * max(n, with_bos) + len(context.handles) * (n + with_bos)
        return Work(passes=dict.fromkeys(context.held_out, context.handles), logit_tokens=forwards)

    def observers(self, context: EvalContext) -> list[Observed]:
        """One observer a hook and text, for all SAEs at that hook."""
        ce_tokens: dict[str | None, int] = {None: self.ce_tokens}
        if self.bos:
            ce_tokens[WITH_BOS] = min(self.ce_tokens, self.bos_ce_tokens)
        hooks = dict.fromkeys(handle.hook for handle in context.handles)
        return [
            Observed(hook, name, tokens, context, ce_tokens, self.alive_firings)
            for hook in hooks
            for name, tokens in context.held_out.items()
        ]

    def evaluate(
        self, context: EvalContext, observers: Sequence[Observed]
    ) -> Iterator[EvalResult | Artifact]:
        """Rows of every text, of every SAE on every text, and of every source on every text; the sweep."""
        texts: set[str] = set()
        sweep = Sweep()
        values: dict[tuple[str, str | None, str, str, str, str], list[float]] = {}
        for observer in observers:
            if observer.dataset not in texts:
                # The model's own predictions are the same whatever the hook.
                texts.add(observer.dataset)
                for measure in observer.measures_of_text():
                    yield measure.row(UNITS, dataset=observer.dataset)
            for handle in observer.handles:
                for measure in observer.measures(handle, context.seed):
                    sweep.add(handle, observer.dataset, measure)
                    yield measure.row(UNITS, dataset=observer.dataset, **handle.identity)
                    place = (handle.source, handle.hook, handle.variant, observer.dataset)
                    values.setdefault((measure.metric, measure.condition, *place), []).append(measure.value)
        for (metric, condition, source, hook, variant, dataset), seeds in values.items():
            low, high, reason = mean_interval(seeds)
            yield EvalResult(
                metric=metric, value=float(np.mean(seeds)), unit=UNITS[metric], n=len(seeds), ci_low=low,
                ci_high=high, reason=reason, source=source, hook=hook, variant=variant, dataset=dataset,
                condition=condition, headline=condition is None and metric in HEADLINES,
            )  # fmt: skip
        yield from sweep.artifacts()
