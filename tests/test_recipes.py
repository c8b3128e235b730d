"""The recipes for the papers' models: each is planned for real, on the model's own sizes and without its weights.

What stands for a model is a folder with its `config.json`, made from the sizes below, and a small tokenizer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner

from sae_faithful import ExperimentConfig, LanguageModel, UsageError, load_plugins
from sae_faithful.cli import main
from sae_faithful.plan import make_plan

if TYPE_CHECKING:
    from sae_faithful.plan import Plan

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
PAGE = ROOT / "docs" / "recipes.md"


def neox(width: int, layers: int, heads: int, vocab: int = 50_304) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * width, "vocab_size": vocab, "max_position_embeddings": 2_048,
    }  # fmt: skip


def llama(width: int, layers: int, heads: int, inner: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": 8, "intermediate_size": inner, "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
    }  # fmt: skip


SIZES: dict[str, dict[str, Any]] = {
    "openai-community/gpt2": {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1_024, "vocab_size": 50_257,
    },
    "EleutherAI/pythia-70m-deduped": neox(512, 6, 8),
    "EleutherAI/pythia-410m-deduped": neox(1_024, 24, 16),
    "EleutherAI/pythia-1.4b": neox(2_048, 24, 16),
    "EleutherAI/pythia-2.8b": neox(2_560, 32, 32),
    "google/gemma-2-2b": {
        "model_type": "gemma2", "hidden_size": 2_304, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 9_216, "vocab_size": 256_000,
        "max_position_embeddings": 8_192,
    },
    "meta-llama/Llama-3.2-1B": llama(2_048, 16, 32, 8_192),
    "meta-llama/Llama-3.2-3B": {**llama(3_072, 28, 24, 8_192), "head_dim": 128},
    "meta-llama/Llama-3.1-8B": llama(4_096, 32, 32, 14_336),
}  # fmt: skip
"""As on the models' pages."""
WIDTH = {"openai-community/gpt2": 768} | {
    name: sizes["hidden_size"] for name, sizes in SIZES.items() if "hidden_size" in sizes
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    """For each model a folder without weights."""
    from transformers import AutoConfig

    root = tmp_path_factory.mktemp("models")
    for name, sizes in SIZES.items():
        AutoConfig.for_model(**sizes).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in SIZES}


def plan_of(path: Path, folders: dict[str, Path], *overrides: str) -> tuple[ExperimentConfig, Plan]:
    named = yaml.safe_load(path.read_text(encoding="utf-8"))["model_name"]
    config = ExperimentConfig.from_file(path, [f"model_name={folders[named]}", "device=cpu", *overrides])
    return config, make_plan(config, load_plugins(), LanguageModel.from_config(config, config.hook_names))


def test_the_recipes_are_of_all_the_papers_models() -> None:
    named = {yaml.safe_load(path.read_text(encoding="utf-8"))["model_name"] for path in RECIPES}
    assert named == set(SIZES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_planned_at_its_models_sizes(path: Path, folders: dict[str, Path]) -> None:
    asked = yaml.safe_load(path.read_text(encoding="utf-8"))
    config, plan = plan_of(path, folders)
    # hooks × variants × seeds, each with the size that the model has at its hook.
    hooks = asked.get("hook_names", [asked.get("hook_name")])
    assert len(plan.saes) == len(hooks) * len(asked.get("variants", [1])) * len(asked["sae_seeds"])
    factor = 4 if "mlp" in path.stem else 1
    assert {sae.config.d_in for sae in plan.saes} == {factor * WIDTH[asked["model_name"]]}
    assert {sae.config.d_sae for sae in plan.saes} == {asked["sae"]["d_sae"]}
    # What is trained on holds as many distinct tokens as are trained on, or nearly all of them where the text is short.
    for source in plan.sources:
        assert source.n_tokens * 0.9 >= config.training_tokens * 0.899
    assert [one.name for one in plan.evaluators]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_of_a_recipe_says_what_it_needs(
    path: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Without weights there are no times; sizes are there."""
    named = yaml.safe_load(path.read_text(encoding="utf-8"))["model_name"]
    output = tmp_path / "run"
    arguments = ["run", str(path), "--dry-run", "--output", str(output)]
    for override in (f"model_name={folders[named]}", "device=cpu", "logger.log_to_wandb=false"):
        arguments += ["--set", override]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    config = ExperimentConfig.from_file(path, [f"model_name={folders[named]}", "device=cpu"])
    for source in config.sources:
        (line,) = [line for line in result.output.splitlines() if f"  saes/{source} " in line]
        assert line.endswith("GB")
    assert "not estimated: " in result.output
    assert not output.exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_that_it_was_never_run(path: Path) -> None:
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# UNMEASURED: ")
    assert second == f"#   sae-faithful run examples/recipes/{path.name} --output runs/{path.stem}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_page_has_a_recipes_settings(path: Path) -> None:
    asked = yaml.safe_load(path.read_text(encoding="utf-8"))
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if f"`{path.name}`" in line]
    assert len(lines) == 1
    cells = [cell.strip() for cell in lines[0].strip("|").split("|")]
    tokens = asked["training_tokens"]
    assert cells[1] == asked["model_name"]
    hooks = asked.get("hook_names", [asked.get("hook_name")])
    assert re.findall(r"`([^`]+)`", cells[2])[0] == hooks[0]
    assert re.findall(r"`([^`]+)`", cells[2])[-1] == hooks[-1]
    assert cells[3] == f"{asked['sae']['d_sae']:,}"
    assert cells[4] == f"{tokens // 1_000_000} million"
    assert cells[5] == ", ".join(map(str, asked["sae_seeds"]))


def test_a_context_longer_than_the_model_takes_is_found_out(folders: dict[str, Path]) -> None:
    (path,) = [path for path in RECIPES if "gpt2" in path.stem]
    with pytest.raises(UsageError, match=r"context_size 2048 is longer than the 1024 tokens"):
        plan_of(path, folders, "context_size=2048")


def test_a_layer_that_the_model_has_not_is_found_out(folders: dict[str, Path]) -> None:
    (path,) = [path for path in RECIPES if "llama_3.2_1b" in path.stem]
    with pytest.raises(UsageError, match=r"model\.layers\.16"):
        plan_of(path, folders, "hook_name=model.layers.16")


def test_published_sparsities_are_converted() -> None:
    """α · d_in: their code averages squared errors over dimensions, SAELens sums them."""
    from sae_faithful_plugins.unit_norm_l1 import l1_coefficient_of

    seen = 0
    for path in RECIPES:
        asked = yaml.safe_load(path.read_text(encoding="utf-8"))
        d_in = WIDTH[asked["model_name"]] * (4 if "mlp" in path.stem else 1)
        for name, fields in asked.get("variants", {}).items():
            # Names have two digits of an α, numbers four.
            expected = l1_coefficient_of(float(name.removeprefix("a")), d_in)
            assert fields["l1_coefficient"] == pytest.approx(expected, rel=0.05)
            seen += 1
    assert seen == 9 + 4 + 4
