"""The evaluator from options to rows, on planted concepts; and once with the real package, where there is one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sae_faithful_plugins.sae_probes_benchmark as plugin
from sae_faithful import RunError, SAEHandle, UsageError, load_plugins
from sae_faithful_plugins.sae_probes_benchmark import SAEProbesBenchmark
from sae_faithful_plugins.sae_probes_benchmark.environment import VARIABLE

VOCAB, CONCEPT, OTHER = 64, 10, 11
HOOK = "model.layers.0"
REAL = os.environ.get(VARIABLE)
"""Read before any test sets it."""


def texts(ends: list[int], targets: list[int]) -> pd.DataFrame:
    """Texts of two to four words, the last of them given."""
    prompts = ["w20 " * (1 + i % 3) + f"w{end}" for i, end in enumerate(ends)]
    return pd.DataFrame({"prompt": prompts, "target": targets})


DATASETS = {
    # The last word tells the class.
    "1_last_word": texts([CONCEPT, OTHER] * 4, [1, 0] * 4),
    # Each last word stands as often under one class as under the other.
    "2_nothing": texts([CONCEPT, CONCEPT, OTHER, OTHER] * 2, [1, 0] * 4),
}


def knows() -> np.ndarray:
    """An encoder whose latent 2 fires on the concept."""
    encoder = np.zeros((VOCAB, 4))
    encoder[CONCEPT, 2] = 1.0
    return encoder


def ignores() -> np.ndarray:
    """One whose latents fire on other words alone."""
    encoder = np.zeros((VOCAB, 4))
    encoder[20, 0] = 1.0
    return encoder


@pytest.fixture
def model(one_hot_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The one-hot model with a tokenizer."""
    one_hot_model.tokenizer = tokenizer
    monkeypatch.setattr(type(one_hot_model), "context_limit", 64)
    return one_hot_model


MEASURED: list[Any] = []
"""What the fixture of that name measured, once for this file."""


@pytest.fixture
def measured(
    environment: Callable[..., Path], plant: Callable[..., Any], measure: Callable[..., Any], model: Any
) -> Any:
    """Of `faithful`, seed 0 knows the concept and seed 1 does not; nor does `news`."""
    if not MEASURED:
        environment(DATASETS)
        handles = [
            plant(knows(), source="faithful", seed=0),
            plant(ignores(), source="faithful", seed=1),
            plant(ignores(), source="news", seed=0),
            plant(ignores(), source="news", seed=1),
        ]
        MEASURED.append(measure(SAEProbesBenchmark(ks=[1, 2]), handles, {}, language_model=model))
    return MEASURED[0]


def test_a_planted_concept_is_found_where_it_is(measured: Any) -> None:
    row = measured.row("benchmark_auc", source="faithful", seed=0, dataset="1_last_word", condition="k=1")
    assert (row["value"], row["n"], row["unit"]) == (1.0, 8, "probability")
    assert row["reason"] == "sae-probes gives one score of one split, which shows no spread"
    blind = measured.row("benchmark_auc", source="faithful", seed=1, dataset="1_last_word", condition="k=2")
    assert blind["value"] == 0.5
    chance = measured.row("benchmark_auc", source="faithful", seed=0, dataset="2_nothing", condition="k=1")
    assert chance["value"] == 0.5
    # (1 + 1/2) / 2, of two datasets.
    mean = measured.row(
        "benchmark_auc", source="faithful", seed=0, dataset="mean of 2 datasets", condition="k=1"
    )
    assert (mean["value"], mean["n"]) == (0.75, 2)


def test_the_scores_keep_their_names(measured: Any) -> None:
    where = {"source": "faithful", "seed": 0, "dataset": "1_last_word", "condition": "k=1"}
    assert measured.row("benchmark_accuracy", **where)["value"] == pytest.approx(0.9)
    assert measured.row("benchmark_f1", **where)["value"] == pytest.approx(0.8)


def test_the_baseline_reads_the_activations(measured: Any) -> None:
    row = measured.row("benchmark_auc", source=None, hook=HOOK, dataset="1_last_word", condition="logreg")
    assert row["value"] == 1.0
    assert row["variant"] is None


def test_a_source_has_an_interval_over_its_saes(measured: Any) -> None:
    row = measured.row("benchmark_auc", source="faithful", dataset="1_last_word", condition="k=1")
    # 1 and 1/2: mean 3/4, SD 1/√8, its error 1/4; t of one degree of freedom at 97.5 % is 12.706.
    assert (row["value"], row["n"]) == (0.75, 2)
    assert row["ci_low"] == pytest.approx(0.75 - 12.706 / 4, abs=1e-3)
    assert row["ci_high"] == pytest.approx(0.75 + 12.706 / 4, abs=1e-3)


def test_differences_are_paired(measured: Any) -> None:
    def difference(source: str, condition: str) -> dict[str, Any]:
        return measured.row(
            "benchmark_auc_difference", source=source, dataset="mean of 2 datasets", condition=condition
        )

    # Against the baseline's mean of 3/4: 0 and -1/4.
    assert difference("faithful", "k=1 - logreg")["value"] == pytest.approx(-0.125)
    between = difference("faithful", "k=1 of faithful - k=1 of news")
    # 1/4 with seed 0, nothing with seed 1: error 1/8.
    assert between["value"] == pytest.approx(0.125)
    assert between["ci_high"] == pytest.approx(0.125 + 12.706 / 8, abs=1e-3)
    same = difference("news", "k=1 - logreg")
    assert (same["value"], same["ci_low"]) == (pytest.approx(-0.25), None)
    assert same["reason"] == "every seed gives the same difference: it shows no spread"
    headlines = {(row["source"], row["condition"]) for row in measured.rows if row["headline"]}
    pairs = {("faithful", f"k={k} of faithful - k={k} of news") for k in (1, 2)}
    own = {(source, f"k={k} - logreg") for source in ("faithful", "news") for k in (1, 2)}
    assert headlines == pairs | own


def test_what_sae_probes_wrote_is_kept(measured: Any) -> None:
    written = json.loads((measured.folder / "artifacts" / "sae_probes.json").read_text())
    assert written["versions"]["sae-probes"] == "0.4.2"
    assert [sae["seed"] for sae in written["saes"]] == [0, 1, 0, 1]
    first = written["scores"][0]
    assert (first["sae"], first["dataset"], first["indices"]) == (0, "1_last_word", [2])


def test_one_sae_and_no_common_seed_give_reasons(
    environment: Callable[..., Path], plant: Callable[..., Any], measure: Callable[..., Any], model: Any
) -> None:
    environment(DATASETS)
    handles = [plant(knows(), source="faithful", seed=0), plant(ignores(), source="news", seed=5)]
    result = measure(SAEProbesBenchmark(datasets=["1_last_word"], ks=[1]), handles, {}, language_model=model)
    assert {row["dataset"] for row in result.rows} == {"1_last_word", "mean of 1 datasets"}
    own = result.row("benchmark_auc", source="faithful", dataset="1_last_word", condition="k=1")
    assert own["reason"] == "one SAE says nothing about the spread between SAEs"
    pair = result.row(
        "benchmark_auc_difference", dataset="1_last_word", condition="k=1 of faithful - k=1 of news"
    )
    assert (pair["value"], pair["reason"]) == (None, "faithful and news have no SAE seed in common")


def test_a_failure_is_one_line_and_its_output_is_kept(
    environment: Callable[..., Path], plant: Callable[..., Any], measure: Callable[..., Any], model: Any
) -> None:
    python = environment(DATASETS)
    evaluator = SAEProbesBenchmark(datasets=["1_last_word"], ks=[1])
    # Fewer labels than texts.
    source = python.parent / "site/sae_probes/__init__.py"
    source.write_text(source.read_text().replace('["target"]', '["target"].iloc[:-1]'))
    with pytest.raises(
        RunError, match=r"sae-probes failed at score: IndexError: 8 activations of 7 texts"
    ) as info:
        measure(evaluator, [plant(knows())], {}, language_model=model)
    assert "\n" not in str(info.value)
    kept = re.search(r"its whole output: (.+)$", str(info.value))
    assert kept is not None
    assert "Traceback" in Path(kept[1]).read_text()


def test_more_latents_than_there_are(
    environment: Callable[..., Path], plant: Callable[..., Any], measure: Callable[..., Any], model: Any
) -> None:
    environment(DATASETS)
    with pytest.raises(UsageError, match=r"ks: 5 is more than the 4 latents of faithful/.*/0"):
        measure(SAEProbesBenchmark(ks=[1, 5]), [plant(knows())], {}, language_model=model)


def test_options_are_checked_before_anything_runs(environment: Callable[..., Path]) -> None:
    environment(DATASETS)
    manager = load_plugins()
    if "sae_probes_benchmark" not in manager.registrations("evaluator"):
        manager.register(plugin)
    made = manager.create("evaluator", "sae_probes_benchmark", {"ks": ["4"], "setting": "scarcity"})
    assert made.ks == [4]
    for options, message in (
        ({"datasets": ["1_last_wrod"]}, r"unknown dataset '1_last_wrod' \(did you mean 1_last_word\?\)"),
        ({"datasets": ["9_year"]}, "unknown dataset '9_year'"),
        ({"datasets": ["1_last_word", "1_last_word"]}, "dataset '1_last_word' is named twice"),
        ({"ks": []}, "ks is empty"),
        ({"ks": [0]}, "ks: 0 is not positive"),
        ({"max_tokens": 0}, "max_tokens 0 is not positive"),
        ({"setting": "OOD"}, "scarcity"),
        ({"python": "/usr/bin/python3"}, "unknown option 'python'"),
    ):
        with pytest.raises(UsageError, match=message):
            manager.create("evaluator", "sae_probes_benchmark", options)


@pytest.mark.skipif(not REAL, reason=f"{VARIABLE} is not set")
def test_the_real_package(
    byte_llama: Any, measure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAELens's TopK SAEs at both layers of a random Llama, on the smallest set of the real benchmark."""
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig

    monkeypatch.setenv(VARIABLE, str(REAL))

    def handle(hook: str, seed: int) -> SAEHandle:
        def load() -> Any:
            torch.manual_seed(seed)
            sae = TopKSAE(TopKSAEConfig(d_in=64, d_sae=96, k=8))
            torch.nn.init.normal_(sae.W_enc)
            return sae

        return SAEHandle(source="faithful", hook=hook, variant="base", seed=seed, load=load)

    handles = [handle(hook, seed) for hook in byte_llama.hooks for seed in (0, 1)]
    evaluator = SAEProbesBenchmark(datasets=["119_us_state_TX"], ks=[1, 16])
    result = measure(evaluator, handles, {}, language_model=byte_llama)
    # 4 SAEs × 2 k and 2 baselines, 2 sources' means × 2 k; 3 metrics; each on the dataset and in the mean.
    measured = [row for row in result.rows if row["metric"] != "benchmark_auc_difference"]
    assert len(measured) == (4 * 2 + 2 + 2 * 2) * 3 * 2
    aucs = [row["value"] for row in measured if row["metric"] == "benchmark_auc"]
    assert all(0 < auc < 1 for auc in aucs)
    assert len(set(aucs)) > 10
    written = json.loads((result.folder / "artifacts" / "sae_probes.json").read_text())
    assert {len(row["indices"]) for row in written["scores"] if "sae" in row} == {1, 16}
