"""The drop-in runner."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_faithful import (
    ExperimentConfig,
    LanguageModel,
    PluginTrainingRunner,
    RunError,
    TokenSet,
    UsageError,
    run,
)


def stock_config(tiny_config: dict[str, Any], dataset_path: str) -> Any:
    """A plain SAELens config: none of this project's fields."""
    from sae_lens import LanguageModelSAERunnerConfig

    config = ExperimentConfig.from_dict({**tiny_config, "sae_seeds": [], "sources": {}})
    names = [entry.name for entry in dataclasses.fields(LanguageModelSAERunnerConfig) if entry.init]
    fields = {name: getattr(config, name) for name in names}
    return LanguageModelSAERunnerConfig(**fields | {"dataset_path": dataset_path, "checkpoint_path": None})


def test_a_plain_saelens_config_may_name_a_source_as_its_dataset(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    cfg = stock_config(tiny_config, "self_generated")
    cfg.output_path = str(tmp_path / "sae")
    sae = PluginTrainingRunner(cfg).run()
    from sae_lens import SAE

    saved = SAE.load_from_disk(tmp_path / "sae")
    # SAELens folds the decoder's norms on saving: the function is the same, the weights are not.
    x = torch.randn(5, 64)
    torch.testing.assert_close(saved(x), sae.eval()(x))
    assert saved.cfg.metadata.dataset_path == "self_generated"


def test_it_trains_the_weights_that_a_run_trains(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    config = ExperimentConfig.from_dict({**tiny_config, "sae_seeds": [5]})
    folder = run(config, output=tmp_path / "run", until="saes")
    config.output_path = str(tmp_path / "alone")
    PluginTrainingRunner(config).run()
    from safetensors.torch import load_file

    weights = load_file(folder.sae_dir("faithful", "model.layers.0", "base", 5) / "sae_weights.safetensors")
    for name, tensor in load_file(tmp_path / "alone" / "sae_weights.safetensors").items():
        assert torch.equal(tensor, weights[name]), name


def test_equal_configs_give_equal_weights_whatever_the_random_state(tiny_config: dict[str, Any]) -> None:
    def train(state: int) -> torch.Tensor:
        cfg = stock_config(tiny_config, "self_generated")
        cfg.output_path = None
        torch.manual_seed(state)
        return PluginTrainingRunner(cfg).run().W_dec.detach()

    assert torch.equal(train(1), train(2))


def test_a_ctrl_c_leaves_no_checkpoint_where_none_is_asked_for(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.training.sae_trainer import SAETrainer

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    cfg = stock_config(tiny_config, "self_generated")
    cfg.checkpoint_path = str(tmp_path / "checkpoints")
    assert cfg.n_checkpoints == 0
    monkeypatch.setattr(SAETrainer, "_train_step", interrupt)
    runner = PluginTrainingRunner(cfg)
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert not (tmp_path / "checkpoints").exists()


def test_a_misspelt_source_is_named_before_any_weights_load(
    tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("sae_lens.load_model.load_model", refuse)
    with pytest.raises(
        UsageError, match=r"unknown source 'self_generatd' in dataset_path \(did you mean self_generated\?\)"
    ):
        PluginTrainingRunner(stock_config(tiny_config, "self_generatd"))


def test_several_saes_are_refused_with_the_way_out(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"trains one SAE; this config asks for 2 on 1 sources: use sae_faithful\.run"
    ):
        PluginTrainingRunner(ExperimentConfig.from_dict(tiny_config))


def test_data_given_in_code_is_used_untouched(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    folder = run(ExperimentConfig.from_dict(tiny_config), output=tmp_path / "run", until="data")
    rows = TokenSet.open(folder.data_dir("faithful") / "train.arrow").for_saelens()
    cfg = stock_config(tiny_config, "self_generated")
    cfg.output_path = None
    runner = PluginTrainingRunner(cfg, override_dataset=rows)
    assert runner.activations_store.dataset is rows


def test_an_sae_of_a_random_model_says_so(tiny_config: dict[str, Any]) -> None:
    config = ExperimentConfig.from_dict({**tiny_config, "sae_seeds": [0], "model_init": "random"})
    PluginTrainingRunner(config).run()
    saved = json.loads((Path(tiny_config["output_path"]) / "cfg.json").read_text())
    assert saved["metadata"]["random_init_seed"] == LanguageModel.from_config(config).random_init_seed


def test_nothing_is_saved_after_a_loss_that_was_not_finite(
    tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU, where losses are looked at from time to time.
    monkeypatch.setattr("sae_faithful.training.is_looked_at", lambda loss, step: False)
    config = ExperimentConfig.from_dict({**tiny_config, "sae_seeds": [0], "lr": 1e30})
    with pytest.raises(RunError, match=r"the loss of SAE .*seed0 is not finite at training step"):
        PluginTrainingRunner(config).run()
    assert not list(Path(tiny_config["output_path"]).rglob("*.safetensors"))
