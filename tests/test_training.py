"""SAELens trains; what this project adds must not change a bit of it."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sae_faithful import ExperimentConfig, RunError, TokenSet, load_plugins, run
from sae_faithful.language_model import LanguageModel
from sae_faithful.plan import make_plan
from sae_faithful.training import guard_against_nan, initialise


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae_weights.safetensors")


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def stock_config(config: ExperimentConfig, **changes: Any) -> Any:
    """The same config without this project's fields."""
    from sae_lens import LanguageModelSAERunnerConfig

    names = [entry.name for entry in dataclasses.fields(LanguageModelSAERunnerConfig) if entry.init]
    return LanguageModelSAERunnerConfig(**{name: getattr(config, name) for name in names} | changes)


def train_stock(config: ExperimentConfig, dataset: Any, seed: int, output: Path, **changes: Any) -> None:
    """Plain SAELens, seeded: it has no seeding of its own."""
    from sae_lens import LanguageModelSAETrainingRunner
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.util import temporary_seed

    stock = stock_config(config, output_path=str(output), checkpoint_path=None, **changes)
    with temporary_seed(seed):
        sae = TrainingSAE.from_dict(stock.sae.to_dict())
    with temporary_seed(config.seed):
        LanguageModelSAETrainingRunner(stock, override_dataset=dataset, override_sae=sae).run()


@pytest.mark.parametrize("architecture", ["topk", "standard", "batchtopk"])
def test_one_sae_is_bit_identical_to_stock_saelens(
    tiny_config: dict[str, Any], tmp_path: Path, architecture: str
) -> None:
    sae = {"architecture": architecture, "d_in": 64, "d_sae": 96} | (
        {} if architecture == "standard" else {"k": 8}
    )
    config = ExperimentConfig.from_dict({**tiny_config, "sae": sae, "sae_seeds": [3]})
    folder = run(config, until="saes")
    data = TokenSet.open(folder.data_dir("faithful") / "train.arrow")
    train_stock(config, data.for_saelens(), 3, tmp_path / "stock")
    ours = folder.sae_dir("faithful", "model.layers.0", "base", 3)
    assert_same_weights(weights(ours), weights(tmp_path / "stock"))


def test_each_of_several_saes_is_bit_identical_to_one_trained_alone(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    several = {
        "sae_seeds": [0, 1],
        "hook_names": ["model.layers.0", "model.layers.1"],
        "variants": {"narrow": {"d_sae": 80}, "sparse": {"k": 4}},
    }
    config = ExperimentConfig.from_dict({**tiny_config, **several})
    folder = run(config, until="saes")
    data = TokenSet.open(folder.data_dir("faithful") / "train.arrow")
    for hook, variant, change, seed in (
        ("model.layers.0", "narrow", {"d_sae": 80}, 1),
        ("model.layers.1", "sparse", {"k": 4}, 0),
    ):
        output = tmp_path / f"{hook}-{variant}"
        alone = dataclasses.replace(config.sae, **change)
        train_stock(config, data.for_saelens(), seed, output, hook_name=hook, sae=alone)
        assert_same_weights(weights(folder.sae_dir("faithful", hook, variant, seed)), weights(output))


def test_a_config_without_our_fields_trains_as_saelens_does(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dataset_path` is then SAELens's to load: here text, which it streams and tokenises itself."""
    from datasets import Dataset

    text = Dataset.from_dict(
        {"text": [" ".join(f"w{4 + (i * j) % 59}" for j in range(40)) for i in range(100)]}
    )
    asked: list[str] = []

    def load_dataset(path: str, **options: Any) -> Any:
        asked.append(path)
        return text.to_iterable_dataset()

    monkeypatch.setattr("sae_lens.training.activations_store.load_dataset", load_dataset)
    ours = ("sources", "sae_seeds", "typicality_tokens")
    plain = {key: value for key, value in tiny_config.items() if key not in ours}
    config = ExperimentConfig.from_dict({**plain, "dataset_path": "someone/texts"})
    folder = run(config, until="saes")
    train_stock(config, None, config.seed, tmp_path / "stock")
    assert asked == ["someone/texts", "someone/texts"]
    trained = folder.sae_dir("someone--texts", "model.layers.0", "base", config.seed)
    assert_same_weights(weights(trained), weights(tmp_path / "stock"))


def test_a_seed_added_later_equals_one_trained_with_the_others(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    together = run(
        ExperimentConfig.from_dict({**tiny_config, "sae_seeds": [0, 1, 2]}),
        output=tmp_path / "a",
        until="saes",
    )
    first = run(
        ExperimentConfig.from_dict({**tiny_config, "sae_seeds": [0]}), output=tmp_path / "b", until="saes"
    )
    before = weights(first.sae_dir("faithful", "model.layers.0", "base", 0))
    later = run(
        ExperimentConfig.from_dict({**tiny_config, "sae_seeds": [0, 1, 2]}),
        output=tmp_path / "b",
        until="saes",
    )
    for seed in (0, 1, 2):
        place = ("faithful", "model.layers.0", "base", seed)
        assert_same_weights(weights(together.sae_dir(*place)), weights(later.sae_dir(*place)))
    assert_same_weights(before, weights(later.sae_dir("faithful", "model.layers.0", "base", 0)))


def test_seeds_differ_in_initialisation_and_see_identical_batches(tiny_config: dict[str, Any]) -> None:
    folder = run(ExperimentConfig.from_dict(tiny_config), until="saes")
    one, other = (weights(folder.sae_dir("faithful", "model.layers.0", "base", seed)) for seed in (0, 1))
    assert not torch.equal(one["W_dec"], other["W_dec"])


def test_the_experiment_seed_changes_the_data_order_but_not_the_initialisation(
    tiny_config: dict[str, Any],
) -> None:
    def initial(seed: int) -> Any:
        config = ExperimentConfig.from_dict({**tiny_config, "seed": seed})
        plan = make_plan(config, load_plugins(), LanguageModel.from_config(config))
        return initialise(plan.saes)

    for name, sae in initial(7).items():
        assert torch.equal(sae.W_dec, initial(8)[name].W_dec)


def test_saved_saes_load_in_plain_saelens_with_what_they_were_trained_on(tiny_config: dict[str, Any]) -> None:
    from sae_lens import SAE

    config = ExperimentConfig.from_dict(tiny_config)
    folder = run(config, until="saes")
    sae = SAE.load_from_disk(folder.sae_dir("faithful", "model.layers.0", "base", 0))
    assert sae.cfg.architecture() == "topk"
    assert sae.cfg.metadata.model_name == config.model_name
    assert sae.cfg.metadata.hook_name == "model.layers.0"
    assert sae.cfg.metadata.context_size == config.context_size
    assert sae.cfg.metadata.dataset_path == "self_generated"


def test_training_leaves_signal_handlers_and_random_state_as_they_were(tiny_config: dict[str, Any]) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    run(ExperimentConfig.from_dict(tiny_config), until="saes")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert torch.equal(torch.get_rng_state(), state)


def test_without_checkpoints_none_is_written_and_with_them_they_lie_in_the_run_folder(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = run(ExperimentConfig.from_dict(tiny_config), output=tmp_path / "plain", until="saes")
    kept = run(
        ExperimentConfig.from_dict({**tiny_config, "n_checkpoints": 1}),
        output=tmp_path / "kept",
        until="saes",
    )
    assert not (plain.root / "checkpoints").exists()
    assert list((kept.root / "checkpoints" / "faithful").rglob("runner_cfg.json"))
    assert not (tmp_path / "checkpoints").exists()


class FakeSAE:
    """Losses as given, one a step."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = iter(losses)

    def training_forward_pass(self, step_input: Any) -> Any:
        return dataclasses.make_dataclass("Output", ["loss"])(torch.tensor(next(self.losses)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_sae_and_the_step(bad: float) -> None:
    sae = FakeSAE([1.0, 2.0, bad])
    guard_against_nan(sae, "faithful/hook/base/seed3")
    step = dataclasses.make_dataclass("Step", ["n_training_steps", "sae_in"])
    finite = torch.zeros(4, 3)
    sae.training_forward_pass(step(10, finite))
    sae.training_forward_pass(step(11, finite))
    with pytest.raises(
        RunError, match=r"SAE faithful/hook/base/seed3 is not finite at training step 12; lower lr"
    ):
        sae.training_forward_pass(step(12, finite))


def test_what_is_noted_on_a_gpu_is_found_before_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # A loss whose device says that it is no CPU, as between two looks at a GPU.
    sae = FakeSAE([1.0, float("nan"), 1.0])
    check = guard_against_nan(sae, "faithful/hook/base/seed3")
    step = dataclasses.make_dataclass("Step", ["n_training_steps", "sae_in"])
    monkeypatch.setattr("sae_faithful.training.is_looked_at", lambda loss, n: False)
    for n in (10, 11, 12):
        sae.training_forward_pass(step(n, torch.zeros(4, 3)))
    with pytest.raises(RunError, match="is not finite at training step 11; lower lr"):
        check()


def test_activations_that_are_not_finite_are_told_from_a_diverging_sae() -> None:
    sae = FakeSAE([float("nan")])
    guard_against_nan(sae, "faithful/hook/base/seed3")
    step = dataclasses.make_dataclass("Step", ["n_training_steps", "sae_in"])
    activations = torch.zeros(4, 3)
    activations[2, 1] = float("nan")
    with pytest.raises(RunError, match=r"activations are not finite at training step 12 .*another dtype"):
        sae.training_forward_pass(step(12, activations))


def test_a_diverging_run_stops_with_the_sae_and_the_step(tiny_config: dict[str, Any]) -> None:
    config = ExperimentConfig.from_dict({**tiny_config, "lr": 1e30, "sae_seeds": [4, 5]})
    with pytest.raises(
        RunError, match=r"faithful/model\.layers\.0/base/seed4 is not finite at training step \d+"
    ):
        run(config, until="saes")


def test_wandb_offline_does_not_change_the_weights(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step SAELens may log and evaluate; its own evaluation would eat training tokens."""
    import wandb

    # W&B keeps the environment of the process's first run.
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    off = run(ExperimentConfig.from_dict(tiny_config), output=tmp_path / "off", until="saes")
    logger = {
        "log_to_wandb": True, "wandb_project": "test", "wandb_log_frequency": 1, "eval_every_n_wandb_logs": 1,
    }  # fmt: skip
    on = run(
        ExperimentConfig.from_dict({**tiny_config, "logger": logger}), output=tmp_path / "on", until="saes"
    )
    wandb.teardown()
    place = ("faithful", "model.layers.0", "base", 0)
    assert_same_weights(weights(off.sae_dir(*place)), weights(on.sae_dir(*place)))
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_an_interruption_that_a_library_swallows_still_stops_training(
    tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAELens's handler raises an `Exception`; here the activation store swallows it, once."""
    import os

    from sae_lens.training.activations_store import ActivationsStore

    read = ActivationsStore.get_batch_tokens
    sent: list[bool] = []

    def swallow(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not sent:
            sent.append(True)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1_000):
                    pass
            except Exception:
                sent.append(False)
        return read(self, *args, **kwargs)

    monkeypatch.setattr(ActivationsStore, "get_batch_tokens", swallow)
    with pytest.raises(KeyboardInterrupt):
        run(ExperimentConfig.from_dict(tiny_config), until="saes")
    assert sent == [True, False]
    assert signal.set_wakeup_fd(-1) == -1


def test_an_sae_gone_on_from_a_folder_is_guarded_and_marked_as_any(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    config = ExperimentConfig.from_dict({**tiny_config, "sae_seeds": [0], "model_init": "random"})
    model = LanguageModel.from_config(config)
    planned = make_plan(config, load_plugins(), model).saes[0]
    initialise([planned])[planned.name].save_model(str(tmp_path / "begun"))
    config.from_pretrained_path = str(tmp_path / "begun")
    folder = run(config, output=tmp_path / "run", until="saes")
    place = folder.sae_dir("faithful", planned.hook, planned.variant, planned.seed)
    assert model.random_init_seed is not None
    says = json.loads((place / "cfg.json").read_text())["metadata"]
    assert says["random_init_seed"] == model.random_init_seed
    config.lr = 1e30
    with pytest.raises(RunError, match=r"the loss of SAE faithful/.*/seed0 is not finite"):
        run(config, output=tmp_path / "diverged", until="saes")
    assert not list((tmp_path / "diverged" / "saes").rglob("step.json"))
