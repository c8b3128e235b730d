"""The evaluator from table to rows, on planted concepts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sae_faithful_plugins.probing as plugin
from sae_faithful import UsageError, load_plugins
from sae_faithful_plugins.probing import Probing

VOCAB = 64
CONCEPT = 10


@pytest.fixture
def model(one_hot_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The one-hot model with a tokenizer."""
    one_hot_model.tokenizer = tokenizer
    monkeypatch.setattr(type(one_hot_model), "context_limit", 64)
    return one_hot_model


def concept_task(path: Path, *, shuffled: bool = False, n: int = 300) -> list[Any]:
    """Texts of random words; those of class 1 hold w10."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    texts: list[str] = []
    for label in labels:
        words = rng.integers(20, VOCAB, size=rng.integers(3, 9)).tolist()
        words[0] = CONCEPT if label else 11
        texts.append(" ".join(f"w{word}" for word in rng.permutation(words)))
    if shuffled:
        labels = rng.permutation(labels)
    pd.DataFrame({"text": texts, "label": labels}).to_csv(path, index=False)
    return [{"concept": {"path": str(path)}}]


def knows() -> np.ndarray:
    """An encoder whose latent 3 fires on the concept, the others on some other words."""
    encoder = np.zeros((VOCAB, 6))
    encoder[CONCEPT, 3] = 1.0
    for latent in (0, 1, 2, 4, 5):
        encoder[20 + 5 * latent : 25 + 5 * latent, latent] = 1.0
    return encoder


def ignores() -> np.ndarray:
    """The same without the concept."""
    encoder = knows()
    encoder[:, 3] = 0
    return encoder


def probing(tasks: list[Any], **options: Any) -> Probing:
    return Probing(tasks=tasks, sparse_k=[1, 4], **options)


MEASURED: list[Any] = []
"""What the fixture of that name measured, once for this file."""


@pytest.fixture
def measured(plant: Callable[..., Any], measure: Callable[..., Any], model: Any, tmp_path: Path) -> Any:
    """SAEs of `faithful` know the concept, those of `news` do not."""
    if MEASURED:
        return MEASURED[0]
    handles = [
        plant(encoder, source=source, seed=seed)
        for source, encoder in (("faithful", knows()), ("news", ignores()))
        for seed in (0, 1)
    ]
    MEASURED.append(measure(probing(concept_task(tmp_path / "a.csv")), handles, {}, language_model=model))
    return MEASURED[0]


def test_a_planted_concept_is_read_from_latents_that_know_it(measured: Any) -> None:
    for condition in ("latents", "latents,k=1"):
        assert measured.row("probe_accuracy", source="faithful", seed=0, condition=condition)["value"] == 1
    for metric in ("probe_accuracy", "probe_auc", "probe_mcc"):
        assert measured.row(metric, source=None, condition="raw")["value"] == 1
        assert measured.row(metric, source=None, condition="tfidf")["value"] == 1
    # 90 test texts, chance 1/2: four standard errors are .21.
    blind = measured.row("probe_accuracy", source="news", seed=0, condition="latents")["value"]
    assert abs(blind - 0.5) < 0.21
    # Its residual still holds the word.
    assert measured.row("probe_accuracy", source="news", seed=0, condition="residual")["value"] == 1
    probes = json.loads((measured.folder / "artifacts" / "probes.json").read_text())["concept"]
    assert probes["latents/faithful/model.layers.0/main/0/1"]["latents"] == [3]


def test_each_latent_has_what_it_is_ranked_by(measured: Any) -> None:
    column = measured.features.set_index(["source", "seed", "latent"])["it.f_statistic.concept"]
    knowing, blind = column["faithful", 0], column["news", 0]
    # It fires on one word of every text of its class, whose lengths differ; nothing else comes near.
    assert knowing.idxmax() == 3
    assert knowing[3] > 20 * knowing.drop(3).max() > 0
    assert blind.drop(3).notna().all()
    assert np.isnan(blind[3])
    # The first probe of one latent took the best.
    probes = json.loads((measured.folder / "artifacts" / "probes.json").read_text())["concept"]
    assert probes["latents/news/model.layers.0/main/0/1"]["latents"] == [blind.idxmax()]


def test_majority(measured: Any) -> None:
    row = measured.row("probe_accuracy", source=None, condition="majority")
    assert row["value"] == 0.5
    assert row["n"] == 90
    assert measured.row("probe_auc", source=None, condition="majority")["value"] == 0.5
    assert measured.row("probe_mcc", source=None, condition="majority")["value"] == 0


def test_headlines_are_paired_differences(measured: Any) -> None:
    headlines = [row for row in measured.rows if row["headline"]]
    assert {(row["source"], row["condition"]) for row in headlines} == {
        ("faithful", "accuracy: latents - raw"),
        ("faithful", "accuracy: reconstruction - raw"),
        ("faithful", "accuracy: latents of faithful - latents of news"),
        ("news", "accuracy: latents - raw"),
        ("news", "accuracy: reconstruction - raw"),
    }
    own = measured.row("probe_difference", source="faithful", condition="accuracy: latents - raw")
    # Both are right on every text: so are they in every draw.
    assert (own["value"], own["ci_low"], own["ci_high"], own["n"]) == (0, 0, 0, 2)
    between = measured.row(
        "probe_difference", source="faithful", condition="accuracy: latents of faithful - latents of news"
    )
    means = [
        measured.row("probe_accuracy", source=source, condition="latents")["value"]
        for source in ("faithful", "news")
    ]
    assert between["value"] == pytest.approx(means[0] - means[1])
    assert between["ci_low"] > 0


def test_flaw_no_interval(measured: Any) -> None:
    """Reference flaw: accuracies without an interval."""
    for row in measured.rows:
        assert row["reason"] or row["ci_low"] <= row["value"] <= row["ci_high"], row
    # What every draw of texts agrees on has no spread to show: an AUC of 1 or of a constant.
    lacking = [row for row in measured.rows if row["ci_low"] is None]
    assert all(row["metric"] == "probe_auc" and row["value"] in (0.5, 1.0) for row in lacking)
    assert all("it shows no spread" in row["reason"] for row in lacking)
    assert all(row["dataset"] == "concept" for row in measured.rows)


def test_shuffled_labels_are_at_chance(
    plant: Callable[..., Any], measure: Callable[..., Any], model: Any, tmp_path: Path
) -> None:
    tasks = concept_task(tmp_path / "a.csv", shuffled=True)
    result = measure(probing(tasks), [plant(knows())], {}, language_model=model)
    for row in result.rows:
        if row["metric"] == "probe_accuracy":
            # 90 test texts: a standard error of √(.25 / 90) = .053; four of them.
            assert abs(row["value"] - 0.5) < 0.211, row["condition"]


def test_flaw_unseeded_runs_are_alike(
    plant: Callable[..., Any], measure: Callable[..., Any], model: Any, tmp_path: Path
) -> None:
    """Reference flaw: nothing is seeded."""
    tasks = concept_task(tmp_path / "a.csv", shuffled=True, n=120)
    runs = [measure(probing(tasks), [plant(knows())], {}, language_model=model).rows for _ in range(2)]
    assert runs[0] == runs[1]


def test_one_sae_and_few_texts_give_reasons(
    plant: Callable[..., Any], measure: Callable[..., Any], model: Any, tmp_path: Path
) -> None:
    tasks = concept_task(tmp_path / "a.csv", n=60)  # 18 test texts
    handles = [plant(knows(), seed=0), plant(ignores(), source="news", seed=5)]
    result = measure(probing(tasks), handles, {}, language_model=model)
    own = result.row("probe_accuracy", source="faithful", seed=0, condition="latents")
    assert own["reason"] == "18 test texts; an interval needs at least 50"
    mean = result.row("probe_accuracy", source="faithful", condition="latents")
    assert mean["reason"] == "one SAE says nothing about the spread between SAEs"
    pair = result.row(
        "probe_difference", source="faithful", condition="accuracy: latents of faithful - latents of news"
    )
    assert (pair["value"], pair["reason"]) == (None, "faithful and news have no SAE seed in common")


def test_options_are_checked_by_name() -> None:
    manager = load_plugins()
    if "probing" not in manager.registrations("evaluator"):
        manager.register(plugin)
    made = manager.create("evaluator", "probing", {"data": "sae_probes", "tasks": ["sst2"], "cs": ["1e-2"]})
    assert made.cs == [0.01]
    for options, message in (
        ({"tasks": ["imdb"]}, "unknown task 'imdb'; choices: sst2, cola, yelp_polarity"),
        ({"tasks": [{"mine": {"path": "nowhere.csv"}}]}, "task 'mine': there is no file nowhere.csv"),
        ({"data": "local"}, "hub"),
        ({"max_tokens": 0}, "max_tokens 0 is not positive"),
        ({"sparse_k": [0]}, "sparse_k: 0 is not positive"),
        ({"tasks": []}, "tasks is empty"),
        ({"pooling": "mean"}, "did you mean pool"),
    ):
        with pytest.raises(UsageError, match=message):
            manager.create("evaluator", "probing", options)
