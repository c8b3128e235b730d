"""Small SAEs of this architecture, and SAELens's trainer on noise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer

import sae_faithful

D_IN, D_SAE, BATCH = 12, 30, 64
KINDS = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


@pytest.fixture(autouse=True)
def registered() -> None:
    """SAELens knows the name."""
    sae_faithful.register_architectures()


def make(seed: int = 0, **options: Any) -> Any:
    fields = {"architecture": "unit_norm_l1", "d_in": D_IN, "d_sae": D_SAE, "dtype": "float64", **options}
    torch.manual_seed(seed)
    return TrainingSAE.from_dict(TrainingSAEConfig.from_dict(fields).to_dict())


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batches(size: int = BATCH, scale: float = 1.0) -> Iterator[torch.Tensor]:
    return (scale * noise(size, D_IN, seed=step) for step in count())


def trainer_config(steps: int, size: int = BATCH, lr: float = 1e-2) -> SAETrainerConfig:
    return SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=steps * size,
        device="cpu", autocast=False, lr=lr, lr_end=lr, lr_scheduler_name="constant", lr_warm_up_steps=0,
        adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1, train_batch_size_samples=size,
        dead_feature_window=1000, feature_sampling_window=2000, logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=3,
    )  # fmt: skip


def trained(sae: Any, data: Iterator[torch.Tensor], steps: int, **changes: Any) -> Any:
    return SAETrainer(trainer_config(steps, **changes), sae, data).fit()


def forward(sae: Any, x: torch.Tensor, l1: float) -> Any:
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients={"l1": l1},
            dead_neuron_mask=None,
            n_training_steps=0,
            is_logging_step=False,
        )
    )


def row_lengths(directions: torch.Tensor) -> torch.Tensor:
    return directions.detach().norm(dim=1)
