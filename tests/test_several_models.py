"""`models:` in a config file: a run for each, as it would be alone, and one page with all of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner

from sae_faithful import ExperimentConfig, UsageError, models_in_file, run, run_models
from sae_faithful.cli import main

from .run_files import comparable_files, first_difference

if TYPE_CHECKING:
    from pathlib import Path

MODELS = {
    "low": {"hook_name": "model.layers.0"},
    "high": {
        "hook_name": "model.layers.1",
        "sae": {"k": 4},
        "sae.d_sae": 64,
        "sources.faithful.temperature": 0.9,
    },
}


def written(content: dict[str, Any], folder: Path) -> Path:
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def content(tiny_config: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_config, "models": MODELS, "evaluators": ["shared_features"], "training_tokens": 1_600}


def test_each_model_has_the_shared_fields_with_its_own_over_them(
    content: dict[str, Any], tmp_path: Path
) -> None:
    configs = models_in_file(written(content, tmp_path), ["models.low.lr=0.5", "seed=3"])
    assert configs is not None
    assert list(configs) == ["low", "high"]
    low, high = configs["low"], configs["high"]
    assert (low.hook_name, low.sae.k, low.sae.d_sae, low.lr, low.seed) == ("model.layers.0", 8, 96, 0.5, 3)
    assert (high.hook_name, high.sae.k, high.sae.d_sae, high.lr, high.seed) == (
        "model.layers.1",
        4,
        64,
        1e-3,
        3,
    )
    assert "temperature" not in low.sources["faithful"]
    assert high.sources["faithful"] == {**low.sources["faithful"], "temperature": 0.9}


def test_a_file_without_models_has_none(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    assert models_in_file(written(tiny_config, tmp_path)) is None


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({}, r"models = \{\}: expected \{NAME: "),
        (["a"], r"models = \['a'\]: expected"),
        ({"a": "gpt2"}, r"models.a = 'gpt2': expected \{field: value"),
        ({"a/b": {}}, "'a/b' cannot name a folder"),
        ({"a": {"model": "gpt2"}}, "models.a: unknown config field 'model'.*model_name"),
        ({"a": {}, "b": {"sae.kk": 3}}, "models.b: unknown field of topk 'sae.kk'"),
        ({"a": {"models": {}}}, "models.a.models: one for all models"),
        ({"a": {"output_path": "x"}}, "models.a.output_path: one for all models"),
        ({"a": {"ray": {"workers": 2}}}, "models.a.ray: one for all models"),
    ],
)
def test_what_is_wrong_with_a_model_names_it(
    models: Any, says: str, content: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        models_in_file(written({**content, "models": models}, tmp_path))


def test_one_config_cannot_have_models(content: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="models: is for the commands"):
        ExperimentConfig.from_dict(content)


def test_all_models_are_checked_before_any_weights_load(
    content: dict[str, Any], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sae_lens.load_model

    monkeypatch.setattr(
        sae_lens.load_model, "load_model", lambda *_, **__: pytest.fail("weights were loaded")
    )
    models = {**MODELS, "wrong": {"hook_name": "model.layers.7"}}
    for extra in ([], ["--dry-run"]):
        file = str(written({**content, "models": models}, tmp_path))
        result = CliRunner().invoke(main, ["run", file, "--output", str(tmp_path / "out"), *extra])
        assert result.exit_code == 2
        assert "unknown hook_name 'model.layers.7'" in result.stderr
        assert not (tmp_path / "out").exists()


def test_each_run_is_as_it_would_be_alone_and_a_page_compares_them(
    content: dict[str, Any], tmp_path: Path, cache: Path
) -> None:
    file = written(content, tmp_path)
    plans = CliRunner().invoke(main, ["run", str(file), "--output", str(tmp_path / "all"), "--dry-run"])
    assert plans.exit_code == 0, plans.stderr
    assert [line for line in plans.stdout.splitlines() if line.startswith("plan of ")] == [
        f"plan of {tmp_path / 'all' / name} ({content['model_name']} on cpu)" for name in MODELS
    ]
    assert not (tmp_path / "all").exists()

    configs = models_in_file(file)
    assert configs is not None
    folders = run_models(configs, output=tmp_path / "all")
    assert {name: folder.root for name, folder in folders.items()} == {
        name: tmp_path / "all" / name for name in MODELS
    }
    # A report's title is its folder's name.
    alone = run(configs["high"], output=tmp_path / "alone" / "high")
    expected, found = comparable_files(alone.root), comparable_files(folders["high"].root)
    assert first_difference(expected, found) is None
    page = (tmp_path / "all" / "comparison.html").read_text()
    assert "low" in page
    assert "high" in page


def test_the_data_of_several_models_are_not_pushed_together(content: dict[str, Any], tmp_path: Path) -> None:
    file = str(written(content, tmp_path))
    result = CliRunner().invoke(main, ["generate", file, "--push-to-hub", "me/data"])
    assert result.exit_code == 2
    assert "--push-to-hub sends the data of one run" in result.stderr


def test_without_ray_installed_the_line_says_how_to_get_it(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    file = str(written(tiny_config, tmp_path))
    result = CliRunner().invoke(main, ["generate", file, "--ray", "local"])
    assert result.exit_code == 2
    assert result.stderr == "error: --ray needs Ray: pip install sae-faithful[ray]\n"
    assert not list(tmp_path.glob("run*"))
