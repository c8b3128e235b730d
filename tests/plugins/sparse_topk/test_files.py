"""Saved SAEs are SAELens's own kinds; checkpoints of one architecture resume in the other."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAVED_AS = {"topk": "topk", "batchtopk": "jumprelu"}


@pytest.mark.parametrize("architecture", SAVED_AS)
@pytest.mark.parametrize("rescale", [True, False])
def test_the_saved_sae_is_the_one_saelens_saves(
    training: Callable[..., Any], tmp_path: Path, architecture: str, rescale: bool
) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    configs: list[dict[str, Any]] = []
    for name in (architecture, f"sparse_{architecture}"):
        each = training(name, rescale_acts_by_decoder_norm=rescale)
        each.step(3)
        weights_path, config_path = each.sae.save_inference_model(tmp_path / name)
        weights.append(load_file(weights_path))
        configs.append(json.loads(config_path.read_text()))
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-12, atol=1e-12)
    assert configs[1].pop("metadata")["training_architecture"] == f"sparse_{architecture}"
    configs[0].pop("metadata")
    assert configs[0] == configs[1]
    assert configs[1]["architecture"] == SAVED_AS[architecture]


@pytest.mark.parametrize("architecture", SAVED_AS)
def test_the_saved_sae_loads_where_this_package_is_not(
    training: Callable[..., Any], tmp_path: Path, architecture: str
) -> None:
    each = training(f"sparse_{architecture}", dtype="float32")
    each.step(3)
    each.sae.save_inference_model(tmp_path / "sae")
    x = torch.randn(5, each.sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
    torch.save(x, tmp_path / "x.pt")
    script = """
import sys
sys.modules["sae_faithful"] = sys.modules["sae_faithful_plugins"] = None
import torch
from sae_lens import SAE
sae = SAE.load_from_disk(sys.argv[1] + "/sae")
torch.save(sae(torch.load(sys.argv[1] + "/x.pt")).detach(), sys.argv[1] + "/out.pt")
print(type(sae).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == {"topk": "TopKSAE", "batchtopk": "JumpReLUSAE"}[architecture]
    out = torch.load(tmp_path / "out.pt")
    assert torch.isfinite(out).all()
    if architecture == "topk":
        torch.testing.assert_close(out, each.sae(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", SAVED_AS)
@pytest.mark.parametrize(("first", "second"), [("", "sparse_"), ("sparse_", ""), ("sparse_", "sparse_")])
def test_a_checkpoint_of_one_resumes_in_the_other(
    training: Callable[..., Any], tmp_path: Path, architecture: str, first: str, second: str
) -> None:
    through = training(architecture)
    through.step(8)
    begun = training(first + architecture)
    begun.step(4)
    begun.trainer.save_checkpoint("4", tmp_path)
    resumed = training(second + architecture)
    resumed.trainer.load_trainer_state(tmp_path / "4")
    resumed.sae.load_weights_from_checkpoint(tmp_path / "4")
    resumed.step(4)
    for name, value in through.weights().items():
        torch.testing.assert_close(resumed.weights()[name], value, rtol=1e-12, atol=1e-12)
    assert resumed.trainer.act_freq_scores.equal(through.trainer.act_freq_scores)
    assert resumed.losses == [pytest.approx(each, rel=1e-12, abs=1e-12) for each in through.losses[4:]]


@pytest.mark.parametrize("architecture", SAVED_AS)
def test_a_checkpoint_loads_as_a_training_sae(
    training: Callable[..., Any], tmp_path: Path, architecture: str
) -> None:
    from sae_lens.saes.sae import TrainingSAE

    each = training(f"sparse_{architecture}")
    each.step(3)
    each.sae.save_model(tmp_path)
    loaded: Any = TrainingSAE.load_from_disk(tmp_path)
    assert type(loaded) is type(each.sae)
    assert loaded.W_enc.stride() == (1, 20)
    assert all(loaded.state_dict()[name].equal(value) for name, value in each.weights().items())


def test_several_seeds_at_once_in_saelens_s_multi_trainer(training: Callable[..., Any]) -> None:
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer

    from .conftest import batch, trainer_config

    saes = {name: training(name).sae for name in ("topk", "sparse_topk", "sparse_batchtopk", "batchtopk")}
    batches = ({"hook": batch(step, torch.float64)} for step in range(100))
    MultiSAETrainer(
        cfg=trainer_config(),
        saes=saes,
        hook_names=dict.fromkeys(saes, "hook"),
        data_provider=batches,
    ).fit()
    for architecture in SAVED_AS:
        ours, theirs = saes[f"sparse_{architecture}"].state_dict(), saes[architecture].state_dict()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-11, atol=1e-11)


def test_a_plain_saelens_config_takes_the_names() -> None:
    script = """
import sae_faithful
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
sae_faithful.register_architectures()
for name in ("sparse_topk", "sparse_batchtopk"):
    config = TrainingSAEConfig.from_dict({"architecture": name, "d_in": 4, "d_sae": 8, "k": 2})
    print(type(TrainingSAE.from_dict(config.to_dict())).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["SparseTopKTrainingSAE", "SparseBatchTopKTrainingSAE"]
