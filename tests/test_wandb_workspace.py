"""The dashboard of examples/wandb_workspace.py, as far as it goes without a server."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import EvalResult

PLACE = {"hook": "h", "variant": "base", "evaluator": "fake_features", "unit": "share of latents"}


@pytest.fixture
def example() -> Any:
    """The example as a module."""
    path = Path(__file__).parents[1] / "examples/wandb_workspace.py"
    spec = importlib.util.spec_from_file_location("wandb_workspace", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of two sources and two seeds, as far as FFR goes."""
    rows = [
        EvalResult(
            metric="ffr_contrast", value=0.1 * (seed or 0) + (0.3 if source == "news" else 0.2), subset="alive",
            condition="rate>0.1", source=source, seed=seed, headline=seed is None, **PLACE,
        )
        for source in ("own", "news") for seed in (0, 1, None)
    ]  # fmt: skip
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    manifest = {
        "model": "org/model@abc",
        "versions": {},
        "device": "cpu",
        "threads": 1,
        "summary": "",
        "sources": ["own", "news"],
        "own_text": ["own"],
        "baselines": {},
        "datasets": [],
        "evaluators": [],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    config = {
        "logger": {"wandb_project": "project"}, "hook_names": ["h"], "variants": {"base": {}}, "sae_seeds": [0, 1],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "wandb.json").write_text(json.dumps({"group": "run-0a1b2c"}))
    return tmp_path


def test_the_view_shows_the_groups_keys_and_can_be_sent(example: Any, folder: Path) -> None:
    view = example.layout(folder, "me")
    assert (view.entity, view.project, view.name) == ("me", "project", "sae-faithful run-0a1b2c")
    bars = [
        panel for section in view.sections for panel in section.panels if type(panel).__name__ == "BarPlot"
    ]
    assert [[metric.name for metric in panel.metrics] for panel in bars] == [
        ["verdicts/ffr/own-news/h/base/difference"],
        [
            "fake_features/ffr_contrast.alive/own/h/base/mean",
            "fake_features/ffr_contrast.alive/news/h/base/mean",
        ],
    ]
    (losses, *_) = view.sections[-1].panels
    assert losses.y == ["h/base/seed0/losses/overall_loss", "h/base/seed1/losses/overall_loss"]
    # What `save` sends: W&B's own checks pass, and the view holds only this group.
    sent = json.loads(view._to_model().model_dump_json(by_alias=True))
    assert "run-0a1b2c" in json.dumps(sent["spec"]["section"]["runSets"])
    named = [section["name"] for section in sent["spec"]["section"]["panelBankConfig"]["sections"]]
    assert named[:2] == ["Verdicts: own text − other text", "fake_features"]
    assert named[-1] == "Training"


def test_a_run_without_w_and_b_is_refused(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        example.main([str(tmp_path), "me"])
    assert "has logged nothing to W&B" in capsys.readouterr().err
