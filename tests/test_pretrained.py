"""`sae-faithful evaluate`: SAEs that exist already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sae_faithful import ExperimentConfig, UsageError, run
from sae_faithful.cli import main
from sae_faithful.pretrained import evaluate_saes

OWN = {"self_generated": {"plugin": "self_generated", "n_tokens": 960, "batch_size": 64}}
EVALUATORS = ["shared_features", {"fake_features": {"n_tokens": 500}}, {"reconstruction": {"ce_tokens": 100}}]


@pytest.fixture
def saes(tiny_config: dict[str, Any], tmp_path: Path) -> list[str]:
    """Folders of two seeds that a run trained, copied to where the run is not known."""
    folder = run(ExperimentConfig.from_dict(tiny_config), output=tmp_path / "trained", until="saes")
    copies: list[str] = []
    for seed in (0, 1):
        copy = tmp_path / f"downloaded-{seed}"
        shutil.copytree(folder.sae_dir("faithful", "model.layers.0", "base", seed), copy)
        copies.append(str(copy))
    return copies


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def edited(sae: str, **metadata: Any) -> None:
    path = Path(sae) / "cfg.json"
    cfg = json.loads(path.read_text())
    cfg["metadata"].update(metadata)
    path.write_text(json.dumps(cfg))


def test_saes_on_disk_are_measured_with_what_their_metadata_say(saes: list[str], tmp_path: Path) -> None:
    folder = evaluate_saes(saes, OWN, EVALUATORS, tmp_path / "out", typicality_tokens=200)
    rows = rows_of(folder.root)
    # Same hook, size and training text: the two SAEs are two seeds of one variant.
    assert {row["variant"] for row in rows if row["variant"]} == {"topk-96-on-self_generated"}
    pairs = [row for row in rows if row["metric"] == "sfr" and row["seed"] is not None]
    assert {(row["seed"], row["other_seed"]) for row in pairs} == {(0, 1)}
    assert {row["hook"] for row in rows if row["hook"]} == {"model.layers.0"}
    # 960 tokens in rows of the SAEs' own context, 16.
    card = json.loads((folder.data_dir("self_generated") / "card.json").read_text())
    assert (card["context_size"], card["rows"]) == (16, {"train": 0, "held_out": 60})
    assert not (folder.root / "saes").exists()


def test_the_numbers_are_those_of_the_run_that_trained_them(
    saes: list[str], tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    """Random tokens are drawn from the seed alone, so the firings on them must agree exactly."""
    evaluators = [{"fake_features": {"n_tokens": 500}}]
    trained = run(
        ExperimentConfig.from_dict({**tiny_config, "evaluators": evaluators}), output=tmp_path / "trained"
    )
    measured = evaluate_saes(
        saes, OWN, evaluators, tmp_path / "out", seed=tiny_config["seed"], typicality_tokens=200
    )

    def ffr(folder: Any) -> dict[int, float]:
        return {
            row["seed"]: row["value"]
            for row in rows_of(folder.root)
            if row["metric"] == "ffr_fire" and row["subset"] == "all" and row["seed"] is not None
        }

    assert ffr(trained) == ffr(measured)
    assert len(ffr(measured)) == 2


def test_the_first_text_counts_as_in_distribution_and_the_output_says_so(
    saes: list[str], tmp_path: Path
) -> None:
    result = CliRunner().invoke(
        main,
        [
            "evaluate", "--sae", saes[0], "--output", str(tmp_path / "out"),
            "--source", "self_generated={n_tokens: 960, batch_size: 64}",
            "--evaluator", "fake_features={n_tokens: 500}",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "'self_generated' counted as in-distribution" in result.output
    assert "'self_generated' counted as in-distribution" in (tmp_path / "out" / "report.md").read_text()


def test_run_twice_it_measures_once(saes: list[str], tmp_path: Path) -> None:
    folder = evaluate_saes(saes, OWN, EVALUATORS, tmp_path / "out", typicality_tokens=200)
    before = {path: path.stat().st_mtime_ns for path in folder.root.rglob("step.json")}
    evaluate_saes(saes, OWN, EVALUATORS, tmp_path / "out", typicality_tokens=200)
    assert {path: path.stat().st_mtime_ns for path in folder.root.rglob("step.json")} == before


def test_a_path_that_is_no_sae_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--sae 'nowhere/at-all' is no folder of an SAE and no RELEASE/SAE_ID"
    ):
        evaluate_saes(["nowhere/at-all"], OWN, EVALUATORS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_name": "another"}, "has model_name another, but"),
        ({"prepend_bos": False}, "has prepend_bos False, but"),
        ({"hook_name": None}, "does not say which model and hook it is for"),
        ({"hook_name": "model.layers.9"}, "unknown hook_name 'model.layers.9'"),
        ({"hook_name": "model.layers.0.mlp.up_proj"}, "takes 64 activations, but its hook gives 96|takes 64"),
    ],
)
def test_saes_that_cannot_be_measured_together_are_refused(
    saes: list[str], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    edited(saes[1], **change)
    with pytest.raises(UsageError, match=says):
        evaluate_saes(saes, OWN, EVALUATORS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_context_size_that_nobody_says_is_asked_for(saes: list[str], tmp_path: Path) -> None:
    edited(saes[0], context_size=None)
    with pytest.raises(UsageError, match="does not say its context size; give --context-size"):
        evaluate_saes(saes[:1], OWN, EVALUATORS, tmp_path / "out")


@pytest.mark.parametrize("size", [-5, 0, 10**30])
def test_a_context_size_that_no_context_has_is_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"--context-size is {size}, not 1 to 10,000,000 tokens"):
        evaluate_saes(["unread"], OWN, EVALUATORS, tmp_path / "out", context_size=size)


def test_options_that_are_no_mapping_are_refused() -> None:
    result = CliRunner().invoke(
        main,
        [
            "evaluate",
            "--sae",
            "x",
            "--source",
            "self_generated=3",
            "--evaluator",
            "fake_features",
            "--output",
            "o",
        ],
    )
    assert result.exit_code == 2
    assert "'self_generated=3' is not NAME or NAME={option: value}" in result.output
