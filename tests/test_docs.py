"""The docs: their Python runs, their configs plan, their commands parse, and nothing they must list is missing.

The code runs as it stands in the docs, its sizes apart (`SMALLER`): `HuggingFaceTB/SmolLM2-135M` is then a
folder below the working directory that holds a small random model, with a tokenizer for any text.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
import types
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sae_faithful import EvalResult, ExperimentConfig, LanguageModel, load_plugins, run
from sae_faithful.plan import make_plan
from sae_faithful.several_models import configs_of_models

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
METRICS, PLUGINS, RUN_FOLDER = (ROOT / "docs" / f"{page}.md" for page in ("metrics", "plugins", "run_folder"))
MODEL = "HuggingFaceTB/SmolLM2-135M"
WIDTH, LAYERS = 64, 4
SMALLER = {
    "d_in=576": f"d_in={WIDTH}",
    "d_sae=1152": "d_sae=96",
    "d_sae: 1152": "d_sae: 96",
    "k=32": "k=8",
    "k: 32": "k: 8",
    "training_tokens=8_000": "training_tokens=2_000",
    "training_tokens: 100_000": "training_tokens: 2_000",
    "n_tokens: 8_000": "n_tokens: 2_000",
    "n_tokens: 10_000}": "n_tokens: 1_000}",
    "=1024": "=256",
    ": 1024": ": 256",
}
"""Sizes that take no time; everything else of an example is as a reader would run it."""


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def smaller(text: str) -> str:
    """An example with the sizes that tests can afford."""
    for size, replacement in SMALLER.items():
        text = text.replace(size, replacement)
    return text


def section(page: Path, heading: str) -> str:
    """What stands under a heading, its subsections included."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"^(#+) {re.escape(heading)}\n", text, re.M)
    assert found is not None, f"{page.name} has no heading '{heading}'"
    rest = text[found.end() :]
    after = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.M)
    return rest[: after.start()] if after else rest


def table_rows(text: str) -> list[list[str]]:
    """Cells of the body rows of every table in `text`."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    headers = [i for i, (_, rule) in enumerate(pairwise(rows)) if set("".join(rule)) == {"-"}]
    return [row for i, row in enumerate(rows) if i not in headers and i - 1 not in headers]


def first_words(cell: str) -> list[str]:
    """The names in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def normalised(reason: str) -> str:
    """A reason as the docs write it: numbers and places left open."""
    reason = re.sub(r"^\d+ (sequences|test texts|pairs|values)", r"N \1", reason)
    reason = re.sub(r"^\S+ and \S+ have no SAE seed", "A and B have no SAE seed", reason)
    return re.sub(r"^\S+ has one seed", "WHERE has one seed", reason)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for the whole file: the pages' examples generate the same text."""
    monkeypatch.setenv("SAE_FAITHFUL_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokens are bytes."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("stand_in")
    letters = ["<bos>", "<eos>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(letters), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture
def workplace(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the docs' code finds there: the model, the README's config, some notes."""
    folder = tmp_path / "work"
    (folder / MODEL).parent.mkdir(parents=True)
    (folder / MODEL).symlink_to(stand_in)
    (folder / "experiment.yaml").write_text(readme_config())
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("Some notes. " * 50)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def saelens_registries() -> Iterator[None]:
    """SAELens's architectures as they were, whatever a block registers."""
    from sae_lens import registry

    names = ("SAE_CLASS_REGISTRY", "SAE_TRAINING_CLASS_REGISTRY")
    kept = {name: dict(getattr(registry, name)) for name in names}
    yield
    for name, content in kept.items():
        getattr(registry, name).clear()
        getattr(registry, name).update(content)


def readme_config() -> str:
    return smaller(next(one for one in blocks(ROOT / "README.md", "yaml") if "# experiment.yaml" in one))


def test_every_size_made_smaller_is_one_that_the_docs_have() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [size for size in SMALLER if size not in text] == []


PYTHON_PAGES = [page for page in PAGES if blocks(page, "python")]


def test_pages_with_python_are_the_ones_we_think() -> None:
    assert [page.stem for page in PYTHON_PAGES] == [
        "README",
        "architectures",
        "plugins",
        "run_folder",
        "saelens",
    ]


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.stem)
def test_python_of_a_page_runs(
    page: Path, workplace: Path, saelens_registries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A real module: dataclasses and pluggy look up the one that their code stands in.
    module = types.ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    if page.stem == "saelens":
        generate(workplace)
    for number, block in enumerate(blocks(page, "python")):
        code = compile(smaller(block), f"{page.name}, Python block {number + 1}", "exec", dont_inherit=True)
        exec(code, vars(module))
    OUTCOMES[page.stem](vars(module), workplace)


def readme_outcome(names: dict[str, Any], workplace: Path) -> None:
    assert names["sae"].cfg.d_sae == 96
    assert "# " + MODEL in (workplace / "runs/first/report.md").read_text()
    assert list(workplace.glob("runs/one_sae/**/sae_weights.safetensors"))


def run_folder_outcome(names: dict[str, Any], workplace: Path) -> None:
    # Two seeds on one text: one row a source.
    assert list(names["per_source"]["n"]) == [2]
    assert len(names["features"]) == 2 * 96
    assert list(workplace.glob("runs/first/report.md"))


def architectures_outcome(names: dict[str, Any], workplace: Path) -> None:
    assert names["training_sae"].cfg.architecture() == "sparse_topk"


def generate(workplace: Path) -> None:
    """What the page's first command leaves."""
    from click.testing import CliRunner

    from sae_faithful.cli import main

    (command,) = [line for line in blocks(ROOT / "docs/saelens.md", "bash")[1].splitlines() if line]
    CliRunner().invoke(main, shlex.split(command)[1:], catch_exceptions=False)


def saelens_outcome(names: dict[str, Any], workplace: Path) -> None:
    # 2,000 tokens are 31 rows of 64; ⌈3.1⌉ = 4 are held out.
    assert len(names["rows"]) == 27
    assert list(workplace.glob("runs/stock/**/sae_weights.safetensors"))


def plugins_outcome(names: dict[str, Any], workplace: Path) -> None:
    lines = (workplace / "runs/counting/results.jsonl").read_text().splitlines()
    measured = [row for row in map(json.loads, lines) if row["evaluator"] == "dead_latents"]
    rows = [row for row in measured if row["variant"] == "base"]
    # Two SAEs and their source; the source's row has an interval, the SAEs' say why not.
    assert [(row["seed"], row["ci_low"] is None) for row in rows] == [(0, True), (1, True), (None, False)]
    # The baseline is one fit, and its one direction fires on its own text.
    fitted = {(row["seed"], row["value"]) for row in measured if row["variant"] == "mean_direction"}
    assert fitted == {(0, 0.0), (None, 0.0)}
    (card,) = workplace.glob("runs/counting/baselines/*/*/mean_direction/seed0/baseline.json")
    assert json.loads(card.read_text())["norm_of_mean"] > 0
    assert (workplace / "runs/counting/report.txt").exists()
    assert "narrow_topk" in names["plugins"].registrations("architecture")
    # The architecture's own default trained it, and what is saved is stock TopK.
    (saved, _) = workplace.glob("runs/counting/saes/**/cfg.json")
    content = json.loads(saved.read_text())
    assert (content["architecture"], content["k"]) == ("topk", 8)


OUTCOMES = {
    "README": readme_outcome,
    "architectures": architectures_outcome,
    "plugins": plugins_outcome,
    "run_folder": run_folder_outcome,
    "saelens": saelens_outcome,
}


@pytest.mark.parametrize(
    ("page", "block"),
    [pytest.param(page, block, id=page.stem) for page in PAGES for block in blocks(page, "yaml")],
)
def test_config_of_a_page_can_be_planned(page: Path, block: str, workplace: Path) -> None:
    content = {
        **yaml.safe_load(readme_config()),
        **yaml.safe_load(block.replace("SmolLM2-360M", "SmolLM2-135M")),
    }
    configs = (
        configs_of_models(content).values() if "models" in content else [ExperimentConfig.from_dict(content)]
    )
    for config in configs:
        plan = make_plan(config, load_plugins(), LanguageModel.from_config(config, config.hook_names))
        assert plan.texts
        assert plan.saes


@pytest.mark.parametrize("number", [0, 1])
def test_the_lines_added_to_a_saelens_config_make_a_valid_one(number: int, workplace: Path) -> None:
    added = [
        line.removeprefix("+")
        for line in blocks(ROOT / "docs/saelens.md", "diff")[number].splitlines()
        if line.startswith("+")
    ]
    assert len(added) == [2, 5][number]
    stock = {
        "model_name": MODEL, "model_class_name": "AutoModelForCausalLM", "hook_name": "model.layers.3",
        "sae": {"architecture": "topk", "d_sae": 96, "k": 8}, "logger": {"log_to_wandb": False},
        "n_batches_in_buffer": 64,
    }  # fmt: skip
    config = ExperimentConfig.from_dict({**stock, **yaml.safe_load("\n".join(added))})
    plan = make_plan(config, load_plugins(), LanguageModel.from_config(config, config.hook_names))
    wanted = [config.training_tokens] if number == 0 else [10_000_000, 10_000_000]
    assert [text.n_tokens for text in plan.sources] == wanted
    named = ["fake_features", "reconstruction"]
    assert [one.name for one in plan.evaluators] == (["shared_features", *named] if number else named)


def commands() -> list[Any]:
    return [
        pytest.param(line, id=f"{page.stem}: {line}")
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.splitlines()
        if line and not line.startswith("#")
    ]


@pytest.mark.parametrize("line", commands())
def test_command_of_a_page_exists(line: str) -> None:
    from sae_faithful.cli import main

    program, *arguments = shlex.split(line)
    if program == "sae-faithful":
        verb = arguments[0]
        assert verb in main.commands
        # Parses every argument and calls nothing; an unknown option raises.
        context = main.commands[verb].make_context(verb, arguments[1:])
        for override in context.params.get("overrides", ()):
            key = override.partition("=")[0]
            assert key.split(".")[0] in {entry.name for entry in dataclasses.fields(ExperimentConfig)}
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        targets = re.findall(r"^([\w-]+):", makefile, re.M)
        benchmarks = re.findall(r"^BENCHMARKS := (.+)$", makefile, re.M)[0].split()
        assert all((ROOT / f"tests/benchmarks/{name}.py").exists() for name in benchmarks)
        assert set(arguments) <= {*targets, *(f"bench-{name}" for name in benchmarks)}
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    else:
        assert (program, arguments[0]) == ("pip", "install")
        for package in [one for one in arguments[1:] if not one.startswith("--")]:
            name, extra = re.fullmatch(r"([\w.=-]+)(?:\[(\w+)\])?", package).groups()
            assert name == "sae-faithful" or package in (ROOT / "Makefile").read_text()
            assert extra is None or f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()


def anchor_of(heading: str) -> str:
    """As forges and the site make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        # Tokens of a model may look like a link; code has none.
        text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if "://" in target:
                continue
            file, _, anchor = target.partition("#")
            found = page.parent / file if file else page
            assert found.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.M)
                assert anchor in {anchor_of(heading) for heading in headings}, target


def test_every_field_of_a_row_is_documented() -> None:
    documented = [name for row in table_rows(section(RUN_FOLDER, "Rows")) for name in first_words(row[0])]
    assert sorted(documented) == sorted(entry.name for entry in dataclasses.fields(EvalResult))


def test_every_hook_is_documented() -> None:
    from sae_faithful import hookspecs

    hooks = {name for name, one in vars(hookspecs).items() if hasattr(one, "sae_faithful_spec")}
    documented = {first_words(row[0])[0].partition("(")[0] for row in table_rows(section(PLUGINS, "Hooks"))}
    assert documented == hooks


def test_every_module_of_the_core_is_in_the_architecture_page() -> None:
    documented = {
        name.rstrip("/")
        for row in table_rows(section(ROOT / "docs/architecture.md", "Which file does what"))
        for name in first_words(row[0])
    }
    core = ROOT / "sae_faithful"
    files = {path.name for path in core.glob("*.py")}
    assert documented == files | {path.parent.name for path in core.glob("*/__init__.py")}


EVALUATORS = ["shared_features", {"fake_features": {"n_tokens": 900}}, {"reconstruction": {"ce_tokens": 200}}]
OOD_SCORE = {
    "ood_score": {
        "scores": ["surprise", "first_token", "unigram", "knn", "classifier", "mahalanobis", "sae"],
        "n_tokens": 200,
    }
}
LABELLED = {"parity": {"path": "labelled.csv", "text": "text", "label": "label"}}
IOI = {"ioi_patching": {"pairs": "pairs.jsonl", "candidates": 4, "thresholds": [0.01], "selection_pairs": 2}}
TOKENS = {"polysemanticity": {"n_features": 20, "min_count": 1}}
CASES = {"case_studies": {"max_rate": 1.0, "n_features": 2, "n_contexts": 3}}
PROBING = {"probing": {"tasks": [LABELLED], "sparse_k": [1, 4]}}
OWN = {"plugin": "self_generated", "n_tokens": 1_600, "batch_size": 64}
TWO_SOURCES = {"faithful": OWN, "hot": {**OWN, "temperature": 2.0}}
SCENES = {
    "two seeds": {
        "sae_seeds": [0, 1],
        "sources": TWO_SOURCES,
        "variants": {"base": {}, "wide": {"d_sae": 128}},
    },
    "one seed": {"sae_seeds": [0], "sources": TWO_SOURCES},
    "three seeds": {"sae_seeds": [0, 1, 2], "sources": TWO_SOURCES},
    "few tokens": {
        "sae_seeds": [0],
        "typicality_tokens": 100,
        "evaluators": [{"fake_features": {"n_tokens": 100}}],
    },
    "far text and probes": {
        "sae_seeds": [0, 1, 2],
        "evaluators": [OOD_SCORE, PROBING, IOI, TOKENS, CASES, "top_contexts", EVALUATORS[1]],
    },
}
# Evaluators whose rarer reasons have a test of their own, with the texts it takes to bring them about.
RARE_REASONS = (
    "fake_features", "ood_score", "probing", "sae_probes_benchmark", "ioi_patching", "autointerp", "polysemanticity",
    "case_studies",
)  # fmt: skip


@pytest.fixture(scope="module")
def scene_results(
    stand_in_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, shared_cache: Path
) -> dict[str, tuple[list[dict[str, Any]], list[str]]]:
    """Rows and feature columns of small runs of the tiny model, by scene."""
    import pandas as pd

    results: dict[str, tuple[list[dict[str, Any]], list[str]]] = {}
    texts = tmp_path_factory.mktemp("labelled")
    # 160 different texts, labelled by whether they start with an even word.
    lines = [f"w{4 + i % 60} w{4 + i % 59} w{4 + i // 3},{i % 2}" for i in range(160)]
    (texts / "labelled.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    pairs = [{"base": f"w{4 + i} w9", "target": f"w{5 + i} w9"} for i in range(52)]
    (texts / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_FAITHFUL_CACHE", str(shared_cache))
        patch.chdir(texts)
        for scene, changes in SCENES.items():
            config = ExperimentConfig.from_dict({**stand_in_config, "evaluators": EVALUATORS, **changes})
            folder = run(config, output=tmp_path_factory.mktemp("scene"))
            rows = [json.loads(line) for line in folder.results_file.read_text().splitlines()]
            results[scene] = (rows, list(pd.read_parquet(folder.features_file).columns))
    return results


@pytest.fixture(scope="module")
def stand_in_config(tiny_llama: str) -> dict[str, Any]:
    return {
        "model_name": tiny_llama,
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.0",
        "context_size": 16,
        "training_tokens": 2_000,
        "train_batch_size_tokens": 64,
        "n_batches_in_buffer": 16,
        "store_batch_size_prompts": 8,
        "lr": 1e-3,
        "seed": 7,
        "sae": {"architecture": "topk", "d_sae": 96, "k": 8},
        "logger": {"log_to_wandb": False},
        "verbose": False,
        "n_checkpoints": 0,
        "sources": {"faithful": OWN},
        "typicality_tokens": 1_000,
    }


def documented_gaps() -> dict[str, set[str]]:
    """Reasons for a missing interval, by metric."""
    gaps: dict[str, set[str]] = {}
    for metrics, _, reason in table_rows(section(METRICS, "Rows without an interval")):
        for metric in first_words(metrics):
            gaps.setdefault(metric, set()).add(reason)
    return gaps


def evaluator_page(evaluator: str) -> Path:
    """Where an evaluator's metrics are; those of the text itself are with what all metrics have in common."""
    return METRICS if evaluator == "typicality" else ROOT / "docs" / "evaluators" / f"{evaluator}.md"


def documented_metrics(evaluator: str) -> list[str]:
    """The headings of a page that name metrics."""
    return re.findall(r"^### (\w+)$", evaluator_page(evaluator).read_text(encoding="utf-8"), re.M)


def test_every_metric_of_a_run_has_its_own_heading(scene_results: dict[str, Any]) -> None:
    measured = {(row["evaluator"], row["metric"]) for rows, _ in scene_results.values() for row in rows}
    # The others' own tests compare their pages with what they measure: it takes another environment, or a server.
    evaluators = {evaluator for evaluator, _ in measured} - {"sae_probes_benchmark", "autointerp"}
    documented = [(one, metric) for one in evaluators for metric in documented_metrics(one)]
    assert sorted(documented) == sorted(measured)


def test_every_metric_is_documented_with_its_unit(scene_results: dict[str, Any]) -> None:
    places = {
        (row["evaluator"], row["metric"], row["unit"]) for rows, _ in scene_results.values() for row in rows
    }
    for evaluator, _, unit in places:
        assert unit in evaluator_page(evaluator).read_text(encoding="utf-8")


def test_every_column_of_features_is_documented(scene_results: dict[str, Any]) -> None:
    columns = {name for _, names in scene_results.values() for name in names if "." in name}
    assert len(columns) > 5
    for column in columns:
        text = evaluator_page(column.partition(".")[0]).read_text(encoding="utf-8")
        general = re.sub(r"[.](faithful|hot)$", ".SOURCE", column)
        general = re.sub(r"[.]seed\d+$", ".seedK", general)
        assert f"`{general.replace('.parity', '.TASK')}`" in text


def test_only_listed_metrics_lack_an_interval_and_for_the_listed_reason(
    scene_results: dict[str, Any],
) -> None:
    gaps = documented_gaps()
    for scene, (rows, _) in scene_results.items():
        for row in rows:
            if row["ci_low"] is None or row["ci_high"] is None:
                assert normalised(row["reason"]) in gaps.get(row["metric"], set()), (scene, row)


def test_every_listed_reason_does_occur(scene_results: dict[str, Any]) -> None:
    lacking = {
        (row["metric"], normalised(row["reason"]))
        for rows, _ in scene_results.values()
        for row in rows
        if row["ci_low"] is None
    }
    listed = {(metric, reason) for metric, reasons in documented_gaps().items() for reason in reasons}
    # A latent that never fires needs an SAE made for it; its reason has a test with the evaluator.
    rare = {
        metric
        for metric in dict(listed)
        if any(metric in documented_metrics(evaluator) for evaluator in RARE_REASONS)
    }
    assert {
        (metric, reason)
        for metric, reason in listed - lacking
        if reason != "no latent is alive" and metric not in rare
    } == set()


def test_changelog_has_the_version_of_the_package() -> None:
    from sae_faithful import __version__

    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
