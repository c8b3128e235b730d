"""Evaluator `fake_features`: latents that fire on random tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sae_faithful import FeatureTable, Work, hookimpl, own_texts
from sae_faithful.metrics.fake_ratio import Criterion
from sae_faithful_plugins.fake_features.contexts import fake_latents
from sae_faithful_plugins.fake_features.counting import (
    Meaningless,
    OwnText,
    RandomSAE,
    Trained,
    random_counterparts,
)
from sae_faithful_plugins.fake_features.results import HEADLINE_TAU, Results, columns
from sae_faithful_plugins.fake_features.token_sets import random_tokens, shuffled_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sae_faithful import Artifact, EvalContext, EvalResult


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("fake_features", FakeFeatures)


@dataclass
class FakeFeatures:
    """Fake Feature Ratio: the share of latents that are active on uniformly random tokens (Cho et al. 2025).

    `ffr` is the paper's (activation above 1.0), `ffr_fire` counts any firing, `ffr_relative` activations above
    the latent's own median on real text, and `ffr_contrast` asks besides firing that the latent fires more
    often than on real text.
    """

    n_tokens: int = 100_000
    """Random tokens, and at most so many shuffled ones; every row starts with BOS, which does not count."""
    taus: list[float] = field(default_factory=lambda: [0.01, 0.05, 0.1, 0.2])
    """A latent is fake if it is active on more than this share of random tokens."""
    activation: float = 1.0
    """`ffr` counts activations above this (the paper's 1.0)."""
    ratio: float = 2.0
    """`ffr_contrast` asks for more than so many times the latent's rate on its SAE's own held-out text."""
    baselines: bool = True
    """Measure the same on shuffled text, and for a randomly initialised SAE."""
    n_contexts: int = 10
    """How many latents of each SAE, the most fake ones, are shown with their strongest contexts in real text;
    0: none."""

    monitor_budget: ClassVar[dict[str, Any]] = {
        "n_tokens": 500,
        "taus": [0.1],
        "baselines": False,
        "n_contexts": 0,
    }
    """Options inside training."""

    def __post_init__(self) -> None:
        for tau in self.taus:
            if not 0 <= tau < 1:
                raise ValueError(f"taus: {tau} is not a share in [0, 1)")
        if not self.taus:
            raise ValueError("taus: give at least one")
        if self.activation < 0:
            raise ValueError(f"activation: {self.activation} is below 0, where no latent fires")

    def work(self, context: EvalContext) -> Work:
        """Each SAE on its own text and on tokens without meaning; with baselines a random SAE for each variant."""
        own = own_texts(context)
        texts = {"random tokens": self.n_tokens}
        passes = {**own, "random tokens": context.handles}
        random_saes = 0
        for source, handles in own.items() if self.baselines else ():
            name = f"shuffled {source}"
            texts[name] = min(self.n_tokens, context.held_out[source].n_tokens)
            passes[name] = handles
            variants = {(handle.hook, handle.variant) for handle in handles}
            random_saes += len(variants) * context.held_out[source].n_tokens
        if self.baselines:
            random_saes += self.n_tokens * len({(one.hook, one.d_sae) for one in context.handles})
        return Work(passes=passes, texts=texts, encoded_tokens=random_saes)

    def observers(self, context: EvalContext) -> list[OwnText | Meaningless]:
        """For each SAE, its firings on its own held-out text and on tokens that mean nothing."""
        random = random_tokens(context, self.n_tokens)
        own = [
            OwnText(handle, Trained(handle), context.held_out[handle.source], contexts=self.n_contexts > 0)
            for handle in context.handles
        ]
        on = [Meaningless(one, "random", random, self.activation) for one in own]
        if self.baselines:
            sources = dict.fromkeys(handle.source for handle in context.handles)
            shuffled = {source: shuffled_tokens(context, source, self.n_tokens) for source in sources}
            on += [Meaningless(one, "shuffled", shuffled[one.handle.source], self.activation) for one in own]
            counterparts = random_counterparts(context)
            on += [Meaningless(one, "random", random, self.activation) for one in counterparts]
            own += counterparts
        # Own text first: `Meaningless` says why.
        return [*own, *on]

    def evaluate(
        self, context: EvalContext, observers: Sequence[OwnText | Meaningless]
    ) -> Iterator[EvalResult | FeatureTable | Artifact]:
        """The ratios of every SAE and their means over SAEs, every latent's rates, the most fake latents."""
        measured: dict[OwnText, dict[str, Meaningless]] = {}
        for one in observers:
            if isinstance(one, Meaningless):
                measured.setdefault(one.own, {})[one.kind] = one
        results = Results(self.taus, self.ratio, context.seed)
        for own, on in measured.items():
            if isinstance(own.encoder, RandomSAE):
                yield from results.of_random_sae(own, on["random"])
            else:
                yield from results.of_sae(own, on["random"], on.get("shuffled"))
                yield FeatureTable(handle=own.handle, columns=columns(own, on["random"], on.get("shuffled")))
        yield from results.of_sources()
        if self.n_contexts:
            trained = [(own, on["random"]) for own, on in measured.items() if own.strongest is not None]
            tau = min(self.taus, key=lambda tau: abs(tau - HEADLINE_TAU))
            yield from fake_latents(trained, Criterion("any", tau, self.ratio), self.n_contexts, context)
