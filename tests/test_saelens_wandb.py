"""SAELens's logging, in a run of ours: odd names, odd norms and a run that is closed too early end no training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sae_faithful import ExperimentConfig, PluginTrainingRunner, RunError, run
from sae_faithful.saelens_wandb import StandIn
from sae_faithful.wandb_run import WandbRun

from .wandb_files import logged_runs

LOGGER = {"log_to_wandb": True, "run_name": "name", "wandb_log_frequency": 5, "eval_every_n_wandb_logs": 2}
SAE = "saes/faithful/model.layers.0/base/seed0/sae_weights.safetensors"


@pytest.fixture
def config(tiny_config: dict[str, Any]) -> dict[str, Any]:
    """One small SAE, with W&B on."""
    return {**tiny_config, "sae_seeds": [0], "logger": LOGGER}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in records if record.name.startswith("sae_faithful.wandb")]


def train(config: dict[str, Any], output: Path) -> dict[str, torch.Tensor]:
    folder = run(ExperimentConfig.from_dict(config), output=output, until="saes")
    return load_file(folder.root / SAE)


def test_an_unreachable_host_ends_normally_with_the_same_weights(
    config: dict[str, Any], wandb_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("sae_faithful.wandb_run.INIT_SECONDS", 2.0)
    there = train(config, tmp_path / "on")
    (line,) = warnings(caplog)
    assert line.startswith("W&B at http://127.0.0.1:9: ")
    without = train({**config, "logger": {"log_to_wandb": False}}, tmp_path / "off")
    assert there.keys() == without.keys()
    for name, tensor in there.items():
        assert torch.equal(tensor, without[name]), name
    (found,) = [one for one in logged_runs(wandb_home) if one.exit_code is not None]
    assert "losses/overall_loss" in found.logged
    assert [one.type for one in found.artifacts] == ["dataset", "model", "log_feature_sparsity"]


def test_a_run_closed_in_the_middle_and_a_model_with_a_colon_end_normally(
    config: dict[str, Any], wandb_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """SAELens names artifacts after the model, and W&B takes no ":" in them."""
    import wandb

    from sae_faithful_plugins.fake_features import FakeFeatures

    copy = tmp_path / "tiny:llama"
    copy.symlink_to(config["model_name"])
    config = {**config, "model_name": str(copy), "monitors": ["fake_features"]}
    train(config, tmp_path / "whole")
    assert warnings(caplog) == []
    (found,) = logged_runs(wandb_home)
    assert [one.type for one in found.artifacts] == ["dataset", "model", "log_feature_sparsity"]

    def finish(*_: Any) -> list[Any]:
        wandb.finish()
        return []

    monkeypatch.setattr(FakeFeatures, "evaluate", finish)
    train(config, tmp_path / "closed")
    (line,) = warnings(caplog)
    assert line.startswith("W&B run name-faithful: ")
    assert wandb.run is None


def test_a_training_that_fails_closes_its_run_as_failed(
    config: dict[str, Any], wandb_home: Path, tmp_path: Path
) -> None:
    import sae_lens.training.sae_trainer as host
    import wandb

    with pytest.raises(RunError, match="not finite"):
        train({**config, "lr": 1e30}, tmp_path / "run")
    (found,) = logged_runs(wandb_home)
    assert found.exit_code == 1
    assert wandb.run is None
    assert host.wandb is wandb


def test_the_drop_in_runner_logs_into_a_run_of_its_own(config: dict[str, Any], wandb_home: Path) -> None:
    experiment = ExperimentConfig.from_dict(config)
    PluginTrainingRunner(experiment).run()
    (found,) = logged_runs(wandb_home)
    assert (found.run.display_name, found.run.job_type, found.run.run_group) == ("name", "train", "")
    assert found.config["sources"] == config["sources"] | {}
    assert {"losses/overall_loss", "metrics/l0"} <= found.logged.keys()
    assert [one.type for one in found.artifacts] == ["model", "log_feature_sparsity"]
    assert type(experiment.logger).__name__ == "LoggingConfig"


@pytest.mark.parametrize("values", [[1.0] * 50, [1.0, 1.0 + 1e-7] * 25, [0.0, 1.0, 2.0]])
def test_a_histogram_of_norms_that_are_all_but_equal(values: list[float]) -> None:
    counts = StandIn(WandbRun(None)).Histogram(np.array(values, dtype=np.float32)).histogram
    assert sum(counts) == len(values)


def test_what_needs_no_run_is_w_and_b_itself() -> None:
    import wandb

    assert StandIn(WandbRun(None)).Artifact is wandb.Artifact
