"""The architectures by name in an experiment: several seeds at once, monitors, evaluators, the compiled step."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from sae_faithful import ExperimentConfig, PluginTrainingRunner, run

if TYPE_CHECKING:
    from pathlib import Path


def with_architecture(tiny_config: dict[str, Any], architecture: str, **changes: Any) -> ExperimentConfig:
    sae = {**tiny_config["sae"], "architecture": architecture}
    return ExperimentConfig.from_dict({**tiny_config, "sae": sae, **changes})


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_an_experiment_trains_what_saelens_s_architecture_trains(
    tiny_config: dict[str, Any], tmp_path: Path, architecture: str
) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    for name in (architecture, f"sparse_{architecture}"):
        folder = run(with_architecture(tiny_config, name), output=tmp_path / name, until="saes")
        path = folder.sae_dir("faithful", "model.layers.0", "base", 1) / "sae_weights.safetensors"
        weights.append(load_file(path))
    for name, value in weights[0].items():
        # float32: one latent chosen otherwise at a near-tie moves a few weights by Adam's first steps.
        assert (weights[1][name] - value).norm() <= 1e-3 * value.norm(), name


def test_a_whole_run_with_monitors_and_evaluators(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    config = with_architecture(
        tiny_config,
        "sparse_topk",
        monitors=["shared_features"],
        evaluators=["shared_features", "reconstruction"],
        fused_adam=True,
        logger={"log_to_wandb": False, "wandb_log_frequency": 5, "eval_every_n_wandb_logs": 2},
    )
    folder = run(config, output=tmp_path / "run")
    rows = [json.loads(line) for line in (folder.root / "results.jsonl").read_text().splitlines()]
    assert {row["evaluator"] for row in rows} >= {"shared_features", "reconstruction"}
    saved = folder.sae_dir("faithful", "model.layers.0", "base", 0)
    assert json.loads((saved / "cfg.json").read_text())["architecture"] == "topk"
    assert list((folder.root / "monitors").iterdir())


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_the_compiled_step(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    torch._dynamo.reset()
    weights: list[dict[str, torch.Tensor]] = []
    for compiled in (False, True):
        config = with_architecture(
            tiny_config, "sparse_topk", sae_seeds=[0], training_tokens=640, compile_sae=compiled
        )
        config.output_path = str(tmp_path / str(compiled))
        PluginTrainingRunner(config).run()
        weights.append(load_file(tmp_path / str(compiled) / "sae_weights.safetensors"))
    for name, value in weights[0].items():
        assert (weights[1][name] - value).norm() <= 1e-4 * value.norm(), name
