"""Evaluator `case_studies`: single features, by what they fire on, what they do, and what they come from."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from sae_faithful import Artifact, Detokenizer, FeatureTable, Work, derive_seed, hookimpl, own_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from jaxtyping import Float

    from sae_faithful import EvalContext, EvalResult
    from sae_faithful_plugins.case_studies.choosing import Watched
    from sae_faithful_plugins.case_studies.observing import Study
    from sae_faithful_plugins.case_studies.results import Case

log = logging.getLogger(__name__)
ENTRY_KEYS = ("latent", "source", "hook", "variant", "seed")


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("case_studies", CaseStudies)


@dataclass
class CaseStudies:
    """Single features to read (Cunningham et al. 2023, section 5).

    What each is active on, beside the most similar neuron; what its ablation does to the logits; what its direction
    says to the unembedding; and which features of earlier hooks it comes from.
    """

    features: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """These: each `{latent: 5}`, with `source`, `hook`, `variant` or `seed` if not of all SAEs."""
    column: str | None = None
    """In place of that: the `n_features` of each SAE with the largest values in this column of features.parquet, as
    `autointerp.token_set_score.top_and_random`."""
    largest: bool = True
    """Of `column`, the largest; false: the smallest."""
    probe: str | None = None
    """In place of both: a sentence; those most active at its last token."""
    n_features: int = 3
    """How many of each SAE, where they are not named; with neither `features`, `column` nor `probe`, those with most
    of their activation on one token in the first half of the text (the second is then measured)."""
    max_rate: float = 0.1
    """Features active on more than this share of tokens are not chosen by `probe`, nor where nothing is said."""
    hooks: list[str] = field(default_factory=list[str])
    """Only SAEs at these hooks; empty: all."""
    variants: list[str] = field(default_factory=list[str])
    """Only SAEs of these variants, or baselines of these names; empty: all variants."""
    seeds: Literal["first", "all"] = "first"
    """`first`: SAEs of the first seed of each source, hook and variant; or `all`."""
    baselines: bool = False
    """Features of baselines too, where `variants` names none."""
    n_tokens: int = 10_000
    """Held-out tokens of each source that are looked at, in whole rows."""
    context_tokens: int = 64
    """Of each row its first so many tokens, BOS included; 0: all. In the paper 40."""
    similarity: Literal["correlation", "cosine"] = "correlation"
    """What makes a neuron the most similar one: `correlation` with the feature over the text, or `cosine`
    with the decoder's row."""
    n_contexts: int = 20
    """Rows in which each feature is ablated; 0: no ablation."""
    ablation: Literal["subtract", "resolve"] = "subtract"
    """`subtract` what the feature adds, or `resolve`: the smallest multiple of it after which its own code is
    0."""
    effect: Literal["logits", "log_probs"] = "logits"
    """What is compared before and after the ablation."""
    threshold: float = 0.1
    """Tokens are counted whose mean effect is larger than this."""
    max_norm: float = 4.0
    """Tokens whose unembedding is longer than so many times the median are left out of it; 0: none."""
    tree_contexts: int = 20
    """Contexts that a causal tree is made from, where there are SAEs at earlier hooks; 0: no trees."""
    tree_candidates: int = 64
    """Parents that are ablated, of each feature of a tree and hook; 0: all that are active."""
    tree_children: int = 3
    """Strongest parents of each feature that a tree keeps."""

    def __post_init__(self) -> None:
        given = [name for name in ("features", "column", "probe") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say which features; give one")
        for entry in self.features:
            _check_entry(entry)
        if self.column is not None and not all(self.column.partition(".")[::2]):
            raise ValueError(f"column '{self.column}' is not EVALUATOR.COLUMN, as fake_features.rate_own")
        for name in ("n_features", "n_tokens", "tree_children"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not positive")
        for name in (
            "context_tokens", "n_contexts", "threshold", "max_norm", "tree_contexts", "tree_candidates",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} is below 0")
        if not 0 < self.max_rate <= 1:
            raise ValueError(f"max_rate {self.max_rate} is not a share in (0, 1]")

    @property
    def reads(self) -> Sequence[str]:
        """The evaluator whose column chooses."""
        return [] if self.column is None else [self.column.partition(".")[0]]

    def work(self, context: EvalContext) -> Work:
        """At least: two forwards for each context of an ablation, and the parents of the first feature of each tree."""
        handles = [
            handle
            for handle in context.handles_at(self.hooks, self.variants)
            if (self.baselines or self.variants or handle.kind != "baseline")
            and (self.seeds == "all" or handle.seed == context.handles[0].seed)
        ]
        features = len(self.features) or self.n_features * len(handles)
        size = next(iter(context.held_out.values())).context_size
        row = min(self.context_tokens or size, size)
        n_hooks = len({handle.hook for handle in context.handles})
        # Every ablated parent is active in about a fifth of the contexts.
        of_tree = self.tree_candidates * self.tree_contexts / 5 * row / 2 if n_hooks > 1 else 0
        return Work(
            passes=own_texts(replace(context, handles=handles)),
            logit_tokens=2 * features * self.n_contexts * row,
            forward_tokens=features * of_tree,
            encoded_tokens=features * of_tree,
            at_least=True,
        )

    def observers(self, context: EvalContext) -> list[Watched]:
        """For each SAE that is studied, what its features are chosen by.

        Raises:
            UsageError: `features` names an SAE or a latent that there is not, or there is no tokenizer for `probe`.
        """
        from sae_faithful_plugins.case_studies.choosing import Watched, probe_tokens, studied
        from sae_faithful_plugins.case_studies.observing import beginning

        if self.probe is not None:
            probe_tokens(self.probe, context.language_model)
        handles = studied(self, context)
        texts = {
            source: beginning(context.held_out[source], self.n_tokens, self.context_tokens)
            for source in dict.fromkeys(handle.source for handle in handles)
        }
        named = bool(self.features) or self.column is not None
        return [
            Watched(handle, texts[handle.source], counts=not named, by_token=not named and self.probe is None)
            for handle in handles
        ]

    def evaluate(
        self, context: EvalContext, observers: Sequence[Watched]
    ) -> Iterator[EvalResult | FeatureTable | Artifact]:
        """Rows and columns of what was studied, and every case as a document and as a text.

        Raises:
            UsageError: features.parquet has no such `column`, or one that is no number.
        """
        from sae_faithful_plugins.case_studies.choosing import choose
        from sae_faithful_plugins.case_studies.observing import observe
        from sae_faithful_plugins.case_studies.reading import document, text
        from sae_faithful_plugins.case_studies.results import columns, rows

        studies = choose(self, context, observers)
        observe(studies, context.language_model, self.similarity)
        chosen = any(study.latents for study in studies)
        matrix = context.language_model.unembedding() if chosen else None
        detokenizer = Detokenizer(context.language_model.tokenizer)
        cases = {study: list(self._cases(study, context, matrix, detokenizer)) for study in studies}
        self._grow(cases, context)
        yield from rows(cases)
        for study, found in cases.items():
            yield FeatureTable(handle=study.handle, columns=columns(study, found))
        content = document(self, cases)
        yield Artifact(name="cases", kind="json", content=content)
        yield Artifact(name="cases", kind="text", content=text(content))

    def _cases(
        self,
        study: Study,
        context: EvalContext,
        matrix: Float[torch.Tensor, "vocab d_model"] | None,
        detokenizer: Detokenizer,
    ) -> Iterator[Case]:
        from sae_faithful_plugins.case_studies.ablation import Ablation, contexts_of
        from sae_faithful_plugins.case_studies.reading import case_document
        from sae_faithful_plugins.case_studies.results import Case
        from sae_faithful_plugins.case_studies.unembedding import Unembedded

        for i, latent in enumerate(study.latents):
            case = Case(study, i)
            log.info("case_studies: %s, latent %d", ", ".join(map(str, study.handle.key)), latent)
            if self.n_contexts and case.fires:
                seed = derive_seed(context.seed, "case_studies", "contexts", *study.handle.key, latent)
                rows = contexts_of(study.codes[i], self.n_contexts, seed)
                case.ablation = Ablation.run(
                    study.handle, latent, study.ids, study.mask, rows, context.language_model,
                    resolve=self.ablation == "resolve", log_probs=self.effect == "log_probs",
                )  # fmt: skip
            case.unembedded = Unembedded.of(study.handle, latent, matrix, self.max_norm)
            case.document = case_document(self, case, detokenizer)
            if case.ablation is not None:
                case.ablation.forget()
            yield case

    def _grow(self, cases: dict[Study, list[Case]], context: EvalContext) -> None:
        """Give every case its tree, if there is something for it to come from."""
        from sae_faithful_plugins.case_studies.tree import TreeOptions, causal_trees

        if not self.tree_contexts:
            return
        options = TreeOptions(
            n_tokens=self.n_tokens,
            context_tokens=self.context_tokens,
            n_contexts=self.tree_contexts,
            candidates=self.tree_candidates,
            children=self.tree_children,
            seed=derive_seed(context.seed, "case_studies", "tree"),
        )
        targets = [(study.handle, latent) for study in cases for latent in study.latents]
        by_place = {(*case.study.handle.key, case.latent): case for found in cases.values() for case in found}
        for tree in causal_trees(targets, context, options):
            by_place[*tree.handle.key, tree.latent].tree = tree


def _check_entry(entry: dict[str, Any]) -> None:
    unknown = [key for key in entry if key not in ENTRY_KEYS]
    if unknown:
        raise ValueError(f"features: unknown key '{unknown[0]}'; there are: {', '.join(ENTRY_KEYS)}")
    latent = entry.get("latent")
    if not isinstance(latent, int) or isinstance(latent, bool) or latent < 0:
        raise ValueError(f"features: {entry} names no latent; give a number, as {{latent: 5}}")
