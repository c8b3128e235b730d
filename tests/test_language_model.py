"""The one adapter to a language model, against SAELens and the models themselves."""

from __future__ import annotations

import dataclasses
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sae_faithful import ExperimentConfig, LanguageModel, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator

    import torch

LLAMA_HOOKS = ("model.layers.0", "model.layers.1")
HOOKED_HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


@pytest.fixture
def tokens() -> torch.Tensor:
    """Three rows of 16 tokens, each starting with BOS."""
    import torch

    rows = torch.randint(3, 64, (3, 16), generator=torch.Generator().manual_seed(0))
    rows[:, 0] = 0
    return rows


@pytest.fixture(params=["llama", "hooked"])
def model(request: pytest.FixtureRequest, tiny_llama: str, tiny_hooked: Any) -> LanguageModel:
    """Both kinds of model, with a hook at each of two layers."""
    if request.param == "llama":
        return LanguageModel(tiny_llama, hooks=LLAMA_HOOKS)
    return LanguageModel("tiny", "HookedTransformer", hooks=HOOKED_HOOKS, given=tiny_hooked)


def raw_logits(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """What the model itself says, without anything of SAELens's or ours in between."""
    import torch

    with torch.no_grad():
        if model.given is not None:
            return model.given(tokens, prepend_bos=False)
        return model.model.model(tokens).logits


def stored_activations(
    model: LanguageModel, tokens: torch.Tensor, hook: str, d_in: int, *, autocast: bool = False
) -> torch.Tensor:
    """SAELens's own activations."""
    import torch
    from datasets import Dataset
    from sae_lens import ActivationsStore, LanguageModelSAERunnerConfig, StandardTrainingSAEConfig

    config = LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(d_in=d_in, d_sae=8),
        model_name=model.name,
        model_class_name=model.class_name,
        hook_name=hook,
        hook_head_index=model.hook_head_index,
        context_size=tokens.shape[1],
        autocast_lm=autocast,
        verbose=False,
    )
    dataset = Dataset.from_dict({"input_ids": tokens.tolist()})
    store = ActivationsStore.from_config(model.model, config, override_dataset=dataset)
    with torch.no_grad():
        return store.get_activations(tokens)


def per_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    ).view(tokens[:, 1:].shape)


@pytest.fixture
def layer_calls(model: LanguageModel) -> Generator[Counter[str]]:
    """How often each layer and the unembedding have run."""
    calls: Counter[str] = Counter()
    inner: Any = model.model
    if model.given is None:
        parts = {
            "layer 0": inner.model.model.layers[0],
            "layer 1": inner.model.model.layers[1],
            "unembedding": inner.model.lm_head,
        }
    else:
        parts = {"layer 0": inner.blocks[0], "layer 1": inner.blocks[1], "unembedding": inner.unembed}

    def count(name: str) -> Any:
        return lambda *_: calls.update([name])

    handles = [part.register_forward_hook(count(name)) for name, part in parts.items()]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("autocast", [False, True])
def test_activations_are_those_that_saelens_trains_on(
    model: LanguageModel, tokens: torch.Tensor, autocast: bool
) -> None:
    import torch

    model.autocast = autocast
    found = model.activations(tokens, model.hooks)
    assert list(found) == list(model.hooks)
    for hook in model.hooks:
        expected = stored_activations(model, tokens, hook, 64, autocast=autocast)
        assert expected.abs().max() > 0.1
        # SAELens's store holds float32 whatever the model computes in.
        torch.testing.assert_close(found[hook].float(), expected, rtol=0, atol=0)


def test_autocast_is_for_activations_only(model: LanguageModel, tokens: torch.Tensor) -> None:
    import torch

    hook = model.hooks[1]
    exact, logits = model.activations(tokens, [hook])[hook], model.logits(tokens)
    model.autocast = True
    assert not torch.equal(model.activations(tokens, [hook])[hook].float(), exact)
    # What is measured on logits keeps the weights' precision.
    torch.testing.assert_close(model.logits(tokens), logits, rtol=0, atol=0)


@pytest.mark.parametrize("hook", ["model.embed_tokens", "model.layers.1.mlp.gate_proj", "model.norm"])
def test_activations_inside_and_outside_a_llamas_layers_are_saelens_s(
    tiny_llama: str, tokens: torch.Tensor, hook: str
) -> None:
    import torch

    model = LanguageModel(tiny_llama, hooks=(hook,))
    size = 96 if "gate" in hook else 64
    expected = stored_activations(model, tokens, hook, size)
    torch.testing.assert_close(model.activations(tokens, [hook])[hook], expected, rtol=0, atol=0)


@pytest.mark.parametrize("hook", ["hook_embed", "blocks.1.mlp.hook_post", "ln_final.hook_normalized"])
def test_activations_inside_and_outside_a_hooked_transformers_blocks_are_saelens_s(
    tiny_hooked: Any, tokens: torch.Tensor, hook: str
) -> None:
    import torch

    model = LanguageModel("tiny", "HookedTransformer", hooks=(hook,), given=tiny_hooked)
    # TransformerLens's MLP is four times as wide as the residual stream.
    size = 256 if "mlp" in hook else 64
    assert model.hook_size(hook) == size
    expected = stored_activations(model, tokens, hook, size)
    torch.testing.assert_close(model.activations(tokens, [hook])[hook], expected, rtol=0, atol=0)


def test_heads_are_concatenated_as_saelens_does(tiny_hooked: Any, tokens: torch.Tensor) -> None:
    import torch

    hook = "blocks.0.attn.hook_z"
    model = LanguageModel("tiny", "HookedTransformer", hooks=(hook,), given=tiny_hooked)
    # 4 heads of 16.
    assert model.hook_size(hook) == 64
    found = model.activations(tokens, [hook])[hook]
    assert found.shape == (3, 16, 64)
    torch.testing.assert_close(found, stored_activations(model, tokens, hook, 64), rtol=0, atol=0)


def test_one_head_is_taken_as_saelens_does(tiny_hooked: Any, tokens: torch.Tensor) -> None:
    import torch

    hook = "blocks.0.attn.hook_z"
    model = LanguageModel("tiny", "HookedTransformer", hooks=(hook,), hook_head_index=2, given=tiny_hooked)
    assert model.hook_size(hook) == 16
    found = model.activations(tokens, [hook])[hook]
    torch.testing.assert_close(found, stored_activations(model, tokens, hook, 16), rtol=0, atol=0)
    # Head 2 of 4 is the third quarter of all heads laid end to end.
    every_head = dataclasses.replace(model, hook_head_index=None).activations(tokens, [hook])[hook]
    torch.testing.assert_close(found, every_head[..., 32:48], rtol=0, atol=0)


def test_nothing_after_the_hook_runs(
    model: LanguageModel, tokens: torch.Tensor, layer_calls: Counter[str]
) -> None:
    model.activations(tokens, model.hooks[:1])
    assert layer_calls == {"layer 0": 1}


def test_several_hooks_cost_one_forward_that_stops_after_the_last(
    model: LanguageModel, tokens: torch.Tensor, layer_calls: Counter[str]
) -> None:
    import torch

    together = model.activations(tokens, [model.hooks[1], model.hooks[0]])
    # SAELens stops a Hugging Face model from inside the last hook, before the layer's own hooks are done:
    # what matters is that layer 0 ran once, layer 1 at most once and nothing after it.
    assert layer_calls["layer 0"] == 1
    assert layer_calls["layer 1"] <= 1
    assert layer_calls["unembedding"] == 0
    for hook in model.hooks:
        torch.testing.assert_close(together[hook], model.activations(tokens, [hook])[hook], rtol=0, atol=0)


def test_the_layer_counter_counts(
    model: LanguageModel, tokens: torch.Tensor, layer_calls: Counter[str]
) -> None:
    model.logits(tokens)
    assert layer_calls == {"layer 0": 1, "layer 1": 1, "unembedding": 1}


def test_logits_are_the_models_own(model: LanguageModel, tokens: torch.Tensor) -> None:
    import torch

    logits = model.logits(tokens)
    assert logits.shape == (3, 16, 64)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, raw_logits(model, tokens), rtol=0, atol=0)


def test_an_edit_that_changes_nothing_changes_no_logit(model: LanguageModel, tokens: torch.Tensor) -> None:
    import torch

    for hook in model.hooks:
        edited = model.logits_with_edit(tokens, hook, lambda own: own)
        torch.testing.assert_close(edited, model.logits(tokens), rtol=0, atol=0)


def test_an_edit_is_shown_the_activations_and_does_not_outlive_its_call(
    model: LanguageModel, tokens: torch.Tensor
) -> None:
    import torch

    seen: list[torch.Tensor] = []

    def double(own: torch.Tensor) -> torch.Tensor:
        seen.append(own.clone())
        return 2 * own

    hook = model.hooks[0]
    before = model.logits(tokens)
    edited = model.logits_with_edit(tokens, hook, double)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], model.activations(tokens, [hook])[hook], rtol=0, atol=0)
    assert (edited - before).abs().max() > 0.01
    torch.testing.assert_close(model.logits(tokens), before, rtol=0, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_an_edit_that_changes_nothing_changes_no_activation(
    model: LanguageModel, tokens: torch.Tensor, autocast: bool
) -> None:
    import torch

    model.autocast = autocast
    first, last = model.hooks
    clean = model.activations(tokens, [first, last])
    # Asked for in another order than they run.
    edited = model.activations_with_edit(tokens, first, lambda own: own, [last, first])
    assert list(edited) == [last, first]
    for hook in model.hooks:
        assert not edited[hook].requires_grad
        torch.testing.assert_close(edited[hook], clean[hook], rtol=0, atol=0)


def test_activations_after_an_edit_are_those_the_logits_with_it_are_made_from(
    model: LanguageModel, tokens: torch.Tensor
) -> None:
    import torch

    first, last = model.hooks
    clean = model.activations(tokens, [first, last])
    found = model.activations_with_edit(tokens, first, lambda own: 2 * own, [first, last])
    # At the edited hook: what the edit gave.
    torch.testing.assert_close(found[first], 2 * clean[first], rtol=0, atol=0)
    assert (found[last] - clean[last]).abs().max() > 0.01
    # Put in the place of the clean model's last hook they give the logits of the edited model.
    expected = model.logits_with_edit(tokens, first, lambda own: 2 * own)
    through = model.logits_with_edit(tokens, last, lambda own: found[last])
    torch.testing.assert_close(through, expected, rtol=0, atol=0)
    # An edit at a later hook reaches no earlier one, and no edit outlives its call.
    later = model.activations_with_edit(tokens, last, torch.zeros_like, [first, last])
    torch.testing.assert_close(later[first], clean[first], rtol=0, atol=0)
    assert float(later[last].abs().max()) == 0
    torch.testing.assert_close(model.activations(tokens, [last])[last], clean[last], rtol=0, atol=0)


def test_nothing_after_the_last_hook_runs_under_an_edit(
    model: LanguageModel, tokens: torch.Tensor, layer_calls: Counter[str]
) -> None:
    first, last = model.hooks
    model.activations_with_edit(tokens, first, lambda own: own, [first])
    assert layer_calls == {"layer 0": 1}
    model.activations_with_edit(tokens, first, lambda own: own, [last])
    # SAELens stops a Hugging Face model inside the last hook, before the counter of layer 1.
    assert (layer_calls["layer 0"], layer_calls["unembedding"]) == (2, 0)


def test_activations_can_be_differentiated_by_an_edit(model: LanguageModel, tokens: torch.Tensor) -> None:
    import torch

    first, last = model.hooks
    added = torch.zeros(3, 16, 64, requires_grad=True)
    found = model.activations_with_edit(tokens, first, lambda own: own + added, [last], grad=True)[last]
    (gradient,) = torch.autograd.grad(found[0, 9, 5], added)
    # Causal: only the row itself, up to that place; the residual stream passes it on at the place itself.
    assert float(gradient[1:].abs().max()) == 0
    assert float(gradient[0, 10:].abs().max()) == 0
    step = torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(1))
    size = 1e-2
    up, down = (
        model.activations_with_edit(tokens, first, lambda own, by=by: own + by * step, [last])[last][0, 9, 5]
        for by in (size, -size)
    )
    assert abs(float(up - down) / (2 * size)) > 0.1
    torch.testing.assert_close((up - down) / (2 * size), (gradient * step).sum(), rtol=0.02, atol=1e-3)


def test_one_head_is_edited_where_activations_are_asked_for(tiny_hooked: Any, tokens: torch.Tensor) -> None:
    import torch

    hook = "blocks.0.attn.hook_z"
    model = LanguageModel("tiny", "HookedTransformer", hooks=(hook,), hook_head_index=1, given=tiny_hooked)
    whole = dataclasses.replace(model, hook_head_index=None)

    def zero_head_1(own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own[..., :16], torch.zeros_like(own[..., 16:32]), own[..., 32:]], dim=-1)

    last = "blocks.1.attn.hook_z"
    expected = whole.activations_with_edit(tokens, hook, zero_head_1, [last])[last]
    found = model.activations_with_edit(tokens, hook, torch.zeros_like, [last])[last]
    torch.testing.assert_close(found, expected[..., 16:32], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("class_name", "hooks"),
    [
        # As they run: a layer's MLP before the layer's own output, whatever their names sort as.
        (
            "AutoModelForCausalLM",
            ["model.embed_tokens", "model.layers.0.mlp", "model.layers.0", "model.norm"],
        ),
        (
            "HookedTransformer",
            ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post"],
        ),
    ],
)
def test_hooks_are_put_in_the_order_in_which_they_run(
    class_name: str, hooks: list[str], tiny_llama: str, tiny_hooked: Any
) -> None:
    given = tiny_hooked if class_name == "HookedTransformer" else None
    model = LanguageModel(tiny_llama, class_name, hooks=tuple(hooks), given=given)
    assert model.hooks_in_order([*reversed(hooks), hooks[0]]) == hooks


def zero_ablation_loss(model: LanguageModel, tokens: torch.Tensor, hook: str, d_in: int) -> torch.Tensor:
    """What SAELens's evals say the loss is with the activations at a hook set to zero."""
    import torch
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.evals import get_recons_loss
    from sae_lens.training.activation_scaler import ActivationScaler

    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=8))
    sae.cfg.metadata.hook_head_index = model.hook_head_index
    with torch.no_grad():
        return get_recons_loss(
            sae,
            model.model,
            ActivationScaler(),
            tokens,
            compute_kl=False,
            compute_ce_loss=True,
            hook_name=hook,
        )["ce_loss_with_ablation"]


def test_an_edit_to_zero_is_saelens_s_zero_ablation(model: LanguageModel, tokens: torch.Tensor) -> None:
    import torch

    for hook in model.hooks:
        edited = model.logits_with_edit(tokens, hook, torch.zeros_like)
        expected = zero_ablation_loss(model, tokens, hook, 64)
        torch.testing.assert_close(per_token_loss(edited, tokens), expected)


@pytest.mark.parametrize(("head", "size"), [(None, 64), (1, 16)])
def test_heads_are_edited_as_saelens_does(
    tiny_hooked: Any, tokens: torch.Tensor, head: int | None, size: int
) -> None:
    import torch

    hook = "blocks.0.attn.hook_z"
    model = LanguageModel("tiny", "HookedTransformer", hooks=(hook,), hook_head_index=head, given=tiny_hooked)
    clean = model.logits(tokens)
    torch.testing.assert_close(model.logits_with_edit(tokens, hook, lambda own: own), clean, rtol=0, atol=0)
    shapes: list[tuple[int, ...]] = []

    def zero(own: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(own.shape))
        return torch.zeros_like(own)

    edited = model.logits_with_edit(tokens, hook, zero)
    assert shapes == [(3, 16, size)]
    assert (edited - clean).abs().max() > 1e-4
    expected = zero_ablation_loss(model, tokens, hook, size)
    torch.testing.assert_close(per_token_loss(edited, tokens), expected)


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


def test_a_variant_in_another_dtype_has_the_same_weights_rounded(
    model: LanguageModel, tokens: torch.Tensor
) -> None:
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


def test_the_unembedding_has_the_final_norm_s_gain_in_it(model: LanguageModel, tokens: torch.Tensor) -> None:
    import copy

    import torch

    if model.given is not None:
        model = dataclasses.replace(model, given=copy.deepcopy(model.given))
    norm: Any = model.model.ln_final if model.given is not None else model.model.model.model.norm
    gain = norm.w if model.given is not None else norm.weight
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        gain.copy_(torch.rand(gain.shape, generator=generator) + 0.5)
    matrix = model.unembedding()
    assert matrix is not None
    assert matrix.shape == (64, 64)
    # x ± f with f orthogonal to x (means apart, which a layer norm takes off): both are of one length, so that the
    # norm divides them by the same, and the difference of their logits is proportional to the matrix times f.
    x, f = torch.randn(2, 64, generator=generator)
    f = f - (f @ (x - x.mean()) if model.given is not None else f @ x) / (
        (x - x.mean()) @ (x - x.mean()) if model.given is not None else x @ x
    ) * (x - x.mean() if model.given is not None else x)
    hook = model.hooks[-1]
    up, down = (
        model.logits_with_edit(tokens, hook, lambda own, step=step: (x + step * f).expand_as(own))[0, 0]
        for step in (1, -1)
    )
    factor = (up - down) / (matrix @ f)
    torch.testing.assert_close(factor, factor.median().expand_as(factor), rtol=1e-3, atol=1e-3)
    assert float(factor.median()) > 0.1


def test_a_gain_that_is_kept_as_one_plus_a_weight_is_found_all_the_same() -> None:
    import torch
    from transformers import GemmaConfig, GemmaForCausalLM

    from sae_faithful import unembedding

    torch.manual_seed(0)
    gemma = GemmaForCausalLM(
        GemmaConfig(
            vocab_size=50, hidden_size=33, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=8,
        )
    )  # fmt: skip
    with torch.no_grad():
        gemma.model.norm.weight.normal_()
    matrix = unembedding.of_hugging_face(gemma)
    assert matrix is not None
    torch.testing.assert_close(
        matrix, gemma.lm_head.weight.detach() * (1 + gemma.model.norm.weight.detach()), rtol=1e-3, atol=1e-4
    )


def test_a_model_without_a_final_norm_or_with_something_after_it_says_so() -> None:
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    from sae_faithful import unembedding

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "ffn_dim": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "pad_token_id": 1, "max_position_embeddings": 16}
    found = unembedding.of_hugging_face(OPTForCausalLM(OPTConfig(word_embed_proj_dim=32, **sizes)))
    assert found is not None
    assert found.shape == (50, 32)
    assert unembedding.of_hugging_face(OPTForCausalLM(OPTConfig(word_embed_proj_dim=16, **sizes))) is None
