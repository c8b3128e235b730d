"""SAELens's Adam with the fused kernel: the same weights up to rounding, in every runner and after a resume."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sae_faithful import ExperimentConfig, PluginTrainingRunner, RunError, UsageError, load_plugins, run
from sae_faithful.language_model import LanguageModel
from sae_faithful.optimizer import choose_adam, prepare_adam
from sae_faithful.plan import make_plan

EXACT = {"rtol": 1e-9, "atol": 1e-9}
"""For float64; fused and unfused kernels differ in the last bits of each step."""
STOCK, FUSED = (None, None), (True, False)
"""`fused` and `foreach`: SAELens leaves both to PyTorch."""
SHAPE = (5, 7)
BETAS, LR, EPS = (0.9, 0.999), 0.1, 1e-8


@pytest.fixture
def kernels() -> Iterator[set[Any]]:
    """`fused` and `foreach` of every SAE's optimizer, at every step."""
    seen: set[Any] = set()

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        (group,) = optimizer.param_groups
        # Not the trial of the kernel, which has one parameter.
        if len(group["params"]) > 1:
            seen.add((group["fused"], group["foreach"]))

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()


@pytest.fixture
def exact(tiny_config: dict[str, Any]) -> dict[str, Any]:
    """The tiny config with SAEs in float64."""
    return {**tiny_config, "dtype": "float64", "sae": {**tiny_config["sae"], "dtype": "float64"}}


@pytest.fixture
def rows() -> Any:
    """Random rows of tokens, as SAELens takes them."""
    from datasets import Dataset

    tokens = torch.randint(4, 64, (130, 16), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"input_ids": tokens.tolist()}).with_format("torch")


def stock_config(config: ExperimentConfig, **changes: Any) -> Any:
    """The same config without this project's fields."""
    from sae_lens import LanguageModelSAERunnerConfig

    names = [entry.name for entry in dataclasses.fields(LanguageModelSAERunnerConfig) if entry.init]
    return LanguageModelSAERunnerConfig(**{name: getattr(config, name) for name in names} | changes)


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], **EXACT, msg=lambda text, name=name: f"{name}: {text}"
        )


def feature_major(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, column by column in memory."""
    return tensor.T.contiguous().T


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_run_trains_the_same_weights_up_to_rounding(
    exact: dict[str, Any], tmp_path: Path, kernels: set[Any], seeds: list[int]
) -> None:
    weights: dict[bool, list[dict[str, torch.Tensor]]] = {}
    for fused, used in ((False, STOCK), (True, FUSED)):
        config = ExperimentConfig.from_dict({**exact, "sae_seeds": seeds, "fused_adam": fused})
        kernels.clear()
        folder = run(config, output=tmp_path / str(fused), until="saes")
        assert kernels == {used}
        places = [folder.sae_dir("faithful", "model.layers.0", "base", seed) for seed in seeds]
        weights[fused] = [load_file(place / "sae_weights.safetensors") for place in places]
    for fused, unfused in zip(weights[True], weights[False], strict=True):
        assert fused["W_dec"].dtype == torch.float64
        assert_close(fused, unfused)


def test_the_drop_in_runner_obeys_it(exact: dict[str, Any], rows: Any, kernels: set[Any]) -> None:
    trained: dict[bool, dict[str, torch.Tensor]] = {}
    for fused, used in ((False, STOCK), (True, FUSED)):
        config = ExperimentConfig.from_dict({**exact, "sae_seeds": [0], "fused_adam": fused})
        kernels.clear()
        trained[fused] = PluginTrainingRunner(config, override_dataset=rows).run().state_dict()
        assert kernels == {used}
    assert_close(trained[True], trained[False])


def test_a_plain_saelens_config_trains_with_saelens_own_choice(
    tiny_config: dict[str, Any], rows: Any, kernels: set[Any]
) -> None:
    config = ExperimentConfig.from_dict({**tiny_config, "sae_seeds": [0]})
    cfg = stock_config(config, dataset_path="self_generated", output_path=None, checkpoint_path=None)
    PluginTrainingRunner(cfg, override_dataset=rows).run()
    assert kernels == {STOCK}


def test_it_is_a_setting_of_the_trained_saes(tiny_config: dict[str, Any]) -> None:
    def planned(**changes: Any) -> Any:
        config = ExperimentConfig.from_dict({**tiny_config, **changes})
        return make_plan(config, load_plugins(), LanguageModel.from_config(config)).saes[0]

    off, on = planned(), planned(fused_adam=True)
    assert {key for key in off.settings if off.settings[key] != on.settings[key]} == {"fused_adam"}
    assert off.step("a", {}).hash != on.step("a", {}).hash


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("checkpoint_fused", [False, True])
def test_a_runner_resumes_a_checkpoint_of_either_kernel_and_layout(
    exact: dict[str, Any], rows: Any, tmp_path: Path, kernels: set[Any], checkpoint_fused: bool, fused: bool
) -> None:
    """The checkpoint lies row by row, as SAELens's; the SAE that goes on lies feature by feature."""
    from sae_lens import LanguageModelSAETrainingRunner
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.util import temporary_seed

    config = ExperimentConfig.from_dict({**exact, "n_checkpoints": 1, "sae_seeds": [0]})

    def trained(adam: bool | None, *, by_feature: bool, **changes: Any) -> dict[str, torch.Tensor]:
        cfg = stock_config(config, output_path=None, **changes)
        cfg.checkpoint_path = str(tmp_path / "checkpoints")
        with temporary_seed(0):
            sae = TrainingSAE.from_dict(cfg.sae.to_dict())
        # SAELens lays W_enc out by feature itself here and there: be sure of the difference.
        sae.W_enc.data = feature_major(sae.W_enc.data) if by_feature else sae.W_enc.data.contiguous()
        runner = LanguageModelSAETrainingRunner(cfg, override_dataset=rows, override_sae=sae)
        if adam is not None:
            choose_adam(runner, fused=adam)
        kernels.clear()
        with temporary_seed(0):
            return runner.run().state_dict()

    trained(checkpoint_fused, by_feature=False)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    resumed = {"resume_from_checkpoint": str(checkpoint), "n_checkpoints": 0}
    ours = trained(fused, by_feature=True, **resumed)
    assert kernels == {FUSED if fused else STOCK}
    assert_close(ours, trained(None, by_feature=False, **resumed))


def gradients(steps: range) -> list[torch.Tensor]:
    return [
        torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for step in steps
    ]


def adam_by_hand(start: torch.Tensor, steps: int) -> torch.Tensor:
    """Kingma & Ba 2015, algorithm 1."""
    mean, square = torch.zeros_like(start), torch.zeros_like(start)
    for t, gradient in enumerate(gradients(range(steps)), start=1):
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
        unbiased = mean / (1 - BETAS[0] ** t), square / (1 - BETAS[1] ** t)
        start = start - LR * unbiased[0] / (unbiased[1].sqrt() + EPS)
    return start


def take_steps(optimizer: torch.optim.Adam, steps: range) -> None:
    (parameter,) = optimizer.param_groups[0]["params"]
    for gradient in gradients(steps):
        # Laid out as the parameter, as autograd does.
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()


def adam_of(start: torch.Tensor) -> torch.optim.Adam:
    """As SAELens makes it."""
    return torch.optim.Adam([torch.nn.Parameter(start)], lr=LR, betas=BETAS)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("layouts", [("rows", "columns"), ("columns", "rows"), ("columns", "columns")])
def test_steps_after_a_resume_are_adams(before: bool, after: bool, layouts: tuple[str, str]) -> None:
    lay = {"rows": torch.Tensor.contiguous, "columns": feature_major}
    start = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    first = adam_of(lay[layouts[0]](start.clone()))
    prepare_adam(first, fused=before)
    take_steps(first, range(3))

    (halfway,) = first.param_groups[0]["params"]
    second = adam_of(lay[layouts[1]](halfway.detach().clone()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    prepare_adam(second, fused=after)
    (parameter,) = second.param_groups[0]["params"]
    state = second.state[parameter]
    assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()
    take_steps(second, range(3, 6))
    torch.testing.assert_close(parameter.detach(), adam_by_hand(start, 6), **EXACT)


def test_a_fused_step_count_is_a_float32_tensor_beside_its_parameter() -> None:
    optimizer = adam_of(torch.zeros(SHAPE))
    take_steps(optimizer, range(2))
    (parameter,) = optimizer.param_groups[0]["params"]
    # As PyTorch makes it where float64 is the default type.
    optimizer.state[parameter]["step"] = optimizer.state[parameter]["step"].double()
    prepare_adam(optimizer, fused=True)
    step = optimizer.state[parameter]["step"]
    assert (step.item(), step.dtype, step.device) == (2.0, torch.float32, parameter.device)


def test_off_leaves_saelens_optimizer_as_it_was() -> None:
    optimizer = adam_of(torch.zeros(SHAPE))
    take_steps(optimizer, range(2))
    groups = [dict(group) for group in optimizer.param_groups]
    (state,) = ({**one} for one in optimizer.state.values())
    prepare_adam(optimizer, fused=False)
    assert optimizer.param_groups == groups
    (after,) = optimizer.state.values()
    assert all(after[name] is state[name] for name in state)


def test_a_parameter_without_steps_gets_no_state() -> None:
    optimizer = adam_of(torch.zeros(SHAPE))
    prepare_adam(optimizer, fused=True)
    assert not optimizer.state


def test_a_device_without_the_kernel_is_refused_in_the_config(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"fused_adam: not for device 'meta:0'; .*cpu, cuda, mps, xpu"):
        ExperimentConfig.from_dict({**tiny_config, "device": "meta:0", "fused_adam": True})
    ExperimentConfig.from_dict({**tiny_config, "device": "cuda:1", "fused_adam": True})


def test_a_parameter_without_the_kernel_is_one_clear_line() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3, device="meta"))])
    with pytest.raises(RunError, match=r"no fused Adam for torch\.float32 on 'meta' \(.*leave it out$"):
        prepare_adam(optimizer, fused=True)
