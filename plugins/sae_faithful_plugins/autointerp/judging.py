"""From a feature's fragments to its scores: by look-up, simulation, detection and fuzzing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sae_faithful import RunError, derive_seed
from sae_faithful_plugins.autointerp import explain
from sae_faithful_plugins.autointerp.assistants import ask
from sae_faithful_plugins.autointerp.classify import classify, sheet
from sae_faithful_plugins.autointerp.scoring import (
    Missing,
    Score,
    Scored,
    exchanged,
    no_scores,
    simulation_scores,
)
from sae_faithful_plugins.autointerp.simulate import Mode, simulate
from sae_faithful_plugins.autointerp.token_sets import TokenWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sae_faithful import SAEHandle
    from sae_faithful_plugins.autointerp.assistants import Assistant, Cloze, Question
    from sae_faithful_plugins.autointerp.classify import Kind
    from sae_faithful_plugins.autointerp.splits import Split

CORRELATION, SHARE, F1 = "correlation", "share", "F1"
CLASSIFIED = {"balanced_accuracy": SHARE, "f1": F1}


@dataclass
class Judge:
    """Scores the features of one SAE after another."""

    scores: Sequence[str]
    decode: Callable[[int], str]
    seed: int
    shuffled: bool
    """Whether every explanation is also tried on another feature."""
    explainer: Assistant | None = None
    simulator: Assistant | None = None
    mode: Literal["auto", "logprobs", "json"] = "auto"

    def scored(self, handle: SAEHandle, splits: Sequence[Split]) -> Iterator[Scored]:
        """Every score that was asked for, of the features of one SAE."""
        features = {split.latent: split for split in splits}
        if "token_set" in self.scores:
            yield from self._by_token_sets(handle, features)
        if not self.explainer or not self.simulator:
            return
        explanations = self._explain(list(features.values()))
        if "simulation" in self.scores:
            mode = self._resolved_mode(self.simulator)
            by = f"explainer={self.explainer.name}, simulator={self.simulator.name}, mode={mode}"
            yield self._simulated(handle, "autointerp_score", by, mode, features, explanations)
            if self.shuffled and len(features) != 1:
                other = self._exchanged(handle, features)
                swapped = {latent: explanations[other[latent]] for latent in features}
                yield self._simulated(handle, "autointerp_score_shuffled", by, mode, features, swapped)
        for kind in ("detection", "fuzzing"):
            if kind in self.scores:
                yield from self._classified(handle, kind, features, explanations)

    def _by_token_sets(self, handle: SAEHandle, features: Mapping[int, Split]) -> Iterator[Scored]:
        weights = {latent: TokenWeights.of(split.train) for latent, split in features.items()}
        texts = {latent: one.text(self.decode) for latent, one in weights.items()}
        pairs = {"token_set_score": {latent: latent for latent in features}}
        if self.shuffled and len(features) != 1:
            pairs["token_set_score_shuffled"] = self._exchanged(handle, features)
        for metric, given in pairs.items():
            scores = {
                latent: simulation_scores(
                    split, [weights[given[latent]].simulate(record.ids) for record in split.valid]
                )
                for latent, split in features.items()
            }
            yield Scored(handle, metric, CORRELATION, "", scores, {k: texts[given[k]] for k in features})

    def _explain(self, splits: Sequence[Split]) -> dict[int, str | Missing]:
        assert self.explainer is not None
        questions = [explain.question(split.train, self.decode) for split in splits]
        found = ask(self.explainer, questions, [explain.read] * len(questions))
        return {split.latent: one for split, one in zip(splits, found, strict=True)}

    def _simulated(
        self,
        handle: SAEHandle,
        metric: str,
        by: str,
        mode: Mode,
        features: Mapping[int, Split],
        explanations: Mapping[int, str | Missing],
    ) -> Scored:
        assert self.simulator is not None
        asked = [
            (latent, explanation, self._tokens(record.ids))
            for latent, split in features.items()
            for record in split.valid
            if not isinstance(explanation := explanations[latent], Missing)
        ]
        found = simulate(self.simulator, mode, [(explanation, tokens) for _, explanation, tokens in asked])
        predictions: dict[int, list[Any]] = {latent: [] for latent in features}
        for (latent, _, _), prediction in zip(asked, found, strict=True):
            predictions[latent].append(prediction)
        scores: dict[int, dict[str, Score]] = {}
        for latent, split in features.items():
            explanation = explanations[latent]
            scores[latent] = (
                no_scores(explanation)
                if isinstance(explanation, Missing)
                else simulation_scores(split, predictions[latent])
            )
        return Scored(handle, metric, CORRELATION, by, scores, _given(explanations))

    def _classified(
        self, handle: SAEHandle, kind: Kind, features: Mapping[int, Split], explanations: Mapping[int, Any]
    ) -> Iterator[Scored]:
        assert self.explainer is not None
        assert self.simulator is not None
        found: dict[int, Mapping[str, Score]] = {}
        asked: dict[int, Any] = {}
        for latent, split in features.items():
            seed = derive_seed(self.seed, "autointerp", kind, *handle.key, latent)
            one = sheet(split, kind, self.decode, seed)
            for missing in (explanations[latent], one):
                if isinstance(missing, Missing):
                    found.setdefault(latent, no_scores(missing, list(CLASSIFIED)))
            if latent not in found:
                asked[latent] = (explanations[latent], one)
        found |= dict(zip(asked, classify(self.simulator, kind, list(asked.values())), strict=True))
        by = f"explainer={self.explainer.name}, simulator={self.simulator.name}, mode=json"
        for name, unit in CLASSIFIED.items():
            scores = {latent: {"": found[latent][name]} for latent in features}
            yield Scored(handle, f"{kind}_{name}", unit, by, scores, _given(explanations))

    def questions(self, splits: Sequence[Split]) -> tuple[list[Question], list[Question | Cloze]]:
        """What explainer and simulator will be asked, as far as it is known before there are explanations."""
        from sae_faithful_plugins.autointerp.classify import questions_about
        from sae_faithful_plugins.autointerp.simulate import cloze, json_question

        assert self.simulator is not None
        of_simulator: list[Question | Cloze] = []
        for split in splits:
            if "simulation" in self.scores:
                logprobs = self._resolved_mode(self.simulator) == "logprobs"
                for record in split.valid:
                    tokens = self._tokens(record.ids)
                    one = cloze(STAND_IN, tokens, 10) if logprobs else json_question(STAND_IN, tokens)
                    of_simulator += [one] * (1 + (self.shuffled and len(splits) > 1))
            for kind in ("detection", "fuzzing"):
                if kind in self.scores and not isinstance(one := sheet(split, kind, self.decode, 0), Missing):
                    of_simulator += questions_about(kind, STAND_IN, one)
        return [explain.question(split.train, self.decode) for split in splits], of_simulator

    def _resolved_mode(self, simulator: Assistant) -> Mode:
        able = self.mode != "json" and simulator.highest_number() is not None
        if self.mode == "logprobs" and not able:
            raise RunError(
                f"autointerp: '{simulator.name}' gives no log-probabilities of a prompt's numbers: choose mode json"
            )
        return "logprobs" if able else "json"

    def _exchanged(self, handle: SAEHandle, features: Mapping[int, Split]) -> dict[int, int]:
        return exchanged(list(features), derive_seed(self.seed, "autointerp", "shuffled", *handle.key))

    def _tokens(self, ids: Any) -> list[str]:
        return [self.decode(int(token)) for token in ids]


STAND_IN = "an explanation of the length that explanations have, which is about so many words."


def _given(explanations: Mapping[int, str | Missing]) -> dict[int, str]:
    return {latent: one for latent, one in explanations.items() if not isinstance(one, Missing)}
