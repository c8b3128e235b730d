"""What is known of a language model without running it: hooks, sizes, tokens, who it is; and other models like it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sae_faithful import ExperimentConfig, LanguageModel, UsageError

from .conftest import LLAMA_HOOKS


def test_a_misspelt_hook_names_the_nearest(model: LanguageModel) -> None:
    hook = model.hooks[0].replace("0", "7")
    with pytest.raises(UsageError) as caught:
        model.hook_size(hook)
    message = str(caught.value)
    assert message.startswith(f"unknown hook_name '{hook}' (did you mean ")
    assert model.hooks[0] in message


def test_a_hook_like_no_other_lists_each_kind_once(tiny_llama: str) -> None:
    with pytest.raises(UsageError) as caught:
        LanguageModel(tiny_llama).hook_size("xyzzy")
    message = str(caught.value)
    assert message.startswith(f"unknown hook_name 'xyzzy'; hooks of {tiny_llama}: ")
    kinds = message.partition(f"hooks of {tiny_llama}: ")[2].split(", ")
    assert kinds.count("model.layers.N") == 1
    assert "model.layers.N.mlp.gate_proj" in kinds
    assert "model.layers.0" not in kinds


def test_a_hook_without_a_tensor_is_refused(tiny_llama: str) -> None:
    # The module `model` returns an object that holds tensors, which SAELens does not hook.
    with pytest.raises(UsageError, match=r"hook_name 'model' of .* gives no activation tensor"):
        LanguageModel(tiny_llama).hook_size("model")


@pytest.mark.parametrize(
    ("hook", "index", "size"),
    [
        # 4 heads of 16.
        ("blocks.0.attn.hook_z", 3, 16),
        ("blocks.0.attn.hook_z", -4, 16),
        ("blocks.0.attn.hook_z", 4, "has 4 heads"),
        ("blocks.0.attn.hook_z", -5, "has 4 heads"),
        ("blocks.0.attn.hook_z", 2**31, "has 4 heads"),
        ("blocks.0.hook_resid_post", 0, "has no heads"),
    ],
)
def test_a_head_that_the_hook_does_not_have_is_refused(
    tiny_hooked: Any, hook: str, index: int, size: int | str
) -> None:
    model = LanguageModel("tiny", "HookedTransformer", hook_head_index=index, given=tiny_hooked)
    if isinstance(size, int):
        assert model.hook_size(hook) == size
        return
    with pytest.raises(UsageError, match=rf"^hook_head_index = {index}: hook_name '{hook}' of tiny {size}$"):
        model.hook_size(hook)


def test_a_size_that_only_the_weights_could_tell_is_none(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LanguageModel(tiny_llama)

    def data_dependent(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr(model.skeleton, "run_with_cache", data_dependent)
    assert model.hook_size("model.layers.0") is None
    with pytest.raises(UsageError, match="unknown hook_name"):
        model.hook_size("model.layers.7")


def test_facts_cost_no_weights(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sae_lens.load_model

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(sae_lens.load_model, "load_model", refuse)
    model = LanguageModel(tiny_llama)
    # All from the fixture.
    assert model.vocab_size == 64
    assert model.context_limit == 64
    assert model.bos_token_id == 0
    assert model.special_token_ids == [0, 1, 2]
    assert model.hook_size("model.layers.1") == 64
    assert model.identity.startswith(f"{tiny_llama}@")
    with pytest.raises(AssertionError, match="weights were read"):
        model.logits(None)  # pyright: ignore[reportArgumentType]


def test_facts_of_a_given_model_are_its_own(tiny_hooked: Any) -> None:
    model = LanguageModel("tiny", "HookedTransformer", given=tiny_hooked)
    assert model.model is tiny_hooked
    assert model.skeleton is tiny_hooked
    assert (model.vocab_size, model.context_limit, model.bos_token_id) == (64, 64, 0)
    assert model.identity.startswith("tiny@weights-")


def test_weights_load_once(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sae_lens.load_model

    loads: list[Any] = []
    original = sae_lens.load_model.load_model

    def count(*args: Any, **kwargs: Any) -> Any:
        loads.append(kwargs["hook_names"])
        return original(*args, **kwargs)

    monkeypatch.setattr(sae_lens.load_model, "load_model", count)
    model = LanguageModel(tiny_llama, hooks=LLAMA_HOOKS)
    assert model.model is model.model
    assert not model.model.training
    assert loads == [list(LLAMA_HOOKS)]


@pytest.mark.parametrize(
    ("tokenizer", "bos"),
    [
        (SimpleNamespace(bos_token_id=4, eos_token_id=5), 4),
        (SimpleNamespace(bos_token_id=0, eos_token_id=5), 0),
        (SimpleNamespace(bos_token_id=None, eos_token_id=5), 5),
        (SimpleNamespace(eos_token_id=6), 6),
    ],
)
def test_a_tokenizer_without_bos_lends_its_eos(tokenizer: Any, bos: int) -> None:
    model = LanguageModel("some", given=SimpleNamespace(tokenizer=tokenizer))  # pyright: ignore[reportArgumentType]
    assert model.bos_token_id == bos


def test_a_tokenizer_with_neither_is_refused() -> None:
    bare = SimpleNamespace(tokenizer=SimpleNamespace(bos_token_id=None, eos_token_id=None))
    with pytest.raises(UsageError, match="the tokenizer of some has neither a BOS nor an EOS token"):
        _ = LanguageModel("some", given=bare).bos_token_id  # pyright: ignore[reportArgumentType]


def test_a_config_says_which_model(tiny_config: dict[str, Any]) -> None:
    config = ExperimentConfig.from_dict(
        {**tiny_config, "autocast_lm": True, "model_from_pretrained_kwargs": {"dtype": "bfloat16"}}
    )
    model = LanguageModel.from_config(config)
    assert model.name == tiny_config["model_name"]
    assert model.class_name == "AutoModelForCausalLM"
    assert model.hooks == ("model.layers.0",)
    assert model.autocast is True
    assert model.from_pretrained_kwargs == {"dtype": "bfloat16"}
    assert model.device == "cpu"


def test_a_variant_in_another_dtype_has_the_same_weights_rounded(model: LanguageModel) -> None:
    import torch

    rounded = model.variant(dtype="bfloat16")
    assert {parameter.dtype for parameter in rounded.model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}
    assert rounded.identity != model.identity
    mine = {name: value.to(torch.bfloat16) for name, value in model.model.named_parameters()}
    for name, value in rounded.model.named_parameters():
        torch.testing.assert_close(value, mine[name], rtol=0, atol=0)


def test_a_variant_of_another_vocabulary_is_refused(tiny_llama: str, tmp_path: Any) -> None:
    import shutil

    from transformers import AutoTokenizer

    other = shutil.copytree(tiny_llama, tmp_path / "other")
    assert LanguageModel(tiny_llama).variant(str(other)).name == str(other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UsageError, match=r"generator '.*other' has another vocabulary than "):
        LanguageModel(tiny_llama).variant(str(other))


@pytest.mark.parametrize("class_name", ["AutoModelForCausalLM", "HookedTransformer"])
def test_a_random_init_keeps_the_shapes_and_nothing_else(
    class_name: str, tiny_llama: str, tiny_hooked: Any
) -> None:
    import torch

    given = tiny_hooked if class_name == "HookedTransformer" else None

    def model(seed: int | None) -> LanguageModel:
        return LanguageModel(tiny_llama, class_name, given=given, random_init_seed=seed)

    trained, one, again, other = model(None), model(1), model(1), model(2)
    kept = {name: tensor.clone() for name, tensor in trained.model.named_parameters()}
    drawn = dict(one.model.named_parameters())
    assert {name: tensor.shape for name, tensor in drawn.items()} == {
        name: tensor.shape for name, tensor in kept.items()
    }
    matrices = [name for name, tensor in kept.items() if tensor.ndim > 1 and float(tensor.std()) > 0]
    assert len(matrices) >= 10
    for name in matrices:
        assert not torch.equal(drawn[name], kept[name]), name
    for name, tensor in again.model.named_parameters():
        assert torch.equal(tensor, drawn[name])
    assert any(not torch.equal(tensor, drawn[name]) for name, tensor in other.model.named_parameters())
    # A model that was given is copied, not overwritten.
    for name, tensor in trained.model.named_parameters():
        assert torch.equal(tensor, kept[name])
    assert len({trained.identity, one.identity, other.identity}) == 3
    assert one.identity == again.identity
    tokens = torch.tensor([[0, 5, 9, 12]])
    assert torch.isfinite(one.logits(tokens)).all()


def test_a_random_init_of_a_transformer_lens_model_has_unit_scales_and_no_biases(tiny_hooked: Any) -> None:
    import torch

    model = LanguageModel("tiny", "HookedTransformer", given=tiny_hooked, random_init_seed=1).model
    for name, tensor in model.named_parameters():
        if name.endswith(".w"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif "W_" not in name:
            assert torch.equal(tensor, torch.zeros_like(tensor)), name


def test_the_generator_of_a_random_model_is_the_trained_one(tiny_llama: str) -> None:
    random = LanguageModel(tiny_llama, random_init_seed=1)
    assert random.variant(name=tiny_llama).random_init_seed is None
    assert random.variant(dtype="float64").random_init_seed == 1
