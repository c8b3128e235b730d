"""In a run of the tiny model, beside the evaluators that it reads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful import ExperimentConfig, LanguageModel, TokenSet, run
from sae_faithful.sae_handle import SAEHandle


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("labelled") / "labelled.csv"
    lines = [f"w{4 + i % 60} w{4 + i % 59} w{4 + i // 3},{i % 2}" for i in range(120)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return str(path)


def test_a_run_shows_what_its_evaluators_found(tiny_config: dict[str, Any], labelled: str) -> None:
    import pandas as pd

    tasks = [{"parity": {"path": labelled, "text": "text", "label": "label"}}]
    evaluators: list[Any] = [
        {"top_contexts": {"n_latents": 3, "window": 4}},
        "shared_features",
        {"fake_features": {"n_tokens": 500}},
        {"probing": {"tasks": tasks, "sparse_k": [2]}},
    ]
    folder = run(ExperimentConfig.from_dict({**tiny_config, "evaluators": evaluators}))
    content = json.loads((folder.result_dir("top_contexts") / "artifacts/contexts.json").read_text())
    table = pd.read_parquet(folder.features_file).set_index(["seed", "latent"])
    shown = {sae["seed"]: {one["latent"]: one for one in sae["latents"]} for sae in content["saes"]}
    assert sorted(shown) == [0, 1]
    for seed, latents in shown.items():
        reasons = {why for one in latents.values() for why in one["why"]}
        assert reasons == {"fakest", "most_stable", "orphans", "best_probing.parity", "match"}
        best = table.loc[seed]["probing.f_statistic.parity"].nlargest(3)
        assert set(best.index) <= {j for j, one in latents.items() if "best_probing.parity" in one["why"]}
        for latent, one in latents.items():
            match = table.loc[seed, latent][f"shared_features.match.seed{1 - seed}"]
            if one["why"] != ["match"]:
                assert int(match) in shown[1 - seed]
            # One to one: the match of a match is the latent itself.
            assert table.loc[1 - seed, int(match)][f"shared_features.match.seed{seed}"] == latent
    tokens = TokenSet.open(folder.data_dir("faithful") / "held_out.arrow").rows()
    model = LanguageModel(tiny_config["model_name"], hooks=("model.layers.0",))
    activations = model.activations(torch.from_numpy(tokens), ["model.layers.0"])["model.layers.0"]
    for sae in content["saes"]:
        path = folder.sae_dir("faithful", "model.layers.0", sae["variant"], sae["seed"])
        handle = SAEHandle.from_disk(path, source="", hook="", variant="", seed=0)
        codes = handle.encode(activations).numpy()
        codes[tokens < 3] = 0  # special tokens
        for one in sae["latents"]:
            # Each in another row, strongest first, and as the whole text has them.
            strongest = np.sort(codes[:, :, one["latent"]].max(axis=1))[::-1][:5]
            peaks = [place["activations"][place["peak"]] for place in one["contexts"]]
            np.testing.assert_allclose(peaks, strongest[strongest > 0], rtol=6e-3)
            assert len({place["row"] for place in one["contexts"]}) == len(one["contexts"])
            for place in one["contexts"]:
                start = place["position"] - place["peak"]
                stop = start + len(place["tokens"])
                assert (start, stop) == (max(0, place["position"] - 4), min(16, place["position"] + 5))
                expected = codes[place["row"], start:stop, one["latent"]]
                np.testing.assert_allclose(place["activations"], expected, rtol=6e-3, atol=1e-5)
            assert len(one["promoted"]) == len(one["suppressed"]) == 10
