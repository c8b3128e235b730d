"""The examples: configs that can be planned, and a page of results that says what its rows say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import ExperimentConfig, load_plugins
from sae_faithful.plan import plan_baselines, plan_evaluators

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_name_and_option_of_an_example_is_known(path: Path) -> None:
    config = ExperimentConfig.from_file(path, ["sae.d_in=576"])
    plugins = load_plugins()
    assert plan_evaluators(config.evaluators, config.seed, plugins)
    plan_baselines(config, plugins)
    assert set(config.sources) | set(config.datasets)


def tables_script() -> Any:
    """The module that makes the page's tables; examples are in no package."""
    path = ROOT / "examples" / "cunningham2023_tables.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_on_cunningham_et_al_says_what_its_rows_say() -> None:
    page = (ROOT / "docs" / "cunningham2023.md").read_text(encoding="utf-8")
    assert tables_script().page(ROOT / "docs" / "cunningham2023").strip() in page


def test_the_page_is_of_the_example(tmp_path: Path) -> None:
    import json

    made = json.loads((ROOT / "docs" / "cunningham2023" / "config.json").read_text(encoding="utf-8"))
    config = ExperimentConfig.from_file(ROOT / "examples" / "cunningham2023.yaml", ["sae.d_in=576"])
    asked = config.to_dict()
    for name in ("hook_names", "variants", "evaluators", "training_tokens", "sae_seeds", "lr", "model_name"):
        assert made[name] == asked[name], name
