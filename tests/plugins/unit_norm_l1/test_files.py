"""Saved as SAELens's `standard`; checkpoints; what may be folded and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file

from sae_faithful import ExperimentConfig, SAEHandle, UsageError

from .conftest import BATCH, D_IN, D_SAE, KINDS, batches, make, noise, row_lengths, trained, trainer_config

ELSEWHERE = """
import sys
sys.modules["sae_faithful"] = sys.modules["sae_faithful_plugins"] = None
import torch
from sae_lens import SAE
for name in ("tied", "untied"):
    folder = sys.argv[1] + "/" + name
    sae = SAE.load_from_disk(folder)
    x = torch.load(folder + "/x.pt")
    torch.save((sae.encode(x).detach(), sae(x).detach()), folder + "/out.pt")
    print(type(sae).__name__)
"""


def test_the_saved_sae_is_a_plain_standard_one_that_loads_where_this_package_is_not(tmp_path: Path) -> None:
    x = noise(5, D_IN).float()
    saes = {name: make(tied=name == "tied", dtype="float32") for name in ("tied", "untied")}
    for name, sae in saes.items():
        trained(sae, (batch.float() for batch in batches()), 5)
        sae.save_inference_model(tmp_path / name)
        torch.save(x, tmp_path / name / "x.pt")
        weights = load_file(tmp_path / name / "sae_weights.safetensors")
        assert set(weights) == {"W_enc", "W_dec", "b_enc", "b_dec"}
        assert weights["W_dec"].equal(sae.W_dec.detach())
        assert weights["W_enc"].equal(sae.W_enc.detach())
        assert weights["b_dec"].equal(torch.zeros(D_IN))
        config = json.loads((tmp_path / name / "cfg.json").read_text())
        assert (config["architecture"], config["apply_b_dec_to_input"]) == ("standard", False)
        assert config["metadata"]["training_architecture"] == "unit_norm_l1"
        assert config["metadata"]["training_architecture_details"]["tied"] == (name == "tied")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-2:] == ["StandardSAE", "StandardSAE"]
    for name, sae in saes.items():
        latents, reconstruction = torch.load(tmp_path / name / "out.pt")
        assert (latents > 0).any()
        # To rounding: a product's sums depend on how the weights lie in memory and on the number of threads.
        torch.testing.assert_close(latents, sae.encode(x).detach())
        torch.testing.assert_close(reconstruction, sae(x).detach())
        # What an evaluator sees inside training is the same.
        live = SAEHandle.from_training(sae, ActivationScaler(), source="s", hook="h", variant="v", seed=0)
        torch.testing.assert_close(live.encode(x), latents)


@KINDS
def test_training_goes_on_exactly_from_a_checkpoint(tmp_path: Path, tied: bool) -> None:
    options = {"tied": tied, "l1_coefficient": 0.3, "l1_warm_up_steps": 6}

    def begin(sae: Any) -> SAETrainer[Any, Any]:
        return SAETrainer(trainer_config(10), sae, batches())

    def steps(trainer: SAETrainer[Any, Any], first: int, last: int) -> None:
        for step in range(first, last):
            trainer.step(noise(BATCH, D_IN, seed=step))

    through, begun, resumed = (begin(make(seed, **options)) for seed in (0, 0, 1))
    steps(through, 0, 8)
    steps(begun, 0, 4)
    begun.save_checkpoint("4", tmp_path)
    resumed.load_trainer_state(tmp_path / "4")
    resumed.sae.load_weights_from_checkpoint(tmp_path / "4")
    steps(resumed, 4, 8)
    state = resumed.sae.state_dict()
    assert all(state[name].equal(value) for name, value in through.sae.state_dict().items())
    loaded: Any = TrainingSAE.load_from_disk(tmp_path / "4")
    assert type(loaded) is type(begun.sae)
    assert all(loaded.state_dict()[name].equal(value) for name, value in begun.sae.state_dict().items())


@KINDS
def test_a_folded_scaling_factor_leaves_unit_rows_and_the_same_reconstruction(
    tmp_path: Path, tied: bool
) -> None:
    sae = make(tied=tied, normalize_activations="expected_average_only_in", l1_coefficient=0.1)
    trainer = SAETrainer(trainer_config(20), sae, batches(scale=50))
    trainer.activation_scaler.estimate_scaling_factor(D_IN, batches(scale=50), 3)
    s = trainer.activation_scaler.scaling_factor
    assert s is not None
    assert s < 0.1
    for step in range(20):
        trainer.step(50 * noise(BATCH, D_IN, seed=step))
    x = 50 * noise(7, D_IN, seed=99)
    with torch.no_grad():
        latents, reconstruction = sae.encode(s * x), sae(s * x) / s
    assert (latents > 0).any()
    live = SAEHandle.from_training(sae, trainer.activation_scaler, source="s", hook="h", variant="v", seed=0)
    assert live.d_sae == D_SAE  # read before the fold below
    sae.fold_activation_norm_scaling_factor(s)
    sae.save_inference_model(tmp_path)
    saved: Any = SAE.load_from_disk(tmp_path)
    assert saved.cfg.normalize_activations == "none"
    torch.testing.assert_close(row_lengths(saved.W_dec), torch.ones(D_SAE, dtype=torch.float64))
    assert not saved.b_dec.any()
    assert saved.W_enc.equal(saved.W_dec.T) == tied
    for one in (saved, live.sae, sae):
        torch.testing.assert_close(one(x).detach(), reconstruction)
        torch.testing.assert_close(one.encode(x).detach(), latents / s)


@pytest.mark.parametrize("wrong", ["layer_norm", "covariance_whitening"])
def test_a_normalisation_that_does_not_fold_is_refused_in_one_line(
    tiny_config: dict[str, Any], wrong: str
) -> None:
    sae = {"architecture": "unit_norm_l1", "d_in": 64, "d_sae": 96, "normalize_activations": wrong}
    with pytest.raises(UsageError) as refused:
        ExperimentConfig.from_dict({**tiny_config, "sae": sae})
    assert "\n" not in str(refused.value)
    assert f"none or expected_average_only_in; '{wrong}' cannot be folded" in str(refused.value)


def test_a_normalisation_that_only_saelens_s_code_knows_is_refused_too() -> None:
    with pytest.raises(ValueError, match="'constant_norm_rescale' cannot be folded"):
        make(normalize_activations="constant_norm_rescale")


def test_whitening_cannot_be_folded_by_hand_either() -> None:
    with pytest.raises(ValueError, match="no decoder bias and unit rows"):
        make().fold_activation_whitening(torch.zeros(D_IN), torch.eye(D_IN), torch.eye(D_IN))


def test_a_negative_coefficient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"l1_coefficient -0\.1 is below 0"):
        make(l1_coefficient=-0.1)


def test_fields_without_a_meaning_here_are_taken_and_change_nothing() -> None:
    # As a variant of another architecture carries them.
    sae, plain = make(apply_b_dec_to_input=True, decoder_init_norm=0.1), make()
    assert (sae.cfg.apply_b_dec_to_input, sae.cfg.decoder_init_norm) == (False, None)
    assert sae.decoder_rows.equal(plain.decoder_rows)


def test_folding_decoder_norms_changes_nothing() -> None:
    sae, x = make(tied=False), noise(5, D_IN)
    latents, reconstruction = sae.encode(x), sae(x)
    sae.fold_W_dec_norm()
    assert sae.encode(x).equal(latents)
    assert sae(x).equal(reconstruction)
