"""The config: what a file may say, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sae_faithful import ExperimentConfig, UsageError
from sae_faithful.config import apply_overrides, read_config_file

if TYPE_CHECKING:
    from pathlib import Path

OURS = {
    "sources", "datasets", "sae_seeds", "hook_names", "variants", "evaluators", "typicality_tokens", "threads",
    "monitors", "monitor_tokens", "model_init", "exact_resume", "saes_at_once", "fused_adam",
    "baselines", "baseline_tokens", "ray", "typicality_limit",
}  # fmt: skip


def test_from_dict_reads_back_exactly_what_to_dict_wrote(tiny_config: dict[str, Any]) -> None:
    config = ExperimentConfig.from_dict(
        {
            **tiny_config,
            "hook_name": "model.layers.0",
            "hook_names": ["model.layers.0", "model.layers.1"],
            "variants": {"small": {"d_sae": 48}, "large": {"d_sae": 96, "k": 4}},
            "evaluators": ["shared_features", {"fake_features": {"n_tokens": 1_000}}],
            "datasets": {"code": {"plugin": "text_files", "path": "*.py"}},
            "seqpos_slice": [1, None],
            "threads": 2,
        }
    )
    written = config.to_dict()
    again = ExperimentConfig.from_dict(written)
    assert again == config
    assert again.to_dict() == written


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_config_survives_a_file(tiny_config: dict[str, Any], tmp_path: Path, suffix: str) -> None:
    config = ExperimentConfig.from_dict({**tiny_config, "seqpos_slice": [2, -2]})
    path = tmp_path / f"config.{suffix}"
    written = config.to_dict()
    path.write_text(json.dumps(written) if suffix == "json" else yaml.safe_dump(written))
    assert ExperimentConfig.from_file(path) == config


def test_to_dict_is_plain_json(tiny_config: dict[str, Any]) -> None:
    written = ExperimentConfig.from_dict(tiny_config).to_dict()
    # Tuples would come back as lists: a plain dict is equal to itself after JSON.
    assert json.loads(json.dumps(written)) == written
    assert written["seqpos_slice"] == [None]
    assert written["sae_seeds"] == [0, 1]


def test_a_runner_cfg_that_stock_saelens_wrote_is_valid_as_it_stands(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TopKTrainingSAEConfig

    stock = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=64, d_sae=96, k=8),
        model_name=tiny_config["model_name"],
        model_class_name="AutoModelForCausalLM",
        hook_name="model.layers.1",
        dataset_path="some/dataset",
        lr=2e-4,
        logger=LoggingConfig(log_to_wandb=False, run_name="a name of mine"),
        verbose=False,
    )
    # What a runner does before it writes the file.
    stock.sae.metadata.hook_name = "model.layers.1"
    path = tmp_path / "runner_cfg.json"
    path.write_text(json.dumps(stock.to_dict()))

    config = ExperimentConfig.from_file(path)

    theirs = json.loads(path.read_text())
    ours = config.to_dict()
    assert {key: value for key, value in ours.items() if key not in OURS} == theirs
    assert set(ours) - set(theirs) == OURS
    assert config.sae.metadata.hook_name == "model.layers.1"
    # SAELens's default seed, its one hook, the SAE as it stands.
    assert config.sae_seeds == [42]
    assert config.hook_names == ["model.layers.1"]
    assert config.variants == {"base": {}}


def test_saelens_fields_keep_their_defaults_but_trusting_remote_code(tiny_config: dict[str, Any]) -> None:
    from sae_lens import LanguageModelSAERunnerConfig, TopKTrainingSAEConfig

    stock = LanguageModelSAERunnerConfig(sae=TopKTrainingSAEConfig(d_in=64, d_sae=96, k=8), verbose=False)
    ours = ExperimentConfig(sae=TopKTrainingSAEConfig(d_in=64, d_sae=96, k=8), verbose=False)
    theirs = stock.to_dict()
    different = {key for key, value in theirs.items() if getattr(ours, key) != getattr(stock, key)}
    # SAELens appends a random id to every checkpoint path.
    assert different == {"dataset_trust_remote_code", "checkpoint_path"}
    assert ours.dataset_trust_remote_code is False


def test_the_checkpoint_path_written_down_is_the_one_meant(tiny_config: dict[str, Any]) -> None:
    config = ExperimentConfig.from_dict({**tiny_config, "checkpoint_path": "here"})
    assert config.checkpoint_path == "here"


def test_an_unknown_field_names_the_nearest(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"unknown config field 'training_token' \(did you mean training_tokens"
    ):
        ExperimentConfig.from_dict({**tiny_config, "training_token": 3})


def test_an_unknown_field_of_the_sae_names_the_choices(tiny_config: dict[str, Any]) -> None:
    sae = {**tiny_config["sae"], "topk": 4}
    with pytest.raises(UsageError, match=r"unknown field of topk 'sae\.topk'.*sae\.k"):
        ExperimentConfig.from_dict({**tiny_config, "sae": sae})


def test_an_unknown_field_of_the_logger_names_the_nearest(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"unknown field 'logger\.log_to_wanb' \(did you mean logger\.log_to_wandb"
    ):
        ExperimentConfig.from_dict({**tiny_config, "logger": {"log_to_wanb": False}})


def test_an_unknown_architecture_names_the_choices(tiny_config: dict[str, Any]) -> None:
    sae = {**tiny_config["sae"], "architecture": "topkk"}
    with pytest.raises(
        UsageError, match=r"unknown architecture 'topkk' \(did you mean .*topk.*installed: .*jumprelu"
    ):
        ExperimentConfig.from_dict({**tiny_config, "sae": sae})


@pytest.mark.parametrize("architecture", [None, ["topk"], {"name": "topk"}])
def test_an_architecture_that_is_no_name_is_refused(
    tiny_config: dict[str, Any], architecture: object
) -> None:
    sae = {**tiny_config["sae"], "architecture": architecture}
    with pytest.raises(UsageError, match=r"unknown architecture .*installed: .*topk"):
        ExperimentConfig.from_dict({**tiny_config, "sae": sae})


def test_an_sae_without_an_architecture_names_the_choices(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"architecture.*installed: .*topk"):
        ExperimentConfig.from_dict({**tiny_config, "sae": {"d_sae": 96}})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("lr", "fast", "valid number"),
        ("context_size", 128.5, "valid integer"),
        ("training_tokens", "many", "valid integer"),
        ("model_name", 5, "valid string"),
        ("seed", [1], "valid integer"),
        ("prepend_bos", "perhaps", "valid boolean"),
        ("sae_seeds", [0, "one"], "valid integer"),
        ("sae_seeds", 3, "valid list"),
        ("seqpos_slice", "all", "valid tuple"),
        ("sources", ["self_generated"], "valid dictionary"),
        ("hook_names", "model.layers.0", "valid list"),
        ("evaluators", "shared_features", "valid list"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(
    tiny_config: dict[str, Any], key: str, value: object, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        ExperimentConfig.from_dict({**tiny_config, key: value})
    message = str(caught.value)
    assert message.startswith(f"{key} = {value!r}: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"), [("d_sae", "wide"), ("k", 2.5), ("apply_b_dec_to_input", "perhaps")]
)
def test_a_value_of_the_wrong_type_in_the_sae_is_named(
    tiny_config: dict[str, Any], key: str, value: object
) -> None:
    with pytest.raises(UsageError) as caught:
        ExperimentConfig.from_dict({**tiny_config, "sae": {**tiny_config["sae"], key: value}})
    assert str(caught.value).startswith(f"sae.{key} = {value!r}: ")


@pytest.mark.parametrize(
    ("key", "value"), [("sae", "topk"), ("sae", 3), ("logger", True), ("logger", "wandb")]
)
def test_a_single_value_in_place_of_fields_is_refused(
    tiny_config: dict[str, Any], key: str, value: object
) -> None:
    with pytest.raises(UsageError, match=rf"^{key} = {value!r}: expected fields"):
        ExperimentConfig.from_dict({**tiny_config, key: value})


def test_what_saelens_refuses_is_a_usage_error(tiny_config: dict[str, Any]) -> None:
    # SAELens checks that the slice leaves something: of 16 positions none is at 16 or later.
    with pytest.raises(UsageError, match=r"slice \(16, None\) results in an empty range"):
        ExperimentConfig.from_dict({**tiny_config, "seqpos_slice": [16, None]})


def test_numbers_that_yaml_reads_as_strings_become_numbers(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    sae = {"architecture": "standard", "d_in": 64, "d_sae": 96}
    path = tmp_path / "config.yaml"
    # PyYAML wants 3.0e-4 for a number; it reads 3e-4 as a string.
    path.write_text(
        yaml.safe_dump({**tiny_config, "lr": "LR", "sae": {**sae, "l1_coefficient": "L1"}})
        .replace("LR", "3e-4")
        .replace("L1", "5e-2")
    )
    assert read_config_file(path)["lr"] == "3e-4"
    config = ExperimentConfig.from_file(path)
    assert config.lr == 0.0003
    assert config.lr_end == pytest.approx(0.00003)
    assert config.sae.l1_coefficient == 0.05


def test_lists_become_the_tuples_that_saelens_expects(tiny_config: dict[str, Any]) -> None:
    config = ExperimentConfig.from_dict(
        {**tiny_config, "seqpos_slice": [2, None, 2], "exclude_special_tokens": [0, 1]}
    )
    assert config.seqpos_slice == (2, None, 2)
    assert config.exclude_special_tokens == [0, 1]


def test_set_reaches_into_nested_fields_with_dots(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_config))
    config = ExperimentConfig.from_file(
        path,
        [
            "sae.k=16",
            "lr=1e-4",
            "sources.faithful.temperature=0.5",
            "sources.prose={plugin: text_files, path: a.txt}",
            "sae_seeds=[3, 4, 5]",
            "logger.run_name=mine",
            "variants.wide.d_sae=128",
            "threads=null",
        ],
    )
    assert config.sae.k == 16
    assert config.lr == 1e-4
    assert config.sources["faithful"] == {
        "plugin": "self_generated", "n_tokens": 1_600, "batch_size": 64, "temperature": 0.5,
    }  # fmt: skip
    assert config.sources["prose"] == {"plugin": "text_files", "path": "a.txt"}
    assert config.sae_seeds == [3, 4, 5]
    assert config.logger.run_name == "mine"
    assert config.variants == {"wide": {"d_sae": 128}}
    assert config.threads is None


def test_set_keeps_what_follows_a_second_equals_sign() -> None:
    assert apply_overrides({}, ["model_name=a=b"]) == {"model_name": "a=b"}


def test_set_leaves_the_mapping_it_was_given_alone() -> None:
    content = {"sae": {"k": 8}}
    assert apply_overrides(content, ["sae.k=16"]) == {"sae": {"k": 16}}
    assert content == {"sae": {"k": 8}}


@pytest.mark.parametrize("override", ["sae.k", "=3", ""])
def test_a_set_that_is_no_key_and_value_is_refused(override: str) -> None:
    with pytest.raises(UsageError, match=rf"--set '{override}' is not KEY=VALUE"):
        apply_overrides({}, [override])


def test_a_set_into_a_single_value_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--set lr\.high: 'lr' holds a single value"):
        apply_overrides({"lr": 1e-3}, ["lr.high=1"])


def test_a_set_whose_value_is_not_yaml_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--set sae=\{k: 3: '\{k: 3' is not a YAML value$") as caught:
        apply_overrides({}, ["sae={k: 3"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hook", "size"),
    # Hidden size 64; the MLP's gate is 96 wide; keys have 2 heads of 64 / 4 = 16.
    [("model.layers.1", 64), ("model.layers.0.mlp.gate_proj", 96), ("model.layers.1.self_attn.k_proj", 32)],
)
def test_d_in_left_out_is_filled_in_from_the_model(tiny_config: dict[str, Any], hook: str, size: int) -> None:
    sae = {key: value for key, value in tiny_config["sae"].items() if key != "d_in"}
    config = ExperimentConfig.from_dict({**tiny_config, "sae": sae, "hook_name": hook})
    assert config.sae.d_in == size


def test_d_in_is_that_of_the_first_of_several_hooks(tiny_config: dict[str, Any]) -> None:
    sae = {key: value for key, value in tiny_config["sae"].items() if key != "d_in"}
    hooks = ["model.layers.0.mlp.gate_proj", "model.layers.1"]
    config = {key: value for key, value in tiny_config.items() if key != "hook_name"}
    assert ExperimentConfig.from_dict({**config, "sae": sae, "hook_names": hooks}).sae.d_in == 96


def test_a_config_without_an_sae_says_how_one_looks(tiny_config: dict[str, Any]) -> None:
    del tiny_config["sae"]
    with pytest.raises(UsageError, match=r"needs 'sae', for example sae: \{architecture: topk"):
        ExperimentConfig.from_dict(tiny_config)


def test_an_sae_without_d_sae_is_refused(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="sae needs 'd_sae'"):
        ExperimentConfig.from_dict({**tiny_config, "sae": {"architecture": "topk", "d_in": 64, "k": 8}})


def test_seeds_hooks_and_variants_have_defaults(tiny_config: dict[str, Any]) -> None:
    del tiny_config["sae_seeds"]
    config = ExperimentConfig.from_dict({**tiny_config, "seed": 11})
    assert config.sae_seeds == [11]
    assert config.hook_names == ["model.layers.0"]
    assert config.variants == {"base": {}}
    assert config.datasets == {}
    assert config.evaluators == []


def test_the_first_of_hook_names_is_the_hook_name(tiny_config: dict[str, Any]) -> None:
    del tiny_config["hook_name"]
    # A hook named twice is one hook.
    hooks = ["model.layers.1", "model.layers.0", "model.layers.1"]
    config = ExperimentConfig.from_dict({**tiny_config, "hook_names": hooks})
    assert config.hook_names == ["model.layers.1", "model.layers.0"]
    assert config.hook_name == "model.layers.1"


def test_a_hook_name_that_is_not_among_hook_names_is_refused(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"hook_name 'model\.layers\.0' is not among hook_names \['model\.layers\.1'\]"
    ):
        ExperimentConfig.from_dict({**tiny_config, "hook_names": ["model.layers.1"]})


def test_a_context_longer_than_any_models_is_refused_before_its_positions_are_listed(
    tiny_config: dict[str, Any],
) -> None:
    with pytest.raises(UsageError, match=r"^context_size 2,147,483,648 is above 10,000,000 tokens$"):
        ExperimentConfig.from_dict({**tiny_config, "context_size": 2**31})


@pytest.mark.parametrize("text", ["[" * 5_000, '{"a": ' * 201, "a: [" + "[{b: " * 101])
def test_brackets_without_end_are_refused_at_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"deep\.yaml' nests brackets [0-9,]+ deep; no config needs 200$"):
        ExperimentConfig.from_file(path)


def test_a_whole_number_that_no_float_can_be_is_refused(tmp_path: Path, tiny_config: dict[str, Any]) -> None:
    path = tmp_path / "huge.yaml"
    path.write_text(json.dumps({**tiny_config, "training_tokens": 10**400}))
    with pytest.raises(UsageError, match=r"huge\.yaml' holds a whole number of 1,329 bits; 63 are the most$"):
        ExperimentConfig.from_file(path)
    with pytest.raises(UsageError, match=r"^--set seed holds a whole number of 64 bits; 63 are the most$"):
        apply_overrides(tiny_config, [f"seed={2**63}"])
    assert apply_overrides(tiny_config, [f"seed={2**63 - 1}"])["seed"] == 2**63 - 1


def test_duplicate_seeds_are_refused(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"sae_seeds \[0, 1, 0\] has duplicate seeds"):
        ExperimentConfig.from_dict({**tiny_config, "sae_seeds": [0, 1, 0]})


def test_a_source_may_be_just_its_plugin(tiny_config: dict[str, Any]) -> None:
    config = ExperimentConfig.from_dict({**tiny_config, "sources": {"faithful": "self_generated"}})
    assert config.sources == {"faithful": {"plugin": "self_generated"}}


@pytest.mark.parametrize("spec", [{"n_tokens": 3}, {"plugin": 3}, None, ["self_generated"]])
def test_a_source_without_a_plugin_is_refused(tiny_config: dict[str, Any], spec: object) -> None:
    with pytest.raises(UsageError, match=r"sources\.faithful = .*: expected \{plugin: NAME"):
        ExperimentConfig.from_dict({**tiny_config, "sources": {"faithful": spec}})


@pytest.mark.parametrize(
    ("section", "spec"),
    [("sources", "self_generated"), ("datasets", "self_generated"), ("variants", {"k": 4})],
)
@pytest.mark.parametrize("name", ["a/b", "..", ".partial-x", "", "two words"])
def test_names_that_cannot_be_folders_are_refused(
    tiny_config: dict[str, Any], section: str, spec: object, name: str
) -> None:
    with pytest.raises(UsageError, match="cannot name a folder") as caught:
        ExperimentConfig.from_dict({**tiny_config, section: {name: spec}})
    assert f"'{name}'" in str(caught.value)


def test_one_name_for_a_source_and_a_dataset_is_refused(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="'faithful' names both a source and a dataset"):
        ExperimentConfig.from_dict({**tiny_config, "datasets": {"faithful": "self_generated"}})


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config file '.*nowhere\.yaml' does not exist"):
        ExperimentConfig.from_file(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [1, 2", "is not YAML"),
        ("- a\n- b\n", "holds list, not a mapping"),
        ("", "holds NoneType, not a mapping"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=says) as caught:
        read_config_file(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UsageError, match="cannot be read"):
        read_config_file(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_config_file(tmp_path)
