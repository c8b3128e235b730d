"""The plan: what a config asks for once names are resolved, without any weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from sae_faithful import ExperimentConfig, LanguageModel, UsageError, hookimpl, load_plugins
from sae_faithful.plan import make_plan, source_plugin_in_dataset_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from sae_faithful import SourceRequest, TokenSet
    from sae_faithful.plan import Plan

HOOKS = ["model.layers.0", "model.layers.1.mlp.gate_proj"]


@dataclass
class Sized:
    """A source that may be asked for an amount."""

    n_tokens: int | None = None
    style: str = "plain"

    def load(self, request: SourceRequest) -> TokenSet:
        """Never called: a plan loads nothing."""
        raise AssertionError


@dataclass
class Unsized:
    """A source without the option n_tokens."""

    def load(self, request: SourceRequest) -> TokenSet:
        """Never called."""
        raise AssertionError


class Plugin:
    """Registers both."""

    @hookimpl
    def register_sources(self, register: Callable[[str, type], None]) -> None:
        register("sized", Sized)
        register("unsized", Unsized)


def plan_of(config: dict[str, Any], **changes: Any) -> Plan:
    """The plan of a config, with the plugins above installed."""
    manager = load_plugins()
    manager.register(Plugin())
    experiment = ExperimentConfig.from_dict({**config, **changes})
    return make_plan(experiment, manager, LanguageModel.from_config(experiment, experiment.hook_names))


def amounts(plan: Plan) -> dict[str, int]:
    return {text.name: text.n_tokens for text in plan.texts}


def test_an_amount_given_by_one_source_holds_for_all(tiny_config: dict[str, Any]) -> None:
    sources = {"a": "sized", "b": {"plugin": "sized", "n_tokens": 480}, "c": "unsized"}
    assert amounts(plan_of(tiny_config, sources=sources)) == {"a": 480, "b": 480, "c": 480}


def test_equal_amounts_may_be_given_more_than_once(tiny_config: dict[str, Any]) -> None:
    sources = {name: {"plugin": "sized", "n_tokens": 320} for name in ("a", "b")}
    assert amounts(plan_of(tiny_config, sources=sources)) == {"a": 320, "b": 320}


def test_sources_give_as_many_tokens_as_are_trained_on_unless_one_says_otherwise(
    tiny_config: dict[str, Any],
) -> None:
    plan = plan_of(tiny_config, sources={"a": "sized", "b": "unsized"}, training_tokens=2_000)
    assert amounts(plan) == {"a": 2_000, "b": 2_000}


def test_sources_of_different_amounts_are_named_with_them(tiny_config: dict[str, Any]) -> None:
    sources = {
        "a": {"plugin": "sized", "n_tokens": 320},
        "b": {"plugin": "sized", "n_tokens": 480},
        "c": "unsized",
    }
    with pytest.raises(UsageError, match=r"same number of distinct tokens, but n_tokens is a: 320, b: 480$"):
        plan_of(tiny_config, sources=sources)


def test_datasets_are_as_large_as_the_held_out_part_of_a_source(tiny_config: dict[str, Any]) -> None:
    sources = {"a": {"plugin": "sized", "n_tokens": 1_605}}
    datasets = {"held": "sized", "own": {"plugin": "sized", "n_tokens": 32}, "plain": "unsized"}
    plan = plan_of(tiny_config, sources=sources, datasets=datasets)
    # A tenth of 1,605 is 160.5, rounded up; an amount of its own need not be the sources'.
    assert amounts(plan) == {"a": 1_605, "held": 161, "own": 32, "plain": 161}
    assert [text.name for text in plan.sources] == ["a"]
    assert [text.trained_on for text in plan.texts] == [True, False, False, False]


def test_fewer_tokens_than_a_row_names_the_text(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"sources\.a: n_tokens 15 are fewer than one row of context_size 16"
    ):
        plan_of(tiny_config, sources={"a": {"plugin": "sized", "n_tokens": 15}})
    # One row of a source leaves ⌈1.6⌉ = 2 tokens for a dataset.
    with pytest.raises(UsageError, match=r"datasets\.d: n_tokens 2 are fewer than one row"):
        plan_of(tiny_config, sources={"a": {"plugin": "sized", "n_tokens": 16}}, datasets={"d": "sized"})


def test_there_is_an_sae_for_every_hook_variant_and_seed(tiny_config: dict[str, Any]) -> None:
    del tiny_config["hook_name"]
    variants = {"narrow": {"d_sae": 48}, "sparse": {"k": 2}}
    plan = plan_of(tiny_config, hook_names=HOOKS, variants=variants, sae_seeds=[5, 6])
    # 2 hooks × 2 variants × 2 seeds, hooks first.
    assert [(sae.hook, sae.variant, sae.seed) for sae in plan.saes] == [
        (hook, variant, seed) for hook in HOOKS for variant in variants for seed in (5, 6)
    ]
    assert plan.saes[0].name == "model.layers.0/narrow/seed5"
    assert plan.saes[0].step("web", {}).path == "saes/web/model.layers.0/narrow/seed5"
    shapes = {(sae.hook, sae.variant): (sae.config.d_in, sae.config.d_sae, sae.config.k) for sae in plan.saes}
    # The second hook is 96 wide; what a variant leaves out is the base's.
    assert shapes == {
        (HOOKS[0], "narrow"): (64, 48, 8),
        (HOOKS[0], "sparse"): (64, 96, 2),
        (HOOKS[1], "narrow"): (96, 48, 8),
        (HOOKS[1], "sparse"): (96, 96, 2),
    }


def test_a_d_in_that_cannot_be_checked_is_taken_as_given(
    tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "hook_size", lambda self, hook: None)
    sae = {**tiny_config["sae"], "d_in": 40}
    assert {planned.config.d_in for planned in plan_of(tiny_config, sae=sae).saes} == {40}
    del sae["d_in"]
    with pytest.raises(UsageError, match=r"needs 'd_in': the size of 'model\.layers\.0' cannot be told"):
        plan_of(tiny_config, sae=sae)


def test_no_two_saes_share_a_config_object(tiny_config: dict[str, Any]) -> None:
    plan = plan_of(tiny_config)
    assert plan.saes[0].config == plan.saes[1].config
    assert plan.saes[0].config is not plan.saes[1].config


def test_a_variant_of_another_architecture_keeps_the_fields_both_have(tiny_config: dict[str, Any]) -> None:
    sae = {**tiny_config["sae"], "apply_b_dec_to_input": False}
    variants = {"base": {}, "l1": {"architecture": "standard", "l1_coefficient": 0.5}}
    base, l1 = (plan_of(tiny_config, sae=sae, variants=variants, sae_seeds=[0])).saes
    assert (base.config.architecture(), base.config.k) == ("topk", 8)
    assert (l1.config.architecture(), l1.config.l1_coefficient, l1.config.d_sae) == ("standard", 0.5, 96)
    assert l1.config.apply_b_dec_to_input is False
    assert not hasattr(l1.config, "k")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ({"d_saee": 48}, r"unknown field of topk 'sae\.d_saee' \(did you mean sae\.d_sae"),
        ({"architecture": "topkk"}, r"unknown architecture 'topkk'"),
        ({"k": "few"}, r"sae\.k = 'few': .*valid integer"),
        ({"d_in": 63}, r"sae\.d_in is 63, but .* has 64 activations at 'model\.layers\.0'"),
        (48, r"variants\.odd = 48: expected fields of sae"),
        (None, r"variants\.odd = None: expected fields of sae"),
    ],
)
def test_a_variant_is_checked_as_the_sae_is(tiny_config: dict[str, Any], override: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan_of(tiny_config, variants={"odd": override})


@pytest.mark.parametrize("k", [0, -1, 97])
@pytest.mark.parametrize("where", ["sae", "variants"])
def test_a_k_that_cannot_be_is_refused(tiny_config: dict[str, Any], where: str, k: int) -> None:
    sae = {**tiny_config["sae"], "k": k}
    change = {"sae": sae} if where == "sae" else {"variants": {"base": {}, "other": {"k": k}}}
    with pytest.raises(UsageError, match=rf"^sae\.k is {k}: of 96 latents at least one"):
        plan_of(tiny_config, **change)


def test_a_gpu_that_is_not_there_is_refused(
    tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match=r"^device is 'cuda:1', but PyTorch \S+ sees no such GPU here"):
        plan_of(tiny_config, device="cuda:1")


def test_a_plugin_name_as_dataset_path_is_a_source_of_that_name(tiny_config: dict[str, Any]) -> None:
    plan = plan_of(tiny_config, sources={}, dataset_path="sized")
    assert [(text.name, text.plugin, text.n_tokens) for text in plan.sources] == [("sized", "sized", 2_000)]
    assert plan.stock_dataset is None


@pytest.mark.parametrize("path", ["fancyzhx/ag_news", "imdb", "sized/sized"])
def test_any_other_dataset_path_is_left_to_saelens(tiny_config: dict[str, Any], path: str) -> None:
    plan = plan_of(tiny_config, sources={}, dataset_path=path)
    assert plan.stock_dataset == path
    assert plan.texts == []


def test_a_dataset_path_that_nearly_names_a_plugin_is_a_misspelling(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"'self_generate' in dataset_path \(did you mean self_generated\?\)"
    ):
        plan_of(tiny_config, sources={}, dataset_path="self_generate")


def test_an_empty_dataset_path_names_no_plugin() -> None:
    assert source_plugin_in_dataset_path("", load_plugins()) is None


def test_a_config_without_any_text_says_how_to_name_one(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"add sources: \{faithful: \{plugin: self_generated\}\}"):
        plan_of(tiny_config, sources={})


def test_evaluators_need_a_source_with_held_out_text(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"name it as a source.*path: some/dataset"):
        plan_of(tiny_config, sources={}, dataset_path="some/dataset", evaluators=["shared_features"])


def test_evaluators_take_their_options_from_the_config(tiny_config: dict[str, Any]) -> None:
    plan = plan_of(tiny_config, evaluators=["shared_features", {"fake_features": {"n_tokens": 160}}])
    assert [planned.name for planned in plan.evaluators] == ["shared_features", "fake_features"]
    assert plan.evaluators[1].evaluator.n_tokens == 160
    assert plan.evaluators[1].settings["evaluators.fake_features.n_tokens"] == 160
    assert plan.evaluators[1].step({}).path == "results/fake_features"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"shared_features": {}, "fake_features": {}}, "neither a name nor"),
        (3, "3 is neither a name nor"),
        ({"fake_features": 100}, r"evaluators\.fake_features: 100 is not"),
        ({"fake_features": {"tokens": 100}}, r"unknown option 'tokens'.*n_tokens"),
        ({"fake_features": {"n_tokens": "many"}}, r"evaluator 'fake_features', n_tokens = 'many'"),
        ("fake_featurs", r"unknown evaluator 'fake_featurs' \(did you mean fake_features"),
        (
            {"shared_features": None},
            "evaluator 'shared_features' is listed more than once",
        ),
    ],
)
def test_an_evaluator_that_cannot_be_made_is_named(
    tiny_config: dict[str, Any], entry: object, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        plan_of(tiny_config, evaluators=["shared_features", entry])


def test_a_source_that_cannot_be_made_is_named_by_its_place(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"^sources\.web: unknown source 'hub_datset' \(did you mean hub_dataset"
    ):
        plan_of(tiny_config, sources={"web": "hub_datset"})
    with pytest.raises(UsageError, match=r"^datasets\.web: source 'hub_dataset' needs the option 'path'"):
        plan_of(tiny_config, datasets={"web": "hub_dataset"})


@pytest.mark.parametrize(
    "changes",
    [
        {"logger": {"log_to_wandb": True, "run_name": "another"}},
        {"output_path": "elsewhere"},
        {"n_checkpoints": 3},
        {"verbose": True},
        {"evaluators": ["shared_features"]},
        {"sae_seeds": [0, 1, 2]},
        {"typicality_tokens": 100},
        {"variants": {"base": {}, "more": {"k": 2}}},
    ],
)
def test_what_cannot_change_the_weights_is_not_among_an_saes_settings(
    tiny_config: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert plan_of(tiny_config, **changes).saes[0].settings == plan_of(tiny_config).saes[0].settings


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"lr": 2e-3}, "lr"),
        ({"training_tokens": 3_000}, "training_tokens"),
        ({"seed": 8}, "seed"),
        ({"sae": {"architecture": "topk", "d_in": 64, "d_sae": 96, "k": 4}}, "sae.k"),
    ],
)
def test_what_changes_the_weights_is_among_an_saes_settings(
    tiny_config: dict[str, Any], changes: dict[str, Any], key: str
) -> None:
    before, after = plan_of(tiny_config).saes[0], plan_of(tiny_config, **changes).saes[0]
    different = {name for name in before.settings if before.settings[name] != after.settings[name]}
    # The last learning rate follows the first, a tenth of it.
    assert different - {"lr_end"} == {key}
    assert before.step("a", {}).hash != after.step("a", {}).hash


def test_a_texts_settings_are_those_that_determine_its_tokens(tiny_config: dict[str, Any]) -> None:
    sources = {"a": {"plugin": "sized", "n_tokens": 320}}
    before = plan_of(tiny_config, sources=sources).texts[0]
    trained_otherwise = plan_of(
        tiny_config, sources=sources, lr=1e-2, sae_seeds=[9], evaluators=["shared_features"]
    ).texts[0]
    assert before.step("model").hash == trained_otherwise.step("model").hash
    assert before.settings["sources.a.plugin"] == "sized"
    assert before.settings["sources.a.n_tokens"] == 320
    assert before.settings["sources.a.style"] == "plain"
    assert before.step("model").hash != before.step("another model").hash


def test_an_amount_said_and_an_amount_implied_are_the_same_setting(tiny_config: dict[str, Any]) -> None:
    said = plan_of(tiny_config, sources={"a": {"plugin": "sized", "n_tokens": 2_000}}).texts[0]
    implied = plan_of(tiny_config, sources={"a": "sized"}).texts[0]
    assert said.settings == implied.settings


@pytest.mark.parametrize(
    ("field", "value"),
    [("compile_sae", True), ("use_cached_activations", True), ("from_pretrained_path", "somewhere")],
)
def test_a_field_that_the_multi_sae_runner_lacks_is_for_one_sae_only(
    tiny_config: dict[str, Any], field: str, value: object
) -> None:
    with pytest.raises(
        UsageError, match=rf"{field} is set, but SAELens's multi-SAE runner lacks it; with 2 SAEs"
    ):
        plan_of(tiny_config, **{field: value})
    assert len(plan_of(tiny_config, **{field: value}, sae_seeds=[0]).saes) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sequence_separator_token", "eos"),
        ("disable_concat_sequences", True),
        ("use_chat_formatting", True),
    ],
)
def test_how_saelens_tokenises_text_cannot_be_asked_of_sources(
    tiny_config: dict[str, Any], field: str, value: object
) -> None:
    # SAELens itself wants untokenised data for chat formatting.
    changes = {field: value, "is_dataset_tokenized": False}
    with pytest.raises(UsageError, match=f"{field} is for text that SAELens tokenises"):
        plan_of(tiny_config, **changes)
    stock = plan_of(tiny_config, **changes, sources={}, dataset_path="some/dataset")
    assert stock.stock_dataset == "some/dataset"


def test_the_buffer_counts_the_positions_that_are_kept(tiny_config: dict[str, Any]) -> None:
    # 16 × (16 - 12) = 64 tokens fill a batch of 64; one position less gives 48.
    assert plan_of(tiny_config, seqpos_slice=[12, None]).saes
    with pytest.raises(
        UsageError, match=r"n_batches_in_buffer × context_size = 48 tokens.*batch_size_tokens = 64"
    ):
        plan_of(tiny_config, seqpos_slice=[13, None])


def test_the_longest_context_is_the_models(tiny_config: dict[str, Any]) -> None:
    # The tiny Llama has 64 positions.
    assert plan_of(tiny_config, context_size=64).saes
    with pytest.raises(UsageError, match="context_size 65 is longer than the 64 tokens"):
        plan_of(tiny_config, context_size=65)


def test_a_token_for_the_hub_is_refused_before_it_is_written_anywhere(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"model_from_pretrained_kwargs\.token would be written") as caught:
        plan_of(tiny_config, model_from_pretrained_kwargs={"token": "hf_secret"})
    assert "hf_secret" not in str(caught.value)


def test_resuming_from_a_saelens_checkpoint_is_refused(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="resume_from_checkpoint: run the same command again"):
        plan_of(tiny_config, resume_from_checkpoint="somewhere")
