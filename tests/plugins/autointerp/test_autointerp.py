"""The evaluator as a run drives it, on features whose meaning is planted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_faithful import ExperimentConfig, LanguageModel, SAEHandle, TokenSet, UsageError, load_plugins, run
from sae_faithful_plugins.autointerp import Autointerp

D, VOCAB, BOS = 64, 400, 0
HOOK = "model.layers.0"
rng = np.random.default_rng(0)
EMBEDDING = rng.normal(size=(VOCAB, D))
EMBEDDING /= np.linalg.norm(EMBEDDING, axis=1, keepdims=True)


class Embeds(LanguageModel):
    """Each token's activation is a random unit vector of its own, whatever stands around it."""

    vocab_size, bos_token_id, context_limit, tokenizer = VOCAB, BOS, 512, None
    special_token_ids = (0, 1, 2)

    def activations(self, tokens: Any, hooks: Any) -> Any:
        import torch

        return {hook: torch.as_tensor(EMBEDDING, dtype=torch.float32)[tokens] for hook in hooks}


@pytest.fixture(scope="module")
def model() -> Embeds:
    return Embeds("embeds")


def text(n_documents: int = 600, size: int = 40, seed: int = 1) -> TokenSet:
    """Words in no order, each as frequent as any."""
    draws = np.random.default_rng(seed).integers(3, VOCAB, (n_documents, size + 1))
    draws[:, 0] = BOS
    return TokenSet.from_rows(draws)


def sae(directions: np.ndarray, bias: float | np.ndarray, seed: int = 0, variant: str = "main") -> SAEHandle:
    """Latent i reads along row i."""

    def load() -> Any:
        import torch
        from sae_lens import StandardSAE, StandardSAEConfig

        made = StandardSAE(StandardSAEConfig(d_in=D, d_sae=len(directions)))
        with torch.no_grad():
            made.W_enc.copy_(torch.as_tensor(directions).T)
            made.b_enc.copy_(torch.as_tensor(np.broadcast_to(bias, len(directions)).copy()))
            made.b_dec.zero_()
        return made

    return SAEHandle(source="faithful", hook=HOOK, variant=variant, seed=seed, load=load)


WORDS = np.arange(10, 30)
"""Each in about 46 of 600 fragments."""


def detectors(seed: int = 0) -> SAEHandle:
    """Latent i fires on word 10 + i alone: other words' cosines with it are below the threshold."""
    return sae(EMBEDDING[WORDS], -0.6, seed)


def random_directions(seed: int = 0) -> SAEHandle:
    directions = np.random.default_rng(50 + seed).normal(size=(20, D))
    return sae(directions, 0.0, seed, variant="random")


SMALL: dict[str, Any] = {"fragment_tokens": 32}


def test_planted_token_detectors_score_1_while_random_directions_score_low(
    model: Embeds, measure: Callable[..., Any]
) -> None:
    assert np.abs(EMBEDDING[WORDS] @ EMBEDDING.T - np.eye(VOCAB)[WORDS]).max() < 0.6
    handles = [detectors(), detectors(1), random_directions(), random_directions(1)]
    measured = measure(Autointerp(**SMALL), handles, {"faithful": text()}, language_model=model)
    for subset in ("top_and_random", "top_only", "random_only"):
        row = measured.row("token_set_score", variant="main", seed=0, condition=subset)
        assert (row["value"], row["n"]) == (pytest.approx(1.0, abs=1e-6), 20)
    low = measured.row("token_set_score", variant="random", seed=0, condition="top_and_random")
    assert low["n"] == 20
    assert low["ci_low"] < low["value"] < low["ci_high"] < 0.7
    # Over SAEs.
    both = measured.row("token_set_score", variant="random", condition="top_and_random")
    assert both["n"] == 2
    assert both["headline"]
    assert both["ci_low"] < both["value"] < both["ci_high"]
    assert not measured.row("token_set_score", variant="random", condition="top_only")["headline"]


def test_against_baselines_planted_detectors_are_higher_and_what_is_alike_is_undecided(
    model: Embeds, measure: Callable[..., Any]
) -> None:
    noise = [replace(random_directions(seed), kind="baseline") for seed in (0, 1)]
    handles = [detectors(), detectors(1), replace(random_directions(2), variant="alike", seed=0), *noise]
    measured = measure(Autointerp(**SMALL), handles, {"faithful": text()}, language_model=model)
    condition = "minus random, top_and_random"
    difference = measured.row("token_set_score_difference", variant="main", seed=1, condition=condition)
    scores = [
        measured.row("token_set_score", variant=variant, seed=1, condition="top_and_random")
        for variant in ("main", "random")
    ]
    assert difference["value"] == pytest.approx(scores[0]["value"] - scores[1]["value"])
    assert difference["n"] == scores[0]["n"] + scores[1]["n"]
    # Detectors all score 1, so that the spread is that of the baseline's features alone.
    assert difference["ci_low"] == pytest.approx(1 - scores[1]["ci_high"], abs=1e-6)
    assert difference["ci_low"] > 0.3
    source = measured.row("token_set_score_difference", variant="main", condition=condition)
    assert (source["n"], source["headline"]) == (2, True)
    assert source["ci_low"] > 0
    alike = measured.row("token_set_score_difference", variant="alike", seed=0, condition=condition)
    assert alike["ci_low"] < 0 < alike["ci_high"]
    # The baseline itself is against nothing, and shuffled scores are no result.
    assert {row["variant"] for row in measured.rows if "_difference" in row["metric"]} == {"main", "alike"}
    assert not any(row["metric"].endswith("_shuffled_difference") for row in measured.rows)
    text_of = (measured.folder / "artifacts" / "reading.txt").read_text()
    assert "- faithful, main: higher than random: +0." in text_of
    assert "- faithful, alike: undecided against random: " in text_of


def test_without_baselines_nothing_is_compared(model: Embeds, measure: Callable[..., Any]) -> None:
    measured = measure(Autointerp(**SMALL), [detectors()], {"faithful": text()}, language_model=model)
    assert not any("_difference" in row["metric"] for row in measured.rows)
    assert not (measured.folder / "artifacts" / "reading.txt").exists()


class EmbedsTheWordBefore(Embeds):
    """Says nothing of the token itself."""

    def activations(self, tokens: Any, hooks: Any) -> Any:
        return super().activations(tokens.roll(1, dims=1), hooks)


def test_what_no_set_of_tokens_explains_scores_about_0(measure: Callable[..., Any]) -> None:
    measured = measure(
        Autointerp(**SMALL), [detectors()], {"faithful": text()}, language_model=EmbedsTheWordBefore("before")
    )
    row = measured.row("token_set_score", seed=0, condition="top_and_random")
    assert row["n"] >= 15
    assert -0.1 < row["value"] < 0.1


def test_shuffled_explanations_collapse_to_about_0(model: Embeds, measure: Callable[..., Any]) -> None:
    measured = measure(Autointerp(**SMALL), [detectors()], {"faithful": text()}, language_model=model)
    row = measured.row("token_set_score_shuffled", seed=0, condition="top_and_random")
    # Another word: where it is said, this one is not. Where it is never said, the prediction is constant.
    assert -0.05 < row["value"] < 0.05
    why = "token_set_score_shuffled, top_and_random: constant prediction"
    constant = measured.row("unscored", seed=0, condition=why)
    assert (row["n"] + constant["value"], constant["n"]) == (20, 20)
    assert row["n"] >= 5
    without = measure(
        Autointerp(**SMALL, shuffled=False), [detectors()], {"faithful": text()}, language_model=model
    )
    assert {row["metric"] for row in without.rows} == {"token_set_score", "skipped", "unscored"}


def test_features_with_too_few_fragments_are_counted_and_not_scored(
    model: Embeds, measure: Callable[..., Any]
) -> None:
    # 60 fragments of w100; in the first so many, one w10, w11, w12, w13.
    counts = {10: 19, 11: 20, 12: 33, 13: 34}
    rows = np.full((60, 33), 100)
    rows[:, 0] = BOS
    for place, (word, count) in enumerate(counts.items()):
        rows[:count, 1 + place] = word
    handle = sae(EMBEDDING[[10, 11, 12, 13, 14]], -0.6)
    measured = measure(
        Autointerp(**SMALL), [handle], {"faithful": TokenSet.from_rows(rows)}, language_model=model
    )
    # w14 never occurs: it is not alive, and so not chosen. w10 has 19 fragments.
    skipped = measured.row("skipped", seed=0)
    assert (skipped["value"], skipped["n"], skipped["reason"]) == (1, 4, "a count, not an estimate")
    # The others have top fragments, w13 random ones too: 34 - 20 = 14.
    scored = {
        subset: measured.row("token_set_score", seed=0, condition=subset)["n"]
        for subset in ("top_and_random", "top_only", "random_only")
    }
    assert scored == {"top_and_random": 1, "top_only": 3, "random_only": 1}
    why = "token_set_score, random_only: too few random fragments"
    assert measured.row("unscored", seed=0, condition=why)["value"] == 2
    assert measured.row("unscored", seed=0, condition="token_set_score, top_only")["value"] == 0
    features = measured.features
    assert features["it.active_fragments"].tolist() == [19, 20, 33, 34, 0]
    assert features["it.token_set_score.top_only"].notna().tolist() == [False, True, True, True, False]
    assert features["it.token_set_score.top_and_random"].notna().tolist() == [False] * 3 + [True, False]


def test_where_no_feature_fires_there_is_no_value_and_a_reason(
    model: Embeds, measure: Callable[..., Any]
) -> None:
    dead = sae(EMBEDDING[WORDS], -5.0)
    measured = measure(Autointerp(**SMALL), [dead], {"faithful": text()}, language_model=model)
    row = measured.row("token_set_score", seed=0, condition="top_and_random")
    assert (row["value"], row["n"], row["reason"]) == (None, 0, "no feature could be scored")
    row = measured.row("token_set_score", condition="top_and_random")
    assert (row["value"], row["reason"]) == (None, "no feature could be scored")


def test_where_no_document_is_long_enough_it_says_so_and_goes_on(
    model: Embeds, measure: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    measured = measure(Autointerp(), [detectors()], {"faithful": text()}, language_model=model)
    assert "no document of faithful has 64 tokens" in caplog.text
    assert measured.row("token_set_score", seed=0, condition="top_only")["value"] is None
    assert measured.row("skipped", seed=0)["n"] == 0


def test_everything_is_the_same_again_and_another_seed_chooses_others(
    model: Embeds, measure: Callable[..., Any]
) -> None:
    options = Autointerp(**SMALL, n_features=12)

    def chosen(**changes: Any) -> Any:
        measured = measure(
            options, [random_directions()], {"faithful": text()}, language_model=model, **changes
        )
        return measured.rows, set(np.flatnonzero(measured.features["it.token_set_score.top_only"].notna()))

    rows, latents = chosen()
    assert len(latents) == 12
    # The size of batches moves nothing.
    again, same = chosen(batch_rows=17)
    assert same == latents
    assert [row["value"] for row in again] == pytest.approx([row["value"] for row in rows], abs=1e-6)
    assert chosen(seed=8)[1] != latents


def test_another_text_may_be_named_and_stands_in_the_rows(model: Embeds, measure: Callable[..., Any]) -> None:
    texts = {"faithful": text(), "other": text(seed=2)}
    measured = measure(Autointerp(**SMALL, dataset="other"), [detectors()], texts, language_model=model)
    assert {row["dataset"] for row in measured.rows} == {"other"}
    own = measure(Autointerp(**SMALL), [detectors()], texts, language_model=model)
    assert {row["dataset"] for row in own.rows} == {None}
    with pytest.raises(UsageError, match="unknown dataset 'elsewhere'; there are: faithful, other"):
        measure(Autointerp(dataset="elsewhere"), [detectors()], texts, language_model=model)


def test_the_table_of_features_can_be_read(model: Embeds, measure: Callable[..., Any]) -> None:
    measured = measure(Autointerp(**SMALL), [detectors()], {"faithful": text()}, language_model=model)
    (table,) = json.loads((measured.folder / "artifacts" / "features.json").read_text())["saes"]
    assert (table["n_fragments"], table["n_alive"], table["n_chosen"], table["skipped"]) == (600, 20, 20, [])
    first = table["features"][0]
    assert (first["latent"], first["contexts"][0]["token"]) == (0, " 10")
    own = first["scores"][0]
    assert (own["metric"], own["explanation"]) == ("token_set_score", "' 10' 0.4")
    assert own["scores"]["top_and_random"] == pytest.approx(1)
    lines = (measured.folder / "artifacts" / "features.txt").read_text().splitlines()
    assert lines[0].startswith(
        "Features of faithful, model.layers.0, main, seed 0: 20 of 20 alive, 0 skipped"
    )
    assert lines[2].startswith("- 0: 0.40 at `")
    assert "«10»" in lines[2].replace(" ", "")
    assert lines[3] == "  - token_set_score 1.00: ' 10' 0.4"
    # One line for the place, one for the score, of ten features.
    assert len(lines) == 2 + 20


def test_runs_in_an_experiment(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    options = {"fragment_tokens": 6, "per_document": 2, "n_features": 12}
    source = {"plugin": "self_generated", "n_tokens": 6_400, "batch_size": 64}
    changes = {"sources": {"faithful": source}, "evaluators": [{"autointerp": options}]}
    folder = run(ExperimentConfig.from_dict({**tiny_config, **changes}), output=tmp_path / "run")
    rows = [json.loads(line) for line in folder.results_file.read_text().splitlines()]
    scores = [row for row in rows if row["metric"] == "token_set_score"]
    # Two seeds and their source, three subsets.
    assert len(scores) == 9
    assert all(row["n"] > 0 for row in scores if row["condition"] == "top_only")
    features = pd.read_parquet(folder.features_file)
    assert "autointerp.token_set_score.top_only" in features
    assert (features["autointerp.active_fragments"] > 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_features": 0}, "n_features 0 is not positive"),
        ({"retries": -1}, "retries -1 is below 0"),
        ({"fragment_tokens": 1}, "one token has no correlation"),
        ({"scores": []}, "scores is empty"),
        ({"scores": ["guess"]}, "token_set"),
        ({"prices": [1.0]}, "prices: give two"),
        ({"max_cost": 3.0}, "max_cost needs prices"),
        ({"scores": ["simulation"]}, "explainer: scores simulation ask a language model; name one"),
        ({"scores": ["fuzzing"], "explainer": "m"}, "neither OPENAI_BASE_URL"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UsageError, match=re.escape(message)):
        load_plugins().create("evaluator", "autointerp", options)
