"""The data of the feature pages: every latent's numbers, compactly, and what was written of chosen ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_faithful.report import feature_pages
from sae_faithful.report.feature_pages import feature_data
from sae_faithful.report.run_data import read_runs

HOOK = "model.layers.3"
SAE = {"source": "faithful", "hook": HOOK, "variant": "base", "seed": 0}
CONTEXT = {"row": 1, "position": 2, "tokens": ["a", "b"], "activations": [0.0, 1.23456], "peak": 1}
SNIPPET = {"activation": 2.0, "before": "x", "token": "y", "after": "z", "row": 0, "position": 1}


def frame(source: str = "faithful", seed: int = 0, n: int = 4, **columns: Any) -> pd.DataFrame:
    keys = {"source": source, "hook": HOOK, "variant": "base", "seed": seed}
    return pd.DataFrame({**keys, "latent": np.arange(n), **columns})


def contexts(*latents: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "results/top_contexts/artifacts/contexts.json": {
            "saes": [{**SAE, **fields, "latents": list(latents)}]
        }
    }


def only(data: dict[str, Any]) -> dict[str, Any]:
    (sae,) = data["saes"]
    return sae


def test_columns_are_rounded_whole_numbers_kept_and_what_is_missing_is_null(write_run: Any) -> None:
    features = frame(
        rate=np.array([0.123456, np.nan, 1.0, np.inf], np.float32),
        match=[70_123.0, 3.0, np.nan, 0.0],
        empty=np.full(4, np.nan),
    )
    sae = only(feature_data(read_runs([write_run([], features=features)])))
    assert sae["columns"] == {"rate": [0.1235, None, 1, None], "match": [70_123, 3, None, 0]}
    assert (sae["n"], sae["latents"], sae["pages"]) == (4, None, {})


def test_sparse_columns_are_pairs(write_run: Any) -> None:
    score = np.full(10, np.nan)
    score[[2, 7]] = 0.5, -0.25
    sae = only(feature_data(read_runs([write_run([], features=frame(n=10, score=score))])))
    assert sae["columns"] == {"score": {"at": [2, 7], "values": [0.5, -0.25]}}


def test_saes_are_in_the_order_of_sources_and_latents_in_theirs(write_run: Any) -> None:
    table = pd.concat(
        [frame("news", rate=[0, 1, 2, 3]), frame(seed=1, rate=[3, 2, 1, 0]), frame(rate=[4, 5, 6, 7])]
    )
    data = feature_data(read_runs([write_run([], features=table.iloc[::-1])]))
    assert [(sae["source"], sae["seed"]) for sae in data["saes"]] == [
        ("faithful", 0),
        ("faithful", 1),
        ("news", 0),
    ]
    assert data["saes"][1]["columns"] == {"rate": [3, 2, 1, 0]}


def test_several_runs_have_sources_of_their_own(write_run: Any) -> None:
    runs = [
        write_run([], name=name, features=frame(rate=[0, 1, 2, 3]), baselines={"base": {}})
        for name in ("a", "b")
    ]
    data = feature_data(read_runs(runs))
    assert [sae["source"] for sae in data["saes"]] == ["a: faithful", "b: faithful"]
    assert all(sae["baseline"] for sae in data["saes"])


def test_a_page_has_all_that_was_written_about_its_latent(write_run: Any) -> None:
    latent = {"latent": 2, "why": ["fakest"], "maximum": 1.23456, "contexts": [CONTEXT], "promoted": [["a", 0.1]],
              "suppressed": [["b", -0.1]]}  # fmt: skip
    explained = {"latent": 2, "scores": [{"metric": "m", "explanation": "e", "scores": {"top": 0.123456}}],
                 "contexts": [SNIPPET]}  # fmt: skip
    case = {"latent": 3, "why": "w", "n_active": 5, "contexts": [SNIPPET], "histogram": {"large": 1},
            "neuron": {"index": 7, "histogram": {}}}  # fmt: skip
    fake = {"latent": 1, "fake": True, "contexts": [SNIPPET]}
    files = contexts(latent, neuronpedia="gpt2-small/6-res-jb") | {
        "results/autointerp/artifacts/features.json": {"saes": [{**SAE, "features": [explained]}]},
        "results/case_studies/artifacts/cases.json": {"saes": [{**SAE, "features": [case]}]},
        "results/fake_features/artifacts/fake_latents.json": {"saes": [{**SAE, "latents": [fake]}]},
    }
    sae = only(feature_data(read_runs([write_run([], files=files)])))
    assert (sae["n"], sae["neuronpedia"]) == (None, "gpt2-small/6-res-jb")
    short = {name: SNIPPET[name] for name in ("activation", "before", "token", "after")} | {"activation": 2}
    # Where there are whole contexts, snippets are not repeated.
    assert sae["pages"] == {
        "1": {"snippets": {"fake_features": [short]}},
        "2": {
            "why": ["fakest"], "maximum": 1.235, "promoted": [["a", 0.1]], "suppressed": [["b", -0.1]],
            "contexts": [{**CONTEXT, "activations": [0, 1.235]}],
            "explained": [{"metric": "m", "explanation": "e", "scores": {"top": 0.1235}}],
        },
        "3": {"case": {"why": "w", "n_active": 5, "neuron": {"index": 7}}, "snippets": {"case_studies": [short]}},
    }  # fmt: skip


def test_of_too_many_latents_only_the_chosen_ones_are_embedded(
    write_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_pages, "MOST_LATENTS", 7)
    files = contexts(
        {"latent": 2, "why": [], "contexts": []}, {"latent": 0, "why": ["match"], "contexts": []}
    )
    small, large = (
        feature_data(
            read_runs([write_run([], name=str(n), files=files, features=frame(n=n, rate=np.arange(n) / 4))])
        )
        for n in (7, 8)
    )
    assert (small["complete"], large["complete"]) == (True, False)
    assert only(small)["latents"] is None
    assert (only(large)["n"], only(large)["latents"]) == (8, [0, 2])
    assert only(large)["columns"] == {"rate": [0, 0.5]}


def test_six_saes_of_the_quickstarts_size_stay_small(write_run: Any) -> None:
    rng = np.random.default_rng(0)
    names = [f"evaluator.column_{i}" for i in range(20)]
    table = pd.concat(
        [
            frame(source, seed, 2_304, **{name: rng.random(2_304) for name in names})
            for source in ("faithful", "news")
            for seed in range(3)
        ]
    )
    data = feature_data(read_runs([write_run([], features=table)]))
    assert data["complete"]
    # 276,480 numbers of at most six characters, and a comma.
    assert len(json.dumps(data, separators=(",", ":"))) < 2.1e6
