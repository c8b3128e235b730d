"""SAELens's Adam as the config's `fused_adam` asks for it. SAELens itself has no option for the fused kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful.interfaces import RunError

if TYPE_CHECKING:
    import torch


def choose_adam(runner: Any, *, fused: bool) -> None:
    """Make one of SAELens's runners, for one SAE or several, train with the fused kernel or with its own choice.

    SAELens makes its optimizers, and fills them from a checkpoint, inside `run()`: what is wrapped here is the
    call after that, the last before the first step.

    Raises:
        RunError: when training starts, where PyTorch has no fused kernel for the SAEs' device and dtype.
    """
    from sae_lens import MultiSAETrainingRunner

    multi = isinstance(runner, MultiSAETrainingRunner)
    name = "_run_with_interruption_handling" if multi else "run_trainer_with_interruption_handling"
    train = getattr(runner, name)

    def train_with_chosen_adam(trainer: Any) -> Any:
        for one in trainer.trainers.values() if multi else [trainer]:
            prepare_adam(one.optimizer, fused=fused)
        return train(trainer)

    setattr(runner, name, train_with_chosen_adam)


def prepare_adam(optimizer: torch.optim.Adam, *, fused: bool) -> None:
    """Choose the kernel of `optimizer`'s next steps, whatever checkpoint its state comes from.

    Raises:
        RunError: PyTorch has no fused kernel for a parameter's device and dtype.
    """
    import torch

    # A loaded checkpoint replaces the groups, and with them the kernel; the defaults stay as SAELens made them.
    own = {name: optimizer.defaults[name] for name in ("fused", "foreach")}
    for group in optimizer.param_groups:
        group.update({"fused": True, "foreach": False} if fused else own)
        for parameter in group["params"]:
            if fused:
                _check_kernel(parameter)
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if name == "step":
                    if fused:
                        state[name] = value.to(parameter.device, torch.float32)
                elif value.stride() != parameter.stride():
                    # The fused kernel walks memory in order, whatever the strides: without an error it would
                    # give every weight another one's averages. The other kernels are only slower.
                    state[name] = torch.empty_like(parameter).copy_(value)


def _check_kernel(parameter: torch.Tensor) -> None:
    """One step on one number tells whether PyTorch has the kernel."""
    import torch

    probe = torch.nn.Parameter(parameter.new_zeros(1))
    probe.grad = torch.zeros_like(probe)
    try:
        torch.optim.Adam([probe], fused=True).step()
    except RuntimeError as error:
        raise RunError(
            f"fused_adam: PyTorch has no fused Adam for {parameter.dtype} on '{parameter.device}' "
            f"({str(error).splitlines()[0]}); leave it out"
        ) from None
