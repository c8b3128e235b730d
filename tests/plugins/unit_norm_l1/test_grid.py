"""A grid over sparsity and size: trained in one pass of the language model, told apart, drawn as curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from safetensors.torch import load_file

from sae_faithful import ExperimentConfig, run
from sae_faithful_plugins.unit_norm_l1 import l1_coefficient_of

from .conftest import batches, make, trained, trainer_config


def test_several_trained_together_are_those_trained_alone() -> None:
    grid = {
        f"{l1}-{d_sae}-{tied}": {"l1_coefficient": l1, "d_sae": d_sae, "tied": tied}
        for l1 in (0.0, 0.2)
        for d_sae in (10, 30)
        for tied in (True, False)
    }
    together = {name: make(**options) for name, options in grid.items()}
    MultiSAETrainer(
        cfg=trainer_config(8),
        saes=together,
        hook_names=dict.fromkeys(together, "hook"),
        data_provider=({"hook": batch} for batch in batches()),
    ).fit()
    for name, options in grid.items():
        alone = trained(make(**options), batches(), 8).state_dict()
        assert all(together[name].state_dict()[key].equal(value) for key, value in alone.items()), name
    assert len({sae.b_enc.sum().item() for sae in together.values()}) == len(grid)


def test_a_grid_over_alpha_and_size_trains_in_one_pass_and_gives_curves(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    grid = {
        f"r{expansion}_a{alpha:g}": {
            "d_sae": int(64 * expansion), "l1_coefficient": l1_coefficient_of(alpha, 64),
        }
        for expansion in (0.5, 2)
        for alpha in (0, 1e-2)
    }  # fmt: skip
    changes = {
        "sae": {"architecture": "unit_norm_l1", "d_in": 64, "d_sae": 64},
        "lr": 1e-2,
        "training_tokens": 6_000,
        "evaluators": [{"reconstruction": {"ce_tokens": 100, "alive_firings": 2}}, "shared_features"],
    }
    config = ExperimentConfig.from_dict({**tiny_config, **changes, "variants": grid})
    folder = run(config, output=tmp_path / "grid")
    rows = [json.loads(line) for line in folder.results_file.read_text().splitlines()]
    of_grid = {
        metric: {
            row["variant"]: row["value"]
            for row in rows
            if row["metric"] == metric and row["seed"] is None and row["condition"] is None
            and row["subset"] == "all" and row["source"] == "faithful"
        }
        for metric in ("l0", "fvu", "alive_features", "perplexity", "mmcs")
    }  # fmt: skip
    for metric, values in of_grid.items():
        assert set(values) == set(grid), metric
    for expansion in (0.5, 2):
        dense, sparse = (f"r{expansion}_a{alpha}" for alpha in ("0", "0.01"))
        assert of_grid["l0"][dense] > of_grid["l0"][sparse]
        assert of_grid["fvu"][dense] < of_grid["fvu"][sparse]
    assert of_grid["fvu"]["r2_a0"] < of_grid["fvu"]["r0.5_a0"]
    check_sweep(folder.result_dir("reconstruction") / "artifacts", rows, grid)
    # One of them alone, in a run of its own, has the same weights.
    alone = ExperimentConfig.from_dict(
        {
            **tiny_config,
            **changes,
            "variants": {"r2_a0.01": grid["r2_a0.01"]},
            "sae_seeds": [1],
            "evaluators": [],
        }
    )
    other = run(alone, output=tmp_path / "alone", until="saes")
    one, same = (
        load_file(each.sae_dir("faithful", "model.layers.0", "r2_a0.01", 1) / "sae_weights.safetensors")
        for each in (folder, other)
    )
    assert one.keys() == same.keys() == {"W_enc", "W_dec", "b_enc", "b_dec"}
    assert all(one[name].equal(same[name]) for name in one)


def check_sweep(artifacts: Path, rows: list[dict[str, Any]], grid: dict[str, Any]) -> None:
    """The curves hold every SAE's settings and the numbers of its rows."""
    sweep = json.loads((artifacts / "sweep.json").read_text())
    assert sweep["curves"] == ["l0", "fvu", "alive_features", "perplexity", "mmcs"]
    assert len(sweep["points"]) == 2 * len(grid)
    for point in sweep["points"]:
        wanted = grid[point["variant"]]
        assert point["architecture"] == "unit_norm_l1"
        assert (point["d_sae"], point["expansion"]) == (wanted["d_sae"], wanted["d_sae"] / 64)
        assert point["l1_coefficient"] == wanted["l1_coefficient"]
        assert point["alpha"] == pytest.approx(wanted["l1_coefficient"] / 64)
        for name in sweep["curves"][:-1]:
            (row,) = [
                row
                for row in rows
                if row["metric"] == name and row["condition"] is None
                and all(row[key] == point[key] for key in ("source", "hook", "variant", "seed", "dataset"))
            ]  # fmt: skip
            found = tuple(point[key] for key in (name, f"{name}_low", f"{name}_high"))
            assert found == (row["value"], row["ci_low"], row["ci_high"])
        # The mean of it over a variant's seeds is a row of `shared_features`, which did not run.
        assert 0 < point["mmcs"] < 1
    lines = (artifacts / "sweep.txt").read_text().splitlines()
    # Smaller ones first, and of one size the denser first.
    assert [line.split(" | ")[2] for line in lines[4:]] == ["r0.5_a0", "r0.5_a0.01", "r2_a0", "r2_a0.01"]
