"""SAELens's `SAETrainer` on given weights: its own architectures and ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from measuring import first_line
from sparse_inputs import Planted, Shape, planted

if TYPE_CHECKING:
    from collections.abc import Mapping

DEAD_SHARE = 0.05


@dataclass(frozen=True)
class Training:
    """One way to train: an architecture and its options."""

    name: str
    architecture: str
    against: str
    """The SAELens architecture it is compared with."""
    options: Mapping[str, Any] = field(default_factory=dict)
    fused: bool = False
    compiled: bool = False
    what: str = ""


TOPK = Training("SAELens topk", "topk", "topk", what="default options")

TOPK_COO = Training(
    "SAELens topk, COO *", "topk", "topk",
    {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False},
    what="use_sparse_activations. Another model: without rescaling by decoder norms, with which it raises",
)  # fmt: skip

TOPK_COMPILED = Training(
    "SAELens topk, compiled", "topk", "topk", compiled=True, what="compile_sae's forward pass"
)

SPARSE_TOPK = Training("sparse_topk", "sparse_topk", "topk", what="ours, SAELens's Adam")

SPARSE_TOPK_FUSED = Training(
    "sparse_topk, fused Adam", "sparse_topk", "topk", fused=True, what="ours, torch's fused Adam"
)

BATCHTOPK = Training("SAELens batchtopk", "batchtopk", "batchtopk", what="default options")

SPARSE_BATCHTOPK = Training("sparse_batchtopk", "sparse_batchtopk", "batchtopk", what="ours, SAELens's Adam")


def saelens_missing() -> str:
    """Why SAELens's trainer cannot be measured; empty if it can."""
    try:
        from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

        from sae_faithful import register_architectures

        register_architectures()
    except ImportError as error:
        return first_line(error)
    return "" if "sparse_topk" in SAE_TRAINING_CLASS_REGISTRY else "the plugin sparse_topk is not installed"


def trainer(training: Training, weights: Planted, dtype: torch.dtype = torch.float32) -> Any:
    """SAELens's `SAETrainer` on the given weights, without logging and checkpoints."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    n, d, s, k = weights.shape
    device = weights.W_dec.device.type
    config = TrainingSAEConfig.from_dict(
        {"architecture": training.architecture, "d_in": d, "d_sae": s, "k": k, "device": device}
        | {"dtype": str(dtype).removeprefix("torch.")} | dict(training.options)
    )  # fmt: skip
    sae = TrainingSAE.from_dict(config.to_dict())
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(sae, name).copy_(getattr(weights, name))
    if training.compiled:
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    made = SAETrainer(
        SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=n * 10_000,
            device=device, autocast=False, lr=1e-4, lr_end=1e-4, lr_scheduler_name="constant", lr_warm_up_steps=0,
            lr_decay_steps=0, n_restart_cycles=1, adam_beta1=0.9, adam_beta2=0.999, train_batch_size_samples=n,
            dead_feature_window=1000, feature_sampling_window=1000, logger=LoggingConfig(log_to_wandb=False),
            n_batches_for_norm_estimate=1,
        ),
        sae,
        iter([]),
    )  # fmt: skip
    for group in made.optimizer.param_groups if training.fused else ():
        group.update(fused=True, foreach=False)
    return made


def set_dead(made: Any, dead: bool) -> None:
    """The latents that the next step takes for dead: none, or one in twenty."""
    counts = made.n_forward_passes_since_fired
    counts.zero_()
    if dead:
        counts[:: round(1 / DEAD_SHARE)] = made.cfg.dead_feature_window + 1


def output_and_gradients(made: Any, x: torch.Tensor, dead: bool) -> list[torch.Tensor]:
    """The reconstruction and the gradients to W_enc, b_enc, W_dec and b_dec, before clipping."""
    from sae_lens.saes.sae import TrainStepInput

    set_dead(made, dead)
    sae = made.sae
    step = TrainStepInput(
        sae_in=x.to(sae.dtype), dead_neuron_mask=made.dead_neurons, coefficients=made.get_coefficients(),
        n_training_steps=0, is_logging_step=False,
    )  # fmt: skip
    with made.autocast_if_enabled:
        found = sae.training_forward_pass(step)
    parameters = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
    return [found.sae_out.detach(), *torch.autograd.grad(found.loss, parameters)]


def as_saelens(training: Training) -> Training:
    """SAELens's own architecture for the same model."""
    options = {name: value for name, value in training.options.items() if name.startswith("rescale")}
    return Training(training.against, training.against, training.against, options)


def exact_output_and_gradients(
    training: Training, weights: Planted, x: torch.Tensor, dead: bool
) -> list[torch.Tensor]:
    """What `output_and_gradients` should give: SAELens's own architecture for the same model, in float64."""
    return output_and_gradients(trainer(as_saelens(training), weights, torch.float64), x, dead)


def coo_with_rescaling(device: str) -> str:
    """What SAELens's COO activations do when rescaled by decoder norms, its default."""
    training = Training("", "topk", "topk", {"use_sparse_activations": True})
    weights = planted(Shape(8, 8, 16, 2), device)
    try:
        trainer(training, weights).step(weights.inputs(0))
    except (RuntimeError, NotImplementedError) as error:
        return f"raises {first_line(error)}"
    return "runs"
