"""Evaluator `autointerp`: how well short explanations predict where features are active."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from sae_faithful import Detokenizer, UsageError, Work, derive_seed, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sae_faithful import Artifact, EvalContext, EvalResult, FeatureTable, SAEHandle, TokenSet
    from sae_faithful_plugins.autointerp.assistants import Assistant
    from sae_faithful_plugins.autointerp.fragments import Fragments
    from sae_faithful_plugins.autointerp.judging import Judge
    from sae_faithful_plugins.autointerp.results import Tried

log = logging.getLogger("sae_faithful.autointerp")


@hookimpl
def register_evaluators(register: Callable[[str, type], None]) -> None:
    register("autointerp", Autointerp)


@dataclass
class Autointerp:
    """Scores of explanations of single features (Bills et al. 2023, as Cunningham et al. 2023 ran it; delphi).

    Without a language model there is `token_set_score` alone, whose explanations are sets of tokens. It is no
    autointerpretation: no meaning that is not in a token itself can be in such an explanation.
    """

    scores: list[Literal["token_set", "simulation", "detection", "fuzzing"]] = field(
        default_factory=lambda: ["token_set"]
    )
    """What to measure; all but `token_set` ask a language model."""
    n_features: int = 150
    """Features of each SAE that are tried, at most; the paper's number."""
    selection: Literal["random", "first"] = "random"
    """`random`: a sample of the features that are active at all; `first`: the first indices, dead or not, as
    in the paper."""
    dataset: str | None = None
    """The source or dataset whose held-out text fragments are cut from; none: each SAE's own source."""
    n_fragments: int = 2_000
    """Fragments of a text, at most (the paper: 50,000)."""
    fragment_tokens: int = 64
    """Tokens of a fragment, BOS not counted."""
    per_document: int = 1
    """Fragments of one document, at most; they do not overlap."""
    shuffled: bool = True
    """Also try every explanation on another feature: what explanations score that explain nothing. Doubles
    what simulation asks."""
    backend: Literal["openai", "local"] = "openai"
    """`openai`: an OpenAI-compatible server; `local`: a transformers model on this machine."""
    explainer: str | None = None
    """The model that explains; needed by all scores but `token_set`."""
    simulator: str | None = None
    """The model that simulates and classifies; none: the explainer."""
    mode: Literal["auto", "logprobs", "json"] = "auto"
    """How it simulates: `logprobs`, `json`, or with `auto` by log-probabilities if there are any."""
    concurrency: int = 8
    """Requests to a server at a time."""
    requests_per_minute: float = 0
    """At most so many; 0: no limit."""
    timeout: float = 120.0
    """Seconds that a server has for a whole reply."""
    retries: int = 6
    """New tries after a failure that may pass, with exponential pauses."""
    prices: list[float] = field(default_factory=list[float])
    """Of a million tokens of prompts and of replies, in any currency, for the estimate before anything is
    asked."""
    max_cost: float | None = None
    """Ask nothing if the estimate is above this."""

    def __post_init__(self) -> None:
        for name in ("n_features", "n_fragments", "per_document", "concurrency", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)} is not positive")
        for name in ("requests_per_minute", "retries"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} is below 0")
        if self.fragment_tokens < 2:
            raise ValueError(f"fragment_tokens {self.fragment_tokens}: one token has no correlation")
        if not self.scores:
            raise ValueError("scores is empty")
        if len(self.prices) not in (0, 2):
            raise ValueError("prices: give two, of a million tokens of prompts and of replies")
        if self.max_cost is not None and not self.prices:
            raise ValueError("max_cost needs prices")
        if self._asking:
            self._check_assistant()

    def _check_assistant(self) -> None:
        from sae_faithful_plugins.autointerp.client import KEY_VARIABLE, URL_VARIABLE

        if self.explainer is None:
            raise ValueError(f"explainer: scores {', '.join(self._asking)} ask a language model; name one")
        if self.backend == "openai" and not (os.environ.get(URL_VARIABLE) or os.environ.get(KEY_VARIABLE)):
            raise ValueError(
                f"backend openai: neither {URL_VARIABLE} (where the server is) nor {KEY_VARIABLE} is set in the "
                "environment"
            )

    @property
    def _asking(self) -> list[str]:
        return [score for score in self.scores if score != "token_set"]

    def work(self, context: EvalContext) -> Work:
        """Two passes over the fragments; what a language model is asked comes on top, known once there are latents."""
        texts: dict[str, int] = {}
        passes: dict[str, list[SAEHandle]] = {}
        for handle in context.handles:
            text = self.dataset or handle.source
            tokens = min(self.n_fragments * (self.fragment_tokens + 1), context.held_out[text].n_tokens)
            texts[f"fragments of {text}"] = tokens
            passes.setdefault(f"fragments of {text}", []).append(handle)
        again = sum(texts.values())
        encoded = sum(texts[name] * len(handles) for name, handles in passes.items())
        return Work(
            texts=texts,
            passes=passes,
            forward_tokens=again,
            encoded_tokens=encoded,
            at_least=bool(self._asking),
        )

    def observers(self, context: EvalContext) -> list[Fragments]:
        """The first pass over fragments, for every SAE whose text has any.

        Raises:
            UsageError: no such dataset, or fragments longer than the model's context.
        """
        from sae_faithful_plugins.autointerp.fragments import Fragments, draw_fragments

        if self.dataset is not None and self.dataset not in context.held_out:
            names = ", ".join(context.held_out)
            raise UsageError(f"autointerp: unknown dataset '{self.dataset}'; there are: {names}")
        texts: dict[tuple[str, bool], TokenSet | None] = {}
        observers: list[Fragments] = []
        for handle in context.handles:
            text, with_bos = self.dataset or handle.source, handle.prepend_bos is not False
            if (text, with_bos) not in texts:
                texts[text, with_bos] = draw_fragments(
                    context.held_out[text],
                    context.language_model,
                    n=self.n_fragments,
                    size=self.fragment_tokens,
                    per_document=self.per_document,
                    with_bos=with_bos,
                    seed=derive_seed(context.seed, "autointerp", "fragments", text),
                )
            fragments = texts[text, with_bos]
            if fragments is None:
                log.warning(
                    "autointerp: no document of %s has %d tokens: no feature can be scored; lower fragment_tokens",
                    text,
                    self.fragment_tokens,
                )
                continue
            seed = derive_seed(context.seed, "autointerp", "random fragments")
            observers.append(Fragments(handle, fragments, seed))
        return observers

    def evaluate(
        self, context: EvalContext, observers: Sequence[Fragments]
    ) -> Iterator[EvalResult | FeatureTable | Artifact]:
        """Scores of every SAE's features, means over SAEs, and the table of features."""
        from sae_faithful_plugins.autointerp.results import Results

        detokenizer = Detokenizer(context.language_model.tokenizer)
        tried = self._tried(context, observers)
        judge = self._judge(context, detokenizer, tried)
        results = Results(self.dataset, detokenizer)
        for one in tried:
            yield from results.of_sae(one, list(judge.scored(one.handle, one.splits)))
        yield from results.of_sources()

    def _tried(self, context: EvalContext, observers: Sequence[Fragments]) -> list[Tried]:
        """The chosen features of every SAE with their fragments."""
        from sae_faithful_plugins.autointerp.fragments import collect
        from sae_faithful_plugins.autointerp.results import Tried
        from sae_faithful_plugins.autointerp.splits import Split, choose_features

        chosen: dict[Fragments, list[int]] = {}
        for one in observers:
            seed = derive_seed(context.seed, "autointerp", "features", *one.handle.key)
            latents = choose_features(one.n_active, self.n_features, self.selection, seed)
            chosen[one] = [int(latent) for latent in latents]
        records = collect(chosen, context.language_model)
        of = {one.handle: one for one in observers}
        tried: list[Tried] = []
        for handle in context.handles:
            if handle not in of:
                tried.append(Tried(handle, 0, np.zeros(0), [], []))
                continue
            one = of[handle]
            splits = [split for each in records[one] if (split := Split.of(each)) is not None]
            tried.append(Tried(handle, len(one.tokens), one.n_active, chosen[one], splits))
        return tried

    def _judge(self, context: EvalContext, detokenizer: Detokenizer, tried: Sequence[Tried]) -> Judge:
        from sae_faithful_plugins.autointerp.judging import Judge

        judge = Judge(self.scores, detokenizer.token, context.seed, self.shuffled, mode=self.mode)
        if self._asking:
            judge.explainer, judge.simulator = self._assistants(context)
            self._announce(judge, tried)
        return judge

    def _assistants(self, context: EvalContext) -> tuple[Assistant, Assistant]:
        from sae_faithful import Manners
        from sae_faithful_plugins.autointerp.cache import ReplyCache
        from sae_faithful_plugins.autointerp.client import Client
        from sae_faithful_plugins.autointerp.local import LocalAssistant

        assert self.explainer is not None
        cache = ReplyCache.of_user()
        manners = Manners(self.concurrency, self.requests_per_minute, self.timeout, self.retries)

        def load(name: str) -> Assistant:
            if self.backend == "local":
                return LocalAssistant.load(name, context.language_model, cache)
            return Client(name, cache, manners)

        explainer = load(self.explainer)
        same = self.simulator in (None, self.explainer)
        return explainer, explainer if same or self.simulator is None else load(self.simulator)

    def _announce(self, judge: Judge, tried: Sequence[Tried]) -> None:
        """Say what will be asked, and stop here if it costs too much.

        Raises:
            UsageError: the estimate is above `max_cost`.
        """
        from sae_faithful_plugins.autointerp.costs import Estimate

        asked = [question for one in tried for part in judge.questions(one.splits) for question in part]
        estimate = Estimate.of(asked)
        log.info("autointerp: %s", estimate.sentence(self.prices))
        if self.max_cost is not None and estimate.cost(self.prices) > self.max_cost:
            raise UsageError(
                f"autointerp: {estimate.sentence(self.prices)}, more than max_cost {self.max_cost:g}; "
                "choose fewer features, or raise it"
            )
