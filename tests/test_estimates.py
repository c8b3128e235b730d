"""The plan of a run before it runs: its steps, what it takes, and that to make it changes nothing."""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from sae_faithful import (
    EvalResult,
    ExperimentConfig,
    LanguageModel,
    Trial,
    Work,
    estimates,
    hookimpl,
    load_plugins,
    run,
)
from sae_faithful.cli import main
from sae_faithful.estimates import Estimate, estimate
from sae_faithful.memory import Needs, parameters_of
from sae_faithful.plan import make_plan
from sae_faithful.plan_text import plan_text
from sae_faithful.progress import size
from sae_faithful.run_folder import RunFolder
from sae_faithful.timings import PASSES, read_timings

from .run_files import comparable_files, first_difference

if TYPE_CHECKING:
    from collections.abc import Iterator

EVALUATORS = [
    "shared_features",
    {"fake_features": {"n_tokens": 600}},
    {"reconstruction": {"ce_tokens": 96, "bos_ce_tokens": 48}},
    {"ood_score": {"n_tokens": 40}},
]
STEPS = [
    "data/faithful", "references/uniform_random_tokens", "saes/faithful", PASSES, "results/shared_features",
    "results/fake_features", "results/reconstruction", "results/ood_score", "report",
]  # fmt: skip


def planned(config: dict[str, Any], plugins: Any = None, until: str = "results") -> tuple[Estimate, Any, Any]:
    """The estimate of a run, its config and its folder."""
    made = ExperimentConfig.from_dict(config)
    model = LanguageModel.from_config(made, made.hook_names)
    plan = make_plan(made, plugins or load_plugins(), model)
    folder = RunFolder(made.output_path or "")
    return estimate(plan, made, model, folder, until), made, folder


def dry_run(config: dict[str, Any], folder: Path, *options: str, verb: str = "run") -> Any:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return CliRunner().invoke(main, [verb, str(path), "--dry-run", *options])


def test_every_step_has_a_line_with_its_time_and_memory(tiny_config: dict[str, Any]) -> None:
    found, config, folder = planned({**tiny_config, "evaluators": EVALUATORS})
    assert [step.name for step in found.steps] == STEPS
    seconds = [found.seconds(step) for step in found.steps]
    assert all(one is not None and one > 0 for one in seconds[:-1])
    assert seconds[-1] is None
    # The weights of the model are in every step's memory.
    assert all(step.memory > found.needs.model > 0 for step in found.steps[:-1])
    text = plan_text(found, config, folder)
    assert [line.split("  ")[1] for line in text.splitlines()[2 : 2 + len(STEPS)]] == STEPS
    assert "2 SAEs, 2,000 tokens each" in text
    assert "of measuring" in text
    assert not any(step.at_least for step in found.steps)
    assert "together about" in text or "together under" in text


@pytest.mark.parametrize(("verb", "last"), [("generate", 2), ("train", 3)])
def test_shorter_verbs_plan_their_own_steps(
    verb: str, last: int, tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    result = dry_run(tiny_config, tmp_path, verb=verb)
    assert result.exit_code == 0, result.output
    names = [line.split()[0] for line in result.stdout.splitlines()[2:] if "/" in line.split()[0]]
    assert names[:last] == STEPS[:last]
    assert all(name not in STEPS[last:] for name in names)


def test_a_dry_run_writes_nothing_and_checks_everything(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    result = dry_run({**tiny_config, "evaluators": EVALUATORS}, tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"plan of {tmp_path / 'run'} (")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]
    refused = dry_run({**tiny_config, "context_size": 65}, tmp_path)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: context_size 65 is longer")


def test_an_estimate_changes_no_random_state(tiny_config: dict[str, Any]) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = (torch.get_rng_state(), np.random.get_state()[1], random.getstate())
    planned({**tiny_config, "evaluators": EVALUATORS})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_a_run_is_the_same_with_and_without_an_estimate_and_says_how_long_it_took(
    tiny_config: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {**tiny_config, "evaluators": EVALUATORS}
    unseen = run(ExperimentConfig.from_dict(config), output=tmp_path / "unseen")
    caplog.set_level(logging.INFO, "sae_faithful")
    seen = run(ExperimentConfig.from_dict(config), output=tmp_path / "seen")
    assert first_difference(comparable_files(unseen.root), comparable_files(seen.root)) is None

    (shown,) = (line for line in caplog.messages if line.startswith("plan of"))
    assert "results/ood_score" in shown
    for folder, expected in ((seen, True), (unseen, False)):
        rows = {row["step"]: row for row in read_timings(folder.timings_file)}
        assert set(rows) == set(STEPS)
        assert all(row["seconds"] >= 0 and row["peak_memory_bytes"] > 0 for row in rows.values())
        told = {name for name, row in rows.items() if row["expected_seconds"] is not None}
        assert told == (set(STEPS[:-1]) if expected else set())
    assert json.loads(seen.timings_file.read_text())["measured"]["forward_tokens_per_s"] > 0
    assert any(line.startswith("saes/faithful: took ") and "(expected " in line for line in caplog.messages)

    # Everything is done: nothing is measured, and what was measured of it stays.
    monkeypatch.setattr(estimates, "measure", None)
    before = read_timings(seen.timings_file)
    caplog.clear()
    run(ExperimentConfig.from_dict(config), output=tmp_path / "seen")
    (shown,) = (line for line in caplog.messages if line.startswith("plan of"))
    assert shown.splitlines()[-1].strip() == "every step is done already"
    assert shown.count("reused") == len(STEPS) - 2  # no passes are left, and the report is made anew
    assert [row["step"] for row in read_timings(seen.timings_file)] == [row["step"] for row in before]


def test_a_model_folder_without_weights_has_memory_and_no_times(
    tiny_config: dict[str, Any], tiny_llama: str, tmp_path: Path
) -> None:
    folder = tmp_path / "config_only"
    folder.mkdir()
    shutil.copy(Path(tiny_llama) / "config.json", folder)
    result = dry_run({**tiny_config, "model_name": str(folder), "evaluators": EVALUATORS}, tmp_path)
    assert result.exit_code == 0, result.output
    lines = {line.split("  ")[1]: line for line in result.stdout.splitlines() if line.startswith("  ")}
    assert "not estimated" in lines["saes/faithful"]
    assert lines["saes/faithful"].endswith(("MB", "GB"))
    (reason,) = (line for line in result.stdout.splitlines() if line.startswith("  not estimated: "))
    assert "times: the weights of" in reason


def test_a_model_out_of_reach_leaves_the_rest_checked(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    config = {**tiny_config, "model_name": "some-owner/a-model", "evaluators": EVALUATORS}
    result = dry_run(config, tmp_path)
    assert result.exit_code == 0, result.output
    (reason,) = (line for line in result.stdout.splitlines() if line.startswith("  not estimated: "))
    assert "some-owner/a-model" in reason
    assert "2 SAEs, 2,000 tokens each" in result.stdout
    for changes, says in (
        ({"evaluators": ["l00"]}, "unknown evaluator 'l00'"),
        ({"n_batches_in_buffer": 3}, "raise n_batches_in_buffer"),
        # A path is no name on a hub.
        ({"model_name": "./a-model"}, "model_name './a-model' cannot be read"),
    ):
        refused = dry_run({**config, **changes}, tmp_path)
        assert refused.exit_code == 2
        (line,) = refused.stderr.splitlines()
        assert says in line


def test_memory_and_disk_are_the_formulas_of_the_docs(tiny_config: dict[str, Any]) -> None:
    found, config, _ = planned(tiny_config, until="saes")
    needs = found.needs
    saes = make_plan(config, load_plugins(), LanguageModel.from_config(config)).saes
    # 64 × 96 twice, 96 and 64 biases.
    assert parameters_of(saes[0]) == 12_448
    # Two SAEs of one source, 4 bytes each; 1,600 tokens of 8 bytes, twice while they are made, and of 4 in the cache.
    assert needs.disk == 2 * 12_448 * 4 + 1_600 * (8 + 8 + 4)
    # Weights and two averages of both SAEs, twice.
    checkpointed = planned({**tiny_config, "n_checkpoints": 2}, until="saes")[0].needs
    assert checkpointed.disk - needs.disk == 2 * 2 * 3 * 12_448 * 4
    bare = Needs(process=0, model=0, vocab=64, d_in={"h": 64}, saes=0, widest=96, disk=0)
    # The buffer twice, 16 × 16 × 64; two SAEs four times, one of them three times more in its step; 64
    # tokens × 96 latents eight times.
    assert bare.training(saes, config) == 4 * (2 * 16 * 16 * 64 + (2 * 4 + 3) * 12_448 + 8 * 64 * 96)
    # 1,024 tokens × 64 logits, four times.
    assert bare.whole_forwards() == 4 * 4 * 1_024 * 64
    # Two SAEs of 96 latents; with a baseline of 10 directions of both signs, a fit a seed, at the same hook.
    assert needs.encoded == 2 * 96
    assert planned({**tiny_config, "baselines": [{"ica": {"dims": 10}}]})[0].needs.encoded == 2 * (96 + 20)
    # 8 rows of 16 tokens: the latents of both, and those of one while they are made.
    passes = replace(bare, saes=1_000, encoded=2 * 96).passes(replace(config, eval_batch_size_prompts=8))
    assert passes == 1_000 + 4 * 8 * 16 * 3 * 96


def test_what_a_source_takes_is_at_least(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    lines = dry_run(tiny_config, tmp_path).stdout.splitlines()
    (text,) = (line for line in lines if line.split()[0] == "data/faithful")
    assert re.search(r"  at least \d\S* [MG]B$", text)
    assert any(re.search(r"at least \d\S* [MG]B of memory \(", line) for line in lines)


@dataclass
class Silent:
    """An evaluator that does not say what it costs."""

    reads_text: bool = False
    """Whether its observers want to read the text at once."""

    def observers(self, context: Any) -> list[Any]:
        text = context.held_out["faithful"]
        if self.reads_text:
            text.rows()

        class Seen:
            hook, tokens = context.handles[0].hook, text

            def update(self, batch: Any) -> None:
                batch.latents(context.handles[0])

        return [Seen()]

    def evaluate(self, context: Any, observers: Any) -> Iterator[EvalResult]:
        yield EvalResult(metric="nothing", value=0.0, unit="rows", reason="counted")


@dataclass
class Outspoken(Silent):
    """An evaluator that does."""

    def work(self, context: Any) -> Work:
        return Work(
            logit_tokens=1_000,
            seconds=9_000,
            trials=[Trial(run=lambda: torch.rand(1), times=2)],
            at_least=True,
        )


class SilentPlugins:
    @hookimpl
    def register_evaluators(self, register: Any) -> None:
        register("silent", Silent)
        register("outspoken", Outspoken)


@pytest.mark.parametrize("reads_text", [False, True])
def test_an_evaluator_that_says_nothing_costs_at_least_its_passes(
    tiny_config: dict[str, Any], reads_text: bool
) -> None:
    plugins = load_plugins()
    plugins.register(SilentPlugins())
    evaluators = [{"silent": {"reads_text": reads_text}}, "outspoken"]
    found, config, folder = planned({**tiny_config, "evaluators": evaluators}, plugins)
    steps = {step.name: step for step in found.steps}
    # 1,600 tokens are 100 rows of 16, of which a tenth is held out.
    assert steps[PASSES].what.startswith("160 tokens")
    assert steps["results/silent"].at_least
    assert (found.seconds(steps["results/silent"]) or 0) > 0
    own = found.seconds(steps["results/outspoken"])
    assert own is not None and found.rates.logits is not None
    assert own - 9_000 - 1_000 * found.rates.logits < 5
    assert own > 9_000
    assert "together at least 2.5 h" in plan_text(found, config, folder)


def test_sizes_are_shown_with_two_digits() -> None:
    assert [size(n) for n in (12, 950, 8_449, 123_456_789, 2_345_678_901)] == [
        "12 bytes", "950 bytes", "8.4 kB", "123 MB", "2.3 GB",
    ]  # fmt: skip
