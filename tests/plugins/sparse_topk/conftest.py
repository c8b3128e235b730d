"""SAELens's trainer on small SAEs, and the audit of what a step does."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE, TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from torch.utils._python_dispatch import TorchDispatchMode

import sae_faithful
from sae_faithful.ops import sparse_eager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

D_IN, D_SAE, K, BATCH = 20, 151, 4, 64
DEAD_WINDOW = 3
"""Passes without firing after which a latent is dead."""


@dataclass
class Training:
    """One SAE in SAELens's trainer, fed with the same batches as any other of the same seed."""

    architecture: str
    trainer: Any
    losses: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    @property
    def sae(self) -> Any:
        return self.trainer.sae

    def step(self, n: int = 1, shape: tuple[int, int] = (BATCH, D_IN)) -> Any:
        output = None
        for _ in range(n):
            output = self.trainer.step(batch(self.trainer.n_training_steps, self.sae.dtype, shape))
            self.trainer.n_training_steps += 1
            self.losses.append({name: value.item() for name, value in output.losses.items()})
        return output

    def forward(self, dead: torch.Tensor | None = None, sae_in: torch.Tensor | None = None) -> Any:
        """One forward pass of training, without the trainer's optimizer and statistics."""
        return self.sae.training_forward_pass(
            TrainStepInput(
                sae_in=batch(3, self.sae.dtype) if sae_in is None else sae_in,
                coefficients={},
                dead_neuron_mask=dead,
                n_training_steps=0,
                is_logging_step=False,
            )
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.sae.state_dict().items()}


def batch(step: int, dtype: torch.dtype, shape: tuple[int, int] = (BATCH, D_IN)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)


def trainer_config(**changes: Any) -> SAETrainerConfig:
    fields: dict[str, Any] = {
        "n_checkpoints": 0, "checkpoint_path": None, "save_final_checkpoint": False,
        "total_training_samples": 10 * BATCH, "device": "cpu", "autocast": False, "lr": 1e-3, "lr_end": 1e-3,
        "lr_scheduler_name": "constant", "lr_warm_up_steps": 0, "adam_beta1": 0.9, "adam_beta2": 0.999,
        "lr_decay_steps": 0, "n_restart_cycles": 1, "train_batch_size_samples": BATCH,
        "dead_feature_window": DEAD_WINDOW, "feature_sampling_window": 1000,
        "logger": LoggingConfig(log_to_wandb=False), "n_batches_for_norm_estimate": 2,
    }  # fmt: skip
    return SAETrainerConfig(**{**fields, **changes})


@pytest.fixture
def training() -> Callable[..., Training]:
    """`training(architecture, n_dead=…, config={…}, **options)`: equal weights whatever the architecture."""
    sae_faithful.register_architectures()

    def make(
        architecture: str, *, n_dead: int = 50, config: dict[str, Any] | None = None, **options: Any
    ) -> Training:
        fields = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "dtype": "float64", **options}
        config_class = get_sae_training_class(architecture)[1]
        torch.manual_seed(0)
        sae: Any = TrainingSAE.from_dict(config_class(**fields).to_dict())
        with torch.no_grad():
            # Not what they start as, so that every term counts: biases, norms, latents that never fire.
            sae.b_dec.add_(0.1 * torch.randn(D_IN, dtype=sae.dtype))
            sae.W_dec.mul_(0.5 + torch.rand(len(sae.W_dec), 1, dtype=sae.dtype))
            if n_dead:
                sae.b_enc[-n_dead:] -= 5
        batches = (batch(1000 + i, sae.dtype) for i in range(10**6))
        return Training(architecture, SAETrainer(trainer_config(**(config or {})), sae, batches))

    return make


@dataclass
class Audit:
    """Which operations touched a dense [rows, d_sae] tensor, or would have kept one for the backward pass."""

    operations: list[str] = field(default_factory=list[str])
    saved: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])

    @property
    def products(self) -> list[str]:
        return [name for name in self.operations if name in ("mm", "addmm", "bmm", "matmul")]


@pytest.fixture
def audited(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int, int], contextlib.AbstractContextManager[Audit]]:
    """`with audited(rows, d_sae) as audit:` looks at every operation, those inside our operators included."""

    @contextlib.contextmanager
    def auditing(rows: int, d_sae: int) -> Iterator[Audit]:
        audit = Audit()

        def dense(value: Any) -> bool:
            if isinstance(value, (list, tuple)):
                return any(dense(each) for each in value)
            return (
                isinstance(value, torch.Tensor)
                and value.layout == torch.strided
                and value.untyped_storage().nbytes() >= rows * d_sae * value.element_size()
                and value.numel() >= rows * d_sae
                and value.shape not in ((rows, D_IN), (d_sae, D_IN), (D_IN, d_sae))
            )

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = func(*args, **(kwargs or {}))
                if not func.is_view and (
                    dense(list(args)) or dense(list((kwargs or {}).values())) or dense(out)
                ):
                    audit.operations.append(func.overloadpacket.__name__)
                return out

        def seen_inside(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                # An operator's body runs outside of the mode that saw the operator.
                with Mode():
                    return function(*args, **kwargs)

            return call

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if dense(tensor):
                audit.saved.append(tuple(tensor.shape))
            return tensor

        with monkeypatch.context() as patch:
            for name in ("decode", "decode_backward", "outer"):
                patch.setattr(sparse_eager, name, seen_inside(getattr(sparse_eager, name)))
            with Mode(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                yield audit

    return auditing
