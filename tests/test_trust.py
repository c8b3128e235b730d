"""Whose code and whose pickles may run: of models, of datasets, and what the file of an SAE may ask for."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_faithful import ExperimentConfig, UsageError, run
from sae_faithful.experiment import dry_run
from sae_faithful.language_model import LanguageModel
from sae_faithful.pretrained import load_sae
from sae_faithful.report import write_report
from sae_faithful.trust import check_strangers_sae, code_only_as, remote_code_of, weights_from, weights_only


class Runs:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_runs_nothing_even_where_its_reader_wants_that(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "weights.pth"
    with file.open("wb") as opened:
        pickle.dump(Runs(tmp_path / "made"), opened)
    with weights_only(), pytest.raises(Exception, match=r"[Ww]eights"):
        torch.load(file, weights_only=False)
    assert not (tmp_path / "made").exists()
    torch.save({"a": torch.ones(2)}, file)
    with weights_only():
        assert torch.load(file)["a"].sum() == 2
    assert not hasattr(torch.load, "keywords")
    assert torch.load.__name__ == "load"


def test_a_model_is_asked_for_safetensors_unless_the_config_says_otherwise(
    tiny_llama: str, tmp_path: Path
) -> None:
    import torch

    no_code = {"trust_remote_code": False}
    for asked, given in (
        ({"dtype": "x"}, {"dtype": "x", "use_safetensors": True, **no_code}),
        ({"use_safetensors": False}, {"use_safetensors": False, **no_code}),
        ({"gguf_file": "a.gguf"}, {"gguf_file": "a.gguf", **no_code}),
        ({"trust_remote_code": True}, {"use_safetensors": True, "trust_remote_code": True}),
    ):
        assert weights_from("AutoModelForCausalLM", asked) == given
    assert weights_from("HookedTransformer", {}) == no_code
    assert weights_from("HookedMamba", {}) == {}
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_llama, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no safetensors; .*use_safetensors: false"):
        _ = LanguageModel(name=str(folder), class_name="AutoModelForCausalLM").model
    kwargs = {"use_safetensors": False}
    model = LanguageModel(name=str(folder), class_name="AutoModelForCausalLM", from_pretrained_kwargs=kwargs)
    assert model.model is not None


# Remote code


def test_remote_code_is_off_unless_asked_for(tiny_config: dict[str, Any]) -> None:
    config = ExperimentConfig.from_dict(tiny_config)
    assert config.dataset_trust_remote_code is False
    assert "REMOTE CODE" not in dry_run(config)
    assert remote_code_of(config) == []


def test_remote_code_is_said_aloud_wherever_a_run_is_looked_at(
    tiny_config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    asked = {
        **tiny_config,
        "dataset_trust_remote_code": True,
        "model_from_pretrained_kwargs": {"trust_remote_code": True},
    }
    config = ExperimentConfig.from_dict(asked)
    plan = dry_run(config)
    assert "REMOTE CODE: model_from_pretrained_kwargs.trust_remote_code is on" in plan
    assert "REMOTE CODE: dataset_trust_remote_code is on" in plan
    caplog.clear()
    folder = run(config)
    said = [
        record
        for record in caplog.records
        if record.levelname == "WARNING" and "REMOTE CODE" in record.message
    ]
    assert len(said) == 2
    assert len(json.loads(folder.manifest_file.read_text())["remote_code"]) == 2
    write_report(folder)
    assert "REMOTE CODE" in folder.report_file.read_text()
    assert "REMOTE CODE" in folder.html_file.read_text()


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "head_dim": 8}
QWEN = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 8}
UNKNOWN = {"model_type": "nobody_knows_it"}
SIZES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 32, "hidden_act": "silu",
}  # fmt: skip
MAPS = {
    "AutoConfig": "evil.Config",
    "AutoModelForCausalLM": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", None],
}
EVIL = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({marker!r}).touch()
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
"""


@dataclass
class Stranger:
    """A model's folder whose code makes a file when it runs."""

    root: Path
    tokenizer: str

    @property
    def marker(self) -> Path:
        return self.root / "ran"

    def write(self, name: str, config: dict[str, Any], *mapped: str) -> None:
        folder = self.root / name
        folder.mkdir(parents=True)
        shutil.copy(Path(self.tokenizer) / "tokenizer.json", folder)
        (folder / "evil.py").write_text(EVIL.replace("{marker!r}", repr(str(self.marker))))
        maps = {one: MAPS[one] for one in mapped}
        (folder / "config.json").write_text(json.dumps({**SIZES, **config, "auto_map": maps}))
        # transformers asks for a backend where no class is named
        tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "auto_map": maps}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokens))


@pytest.fixture
def stranger(tmp_path: Path, tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> Stranger:
    """In the working directory, with "y" for whoever asks at the terminal."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setattr("builtins.input", lambda *_: (tmp_path / "asked").touch() or "y")
    monkeypatch.chdir(tmp_path)
    return Stranger(tmp_path, tiny_llama)


# TransformerLens turns code on for these: by name, by name, by architecture.
@pytest.mark.parametrize(
    ("name", "config", "mapped"),
    [
        ("Qwen/Qwen-evil", LLAMA, ["AutoConfig"]),
        ("microsoft/phi-4-evil", LLAMA, ["AutoConfig"]),
        ("own/folder", QWEN, ["AutoTokenizer"]),
    ],
)
def test_transformer_lens_does_not_turn_code_on(
    stranger: Stranger, name: str, config: dict[str, Any], mapped: list[str]
) -> None:
    stranger.write(name, config, *mapped)
    model = LanguageModel(name, "HookedTransformer")
    assert model.vocab_size == 64
    assert model.tokenizer is not None
    assert not stranger.marker.exists()
    trusted = {"trust_remote_code": True}
    assert LanguageModel(name, "HookedTransformer", from_pretrained_kwargs=trusted).vocab_size == 64
    assert stranger.marker.exists()


def test_nobody_is_asked_whether_a_models_code_may_run(stranger: Stranger) -> None:
    stranger.write("unknown", UNKNOWN, *MAPS)
    stranger.write("tokenizer", UNKNOWN, "AutoTokenizer")
    config = json.loads((stranger.root / "tokenizer" / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "NobodyKnowsIt"
    (stranger.root / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    says = (
        r"cannot be read: it needs code .* only with model_from_pretrained_kwargs: {trust_remote_code: true}"
    )
    silent = LanguageModel("unknown")
    hooked = LanguageModel("unknown", "HookedTransformer")
    readers = (lambda: silent.skeleton, lambda: hooked.skeleton, lambda: LanguageModel("tokenizer").tokenizer)
    for read in readers:
        with pytest.raises(UsageError, match=says):
            read()
    with pytest.raises(UsageError, match="it needs code"):
        _ = silent.model
    assert not (stranger.root / "asked").exists()
    assert not stranger.marker.exists()
    trusted = LanguageModel("tokenizer", from_pretrained_kwargs={"trust_remote_code": True})
    assert type(trusted.tokenizer).__module__.startswith("transformers_modules")
    assert stranger.marker.exists()


PINNED, NEWEST = "1" * 40, "2" * 40
LOADS = """
import sys
from sae_faithful.language_model import LanguageModel
model = LanguageModel("org/model", from_pretrained_kwargs={{"trust_remote_code": True, "revision": {revision!r}}})
print(model.skeleton is not None, model.tokenizer.eos_token, model.model.tokenizer.eos_token)
"""


def test_code_and_tokenizer_are_of_the_revision_that_the_config_names(
    tiny_llama: str, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    stranger = Stranger(tmp_path / "written", tiny_llama)
    hub = tmp_path / "home" / "hub" / "models--org--model"
    for revision in (PINNED, NEWEST):
        stranger.root = tmp_path / "written" / revision
        stranger.write("model", UNKNOWN, *MAPS)
        LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(stranger.root / "weights")
        folder = stranger.root / "model"
        shutil.copy(stranger.root / "weights" / "model.safetensors", folder)
        says = json.loads((folder / "tokenizer_config.json").read_text())
        says["eos_token"] = f"<of {revision[0]}>"
        (folder / "tokenizer_config.json").write_text(json.dumps(says))
        shutil.copytree(folder, hub / "snapshots" / revision)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(NEWEST)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HF_MODULES_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    script = LOADS.format(revision=PINNED)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split("\n")[0] == "True <of 1> <of 1>", done.stderr
    assert (tmp_path / "written" / PINNED / "ran").exists()
    assert not (tmp_path / "written" / NEWEST / "ran").exists()


@pytest.mark.parametrize("name", ["Qwen/Qwen-1_8B", "qwen-1.8b"])
def test_a_revision_is_of_one_repository_whatever_it_is_called(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from transformers import dynamic_module_utils
    from transformers.models.auto import auto_factory

    monkeypatch.setattr(
        dynamic_module_utils, "get_class_from_dynamic_module", lambda *_, code_revision=None: code_revision
    )
    with code_only_as({"trust_remote_code": True, "revision": PINNED}, name):
        load: Any = auto_factory.get_class_from_dynamic_module
        assert load("evil.Model", "Qwen/Qwen-1_8B") == PINNED
        assert load("evil.Model", "Qwen/Qwen-1_8B", code_revision=NEWEST) == NEWEST
        assert load("org/code--evil.Model", "Qwen/Qwen-1_8B") is None


def test_what_is_said_of_one_models_repository_is_not_said_of_a_generators(
    stranger: Stranger, tiny_llama: str
) -> None:
    stranger.write("unknown", UNKNOWN, *MAPS)
    kwargs = {"trust_remote_code": True, "revision": PINNED, "dtype": "float32"}
    model = LanguageModel(tiny_llama, from_pretrained_kwargs=kwargs)
    with pytest.raises(UsageError, match=r"it needs code .* for model_name alone"):
        _ = model.variant("unknown").skeleton
    assert not stranger.marker.exists()
    assert model.variant(tiny_llama).from_pretrained_kwargs == kwargs


@pytest.mark.parametrize("trusted", [False, True])
def test_a_model_is_loaded_with_code_only_where_the_config_says_so(
    monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    from sae_lens import load_model
    from transformer_lens import loading_from_pretrained
    from transformers.models.auto import tokenization_auto

    seen: list[Any] = []

    def load(*_: Any, model_from_pretrained_kwargs: dict[str, Any], **__: Any) -> Any:
        seen.append(model_from_pretrained_kwargs["trust_remote_code"])
        seen.append(loading_from_pretrained.NEED_REMOTE_CODE_MODELS)
        # as SAELens's own call for the tokenizer, and as TransformerLens asks for some
        seen.extend(
            tokenization_auto.resolve_trust_remote_code(asked, "m", True, True) for asked in (None, True)
        )
        return SimpleNamespace(eval=lambda: None)

    monkeypatch.setattr(load_model, "load_model", load)
    kwargs = {"trust_remote_code": True} if trusted else {}
    _ = LanguageModel("Qwen/Qwen-7B", "HookedTransformer", from_pretrained_kwargs=kwargs).model
    assert seen == [trusted, (), trusted, trusted]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"trust_remote_code": True},
        {"cache_dir": "/outside"},
        {"proxies": {}},
        {"token": "x"},
        {"use_safetensors": False},
    ],
)
def test_the_file_of_an_sae_cannot_turn_it_on(kwargs: dict[str, Any]) -> None:
    fields: dict[str, Any] = dict.fromkeys(
        ("model_name", "model_class_name", "hook_name", "context_size", "hook_head_index", "random_init_seed")
    )
    for said in (
        {"center_writing_weights": False},
        {"attn_implementation": "sdpa", "dtype": "bfloat16", "revision": "main", "n_ctx": 16},
        {"revision": None, "attn_implementation": None},
    ):
        check_strangers_sae("it", SimpleNamespace(**fields, model_from_pretrained_kwargs=said))
    with pytest.raises(UsageError, match=f"--sae 'it' wants its model loaded with {next(iter(kwargs))} = "):
        check_strangers_sae("it", SimpleNamespace(**fields, model_from_pretrained_kwargs=kwargs))


@pytest.mark.parametrize(
    "change",
    [
        {"hook_name": "../../outside"},
        {"hook_name": "a\0b"},
        {"hook_name": 3},
        {"model_name": ["a"]},
        {"context_size": "16"},
        {"context_size": -5},
        {"context_size": 0},
        {"context_size": 10**30},
        {"random_init_seed": "x"},
        {"random_init_seed": -1},
        {"random_init_seed": 10**30},
        {"model_from_pretrained_kwargs": {"attn_implementation": "owner/kernel"}},
        {"model_from_pretrained_kwargs": {"attn_implementation": "paged|owner/kernel@main"}},
        {"model_from_pretrained_kwargs": {"attn_implementation": {"": "owner/kernel"}}},
        {"model_from_pretrained_kwargs": {"revision": 3}},
        {"model_from_pretrained_kwargs": {"dtype": ["float32"]}},
        {"model_from_pretrained_kwargs": {"fold_ln": "x"}},
        {"model_from_pretrained_kwargs": {"n_ctx": 0}},
        {"model_from_pretrained_kwargs": {"n_ctx": True}},
        {"model_from_pretrained_kwargs": {"n_ctx": 10**30}},
        {"model_from_pretrained_kwargs": {"trust_remote_code": True}},
        {"model_from_pretrained_kwargs": "x"},
    ],
)
def test_a_downloaded_sae_config_leads_nowhere(change: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from sae_lens import StandardSAE, StandardSAEConfig

    torch.manual_seed(0)
    StandardSAE(StandardSAEConfig(d_in=64, d_sae=8)).save_model(tmp_path)
    file = tmp_path / "cfg.json"
    content = json.loads(file.read_text())
    content["metadata"] |= {"model_name": "m", "hook_name": "model.layers.0", **change}
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="--sae"):
        load_sae(str(tmp_path), "cpu")
