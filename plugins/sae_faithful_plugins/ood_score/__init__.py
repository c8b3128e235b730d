"""Evaluator `ood_score`: how far each text is from one that counts as in-distribution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sae_faithful import Artifact, EvalResult, UsageError, Work, derive_seed, hookimpl
from sae_faithful_plugins.ood_score.halves import Halves, Vectors, common_size, equal_samples
from sae_faithful_plugins.ood_score.results import Measurement, line, rows
from sae_faithful_plugins.ood_score.text_scores import first_tokens, surprises, unigrams
from sae_faithful_plugins.ood_score.vector_scores import (
    classifier_aucs,
    knn_distances,
    mahalanobis_distances,
    sae_rows,
    vector_trials,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sae_faithful import EvalContext
    from sae_faithful_plugins.ood_score.halves import Samples

Score = Literal["surprise", "first_token", "unigram", "knn", "classifier", "mahalanobis", "sae"]
ON_VECTORS = {"knn", "classifier", "mahalanobis", "sae"}


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("ood_score", OODScore)


@dataclass
class OODScore:
    """How far every text is from a reference text: surprise, unigrams, activations, and the SAEs' own error and rates.

    Every text's documents are split at random in two. What is scored is the second half of each text against the
    first half of the reference, so that the reference's own second half gives the null (`<metric>_null`).
    """

    monitor_budget: ClassVar[dict[str, Any]] = {"scores": ["sae"], "n_vectors": 250}
    """Inside training: the SAEs' own error and firing rates, which cost no whole forward."""

    reference: str | None = None
    """The source or dataset that counts as in-distribution; none: the first source."""
    scores: list[Score] = field(
        default_factory=lambda: ["surprise", "first_token", "unigram", "knn", "classifier", "sae"]
    )
    """Which to compute; `mahalanobis` is there too."""
    n_tokens: int = 20_000
    """At most so many tokens of each half are scored by whole forwards of the model."""
    n_vectors: int = 10_000
    """At most so many activations of each half, at every hook."""
    n_unigrams: int = 100_000
    """At most so many tokens of each half are counted for the unigram scores."""
    k: int = 10
    """`knn_distance` is to the k-th nearest reference."""

    def __post_init__(self) -> None:
        for name in ("n_tokens", "n_vectors", "n_unigrams", "k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not a positive number")
        if not self.scores:
            raise ValueError("scores: none asked for")

    def work(self, context: EvalContext) -> Work:
        """Whole forwards of both halves of the reference and one of every other text; vectors at every hook."""
        half = min(tokens.n_tokens for tokens in context.held_out.values()) // 2
        scored = min(self.n_tokens, half) * (len(context.held_out) + 1) if "surprise" in self.scores else 0
        sees = bool(ON_VECTORS.intersection(self.scores))
        latents = context.handles if "sae" in self.scores else []
        n = min(self.n_vectors, half)
        widths = {handle.hook: int(handle.sae.cfg.d_in) for handle in context.handles}
        times = len(context.held_out)
        trials = [
            one for d_in in widths.values() for one in vector_trials(self.scores, n, d_in, self.k, times)
        ]
        return Work(
            passes=dict.fromkeys(context.held_out, latents) if sees else {},
            logit_tokens=scored,
            trials=trials,
        )

    def observers(self, context: EvalContext) -> list[Vectors]:
        """For each hook and text, activations at tokens drawn at random: the same tokens at every hook."""
        reference = self._reference(context)
        texts = self._texts(context)
        if not ON_VECTORS.intersection(self.scores):
            return []
        n = common_size(texts, reference, self.n_vectors)
        hooks = dict.fromkeys(handle.hook for handle in context.handles)
        return [Vectors(hook, text, n, name == reference) for hook in hooks for name, text in texts.items()]

    def evaluate(self, context: EvalContext, observers: Sequence[Vectors]) -> Iterator[EvalResult | Artifact]:
        """Every score of every text, the null beside it, and the means over SAEs."""
        reference = self._reference(context)
        place = {"condition": f"reference={reference}"}
        # As the observers split them: a second copy would hold as much again.
        texts = {one.text.name: one.text for one in observers} or self._texts(context)
        lines: list[str] = []
        for measured in self._of_texts(context, texts, reference):
            yield from rows(measured, reference, place)
            lines.append(line(measured, reference, ""))
        for hook in dict.fromkeys(observer.hook for observer in observers):
            vectors = {one.text.name: one for one in observers if one.hook == hook}
            samples = equal_samples(vectors, reference)
            for measured in self._of_vectors(context.seed, samples):
                yield from rows(measured, reference, {**place, "hook": hook})
                lines.append(line(measured, reference, f" at {hook}"))
            if "sae" in self.scores:
                handles = [handle for handle in context.handles if handle.hook == hook]
                yield from sae_rows(handles, samples, reference, place)
        title = f"Compared with the first half of {reference}; (null) is its own second half."
        yield Artifact(name="reading", kind="text", content="\n".join([title, "", *lines]))

    def _reference(self, context: EvalContext) -> str:
        name = self.reference or next(iter([*context.sources, *context.held_out]))
        if name not in context.held_out:
            raise UsageError(f"ood_score: unknown reference '{name}'; choices: {', '.join(context.held_out)}")
        return name

    def _texts(self, context: EvalContext) -> dict[str, Halves]:
        seed = derive_seed(context.seed, "ood_score", "halves")
        wanted = max(self.n_tokens, self.n_vectors, self.n_unigrams)
        return {
            name: Halves(name, tokens, context.language_model, seed, wanted)
            for name, tokens in context.held_out.items()
        }

    def _of_texts(
        self, context: EvalContext, texts: Mapping[str, Halves], reference: str
    ) -> Iterator[Measurement]:
        """Scores that need no SAE and no hook."""
        if "surprise" in self.scores:
            yield from surprises(context, texts, reference, self.n_tokens)
        if "first_token" in self.scores:
            yield first_tokens(context.language_model, texts)
        if "unigram" in self.scores:
            yield from unigrams(context.language_model, texts, reference, self.n_unigrams)

    def _of_vectors(self, seed: int, samples: Samples) -> Iterator[Measurement]:
        """Scores at one hook, of activations alone."""
        if "knn" in self.scores:
            yield Measurement("knn_distance", knn_distances(samples, self.k))
        if "classifier" in self.scores:
            yield Measurement("classifier_auc", classifier_aucs(samples, seed))
        if "mahalanobis" in self.scores:
            yield Measurement("mahalanobis", mahalanobis_distances(samples))
