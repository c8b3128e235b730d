"""Whole runs on tiny models: what is written, what is reused, what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_faithful import (
    EvalResult,
    ExperimentConfig,
    LanguageModel,
    PluginManager,
    RunError,
    TokenSet,
    UsageError,
    hookimpl,
    load_plugins,
    run,
)

EVALUATORS = [
    "shared_features",
    {"fake_features": {"n_tokens": 1_000}},
    {"reconstruction": {"ce_tokens": 200}},
]
LETTERS = {"plugin": "letters"}


@dataclass
class Letters:
    """Documents of ten random words."""

    first: int = 4
    """The lowest token id."""

    def load(self, request: Any) -> TokenSet:
        """As many as are asked for."""
        rng = np.random.default_rng(request.seed)
        return request.pack(rng.integers(self.first, 64, size=10) for _ in iter(int, 1))


@dataclass
class Counting:
    """How many batches it saw."""

    def observers(self, context: Any) -> list[Any]:
        """One a held-out text."""

        class Seen:
            def __init__(self, tokens: TokenSet) -> None:
                self.hook, self.tokens, self.rows = context.handles[0].hook, tokens, 0

            def update(self, batch: Any) -> None:
                self.rows += len(batch.tokens)

        return [Seen(tokens) for tokens in context.held_out.values()]

    def evaluate(self, context: Any, observers: Any) -> Any:
        """The number of rows seen."""
        for name, seen in zip(context.held_out, observers, strict=True):
            yield EvalResult(metric="rows_seen", value=seen.rows, unit="rows", reason="counted", dataset=name)


class TestPlugins:
    published: list[Path]

    def __init__(self) -> None:
        self.published = []

    @hookimpl
    def register_sources(self, register: Any) -> None:
        register("letters", Letters)

    @hookimpl
    def register_evaluators(self, register: Any) -> None:
        register("counting", Counting)

    @hookimpl
    def publish(self, run_folder: Path) -> None:
        self.published.append(run_folder)


@pytest.fixture
def plugins() -> PluginManager:
    manager = load_plugins()
    manager.register(TestPlugins(), name="test-plugins")
    return manager


def rows_of(folder: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.results_file.read_text().splitlines()]


def modified(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob(pattern))}


def test_a_run_leaves_data_saes_results_features_and_a_report(
    tiny_config: dict[str, Any], plugins: PluginManager
) -> None:
    config = {
        **tiny_config,
        "sources": {**tiny_config["sources"], "letters": LETTERS},
        "evaluators": EVALUATORS,
    }
    folder = run(ExperimentConfig.from_dict({**config, "sae_seeds": [0, 1, 2]}), plugins=plugins)

    card = json.loads((folder.data_dir("faithful") / "card.json").read_text())
    # 1,600 tokens are 100 rows of 16, of which ⌈10 %⌉ are held out; up to a document's rows may be dropped there.
    assert card["rows"]["train"] == 90
    assert 1 <= card["rows"]["held_out"] <= 10
    assert card["made"]["batch_size"] == 64
    for where in (folder.data_dir("faithful"), folder.root / "references/uniform_random_tokens"):
        gap = json.loads((where / "card.json").read_text())["typicality"]
        by_document = json.loads((where / "typicality.json").read_text())
        gaps, counts = np.array(by_document["gaps"]), np.array(by_document["n_tokens"])
        assert (len(gaps), int(counts.sum())) == (gap["n_documents"], gap["n_tokens"])
        # Gaps are rounded to four decimals.
        assert (gaps * counts).sum() / counts.sum() == pytest.approx(gap["gap"], abs=1e-4)
    # No more tokens are scored than was asked for.
    assert gap["n_tokens"] > 400 >= card["typicality"]["n_tokens"]
    train = TokenSet.open(folder.data_dir("letters") / "train.arrow")
    assert len(train) == 90

    rows = rows_of(folder)
    fields = {
        "evaluator", "metric", "value", "ci_low", "ci_high", "n", "unit", "source", "hook", "variant", "seed",
        "other_seed", "dataset", "subset", "condition", "reason", "config_hash", "headline",
    }  # fmt: skip
    assert all(set(row) == fields for row in rows)
    assert {row["evaluator"] for row in rows} == {
        "typicality",
        "shared_features",
        "fake_features",
        "reconstruction",
    }
    pairs = {
        (row["source"], row["seed"], row["other_seed"])
        for row in rows
        if row["metric"] == "sfr" and row["seed"] is not None
    }
    # Three seeds make three pairs in each of two sources; never across sources.
    assert len(pairs) == 6
    matrix = {(row["source"], row["dataset"]) for row in rows if row["metric"] == "explained_variance"}
    assert matrix == {(a, b) for a in ("faithful", "letters") for b in ("faithful", "letters")}

    features = pd.read_parquet(folder.features_file)
    # 2 sources × 3 seeds × 96 latents, one row each.
    assert len(features) == 2 * 3 * 96
    assert not features.duplicated(["source", "hook", "variant", "seed", "latent"]).any()
    assert {"fake_features.rate_random", "shared_features.stability"} <= set(features.columns)
    assert "faithful" in folder.report_file.read_text()


def test_a_second_run_does_nothing_again(
    tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExperimentConfig.from_dict({**tiny_config, "evaluators": EVALUATORS})
    folder = run(config)
    before = modified(folder.root, "step.json")
    results = folder.results_file.read_bytes()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model's weights were loaded again")

    monkeypatch.setattr("sae_lens.load_model.load_model", refuse)
    assert run(config).results_file.read_bytes() == results
    assert modified(folder.root, "step.json") == before


def test_sources_seeds_and_evaluators_added_later_extend_the_run(
    tiny_config: dict[str, Any], plugins: PluginManager
) -> None:
    folder = run(ExperimentConfig.from_dict({**tiny_config, "evaluators": ["shared_features"]}))
    kept = modified(folder.root / "data", "*.arrow") | modified(folder.root / "saes", "*.safetensors")
    more = {
        **tiny_config,
        "sources": {**tiny_config["sources"], "letters": LETTERS},
        "sae_seeds": [0, 1, 2],
        "evaluators": ["shared_features", "counting"],
    }
    run(ExperimentConfig.from_dict(more), plugins=plugins)
    after = modified(folder.root / "data", "*.arrow") | modified(folder.root / "saes", "*.safetensors")
    assert {path: after[path] for path in kept} == kept
    rows = rows_of(folder)
    assert (
        len(
            [
                row
                for row in rows
                if row["metric"] == "sfr" and row["seed"] is not None and row["subset"] == "all"
            ]
        )
        == 2 * 3 * 5
    )
    assert [row["value"] for row in rows if row["metric"] == "rows_seen"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"lr": 2e-3}, "lr"),
        ({"sae": {"architecture": "topk", "d_in": 64, "d_sae": 96, "k": 4}}, "sae.k"),
        ({"seed": 8}, "seed"),
        ({"typicality_tokens": 500}, "typicality_tokens"),
        ({"evaluators": [{"fake_features": {"n_tokens": 2_000}}]}, "evaluators.fake_features.n_tokens"),
    ],
)
def test_another_setting_for_finished_steps_is_refused_by_name(
    tiny_config: dict[str, Any], change: dict[str, Any], key: str
) -> None:
    config = {**tiny_config, "evaluators": [{"fake_features": {"n_tokens": 1_000}}]}
    folder = run(ExperimentConfig.from_dict(config))
    before = modified(folder.root, "*")
    with pytest.raises(UsageError, match=rf"{key}: .* there, .* now"):
        run(ExperimentConfig.from_dict({**config, **change}))
    assert modified(folder.root, "*") == before


def test_the_resolved_config_gives_the_same_data_elsewhere(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    automatic = {"faithful": {"plugin": "self_generated", "n_tokens": 1_600}}
    first = run(ExperimentConfig.from_dict({**tiny_config, "sources": automatic}), until="data")
    resolved = json.loads(first.config_file.read_text())
    assert isinstance(resolved["sources"]["faithful"]["batch_size"], int)
    assert isinstance(resolved["threads"], int)
    monkeypatch.setenv("SAE_FAITHFUL_CACHE", str(tmp_path / "another-cache"))
    second = run(ExperimentConfig.from_dict(resolved), output=tmp_path / "elsewhere", until="data")
    for name in ("train.arrow", "held_out.arrow"):
        assert (first.data_dir("faithful") / name).read_bytes() == (
            second.data_dir("faithful") / name
        ).read_bytes()


def test_a_transformer_lens_model_made_in_code_runs_whole(
    tiny_config: dict[str, Any], tiny_hooked: Any
) -> None:
    config = {
        **tiny_config,
        "model_name": "tiny-hooked",
        "model_class_name": "HookedTransformer",
        "hook_name": "blocks.0.hook_resid_post",
        "evaluators": EVALUATORS,
    }
    folder = run(ExperimentConfig.from_dict(config), override_model=tiny_hooked)
    gap = next(
        row for row in rows_of(folder) if row["metric"] == "typicality_z" and row["dataset"] == "faithful"
    )
    assert abs(gap["value"]) < 4
    assert folder.sae_dir("faithful", "blocks.0.hook_resid_post", "base", 1).is_dir()


def test_results_are_published_when_everything_is_on_disk(
    tiny_config: dict[str, Any], plugins: PluginManager
) -> None:
    folder = run(ExperimentConfig.from_dict({**tiny_config, "evaluators": ["counting"]}), plugins=plugins)
    assert plugins.get_plugin("test-plugins").published == [folder.root]


def test_datasets_are_measured_and_never_trained_on(
    tiny_config: dict[str, Any], plugins: PluginManager
) -> None:
    config = {**tiny_config, "datasets": {"letters": LETTERS}, "evaluators": ["counting", EVALUATORS[2]]}
    folder = run(ExperimentConfig.from_dict(config), plugins=plugins)
    assert sorted(path.name for path in (folder.root / "saes").iterdir()) == ["faithful"]
    assert not (folder.data_dir("letters") / "train.arrow").exists()
    # 10 % of 1,600 tokens: ten rows of 16.
    assert (
        next(
            row["value"]
            for row in rows_of(folder)
            if row["dataset"] == "letters" and row["metric"] == "rows_seen"
        )
        == 10
    )


def test_evaluators_on_text_that_saelens_loads_itself_are_refused_with_the_way_out(
    tiny_config: dict[str, Any],
) -> None:
    plain = {key: value for key, value in tiny_config.items() if key != "sources"}
    config = ExperimentConfig.from_dict(
        {**plain, "dataset_path": "someone/texts", "evaluators": ["fake_features"]}
    )
    with pytest.raises(UsageError, match=r"sources: \{web: \{plugin: hub_dataset, path: someone/texts\}\}"):
        run(config)


@dataclass
class Unreasoned:
    """Yields what it is told to."""

    def observers(self, context: Any) -> list[Any]:
        """None."""
        return []

    def evaluate(self, context: Any, observers: Any) -> Any:
        """A number without an interval or a reason."""
        yield EvalResult(metric="bare", value=1.0, unit="things")


def test_a_number_without_interval_or_reason_is_refused(tiny_config: dict[str, Any]) -> None:
    class Plugin:
        @hookimpl
        def register_evaluators(self, register: Any) -> None:
            register("unreasoned", Unreasoned)

    manager = load_plugins()
    manager.register(Plugin())
    with pytest.raises(
        RunError, match="evaluator 'unreasoned', metric 'bare': no interval and no reason why"
    ):
        run(ExperimentConfig.from_dict({**tiny_config, "evaluators": ["unreasoned"]}), plugins=manager)


def test_training_rows_never_stand_in_the_held_out_part(tiny_config: dict[str, Any]) -> None:
    folder = run(ExperimentConfig.from_dict(tiny_config), until="data")
    train, held_out = (
        TokenSet.open(folder.data_dir("faithful") / f"{part}.arrow") for part in ("train", "held_out")
    )
    trained = {document for row in train.arrays()[1] for document in row if document >= 0}
    held = {document for row in held_out.arrays()[1] for document in row if document >= 0}
    assert trained
    assert held
    assert not trained & held


def test_a_random_model_is_a_control_from_data_to_saes(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    from sae_faithful.pretrained import evaluate_saes

    config = ExperimentConfig.from_dict(
        {**tiny_config, "model_init": "random", "evaluators": ["reconstruction"]}
    )
    folder = run(config)
    manifest = json.loads(folder.manifest_file.read_text())
    assert "+random-init-" in manifest["model"]
    path = folder.sae_dir("faithful", "model.layers.0", "base", 0)
    saved = json.loads((path / "cfg.json").read_text())
    assert saved["metadata"]["random_init_seed"] == LanguageModel.from_config(config).random_init_seed
    # SAEs that say so are measured on those weights, not on the trained ones.
    evaluated = evaluate_saes(
        [str(path)],
        {"faithful": {"plugin": "self_generated", "n_tokens": 320}},
        ["reconstruction"],
        tmp_path / "e",
    )
    assert json.loads(evaluated.manifest_file.read_text())["model"] == manifest["model"]


def test_another_model_init_is_refused_on_a_finished_run(tiny_config: dict[str, Any]) -> None:
    run(ExperimentConfig.from_dict(tiny_config), until="saes")
    with pytest.raises(UsageError, match="model_init: 'pretrained' there, 'random' now"):
        run(ExperimentConfig.from_dict({**tiny_config, "model_init": "random"}), until="saes")


def test_an_unknown_model_init_is_refused(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="model_init = 'zero'"):
        ExperimentConfig.from_dict({**tiny_config, "model_init": "zero"})
