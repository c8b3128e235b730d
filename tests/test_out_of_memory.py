"""Out of memory (smaller batches where the results do not depend on them), and numbers that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_faithful import ExperimentConfig, RunError, run
from sae_faithful.baselines import draw_activations
from sae_faithful.data import measure_typicality
from sae_faithful.evaluation import read_rows
from sae_faithful.language_model import LanguageModel
from sae_faithful.tokens import TokenSet

EVALUATORS = ["shared_features", {"fake_features": {"n_tokens": 3_200}}, "reconstruction"]


@pytest.fixture
def activations_of_at_most(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Let no more rows than that have activations; gives the rows that were asked for."""

    def limit(rows: int) -> list[int]:
        asked: list[int] = []
        activations = LanguageModel.activations

        def limited(self: LanguageModel, tokens: torch.Tensor, hooks: Any) -> Any:
            asked.append(len(tokens))
            if len(tokens) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return activations(self, tokens, hooks)

        monkeypatch.setattr(LanguageModel, "activations", limited)
        return asked

    return limit


def numbers(folder: Any) -> dict[tuple[Any, ...], float]:
    """Every value of a run, by everything else in its row."""
    found: dict[tuple[Any, ...], float] = {}
    for path in sorted((folder.root / "results").iterdir()):
        for row in read_rows(path):
            for name in ("value", "ci_low", "ci_high"):
                key = tuple(str(row[key]) for key in sorted(row) if key not in ("value", "ci_low", "ci_high"))
                found[*key, name] = row[name]
    return found


def test_passes_go_on_in_smaller_batches_to_the_same_results(
    tiny_config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    activations_of_at_most: Callable[[int], list[int]],
) -> None:  # fmt: skip
    config = ExperimentConfig.from_dict(
        {**tiny_config, "evaluators": EVALUATORS, "eval_batch_size_prompts": 8}
    )
    expected = numbers(run(config, output=tmp_path / "undisturbed"))
    asked = activations_of_at_most(3)
    with caplog.at_level(logging.WARNING, logger="sae_faithful"):
        found = numbers(run(config, output=tmp_path / "short_of_memory"))
    assert max(asked) == 8
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert [line.split("; ")[0] for line in said] == [
        "out of memory with 8 rows at a time",
        "out of memory with 4 rows at a time",
    ]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)), key


def test_one_row_that_does_not_fit_is_one_line_and_leaves_what_was_finished(
    tiny_config: dict[str, Any], activations_of_at_most: Callable[[int], list[int]]
) -> None:
    config = ExperimentConfig.from_dict({**tiny_config, "evaluators": EVALUATORS})
    activations_of_at_most(0)
    with pytest.raises(RunError, match="out of memory while measuring one row at a time"):
        run(config)
    output = Path(tiny_config["output_path"])
    assert list(output.glob("saes/**/step.json"))
    assert not list(output.glob("results/*/step.json"))


def test_activations_for_baselines_are_the_same_in_smaller_batches(
    tiny_config: dict[str, Any], activations_of_at_most: Callable[[int], list[int]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    config = ExperimentConfig.from_dict(
        {**tiny_config, "store_batch_size_prompts": 8, "baseline_tokens": 200}
    )
    model = LanguageModel.from_config(config, config.hook_names)
    tokens = TokenSet.from_rows(np.random.default_rng(0).integers(3, 64, size=(40, 16)))
    (hook,) = config.hook_names
    expected = draw_activations("faithful", tokens, [hook], config, model)[hook]
    asked = activations_of_at_most(3)
    found = draw_activations("faithful", tokens, [hook], config, model)[hook]
    assert asked[:3] == [8, 4, 2]
    assert found.shape == expected.shape == (200, expected.shape[1])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert "activations of faithful for baselines 2 rows at a time" in caplog.text
    activations_of_at_most(0)
    with pytest.raises(
        RunError, match="'faithful': out of memory with one row at a time; lower baseline_tokens"
    ):
        draw_activations("faithful", tokens, [hook], config, model)


def test_an_estimate_that_does_not_fit_stops_no_run(
    tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_much(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("sae_faithful.estimates.measure", too_much)
    caplog.set_level(logging.INFO, logger="sae_faithful")
    assert run(ExperimentConfig.from_dict(tiny_config)).html_file.exists()
    assert "times: out of memory while measuring them" in caplog.text


def test_training_does_not_shrink_its_batches(
    tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.training.sae_trainer import SAETrainer

    def too_much(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(SAETrainer, "_train_step", too_much)
    with pytest.raises(
        RunError,
        match=r"training SAEs on faithful; .*: train fewer .*saes_at_once.* lower train_batch_size_tokens",
    ):
        run(ExperimentConfig.from_dict(tiny_config))


def test_a_source_that_runs_out_of_memory_is_named(
    tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_faithful_plugins.self_generated import SelfGenerated

    def too_much(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(SelfGenerated, "load", too_much)
    with pytest.raises(RunError, match=r"making data/faithful; .* lower sources\.faithful\.batch_size"):
        run(ExperimentConfig.from_dict(tiny_config))


def test_typicality_is_scored_in_smaller_batches_to_the_same_gap(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = LanguageModel(tiny_llama)
    documents = [np.random.default_rng(i).integers(3, 60, 20) for i in range(40)]
    expected = measure_typicality(documents, 1, llama, 500, seed=0)
    logits = LanguageModel.logits
    asked: list[int] = []

    def limited(self: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
        asked.append(len(tokens))
        if len(tokens) > 5:
            raise MemoryError
        return logits(self, tokens)

    monkeypatch.setattr(LanguageModel, "logits", limited)
    found = measure_typicality(documents, 1, llama, 500, seed=0)
    assert max(asked) > 5
    assert found.n_tokens == expected.n_tokens
    assert found.gap == pytest.approx(expected.gap, rel=1e-4, abs=1e-6)


def test_activations_that_are_not_finite_are_named_where_they_are_measured(
    tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    activations = LanguageModel.activations
    calls = 0

    def spoilt(self: LanguageModel, tokens: torch.Tensor, hooks: Any) -> Any:
        nonlocal calls
        calls += 1
        found = activations(self, tokens, hooks)
        if calls == 2:
            found["model.layers.0"][1, 2, 3] = float("nan")
        return found

    monkeypatch.setattr(LanguageModel, "activations", spoilt)
    with pytest.raises(
        RunError, match=r"activations at model\.layers\.0 are not finite on .* rows \d+ to \d+"
    ):
        run(ExperimentConfig.from_dict({**tiny_config, "evaluators": ["reconstruction"]}))


@pytest.mark.parametrize("what", ["shard", "score"])
def test_probabilities_that_are_not_finite_are_named(
    tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        # Sampling keeps keys and values, and scoring does not need them.
        if (what == "shard") == (kwargs.get("past_key_values") is not None):
            output.logits.fill_(float("nan"))
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", spoilt)
    with pytest.raises(RunError, match=r"next-token probabilities of .* are not finite"):
        run(ExperimentConfig.from_dict(tiny_config))


def test_a_model_that_rules_tokens_out_has_a_typicality(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama, logits = LanguageModel(tiny_llama), LanguageModel.logits

    def without_last(self: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
        return logits(self, tokens).index_fill(-1, torch.tensor([63]), float("-inf"))

    monkeypatch.setattr(LanguageModel, "logits", without_last)
    documents = [np.random.default_rng(i).integers(3, 60, 20) for i in range(10)]
    assert np.isfinite(measure_typicality(documents, 1, llama, 100, seed=0).gap)
