"""Evaluators inside training: they see held-out text only, and training does not notice them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from sae_faithful import EvalResult, ExperimentConfig, PluginTrainingRunner, RunError, UsageError, run
from sae_faithful.monitors import Monitors, Watch
from sae_faithful.wandb_names import logged_names

MONITORS = ["fake_features", "shared_features", "reconstruction", "ood_score"]
HOOK = "model.layers.0"


@pytest.fixture
def watched(tiny_config: dict[str, Any]) -> dict[str, Any]:
    """The tiny config with every monitor, at steps 10, 20 and 30 of 32, and a second text."""
    return {
        **tiny_config,
        "datasets": {
            "other": {"plugin": "self_generated", "temperature": 3.0, "n_tokens": 320, "batch_size": 64}
        },
        "monitors": MONITORS,
        "monitor_tokens": 128,
        "logger": {"log_to_wandb": False, "wandb_log_frequency": 5, "eval_every_n_wandb_logs": 2},
    }


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cost is no object: the tiny training is over before a monitor is."""
    monkeypatch.setattr("sae_faithful.monitors.SHARE_OF_TRAINING", 1e9)


def trained_weights(folder: Any) -> dict[str, dict[str, torch.Tensor]]:
    return {
        str(path.parent.relative_to(folder.root)): load_file(path)
        for path in sorted(folder.root.glob("saes/**/sae_weights.safetensors"))
    }


def assert_same(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> None:
    assert one.keys() == other.keys() != set()
    for path, tensors in one.items():
        assert tensors.keys() == other[path].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other[path][name]), (path, name)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("seeds", [[0, 1], [0]], ids=["multi runner", "single runner"])
def test_final_weights_are_bit_identical_with_monitors_and_wandb_on_and_off(
    watched: dict[str, Any], tmp_path: Path, seeds: list[int]
) -> None:
    runs: dict[tuple[bool, bool], dict[str, dict[str, torch.Tensor]]] = {}
    for monitors in (True, False):
        for wandb_on in (True, False):
            config = {
                **watched, "sae_seeds": seeds, "monitors": MONITORS if monitors else [],
                "logger": {**watched["logger"], "log_to_wandb": wandb_on},
            }  # fmt: skip
            # The tests' environment sets WANDB_MODE=disabled: SAELens logs and evaluates, nothing leaves.
            folder = run(
                ExperimentConfig.from_dict(config), output=tmp_path / f"{monitors}-{wandb_on}", until="saes"
            )
            runs[monitors, wandb_on] = trained_weights(folder)
            assert (folder.monitors_dir / "faithful.jsonl").exists() == monitors
    plain = runs[False, False]
    for other in runs.values():
        assert_same(plain, other)


@pytest.mark.usefixtures("unlimited")
def test_each_monitor_fires_at_saelens_cadence_and_measures_what_is_being_trained(
    watched: dict[str, Any],
) -> None:
    folder = run(ExperimentConfig.from_dict(watched), until="saes")
    cost = json.loads((folder.monitors_dir / "faithful.json").read_text())
    # 2,000 training tokens in batches of 64 are 32 steps: the 10th, 20th and 30th are evaluated.
    assert cost["fired"] == dict.fromkeys(MONITORS, 3)
    assert cost["left_out"] == dict.fromkeys(MONITORS, 0)
    assert cost["share_of_training_time"] == pytest.approx(cost["seconds"] / cost["training_seconds"])
    rows = [json.loads(line) for line in (folder.monitors_dir / "faithful.jsonl").read_text().splitlines()]
    assert {row["evaluator"] for row in rows} == set(MONITORS)
    assert {row["call"] for row in rows} == {1, 2, 3}
    learnt = [
        row["value"]
        for row in rows
        if row["metric"] == "explained_variance" and row["seed"] == 0 and row["dataset"] == "faithful"
    ]
    assert len(learnt) == 3
    assert learnt[0] < learnt[1] < learnt[2]


@pytest.mark.usefixtures("unlimited")
def test_the_last_value_is_the_full_evaluators_where_budget_and_step_are_the_same(
    watched: dict[str, Any],
) -> None:
    # 1,920 tokens are 30 steps: it fires last after the last of them.
    full = {
        **watched, "training_tokens": 1_920, "monitor_tokens": 10_000,
        "monitors": [{"fake_features": {"n_tokens": 300}}, {"reconstruction": {"ce_tokens": 0}}],
        "evaluators": [
            {"fake_features": {"n_tokens": 300, "taus": [0.1]}}, {"reconstruction": {"ce_tokens": 0}},
        ],
    }  # fmt: skip
    folder = run(ExperimentConfig.from_dict(full))
    final = [json.loads(line) for line in folder.results_file.read_text().splitlines()]
    seen = [json.loads(line) for line in (folder.monitors_dir / "faithful.jsonl").read_text().splitlines()]
    key = ("evaluator", "metric", "subset", "condition", "hook", "variant", "seed", "dataset")
    last = {tuple(row[name] for name in key): row["value"] for row in seen}
    compared = 0
    for row in final:
        wanted = tuple(row[name] for name in key)
        if wanted in last and row["value"] is not None:
            assert last[wanted] == pytest.approx(row["value"], rel=1e-4, abs=1e-6), wanted
            compared += 1
    assert compared >= 10


@pytest.mark.usefixtures("unlimited")
def test_wandb_gets_plugin_metric_source_hook_variant_seed(
    watched: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    logged: dict[str, Any] = {}
    # wandb.init rebinds wandb.log; what the trainer calls is its own name for the module.
    stand_in = SimpleNamespace(
        log=lambda metrics, step=None: logged.update(metrics), Histogram=wandb.Histogram
    )
    monkeypatch.setattr("sae_lens.training.multi_sae_trainer.wandb", stand_in)
    run(
        ExperimentConfig.from_dict({**watched, "logger": {**watched["logger"], "log_to_wandb": True}}),
        until="saes",
    )
    place = f"faithful/{HOOK}/base"
    for name in (
        f"fake_features/ffr/{place}/0", f"fake_features/ffr_contrast.alive/{place}/1",
        f"shared_features/sfr.alive/{place}/0-1", f"reconstruction/explained_variance/{place}/1",
        f"reconstruction/explained_variance@other/{place}/1", f"fake_features/ffr/{place}/mean",
        f"ood_score/firing_shift@other/{place}/0",
    ):  # fmt: skip
        assert isinstance(logged.get(name), float), (name, sorted(logged))


def test_names_hold_what_tells_rows_apart_and_no_more() -> None:
    place = {"evaluator": "e", "unit": "u", "source": "s", "hook": "h", "variant": "v"}
    rows = [
        EvalResult(metric="m", value=1.0, seed=0, condition="rate>0.1", **place),
        EvalResult(metric="n", value=1.0, seed=0, condition="a", **place),
        EvalResult(metric="n", value=1.0, seed=0, condition="b", subset="alive", dataset="d", **place),
        EvalResult(metric="p", value=1.0, dataset="s", **place),
    ]
    assert logged_names(rows) == ["e/m/s/h/v/0", "e/n[a]/s/h/v/0", "e/n.alive[b]@d/s/h/v/0", "e/p/s/h/v/mean"]


@pytest.mark.usefixtures("unlimited")
def test_monitors_see_only_the_first_held_out_rows(
    watched: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_faithful import monitors

    seen: list[dict[str, np.ndarray]] = []
    observe = monitors.observe

    def spy(observers: Any, context: Any, *rest: Any, **more: Any) -> None:
        seen.append({name: tokens.rows(0, len(tokens)) for name, tokens in context.held_out.items()})
        assert context.sources == ["faithful"]
        observe(observers, context, *rest, **more)

    monkeypatch.setattr(monitors, "observe", spy)
    folder = run(ExperimentConfig.from_dict(watched), until="saes")
    from sae_faithful import TokenSet

    for given in seen:
        for name, rows in given.items():
            held_out = TokenSet.open(folder.data_dir(name) / "held_out.arrow")
            # 128 tokens are 8 rows of 16.
            assert np.array_equal(rows, held_out.rows(0, min(8, len(held_out))))
    assert len(seen) == 3


@pytest.mark.parametrize(("cost", "fired", "left_out"), [(1.0, 5, 0), (2.0, 3, 2), (1000.0, 1, 4)])
def test_a_monitor_stays_within_a_twentieth_of_training_time(
    monkeypatch: pytest.MonkeyPatch, cost: float, fired: int, left_out: int
) -> None:
    """Training takes 30 s between two calls, so a twentieth is 1.5 s a call; the first is always made.

    A firing of 2 s fits at the 1st call (always), the 3rd (2 + 2 ≤ 4.5) and the 4th (4 + 2 ≤ 6), not the 5th
    (6 + 2 > 7.5) nor the 2nd (2 + 2 > 3).
    """

    @dataclasses.dataclass
    class Slow:
        def observers(self, context: Any) -> list[Any]:
            return []

        def evaluate(self, context: Any, observers: Any) -> Any:
            nonlocal now
            now += cost
            return []

    from sae_faithful.plan import PlannedEvaluator

    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    watch = Watch([PlannedEvaluator("slow", Slow(), {})], {}, [], language_model=None, seed=0, batch_rows=1)  # type: ignore[arg-type]
    monitors = Monitors(watch, "faithful", {})
    for _ in range(5):
        now += 30.0
        monitors._of_multi({}, None, {}, {})
    seen = monitors.costs["slow"]
    assert (len(seen.seconds), seen.left_out) == (fired, left_out)


@pytest.mark.usefixtures("unlimited")
def test_a_monitor_that_fails_does_not_end_the_training(
    watched: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sae_faithful_plugins.fake_features import FakeFeatures

    def fail(self: Any, context: Any, observers: Any) -> Any:
        raise RunError("no such luck")

    monkeypatch.setattr(FakeFeatures, "evaluate", fail)
    config = {**watched, "monitors": ["fake_features", "reconstruction"]}
    folder = run(ExperimentConfig.from_dict(config), until="saes")
    assert len(trained_weights(folder)) == 2
    assert "saes/faithful: monitor fake_features: no such luck" in caplog.text
    rows = [json.loads(line) for line in (folder.monitors_dir / "faithful.jsonl").read_text().splitlines()]
    assert {row["evaluator"] for row in rows} == {"reconstruction"}


@pytest.mark.usefixtures("unlimited")
def test_out_of_memory_in_monitors_does_not_end_the_training_and_holds_no_memory(
    watched: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import gc
    import weakref

    handles: list[Any] = []

    def too_much(observers: Any, context: Any, *_: Any) -> None:
        for handle in context.handles:
            _ = handle.sae
            handles.append(weakref.ref(handle))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    freed: list[int] = []

    def free_memory(_: str) -> None:
        gc.collect()
        freed.append(sum(handle() is not None for handle in handles))

    monkeypatch.setattr("sae_faithful.monitors.observe", too_much)
    monkeypatch.setattr("sae_faithful.monitors.free_memory", free_memory)
    folder = run(ExperimentConfig.from_dict(watched), until="saes")
    assert len(trained_weights(folder)) == 2
    assert len(handles) == 2
    assert freed == [0]
    said = [line for line in caplog.messages if "out of memory" in line]
    assert said == [
        "saes/faithful: out of memory in monitors, which are left out from here on; lower saes_at_once to have them"
    ]
    cost = json.loads((folder.monitors_dir / "faithful.json").read_text())
    assert cost["fired"] == dict.fromkeys(MONITORS, 0)
    assert cost["left_out"] == dict.fromkeys(MONITORS, 3)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("content", ["{", '{"hook": "h"}\n', '{"seed": 0, "hook": [], "variant": {}}\n'])
def test_a_damaged_file_of_an_earlier_training_does_not_end_one(
    watched: dict[str, Any], caplog: pytest.LogCaptureFixture, content: str
) -> None:
    path = Path(watched["output_path"]) / "monitors/faithful.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    folder = run(ExperimentConfig.from_dict({**watched, "monitors": ["reconstruction"]}), until="saes")
    assert len(trained_weights(folder)) == 2
    (said,) = (line for line in caplog.messages if "begun anew" in line)
    assert str(path) in said
    assert all(json.loads(line)["metric"] for line in path.read_text().splitlines())


def test_monitors_write_nothing_where_a_link_leads_out_of_the_run_folder(
    watched: dict[str, Any], tmp_path: Path
) -> None:
    outside, output = tmp_path / "outside", Path(watched["output_path"])
    outside.mkdir()
    output.mkdir()
    (output / "monitors").symlink_to(outside)
    with pytest.raises(RunError, match="outside the run folder"):
        run(ExperimentConfig.from_dict(watched), until="saes")
    assert not list(output.glob("data/*"))  # before anything is done
    watch = Watch([SimpleNamespace(name="any")], {}, [], language_model=None, seed=0, batch_rows=1)  # type: ignore[arg-type, list-item]
    monitors = Monitors(watch, "faithful", {})
    with pytest.raises(RunError, match="outside the run folder"):
        monitors.write(output / "monitors")
    assert not list(outside.iterdir())


@pytest.mark.usefixtures("unlimited")
def test_a_seed_added_later_keeps_what_was_seen_of_the_others(
    watched: dict[str, Any], tmp_path: Path
) -> None:
    config = {**watched, "monitors": ["fake_features"]}
    run(ExperimentConfig.from_dict({**config, "sae_seeds": [0]}), output=tmp_path / "a", until="saes")
    folder = run(
        ExperimentConfig.from_dict({**config, "sae_seeds": [0, 1]}), output=tmp_path / "a", until="saes"
    )
    rows = [json.loads(line) for line in (folder.monitors_dir / "faithful.jsonl").read_text().splitlines()]
    assert {row["seed"] for row in rows} == {None, 0, 1}
    means = [row for row in rows if row["seed"] is None and row["metric"] == "ffr" and row["subset"] == "all"]
    assert len(means) == 3  # those of the last training


@pytest.mark.usefixtures("unlimited")
def test_the_drop_in_runner_has_monitors_too(watched: dict[str, Any], tmp_path: Path) -> None:
    config = {**watched, "sae_seeds": [0], "datasets": {}, "monitors": ["reconstruction"]}
    plain = ExperimentConfig.from_dict({**config, "monitors": [], "output_path": str(tmp_path / "plain")})
    with_monitors = ExperimentConfig.from_dict({**config, "output_path": str(tmp_path / "watched")})
    one, other = PluginTrainingRunner(plain).run(), PluginTrainingRunner(with_monitors).run()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert (tmp_path / "watched" / "monitors" / "faithful.jsonl").exists()
    assert not (tmp_path / "plain" / "monitors").exists()
    assert with_monitors.logger.log_to_wandb is False


@pytest.mark.usefixtures("unlimited")
def test_the_report_says_what_monitors_cost_and_where_they_differ(watched: dict[str, Any]) -> None:
    config = {**watched, "evaluators": ["reconstruction"], "monitors": ["reconstruction"]}
    folder = run(ExperimentConfig.from_dict(config))
    report = folder.report_file.read_text()
    section = report.partition("## Monitors")[2]
    assert "- faithful: reconstruction 3×; " in section
    assert "% of training time." in section
    assert " last values lie inside the full evaluator's interval" in section


@pytest.mark.parametrize(
    ("monitors", "message"),
    [
        (["nonsense"], "unknown monitor 'nonsense'"),
        (["probing"], "unknown monitor 'probing'"),
        (["fake_features", "fake_features"], "monitor 'fake_features' is listed more than once"),
        ([{"fake_features": {"n_token": 3}}], "unknown option 'n_token'"),
        ([3], "monitors: 3 is neither a name nor"),
        ([{"fake_features": 3}], "monitors.fake_features: 3 is not {option: value}"),
    ],
)
def test_a_bad_monitor_is_one_line_before_anything_is_written(
    watched: dict[str, Any], monitors: list[Any], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        run(ExperimentConfig.from_dict({**watched, "monitors": monitors}))
    assert message in str(error.value)
    assert not Path(watched["output_path"]).exists()


def test_monitors_need_held_out_text(tiny_config: dict[str, Any]) -> None:
    plain = {key: value for key, value in tiny_config.items() if key != "sources"}
    with pytest.raises(UsageError, match="monitors need text that this run splits"):
        run(
            ExperimentConfig.from_dict(
                {**plain, "dataset_path": "someone/texts", "monitors": ["fake_features"]}
            )
        )


def test_other_monitors_do_not_change_a_finished_run(watched: dict[str, Any]) -> None:
    folder = run(ExperimentConfig.from_dict({**watched, "monitors": []}), until="saes")
    before = {path: path.stat().st_mtime_ns for path in folder.root.glob("saes/**/step.json")}
    run(ExperimentConfig.from_dict({**watched, "monitor_tokens": 64}), until="saes")
    assert {path: path.stat().st_mtime_ns for path in folder.root.glob("saes/**/step.json")} == before


def test_the_command_line_says_what_monitors_cost(watched: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    from sae_faithful.cli import main

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**watched, "monitors": ["fake_features"]}))
    result = CliRunner().invoke(main, ["train", str(path)])
    assert result.exit_code == 0, result.stderr
    assert "saes/faithful: monitors took " in result.stderr


@pytest.mark.usefixtures("unlimited")
def test_a_monitor_that_cannot_start_does_not_end_the_training_either(
    watched: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = {**watched, "monitors": [{"ood_score": {"reference": "nowhere"}}, "reconstruction"]}
    folder = run(ExperimentConfig.from_dict(config), until="saes")
    assert len(trained_weights(folder)) == 2
    assert "saes/faithful: monitor ood_score: " in caplog.text


@pytest.mark.usefixtures("unlimited")
def test_a_run_without_wandb_does_not_silence_the_next_one_with_it(
    watched: dict[str, Any], tmp_path: Path
) -> None:
    """W&B reads its environment once a process; an offline run after a silent one must still write its files."""
    import os
    import subprocess
    import sys

    script = tmp_path / "two_runs.py"
    script.write_text(
        "import json, sys\n"
        "from sae_faithful import ExperimentConfig, run\n"
        "for name, on in (('silent', False), ('logged', True)):\n"
        "    config = json.loads(sys.argv[1])\n"
        "    config['logger']['log_to_wandb'] = on\n"
        "    config['logger']['log_weights_to_wandb'] = False\n"
        "    run(ExperimentConfig.from_dict(config), output=name, until='saes')\n"
    )
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    config = {**watched, "monitors": ["reconstruction"], "model_name": watched["model_name"]}
    config["logger"] = {**watched["logger"], "run_name": "tiny"}
    # An artifact cannot be named after a path: any name will do for what is found by its path from here.
    (tmp_path / "tiny").symlink_to(watched["model_name"])
    config["model_name"] = "tiny"
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(config)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    # One run: the one that was to be logged.
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
