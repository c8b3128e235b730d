"""Training that was killed, and went on from a checkpoint, ends with the very weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sae_faithful import ExperimentConfig, RunError, run
from sae_faithful.checkpoints import SEAL

PLACE = ("faithful", "model.layers.0", "base")
STEPS = 32
"""Of the tiny config: 2,000 tokens in batches of 64."""


class Killed(BaseException):
    """What nothing catches, as SIGKILL."""


def config_of(tiny_config: dict[str, Any], **changes: Any) -> ExperimentConfig:
    return ExperimentConfig.from_dict({**tiny_config, "n_checkpoints": 4, **changes})


def saved(root: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights and sparsity of every SAE."""
    return {
        path.relative_to(root).as_posix(): load_file(path)
        for path in sorted(root.glob("saes/**/*.safetensors"))
    }


def assert_same(one: Path, other: Path) -> None:
    a, b = saved(one), saved(other)
    assert a.keys() == b.keys()
    assert a
    for file in a:
        assert a[file].keys() == b[file].keys()
        for name in a[file]:
            assert torch.equal(a[file][name], b[file][name]), (file, name)


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int, what: Any = Killed) -> list[int]:
    """Let the n-th training step of any SAE end in `what`; returns the steps that were begun."""
    from sae_lens.training.sae_trainer import SAETrainer

    train = SAETrainer._train_step
    begun: list[int] = []

    def step_or_die(self: Any, **arguments: Any) -> Any:
        begun.append(self.n_training_samples)
        if len(begun) == step:
            what() if not isinstance(what, type) else None
            if isinstance(what, type):
                raise what
        return train(self, **arguments)

    monkeypatch.setattr(SAETrainer, "_train_step", step_or_die)
    return begun


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "topk": {"k": 8},
    "batchtopk": {"k": 8},
    "standard": {"l1_coefficient": 1.0, "l1_warm_up_steps": 10},
    "gated": {"l1_coefficient": 1.0},
    "jumprelu": {"l0_coefficient": 1.0},
    "matryoshka_batchtopk": {"k": 8, "matryoshka_widths": [32, 96]},
    "sparse_topk": {"k": 8},
    "sparse_batchtopk": {"k": 8},
    "unit_norm_l1": {"l1_coefficient": 1.0},
}


@pytest.mark.parametrize("seeds", [[3], [0, 1]], ids=["one", "two"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    tiny_config: dict[str, Any], tmp_path: Path, architecture: str, seeds: list[int]
) -> None:
    sae = {"architecture": architecture, "d_in": 64, "d_sae": 96, **ARCHITECTURES[architecture]}
    config = config_of(
        tiny_config,
        sae=sae,
        sae_seeds=seeds,
        dead_feature_window=7,
        feature_sampling_window=6,
        lr_warm_up_steps=5,
    )
    run(config, output=tmp_path / "undisturbed", until="saes")
    for begun in (17 * len(seeds), 11 * len(seeds)):
        # Killed twice: after 1,088 tokens, and after 704 more.
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, begun)
            run(config, output=tmp_path / "killed", until="saes")
    with pytest.MonkeyPatch.context() as patch:
        steps = kill_at(patch, 10_000)
        run(config, output=tmp_path / "killed", until="saes")
    assert 0 < len(steps) < STEPS * len(seeds)
    assert_same(tmp_path / "undisturbed", tmp_path / "killed")


@pytest.mark.parametrize(
    "changes",
    [
        {"sae": {"normalize_activations": "expected_average_only_in"}, "n_batches_for_norm_estimate": 4},
        {"sae": {"normalize_activations": "layer_norm"}},
        {"prefetch_llm_batches": 2},
        {
            "hook_names": ["model.layers.0", "model.layers.1"],
            "variants": {"wide": {}, "narrow": {"d_sae": 80}},
        },
        {"fused_adam": True},
        {"activations_mixing_fraction": 0.0},
        {
            "monitors": ["reconstruction"],
            "logger": {"log_to_wandb": False, "wandb_log_frequency": 2, "eval_every_n_wandb_logs": 1},
        },
    ],
    ids=["norm", "layer-norm", "prefetch", "hooks", "fused", "unmixed", "monitors"],
)
def test_it_is_exact_whatever_else_is_asked_for(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    # No monitor is left out for its cost.
    monkeypatch.setattr("sae_faithful.monitors.SHARE_OF_TRAINING", 1e9)
    sae = {**tiny_config["sae"], **changes.get("sae", {})}
    config = config_of(tiny_config, **{**changes, "sae": sae})
    n_saes = 2 * len(config.hook_names) * len(config.variants)
    run(config, output=tmp_path / "undisturbed", until="saes")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 17 * n_saes)
        run(config, output=tmp_path / "killed", until="saes")
    with pytest.MonkeyPatch.context() as patch:
        steps = kill_at(patch, 10_000)
        run(config, output=tmp_path / "killed", until="saes")
    assert 0 < len(steps) < STEPS * n_saes
    assert_same(tmp_path / "undisturbed", tmp_path / "killed")
    if "monitors" in changes:
        # What was measured before the checkpoint is there, from the first firing on.
        calls = [json.loads(line)["call"] for line in (tmp_path / "killed/monitors/faithful.jsonl").open()]
        assert set(calls) == set(range(1, STEPS // 2 + 1))


@pytest.mark.parametrize("seeds", [[3], [0, 1]], ids=["one", "two"])
@pytest.mark.parametrize("at", [1, 2, 30, 37])
def test_a_real_ctrl_c_within_a_step_saves_between_steps(
    tiny_config: dict[str, Any], tmp_path: Path, seeds: list[int], at: int
) -> None:
    """Of two SAEs, the second has not seen the batch yet when the signal arrives at an odd step."""
    config = config_of(tiny_config, sae_seeds=seeds, n_checkpoints=1)
    at = min(at, 20) if len(seeds) == 1 else at
    run(config, output=tmp_path / "undisturbed", until="saes")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        begun = kill_at(patch, at, lambda: os.kill(os.getpid(), signal.SIGINT))
        run(config, output=tmp_path / "killed", until="saes")
    # The step was finished, by all.
    assert len(begun) == -(-at // len(seeds)) * len(seeds)
    with pytest.MonkeyPatch.context() as patch:
        steps = kill_at(patch, 10_000)
        run(config, output=tmp_path / "killed", until="saes")
    assert len(steps) == STEPS * len(seeds) - len(begun)
    assert_same(tmp_path / "undisturbed", tmp_path / "killed")


def test_a_second_ctrl_c_stops_at_once_and_leaves_no_torn_checkpoint(
    tiny_config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1_000):
                pass

    config = config_of(tiny_config, n_checkpoints=1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        begun = kill_at(patch, 9, twice)
        run(config, output=tmp_path / "run", until="saes")
    assert len(begun) == 9
    assert not list((tmp_path / "run").rglob(SEAL))
    assert "once more stops at once" in caplog.text
    assert "a step was interrupted" in caplog.text


@pytest.fixture
def interrupted(tiny_config: dict[str, Any], tmp_path: Path) -> ExperimentConfig:
    """A config whose run, in `tmp_path / "run"`, was killed with two checkpoints behind it."""
    config = config_of(tiny_config)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 2 * 17)
        run(config, output=tmp_path / "run", until="saes")
    assert len(list((tmp_path / "run/checkpoints/faithful").glob(f"*/{SEAL}"))) == 2
    return config


def steps_to_finish(config: ExperimentConfig, root: Path) -> int:
    """How many steps of its two SAEs were left."""
    with pytest.MonkeyPatch.context() as patch:
        begun = kill_at(patch, 10_000)
        run(config, output=root, until="saes")
    return len(begun) // 2


def checkpoints(root: Path) -> list[Path]:
    return sorted(root.glob("checkpoints/faithful/*"), key=lambda path: int(path.name))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    interrupted: ExperimentConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, last = checkpoints(tmp_path / "run")
    file = next(last.rglob("sae_weights.safetensors"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert steps_to_finish(interrupted, tmp_path / "run") == STEPS - int(before.name) // 64
    assert f"checkpoint {last} is left out" in caplog.text
    assert "sae_weights.safetensors does not match its checksum" in caplog.text
    run(interrupted, output=tmp_path / "undisturbed", until="saes")
    assert_same(tmp_path / "undisturbed", tmp_path / "run")


@pytest.mark.parametrize("damage", ["truncated", "missing", "unsealed", "seal"])
def test_without_a_whole_checkpoint_training_begins_again(
    interrupted: ExperimentConfig, tmp_path: Path, damage: str
) -> None:
    for path in checkpoints(tmp_path / "run"):
        file = next(path.rglob("trainer_state.pt"))
        if damage == "truncated":
            file.write_bytes(file.read_bytes()[:100])
        elif damage == "missing":
            file.unlink()
        elif damage == "unsealed":
            (path / SEAL).unlink()
        else:
            (path / SEAL).write_text("{")
    assert steps_to_finish(interrupted, tmp_path / "run") == STEPS


def test_a_checkpoint_of_another_training_is_not_used(interrupted: ExperimentConfig, tmp_path: Path) -> None:
    interrupted.sae_seeds = [0, 1, 2]
    with pytest.MonkeyPatch.context() as patch:
        begun = kill_at(patch, 10_000)
        run(interrupted, output=tmp_path / "run", until="saes")
    assert len(begun) == 3 * STEPS


def test_checkpoints_of_another_training_give_way_to_this_ones(
    interrupted: ExperimentConfig, tmp_path: Path
) -> None:
    interrupted.lr = 2e-3
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 2 * 17)
        run(interrupted, output=tmp_path / "run", until="saes")
    assert steps_to_finish(interrupted, tmp_path / "run") < STEPS
    run(interrupted, output=tmp_path / "undisturbed", until="saes")
    assert_same(tmp_path / "undisturbed", tmp_path / "run")


@pytest.mark.parametrize("seeds", [[3], [0, 1]], ids=["one", "two"])
def test_a_ctrl_c_where_one_of_another_training_lies_does_not_seal_its_weights(
    tiny_config: dict[str, Any], tmp_path: Path, seeds: list[int]
) -> None:
    for lr in (1e-3, 2e-3):
        config = config_of(tiny_config, sae_seeds=seeds, lr=lr)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            kill_at(patch, 5 * len(seeds), lambda: os.kill(os.getpid(), signal.SIGINT))
            run(config, output=tmp_path / "run", until="saes")
    assert steps_to_finish(config, tmp_path / "run") == (STEPS - 5) * len(seeds) // 2
    run(config, output=tmp_path / "undisturbed", until="saes")
    assert_same(tmp_path / "undisturbed", tmp_path / "run")


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("seeds", [[3], [0, 1]], ids=["one", "two"])
def test_an_interruption_after_the_last_step_does_not_fold_a_norm_twice(
    tiny_config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seeds: list[int],
    exact: bool,
) -> None:
    from sae_lens.training.sae_trainer import SAETrainer

    sae = {**tiny_config["sae"], "normalize_activations": "expected_average_only_in"}
    config = config_of(
        tiny_config,
        sae=sae,
        n_batches_for_norm_estimate=4,
        sae_seeds=seeds,
        n_checkpoints=1,
        exact_resume=exact,
    )
    run(config, output=tmp_path / "undisturbed", until="saes")

    def interrupt(trainer: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SAETrainer, "set_final_sae_metadata", interrupt)
        run(config, output=tmp_path / "killed", until="saes")
    # SAELens has folded the norm into the weights by then: of them there is no checkpoint to go on from.
    seals = [json.loads(path.read_text()) for path in (tmp_path / "killed").rglob(SEAL)]
    assert all(seal["n_training_samples"] < 64 * STEPS for seal in seals)
    run(config, output=tmp_path / "killed", until="saes")
    if exact:
        assert_same(tmp_path / "undisturbed", tmp_path / "killed")


def test_a_checkpoint_of_what_is_not_finite_is_not_written(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU, where losses are looked at from time to time.
    monkeypatch.setattr("sae_faithful.training.is_looked_at", lambda loss, step: False)
    config = config_of(tiny_config, lr=1e30, sae_seeds=[0])
    with pytest.raises(RunError, match="is not finite at training step"):
        run(config, output=tmp_path / "run", until="saes")
    assert not list((tmp_path / "run").rglob(SEAL))
    config.n_checkpoints = 0
    with pytest.raises(RunError, match="is not finite at training step"):
        run(config, output=tmp_path / "run", until="saes")
    assert not (tmp_path / "run/saes" / Path(*PLACE) / "seed0").exists()


def test_all_saes_are_whole_before_the_first_takes_its_place(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_faithful.run_folder import RunFolder

    whole: list[int] = []
    put = RunFolder.put

    def count(self: RunFolder, folder: Path, step: Any) -> None:
        if step.path.startswith("saes/"):
            whole.append(len(list((tmp_path / "run/saes").rglob("step.json"))))
        put(self, folder, step)

    monkeypatch.setattr(RunFolder, "put", count)
    run(config_of(tiny_config), output=tmp_path / "run", until="saes")
    assert whole == [2, 2]


def test_trained_saes_are_kept_where_the_monitors_files_cannot_be_written(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_faithful.monitors import Monitors

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    config = config_of(tiny_config, monitors=["reconstruction"], n_checkpoints=0)
    with monkeypatch.context() as patch, pytest.raises((OSError, RunError)):
        patch.setattr(Monitors, "write", full)
        run(config, output=tmp_path / "run", until="saes")
    assert steps_to_finish(config, tmp_path / "run") == 0


def test_with_no_checkpoints_asked_for_none_is_used(interrupted: ExperimentConfig, tmp_path: Path) -> None:
    interrupted.n_checkpoints = 0
    assert steps_to_finish(interrupted, tmp_path / "run") == STEPS


def test_activations_that_come_out_differently_stop_it(
    interrupted: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.training.activations_store import ActivationsStore

    read = ActivationsStore.get_batch_tokens
    monkeypatch.setattr(ActivationsStore, "get_batch_tokens", lambda *a, **k: read(*a, **k).flip(0))
    with pytest.raises(RunError, match="cannot go on exactly: the activations come out differently"):
        run(interrupted, output=tmp_path / "run", until="saes")


def test_the_inexact_kind_is_asked_for_and_says_so(interrupted: ExperimentConfig, tmp_path: Path) -> None:
    interrupted.exact_resume = False
    assert steps_to_finish(interrupted, tmp_path / "run") == STEPS - 13
    for seed in (0, 1):
        folder = tmp_path / "run" / "saes" / Path(*PLACE) / f"seed{seed}"
        assert json.loads((folder / "resumed.json").read_text()) == {"exact": False, "after_tokens": [832]}
    done = run(interrupted, output=tmp_path / "run")
    marked = {f"saes/{Path(*PLACE).as_posix()}/seed{seed}": [832] for seed in (0, 1)}
    assert json.loads(done.manifest_file.read_text())["resumed_inexactly"] == marked
    (line,) = [line for line in done.report_file.read_text().splitlines() if "Training was resumed" in line]
    assert f"{Path(*PLACE).as_posix()}/seed1 after 832 tokens" in line
    run(interrupted, output=tmp_path / "undisturbed", until="saes")
    assert not list((tmp_path / "undisturbed").rglob("resumed.json"))
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "undisturbed", tmp_path / "run")


def test_what_was_reached_inexactly_is_left_out_where_exactness_is_asked_for_again(
    interrupted: ExperimentConfig, tmp_path: Path
) -> None:
    interrupted.exact_resume = False
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 2 * 10)
        run(interrupted, output=tmp_path / "run", until="saes")
    assert len(checkpoints(tmp_path / "run")) == 3
    interrupted.exact_resume = True
    assert steps_to_finish(interrupted, tmp_path / "run") == STEPS - 13
    run(interrupted, output=tmp_path / "undisturbed", until="saes")
    assert_same(tmp_path / "undisturbed", tmp_path / "run")
