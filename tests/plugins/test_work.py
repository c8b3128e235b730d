"""What bundled plugins say they will cost is what they do: tokens through the model, counted in a real run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sae_faithful import ExperimentConfig, LanguageModel, Work, load_plugins, run
from sae_faithful.estimates import work_of
from sae_faithful.plan import make_plan
from sae_faithful.stand_ins import planned_context, request_for

if TYPE_CHECKING:
    from pathlib import Path

OWN = {"plugin": "self_generated", "n_tokens": 1_600, "batch_size": 64}
CASES: dict[str, dict[str, Any]] = {
    "reconstruction": {"ce_tokens": 96, "bos_ce_tokens": 48},
    "ood_score": {"n_tokens": 40},
    "fake_features": {"n_tokens": 600},
    "shared_features": {},
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Tokens through whole forwards, and through those up to a hook."""
    counts = {"logits": 0, "activations": 0}
    for name in ("logits", "logits_with_edit", "activations"):
        real = getattr(LanguageModel, name)
        kind = "activations" if name == "activations" else "logits"

        def count(self: Any, tokens: Any, *args: Any, real: Any = real, kind: str = kind, **more: Any) -> Any:
            counts[kind] += tokens.numel()
            return real(self, tokens, *args, **more)

        monkeypatch.setattr(LanguageModel, name, count)
    return counts


def planned(config: ExperimentConfig) -> tuple[Any, Any, LanguageModel]:
    model = LanguageModel.from_config(config, config.hook_names)
    plan = make_plan(config, load_plugins(), model)
    return plan, planned_context(plan, config, model), model


@pytest.mark.parametrize("name", CASES)
def test_declared_tokens_are_those_that_an_evaluator_costs(
    name: str, tiny_config: dict[str, Any], tmp_path: Path, counted: dict[str, int]
) -> None:
    sources = {"faithful": OWN, "hot": {**OWN, "temperature": 2.0}}
    base = {**tiny_config, "sources": sources}
    run(ExperimentConfig.from_dict(base), output=tmp_path / "run", until="saes")
    config = ExperimentConfig.from_dict({**base, "evaluators": [{name: CASES[name]}]})
    plan, context, _ = planned(config)
    work: Work = work_of(plan.evaluators[0], context)
    counted.update(logits=0, activations=0)
    run(config, output=tmp_path / "run")

    texts = {name: tokens.n_tokens for name, tokens in context.held_out.items()} | work.texts
    passes = sum(texts[text] for text in work.passes) + work.forward_tokens
    # BOS, padding between short documents, and rows that share a document with the training part: not foreseen.
    assert passes == pytest.approx(counted["activations"], rel=0.25)
    assert work.logit_tokens == pytest.approx(counted["logits"], rel=0.5)
    assert not work.at_least


def test_generation_is_declared_less_what_the_cache_holds(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    config = ExperimentConfig.from_dict(tiny_config)
    plan, _, model = planned(config)
    (text,) = plan.texts
    request = request_for(text, config, model, tmp_path / "cache")

    def tokens() -> float:
        work = text.source.work(request)
        # A trial draws 64 samples of 4 tokens.
        return sum(trial.times * 64 * 4 for trial in work.trials)

    # 1,600 tokens, 64 samples of 1 + 15 a shard: two shards, of which 15 tokens a sample are drawn.
    assert tokens() == 2 * 64 * 15
    tokens_of_shards = text.source.load(request)
    assert tokens_of_shards.n_tokens >= 1_600 - 16
    # Samples end before they are as long as they may be: the two shards that were foreseen are there, or more.
    assert tokens() == 0


def test_another_model_that_writes_is_at_least_as_slow(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    sources = {"faithful": {**OWN, "dtype": "bfloat16"}}
    config = ExperimentConfig.from_dict({**tiny_config, "sources": sources})
    plan, _, model = planned(config)
    work = plan.texts[0].source.work(request_for(plan.texts[0], config, model, tmp_path / "cache"))
    assert work.at_least
    assert "model" not in vars(model)  # no weights were loaded to say so


def test_every_bundled_evaluator_of_some_cost_says_what_it_is() -> None:
    silent = {
        name
        for name, one in load_plugins().registrations("evaluator").items()
        if not hasattr(one.offered, "work")
    }
    # Its work is another program's.
    assert silent == {"sae_probes_benchmark"}
