"""An experiment in W&B's offline mode: its files hold what docs/wandb.md says, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import EvalResult, ExperimentConfig, WandbRun, read_run, run
from sae_faithful_plugins.wandb_results import headline_numbers, log_inputs, publish

from ..wandb_files import LoggedRun, logged_runs  # noqa: TID252 - tests are no package

PAGE = Path(__file__).parents[2] / "docs/wandb.md"
HOOK = "model.layers.0"
PLACEHOLDERS = {"K": r"\d+", "GROUP": r"run-[0-9a-f]{6}", "HOOK": r"model\.layers\.0", "VARIANT": "base"}


def documented(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without backticks."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    assert len(lines) > 2, heading
    return [[cell.strip() for cell in line] for line in lines[2:]]


def pattern(name: str) -> re.Pattern[str]:
    """A documented name as an expression: capitals stand for anything without a slash."""
    parts = re.split(r"(?<![A-Z])(K|[A-Z]{2,})(?![A-Z])", name.strip("`").replace("W_dec", "w_dec"))
    known = [PLACEHOLDERS.get(part, "[^/]+") if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    return re.compile("".join(known).replace("w_dec", "W_dec"))


def assert_both_ways(logged: Sequence[str], names: Sequence[str]) -> None:
    """Every logged name is documented, and every documented one logged."""
    for name in logged:
        assert [one for one in names if pattern(one).fullmatch(name)], f"{name} is not in docs/wandb.md"
    for one in names:
        assert [name for name in logged if pattern(one).fullmatch(name)], f"{one} was not logged"


def test_the_patterns_tell_names_apart() -> None:
    assert pattern("`HOOK/VARIANT/seedK/losses/LOSS`").fullmatch("model.layers.0/base/seed12/losses/mse_loss")
    assert not pattern("`HOOK/VARIANT/seedK/losses/LOSS`").fullmatch(
        "model.layers.0/base/seed0/other/mse_loss"
    )
    assert not pattern("`GROUP-data-NAME`").fullmatch("run-0a1b2c-features")


@pytest.fixture
def config(tiny_config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Two sources, of which one is the model's own text, a dataset, a monitor and two evaluators."""
    (tmp_path / "notes").mkdir()
    for i in range(120):
        (tmp_path / f"notes/{i}.txt").write_text(
            " ".join(f"w{4 + (i * 7 + j * j * (1 + i // 59)) % 59}" for j in range(17))
        )
    notes = {"plugin": "text_files", "path": str(tmp_path / "notes/*.txt")}
    return {
        **tiny_config,
        "sources": {**tiny_config["sources"], "notes": notes},
        "datasets": {"hot": {"plugin": "self_generated", "temperature": 3.0, "n_tokens": 320, "batch_size": 64}},
        "feature_sampling_window": 10,
        "monitors": [{"fake_features": {"n_tokens": 200}}],
        "monitor_tokens": 64,
        "evaluators": [{"fake_features": {"n_tokens": 400}}, "shared_features"],
        "logger": {
            "log_to_wandb": True, "wandb_project": "somewhere", "run_name": "name",
            "wandb_log_frequency": 5, "eval_every_n_wandb_logs": 2,
        },
    }  # fmt: skip


def test_everything_documented_is_logged_and_nothing_else(
    config: dict[str, Any], wandb_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One experiment, since it takes a while."""
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    monkeypatch.setattr("sae_faithful.monitors.SHARE_OF_TRAINING", 1e9)
    folder = run(ExperimentConfig.from_dict({**config, "verbose": False}), output=tmp_path / "run")
    runs = logged_runs(wandb_home)
    names_and_types(runs, folder.root)
    configs(runs, folder.root)
    training_numbers(runs[:2])
    results_numbers(runs[2], folder.root)
    tables(runs[2], folder.root, wandb_home)
    artifacts(runs)


def names_and_types(runs: Sequence[LoggedRun], folder: Path) -> None:
    assert [run.run.display_name for run in runs] == ["name-faithful", "name-notes", "name-results"]
    assert [run.run.job_type for run in runs] == ["train", "train", "results"]
    group = json.loads((folder / "wandb.json").read_text())["group"]
    assert {run.run.run_group for run in runs} == {group}
    assert re.fullmatch(PLACEHOLDERS["GROUP"], group)
    assert {run.run.project for run in runs} == {"somewhere"}
    for one in runs:
        assert list(one.run.tags)[:2] == ["sae-faithful", "topk"]
        assert one.exit_code == 0


def configs(runs: Sequence[LoggedRun], folder: Path) -> None:
    resolved = json.loads((folder / "config.json").read_text())
    for one, part in zip(runs, ("faithful", "notes", "results"), strict=True):
        assert {key: value for key, value in one.config.items() if key != "_wandb"} == {
            **resolved,
            "part": part,
        }


def training_numbers(runs: Sequence[LoggedRun]) -> None:
    names = [row[0] for row in documented("Numbers of a training run")]
    types = {row[0]: row[1] for row in documented("Numbers of a training run")}
    for one in runs:
        logged = {name: value for name, value in one.logged.items() if not name.startswith("_")}
        assert_both_ways(list(logged), names)
        for name, value in logged.items():
            (row,) = [row for row in names if pattern(row).fullmatch(name)]
            kind = "histogram" if isinstance(value, dict) and value["_type"] == "histogram" else "number"
            assert types[row] == kind, name


def results_numbers(run: LoggedRun, folder: Path) -> None:
    heading = "Tables and figures of the results"
    keys = [row[0] for row in documented("Numbers of the results")]
    logged = [name for name in run.summary if not name.startswith("_")]
    shown = [row[0] for row in documented(heading)]
    assert_both_ways(logged, [*keys, *shown])
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    value = next(
        row["value"] for row in rows
        if (row["metric"], row["source"], row["subset"], row["seed"]) == ("ffr_contrast", "notes", "alive", None)
        and row["headline"]
    )  # fmt: skip
    assert run.summary[f"fake_features/ffr_contrast.alive/notes/{HOOK}/base/mean"] == pytest.approx(value)
    verdicts = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    (primary,) = [row for row in verdicts if row["claim"] == "ffr" and row["primary"]]
    place = f"verdicts/ffr/faithful-notes/{HOOK}/base"
    assert run.summary[f"{place}/difference"] == pytest.approx(primary["difference"])
    assert run.summary[f"{place}/verdict"] == primary["verdict"]


def tables(run: LoggedRun, folder: Path, home: Path) -> None:
    """Cell by cell what is in the files."""
    for key, file in {"tables/results": "results.jsonl", "tables/verdicts": "verdicts.jsonl"}.items():
        rows = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        (path,) = home.glob(f"wandb/offline-run-*/files/{run.logged[key]['path']}")
        table = json.loads(path.read_text())
        assert table["columns"] == list(rows[0])
        assert table["data"] == [list(row.values()) for row in rows]
    assert set(rows_columns(folder)) == {field.name for field in fields(EvalResult)}


def rows_columns(folder: Path) -> list[str]:
    return list(json.loads((folder / "results.jsonl").read_text().splitlines()[0]))


def artifacts(runs: Sequence[LoggedRun]) -> None:
    table = documented("Artifacts")
    for job, files in (("train", runs[0].files), ("train", runs[1].files), ("results", runs[2].files)):
        here = {row[0]: row for row in table if f"`{job}`" in row[2]}
        assert_both_ways(list(files), list(here))
        for name, (kind, paths) in files.items():
            row = next(row for one, row in here.items() if pattern(one).fullmatch(name))
            assert row[1] == f"`{kind}`", name
            told = set(re.findall(r"`([a-z_]+\.[a-z]+)`", row[3]))
            assert paths <= told, name
            assert paths or not told, name
    aliases = {one.name: list(one.aliases) for one in runs[0].artifacts if one.type == "model"}
    assert len(aliases) == 2
    assert all("final_model" in names for names in aliases.values())


class Online:
    """What W&B's run is asked, as if it were online; artifacts of one name are not there."""

    offline = False

    def __init__(self, missing: str = "") -> None:
        self.used: list[str] = []
        self.missing = missing

    def use_artifact(self, artifact: Any) -> Any:
        name = artifact if isinstance(artifact, str) else f"{artifact.type}: {artifact.name}"
        if self.missing and self.missing in name:
            raise ValueError("not found")
        self.used.append(name)
        return artifact


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a run as far as lineage goes: cards, SAEs, a group."""
    folder = tmp_path / "run"
    for name in ("faithful", "other"):
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "card.json").write_text(json.dumps({"name": name}))
    for seed in (0, 1):
        (folder / f"saes/faithful/{HOOK}/base/seed{seed}").mkdir(parents=True)
    manifest = {
        "model": "org/model@abc#12", "versions": {}, "device": "cpu", "threads": 1, "summary": "topk",
        "evaluators": [], "sources": ["faithful"], "datasets": ["other"],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "wandb.json").write_text(json.dumps({"group": "g"}))
    (folder / "results.jsonl").write_text("")
    return folder


def test_online_cards_and_saes_are_inputs_of_the_results(finished: Path, wandb_home: Path) -> None:
    online = Online()
    log_inputs(WandbRun(online, "results", finished), read_run(finished), finished)
    assert online.used == [
        "dataset: g-data-faithful", "dataset: g-data-other",
        f"g-faithful-{HOOK}-base-seed0:latest", f"g-faithful-{HOOK}-base-seed1:latest",
    ]  # fmt: skip


def test_saes_that_w_and_b_does_not_know_are_one_line(
    finished: Path, wandb_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    online = Online(missing="seed0")
    log_inputs(WandbRun(online, "results", finished), read_run(finished), finished)
    assert online.used == ["dataset: g-data-faithful", "dataset: g-data-other"]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "W&B run results: not found; going on without"
    ]


@pytest.mark.parametrize("config", [None, {"saes": []}, {"logger": {"log_to_wandb": False}}])
def test_a_run_that_does_not_log_is_left_alone(tmp_path: Path, wandb_home: Path, config: Any) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    publish(run_folder=tmp_path)
    assert not logged_runs(wandb_home)
    assert not (tmp_path / "wandb.json").exists()


def test_where_an_evaluator_marks_no_headline_all_its_means_are_numbers() -> None:
    row = json.loads(
        json.dumps(vars(EvalResult(metric="m", value=1.0, unit="u", evaluator="e", source="s", hook="h")))
    )
    rows = [
        row, {**row, "metric": "n", "value": None}, {**row, "seed": 0},
        {**row, "evaluator": "f", "headline": True}, {**row, "evaluator": "f", "metric": "n"},
    ]  # fmt: skip
    assert headline_numbers(rows) == {"e/m/s/h/mean": 1.0, "f/m/s/h/mean": 1.0}
