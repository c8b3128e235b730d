"""Evaluator `polysemanticity`: whether latents stand for fewer things than neurons do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sae_faithful import UsageError, Work, derive_seed, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sae_faithful import Artifact, EvalContext, EvalResult, FeatureTable, SAEHandle
    from sae_faithful_plugins.polysemanticity.observing import Halves, TokensOfLatents

NEURONS = "neurons"


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("polysemanticity", Polysemanticity)


@dataclass
class Polysemanticity:
    """Token selectivity and capacity of latents beside those of neurons (Morcos et al. 2018, Scherlis et al. 2022).

    So that "more monosemantic than the neuron basis" is a difference with an interval.
    """

    n_tokens: int = 100_000
    """Held-out tokens of a text that are looked at, at most, in whole rows from its beginning."""
    n_features: int = 256
    """Latents of each SAE, and neurons, whose tokens are looked at: a random sample."""
    min_count: int = 5
    """A token can be a latent's preferred one if it occurs so often in each half of the text."""
    neurons: Literal["split", "relu", "signed"] | None = "split"
    """The activation's own entries beside the SAEs: codes below 0 are latents of their own (`split`), dropped
    (`relu`), or kept (`signed`); none: no neurons."""
    dataset: str | None = None
    """The source or dataset whose held-out text is used; none: each SAE's own source."""

    def __post_init__(self) -> None:
        for name in ("n_tokens", "n_features", "min_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not positive")

    def work(self, context: EvalContext) -> Work:
        """Each SAE on its text; what is made of the counts comes on top."""
        passes: dict[str, list[SAEHandle]] = {}
        for handle in context.handles:
            passes.setdefault(self.dataset or handle.source, []).append(handle)
        return Work(passes=passes, at_least=True)

    def observers(self, context: EvalContext) -> list[TokensOfLatents]:
        """One for every SAE and baseline, and one for the neurons of every source and hook.

        Raises:
            UsageError: no such dataset, or a variant with the neurons' name.
        """
        from sae_faithful_plugins.polysemanticity.observing import Neurons, TokensOfLatents

        if self.dataset is not None and self.dataset not in context.held_out:
            names = ", ".join(context.held_out)
            raise UsageError(f"polysemanticity: unknown dataset '{self.dataset}'; there are: {names}")
        halves: dict[str, Halves] = {}
        observers = [
            TokensOfLatents(
                handle, self._halves(handle.source, context, halves), self.n_features, context.seed
            )
            for handle in context.handles
        ]
        for source, hook in self._places(context):
            assert self.neurons is not None
            neurons = Neurons(source, hook, NEURONS, self.neurons)
            of = self._halves(source, context, halves)
            observers.append(TokensOfLatents(neurons, of, self.n_features, context.seed))
        return observers

    def evaluate(
        self, context: EvalContext, observers: Sequence[TokensOfLatents]
    ) -> Iterator[EvalResult | FeatureTable | Artifact]:
        """Rows of every SAE, baseline and source, differences from neurons and baselines, and a reading of them."""
        from sae_faithful_plugins.polysemanticity.measuring import measure
        from sae_faithful_plugins.polysemanticity.reading import reading
        from sae_faithful_plugins.polysemanticity.results import Results

        results = Results(self.dataset)
        for one in observers:
            yield from results.of_latents(measure(one, self.min_count, context.seed))
        yield from results.differences()
        yield from results.of_sources()
        yield reading(results.rows, NEURONS)

    def _places(self, context: EvalContext) -> list[tuple[str, str]]:
        """Sources and hooks whose neurons are to be measured: those without a baseline of that name."""
        if self.neurons is None:
            return []
        taken = [handle for handle in context.handles if handle.variant == NEURONS]
        if any(handle.kind != "baseline" for handle in taken):
            raise UsageError(
                f"polysemanticity: a variant is called '{NEURONS}', as the neurons that it measures beside the SAEs; "
                "rename it, or set neurons to null"
            )
        there = {(handle.source, handle.hook) for handle in taken}
        places = dict.fromkeys((handle.source, handle.hook) for handle in context.handles)
        return [place for place in places if place not in there]

    def _halves(self, source: str, context: EvalContext, known: dict[str, Halves]) -> Halves:
        """The text of a source's SAEs, cut in two once for all of them."""
        from sae_faithful_plugins.polysemanticity.observing import Halves

        text = self.dataset or source
        if text not in known:
            seed = derive_seed(context.seed, "polysemanticity", "halves", text)
            special = context.language_model.special_token_ids
            known[text] = Halves(context.held_out[text], self.n_tokens, special, seed)
        return known[text]
