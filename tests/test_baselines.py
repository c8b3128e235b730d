"""Baselines in whole runs on the tiny model: fitted, kept, refused, measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from sae_faithful import (
    Directions,
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
from sae_faithful.baselines import CARD_FILE, baseline_handle, draw_activations
from sae_faithful.plan import make_plan
from sae_faithful.report.verdicts import judge
from sae_faithful.run_folder import RunFolder

D_MODEL, SPECIAL = 64, [0, 1, 2]
HOOK = "model.layers.0"
HOT = {"plugin": "self_generated", "n_tokens": 1_600, "batch_size": 64, "temperature": 2.0}
BASELINES = [
    "neurons",
    "random",
    "pca",
    {"pca_signed": {"plugin": "pca", "sign": "signed"}},
    {"topk_pca": {"k": 4}},
    {"ica": {"dims": 8, "max_iter": 20}},
]
SINGLE = ("neurons", "pca", "pca_signed", "topk_pca")
FITS = {(name, 0) for name in SINGLE} | {(name, seed) for name in ("random", "ica") for seed in (0, 1)}
"""Name and seed."""
EVALUATORS = [
    {"fake_features": {"n_tokens": 300}},
    {"reconstruction": {"ce_tokens": 100, "bos": False}},
    {"shared_features": {"null_draws": 2}},
    {"ood_score": {"scores": ["sae"]}},
]


@pytest.fixture
def config(tiny_config: dict[str, Any]) -> dict[str, Any]:
    """One source and one baseline."""
    return {**tiny_config, "baselines": ["pca"]}


@pytest.fixture(scope="module")
def finished(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], RunFolder]:
    """Two sources, two seeds, every baseline and four evaluators: the config and what it left. To be read only."""
    config: dict[str, Any] = {
        "model_name": tiny_llama,
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": HOOK,
        "context_size": 16,
        "training_tokens": 1_000,
        "train_batch_size_tokens": 64,
        "n_batches_in_buffer": 16,
        "store_batch_size_prompts": 8,
        "seed": 7,
        "sae": {"architecture": "topk", "d_in": D_MODEL, "d_sae": 96, "k": 8},
        "logger": {"log_to_wandb": False},
        "verbose": False,
        "sources": {"faithful": {**HOT, "temperature": 1.0}, "hot": HOT},
        "sae_seeds": [0, 1],
        "typicality_tokens": 400,
        "baselines": BASELINES,
        "evaluators": EVALUATORS,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_FAITHFUL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return config, run(ExperimentConfig.from_dict(config), output=tmp_path_factory.mktemp("finished"))


def rows_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.results_file.read_text().splitlines()]


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def handle_of(config: dict[str, Any], folder: Any, source: str, name: str, seed: int = 0) -> Any:
    experiment = ExperimentConfig.from_dict(config)
    plan = make_plan(experiment, load_plugins(), LanguageModel.from_config(experiment))
    (planned,) = [one for one in plan.baselines if (one.name, one.seed) == (name, seed)]
    return baseline_handle(planned, source, folder)


def test_each_source_gets_fits_of_its_own(finished: tuple[dict[str, Any], RunFolder]) -> None:
    config, folder = finished
    # Those that draw something once for each of the two seeds, the others once.
    for source in ("faithful", "hot"):
        for name, seed in FITS:
            assert (folder.baseline_dir(source, HOOK, name, seed) / CARD_FILE).exists()
    assert len(list(folder.root.glob("baselines/*/*/*/*"))) == 2 * len(FITS)
    fits = {
        (source, name): handle_of(config, folder, source, name)
        for source in ("faithful", "hot")
        for name in ("pca", "random")
    }
    # The training text tells principal components apart, and does not touch what looks at no text.
    pca = [fits[source, "pca"].W_dec for source in ("faithful", "hot")]
    assert not torch.allclose(*pca, atol=1e-3)
    assert torch.equal(*(fits[source, "random"].W_dec for source in ("faithful", "hot")))
    again = handle_of(config, folder, "hot", "random", 1)
    assert not torch.allclose(fits["hot", "random"].W_dec, again.W_dec)


def test_every_evaluator_measures_them(finished: tuple[dict[str, Any], RunFolder]) -> None:
    _, folder = finished
    rows = rows_of(folder)
    measured = {(row["evaluator"], row["source"], row["variant"], row["seed"]) for row in rows}
    for evaluator in ("fake_features", "reconstruction", "ood_score", "shared_features"):
        for source in ("faithful", "hot"):
            assert {(evaluator, source, name, seed) for name, seed in FITS} <= measured

    def value(metric: str, variant: str, **where: Any) -> float:
        wanted = {"source": "hot", "variant": variant, "condition": None, **where}
        found = [
            row for row in rows if row["metric"] == metric and all(row[key] == wanted[key] for key in wanted)
        ]
        assert len(found) == 1
        return found[0]["value"]

    own = {"dataset": "hot", "seed": 0}
    # Complete orthonormal directions lose nothing; the 4 of 128 largest lose something.
    for name in ("neurons", "pca", "pca_signed"):
        assert value("explained_variance", name, **own) == pytest.approx(1, abs=1e-6)
        assert value("ce_difference", name, **own) == pytest.approx(0, abs=1e-5)
        assert value("l0", name, **own) == pytest.approx(D_MODEL, rel=0.01)
    assert 0.05 < value("explained_variance", "topk_pca", **own) < 0.99
    assert value("l0", "topk_pca", **own) == 4

    # One fit shares nothing with another: no row, and no reason that a seed is missing. Two fits are compared.
    shared = [row for row in rows if row["evaluator"] == "shared_features"]
    assert {row["metric"] for row in shared if row["variant"] in SINGLE} == {"alive"}
    assert {"sfr", "cross_sfr"} <= {row["metric"] for row in shared if row["variant"] == "ica"}

    features = pd.read_parquet(folder.features_file)
    assert len(features[features.variant == "pca"]) == 2 * 2 * D_MODEL
    assert len(features[features.variant == "pca_signed"]) == 2 * D_MODEL
    assert not features.duplicated(["source", "hook", "variant", "seed", "latent"]).any()


def test_what_was_fitted_is_recorded_and_stands_in_the_report(
    finished: tuple[dict[str, Any], RunFolder],
) -> None:
    _, folder = finished
    card = json.loads((folder.baseline_dir("hot", HOOK, "pca_signed", 0) / CARD_FILE).read_text())
    # 90 rows of 16, of which the BOS, and any other special token, is left out.
    assert 1_000 < card["fitted_to"] <= 90 * 15
    assert {key: card[key] for key in ("plugin", "sign", "k", "latents", "components")} == {
        "plugin": "pca", "sign": "signed", "k": None, "latents": 64, "components": 64,
    }  # fmt: skip
    ica = json.loads((folder.baseline_dir("hot", HOOK, "ica", 1) / CARD_FILE).read_text())
    assert (ica["dims"], ica["sign"], ica["latents"]) == (8, "split", 16)
    assert isinstance(ica["converged"], bool)
    resolved = json.loads(folder.config_file.read_text())
    assert {"pca_signed": {"plugin": "pca", "n_components": None, "sign": "signed"}} in resolved["baselines"]
    # The resolved config asks for the same as the one it came from: everything is there already.
    before = modified(folder.root / "baselines") | modified(folder.root / "results")
    run(ExperimentConfig.from_dict(resolved), output=folder.root)
    assert modified(folder.root / "baselines") | modified(folder.root / "results") == before
    report = folder.report_file.read_text()
    assert "`pca_signed` (pca, sign signed)" in report
    assert f"{HOOK}/pca_signed" in report
    # The most fake latents are for reading; those of baselines are in the JSON alone.
    (texts,) = folder.root.glob("results/fake_features/artifacts/fake_latents.txt")
    assert "base, seed 0" in texts.read_text()
    assert "pca" not in texts.read_text()


def test_verdicts_about_sources_leave_baselines_out(finished: tuple[dict[str, Any], RunFolder]) -> None:
    _, folder = finished
    rows = rows_of(folder)
    # Both sources are the model's own here, so say that one is not.
    manifest = {**json.loads(folder.manifest_file.read_text()), "own_text": ["faithful"]}
    found = judge(rows, manifest)
    assert {one.variant for one in found} == {"base"}
    # With one place only, sentences do not name it.
    assert not any(HOOK in one.sentence for one in found)
    # They are left out by name: with a manifest that does not list them they would be judged.
    assert {one.variant for one in judge(rows, {**manifest, "baselines": {}})} > {"base", "pca"}


def test_files_load_in_plain_saelens_and_give_the_same_codes(
    finished: tuple[dict[str, Any], RunFolder],
) -> None:
    from sae_lens import SAE

    config, folder = finished
    activations = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(0))
    for name, architecture in (("pca", "standard"), ("random", "standard"), ("topk_pca", "topk")):
        path = folder.baseline_dir("faithful", HOOK, name, 0)
        stock = SAE.load_from_disk(path)
        assert stock.cfg.architecture() == architecture
        assert stock.cfg.metadata.hook_name == HOOK
        assert stock.cfg.metadata.dataset_path == "self_generated"
        handle = handle_of(config, folder, "faithful", name)
        assert handle.kind == "baseline"
        assert torch.equal(stock.encode(activations), handle.encode(activations))
    signed = handle_of(config, folder, "faithful", "pca_signed")
    split = handle_of(config, folder, "faithful", "pca").encode(activations)
    codes = signed.encode(activations)
    assert (codes < 0).any()
    torch.testing.assert_close(codes, split[:, :D_MODEL] - split[:, D_MODEL:])
    assert not list(folder.baseline_dir("faithful", HOOK, "pca_signed", 0).glob("*sae_weights*"))


def test_saved_baselines_can_be_evaluated_on_their_own(
    finished: tuple[dict[str, Any], RunFolder], tmp_path: Path
) -> None:
    from sae_faithful.pretrained import evaluate_saes

    _, folder = finished
    path = folder.baseline_dir("faithful", HOOK, "pca", 0)
    source = {"faithful": {"plugin": "self_generated", "n_tokens": 320}}
    evaluated = evaluate_saes(
        [str(path)], source, [{"reconstruction": {"ce_tokens": 0}}], tmp_path / "evaluated"
    )
    rows = [json.loads(line) for line in evaluated.results_file.read_text().splitlines()]
    found = [row["value"] for row in rows if row["metric"] == "explained_variance" and row["seed"] == 0]
    assert found[0] == pytest.approx(1, abs=1e-6)


# Reuse and refusal


def test_a_second_run_fits_nothing_again_and_a_new_baseline_runs_alone(config: dict[str, Any]) -> None:
    config["evaluators"] = [{"reconstruction": {"ce_tokens": 0}}]
    first = run(ExperimentConfig.from_dict(config))
    before = modified(first.root / "baselines") | modified(first.root / "saes")
    results = modified(first.root / "results")
    run(ExperimentConfig.from_dict(config))
    assert modified(first.root / "results") == results
    run(ExperimentConfig.from_dict({**config, "baselines": ["pca", "neurons"]}))
    after = modified(first.root / "baselines") | modified(first.root / "saes")
    assert {path: after[path] for path in before} == before
    assert (first.baseline_dir("faithful", HOOK, "neurons", 0) / CARD_FILE).exists()
    # There is more to measure now.
    assert modified(first.root / "results") != results


def test_without_baselines_results_keep_the_hash_they_had(config: dict[str, Any]) -> None:
    config["evaluators"] = [{"reconstruction": {"ce_tokens": 0}}]
    folder = run(ExperimentConfig.from_dict({**config, "baselines": []}))
    before = modified(folder.root / "results")
    run(ExperimentConfig.from_dict({**config, "baselines": ["neurons"]}), until="saes")
    assert not (folder.root / "baselines").exists()
    run(ExperimentConfig.from_dict({**config, "baselines": []}))
    assert modified(folder.root / "results") == before


def test_another_option_of_a_finished_fit_is_refused_by_name(
    finished: tuple[dict[str, Any], RunFolder],
) -> None:
    config, folder = finished
    before = modified(folder.root)
    for change, key in (
        ({"baselines": [{"pca": {"n_components": 3}}]}, "baselines.pca.n_components"),
        ({"baselines": [{"pca": {"sign": "relu"}}]}, "baselines.pca.sign"),
        ({"baselines": [{"pca": {"plugin": "neurons"}}]}, "baselines.pca.plugin"),
        ({"baseline_tokens": 77}, "baseline_tokens"),
    ):
        with pytest.raises(UsageError, match=rf"baselines/faithful.*{key}: .* there, .* now"):
            run(ExperimentConfig.from_dict({**config, **change}), output=folder.root)
    assert modified(folder.root) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": ["pcaa"]}, "unknown baseline 'pcaa' (did you mean"),
        ({"baselines": ["topk_pca"]}, "baseline 'topk_pca' needs the option 'k'"),
        ({"baselines": [{"pca": {"sing": "relu"}}]}, "unknown option 'sing' (did you mean sign?)"),
        ({"baselines": ["pca", {"pca": {}}]}, "baseline 'pca' is listed more than once"),
        ({"baselines": [["pca"]]}, "baselines: ['pca'] is neither a name nor {NAME: {option: value}}"),
        ({"baselines": [{"a/b": {"plugin": "pca"}}]}, "'a/b' cannot name a folder"),
        ({"baselines": [{"base": {"plugin": "pca"}}]}, "'base' names both a variant and a baseline"),
        ({"baseline_tokens": 1}, "baseline_tokens 1: nothing can be fitted to fewer than 2"),
        ({"dataset_path": "someone/texts", "sources": {}}, "baselines need text that this run splits"),
    ],
)
def test_what_is_wrong_is_one_line_with_exit_code_2(
    config: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    from sae_faithful.cli import main

    file = tmp_path / "experiment.json"
    file.write_text(json.dumps({**config, **changes}))
    result = CliRunner().invoke(main, ["--quiet", "run", str(file)])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


# What fits are made from


def drawn(config: dict[str, Any], tokens: TokenSet, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The activations drawn, and those of all tokens of the set in order."""
    experiment = ExperimentConfig.from_dict({**config, **changes})
    model = LanguageModel.from_config(experiment, experiment.hook_names)
    found = draw_activations("faithful", tokens, [HOOK], experiment, model)[HOOK]
    return found, model.activations(torch.from_numpy(tokens.rows()), [HOOK])[HOOK]


@pytest.fixture
def tokens() -> TokenSet:
    rows = np.random.default_rng(0).integers(3, 64, size=(40, 16))
    rows[:, 0] = 0
    rows[5, 7:9] = [1, 2]
    return TokenSet.from_rows(rows)


def unordered(activations: torch.Tensor) -> np.ndarray:
    rows = activations.numpy().round(3)
    return rows[np.lexsort(rows.T)]


def test_every_token_that_counts_is_drawn_where_there_are_too_few(
    config: dict[str, Any], tokens: TokenSet
) -> None:
    found, everything = drawn(config, tokens)
    counts = ~np.isin(tokens.rows(), SPECIAL)
    assert found.shape == (40 * 15 - 2, D_MODEL)
    np.testing.assert_allclose(unordered(found), unordered(everything[counts]), atol=2e-3)
    some, _ = drawn(config, tokens, seqpos_slice=[4, 6])
    counts = counts & np.isin(np.arange(16), [4, 5])
    np.testing.assert_allclose(unordered(some), unordered(everything[counts]), atol=2e-3)


def test_exactly_as_many_tokens_as_asked_for_from_rows_in_random_order(
    config: dict[str, Any], tokens: TokenSet
) -> None:
    found, everything = drawn(config, tokens, baseline_tokens=100)
    assert found.shape == (100, D_MODEL)
    again, _ = drawn(config, tokens, baseline_tokens=100)
    assert torch.equal(found, again)
    other, _ = drawn(config, tokens, baseline_tokens=100, seed=8)
    assert not torch.equal(found, other)
    rows = [int((everything[:, 1:] - one).abs().sum(-1).min(dim=1).values.argmin()) for one in found[::15]]
    # Whole rows, and not the first ones.
    assert rows != sorted(rows)
    assert max(rows) > 10


def test_fits_see_the_training_part_alone(config: dict[str, Any]) -> None:
    seen: list[torch.Tensor] = []

    @dataclass
    class Seeing:
        """Keeps what it is fitted to."""

        every_seed: ClassVar[bool] = True

        def fit(self, activations: torch.Tensor, seed: int) -> Directions:
            """The first activation."""
            seen.append(activations.clone())
            one = activations[:1]
            return Directions(read=one, write=one, mean=torch.zeros(D_MODEL))

    config = {**config, "hook_names": [HOOK, "model.layers.1"], "baselines": ["seeing", "pca"]}
    manager = registering("seeing", Seeing)
    folder = run(ExperimentConfig.from_dict(config), plugins=manager)
    # Two hooks, two seeds: those of one hook see the same activations.
    assert len(seen) == 2 * 2
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    train = TokenSet.open(folder.data_dir("faithful") / "train.arrow")
    assert len(seen[0]) == int((~np.isin(train.rows(), SPECIAL)).sum())


# Baselines that fail


def registering(name: str, cls: type) -> PluginManager:
    class Plugin:
        @hookimpl
        def register_baselines(self, register: Any) -> None:
            register(name, cls)

    manager = load_plugins()
    manager.register(Plugin())
    return manager


@dataclass
class Misfit:
    """Does what it is told to."""

    how: str = "shape"

    def fit(self, activations: torch.Tensor, seed: int) -> Directions:
        """Nothing of use."""
        if self.how == "raise":
            raise ValueError("too few of them")
        rows = torch.ones(2, 3 if self.how == "shape" else D_MODEL)
        return Directions(read=rows, write=rows * (torch.nan if self.how == "nan" else 1), mean=rows[0])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shape", r"read has the shape \[2, 3\]"),
        ("nan", "write holds numbers that are not finite"),
        ("raise", "too few of them"),
    ],
)
def test_a_baseline_that_cannot_be_fitted_is_named_and_leaves_nothing(
    config: dict[str, Any], how: str, message: str
) -> None:
    experiment = ExperimentConfig.from_dict({**config, "baselines": ["pca", {"misfit": {"how": how}}]})
    with pytest.raises(RunError, match=f"^baselines/faithful/{HOOK}/misfit/seed0: {message}"):
        run(experiment, plugins=registering("misfit", Misfit))
    root = Path(config["output_path"])
    assert sorted(path.name for path in (root / "baselines/faithful" / HOOK).iterdir()) == ["misfit", "pca"]
    assert not (root / "baselines/faithful" / HOOK / "misfit" / "seed0").exists()


def test_a_baseline_without_fit_is_refused() -> None:
    @dataclass
    class Nothing:
        """Fits nothing."""

    with pytest.raises(UsageError, match=r"baseline 'nothing' .*lacks the method fit\(\)"):
        registering("nothing", Nothing).registrations("baseline")


def test_monitors_do_not_see_baselines(config: dict[str, Any]) -> None:
    config = {**config, "monitors": ["reconstruction"]}
    config["logger"] = {"log_to_wandb": False, "wandb_log_frequency": 5, "eval_every_n_wandb_logs": 2}
    folder = run(ExperimentConfig.from_dict(config))
    rows = [json.loads(line) for line in (folder.monitors_dir / "faithful.jsonl").read_text().splitlines()]
    assert {row["variant"] for row in rows} == {"base"}
