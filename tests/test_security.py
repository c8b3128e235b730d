"""Nothing that is read can run; names and links lead nowhere else; remote code is off, or said aloud."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_faithful import Artifact, ExperimentConfig, RunError, UsageError, hookimpl, load_plugins, run
from sae_faithful.experiment import dry_run
from sae_faithful.language_model import LanguageModel
from sae_faithful.names import check_name
from sae_faithful.pretrained import load_sae
from sae_faithful.report import write_report
from sae_faithful.run_folder import RunFolder, Step, data_path, result_path, sae_path, write_text
from sae_faithful.trust import check_strangers_sae, remote_code_of, weights_from, weights_only

ROOT = Path(__file__).resolve().parents[1]
CODE = ("sae_faithful", "plugins", "docs/gen", "examples")

BAD_NAMES = (
    "../outside",
    "..",
    ".",
    "/outside",
    "a/b",
    "a\\b",
    "C:\\x",
    "~",
    "",
    " ",
    "a b",
    "a\0b",
    "a\nb",
    ".hidden",
    "-x",
    "x" * 151,
    "con",
    "NUL.txt",
    "com1",
    "trailing.",
    "é",
)


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in our code: where, what is called, and the call."""
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def loads_code(called: str, node: ast.Call) -> bool:
    """Whether a call may run what it reads."""
    last = called.rpartition(".")[2]
    if called in ("eval", "exec", "compile", "__import__", "input") or called.startswith(
        ("pickle.", "dill.", "joblib.")
    ):
        return True
    if last in ("read_pickle", "unsafe_load", "full_load", "Unpickler", "load_module", "fromfile"):
        return True
    if called in (
        "yaml.load",
        "yaml.load_all",
        "torch.load",
        "marshal.loads",
        "marshal.load",
        "shelve.open",
        "os.system",
    ):
        return True
    names = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called == "np.load" or last == "load_state_dict_from_url":
        return True
    return (
        names.get("allow_pickle") == "True"
        or names.get("shell") == "True"
        or names.get("trust_remote_code") == "True"
    )


def test_no_call_of_ours_runs_what_it_reads() -> None:
    found = [f"{where}: {called}" for where, called, node in calls() if loads_code(called, node)]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "pickle.load(f)",
        "yaml.load(text)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "pd.read_pickle(x)",
    ],
)
def test_the_walk_sees_what_it_looks_for(line: str) -> None:
    node = ast.parse(line, mode="eval").body
    assert isinstance(node, ast.Call)
    assert loads_code(ast.unparse(node.func), node)


def test_no_module_of_ours_imports_a_format_that_runs() -> None:
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = (
                    [one.name for one in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
                )
                module = getattr(node, "module", None) or ""
                # They hand work to processes of ours; joblib.load would read a file.
                if module == "joblib" and set(names) <= {"Parallel", "delayed"}:
                    continue
                assert not {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} & {
                    *names,
                    module,
                }, path


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
class Model(LlamaForCausalLM): pass
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


# Names and paths


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_paths_or_worse_are_refused(name: str, tiny_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check_name(name)
    spec = {"plugin": "self_generated", "n_tokens": 1_600}
    for fields in (
        {"sources": {name: spec}},
        {"datasets": {name: spec}},
        {"variants": {name: {}}},
        {"hook_name": name},
        {"hook_names": [name]},
    ):
        with pytest.raises(UsageError):
            ExperimentConfig.from_dict({**tiny_config, **fields})
    for fields in ({"baselines": [{name: {"plugin": "pca"}}]}, {"evaluators": [name]}, {"monitors": [name]}):
        with pytest.raises(UsageError):
            dry_run(ExperimentConfig.from_dict({**tiny_config, **fields}))
    for path in (
        data_path,
        result_path,
        lambda one: sae_path(one, "h", "v", 0),
        lambda one: sae_path("s", one, "v", 0),
    ):
        with pytest.raises(UsageError):
            path(name)


@pytest.mark.parametrize(
    "name", ["faithful", "model.layers.3", "blocks.0.hook_resid_pre", "a-b_c.d", "x" * 150]
)
def test_names_of_folders_are_names(name: str) -> None:
    check_name(name)


def test_a_plugin_cannot_take_a_name_that_is_a_path() -> None:
    @dataclass
    class Evil:
        def load(self, request: Any) -> Any: ...

    class Plugin:
        @hookimpl
        def register_sources(self, register: Callable[[str, type], None]) -> None:
            register("../evil", Evil)

    plugins = load_plugins()
    plugins.register(Plugin(), name="evil")
    with pytest.raises(UsageError, match=r"'\.\./evil' cannot name a folder"):
        plugins.registrations("source")


@pytest.mark.parametrize("name", ["../../outside", "/outside", "a/b", "a\0b", "..", "x" * 300])
def test_a_strangers_evaluator_cannot_write_elsewhere(
    name: str, tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    @dataclass
    class Stranger:
        """Writes where it likes."""

        def observers(self, context: Any) -> list[Any]:
            return []

        def evaluate(self, context: Any, observers: Any) -> Iterator[Any]:
            yield Artifact(name=name, kind="text", content="outside")

    class Plugin:
        @hookimpl
        def register_evaluators(self, register: Callable[[str, type], None]) -> None:
            register("stranger", Stranger)

    plugins = load_plugins()
    plugins.register(Plugin(), name="stranger")
    config = ExperimentConfig.from_dict({**tiny_config, "training_tokens": 1_440, "evaluators": ["stranger"]})
    before = {path for path in tmp_path.rglob("*") if "run" not in path.parts}
    with pytest.raises(
        RunError, match=r"evaluator 'stranger': artifact .* cannot name a folder|has 300 characters"
    ):
        run(config, plugins=plugins, output=tmp_path / "run")
    after = {path for path in tmp_path.rglob("*") if "run" not in path.parts and "cache" not in path.parts}
    assert after <= before | {tmp_path / "run"}
    assert not (tmp_path / "run" / "results" / "stranger").exists()


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


def test_links_in_a_run_folder_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    (folder.root / "results").symlink_to(outside)
    with (
        pytest.raises(RunError, match="outside the run folder, by a link"),
        folder.writing(Step("results/a", {}, {})),
    ):
        pass
    (folder.root / "report.md").symlink_to(outside / "kept")
    (folder.root / ".partial-report.md").symlink_to(outside / "kept")
    write_text(folder.report_file, "new")
    assert not folder.report_file.is_symlink()
    (folder.root / ".lock").symlink_to(outside / "kept")
    with pytest.raises(UsageError, match="is a link"), folder.locked():
        pass
    assert (outside / "kept").read_text() == "kept"
    assert [path.name for path in outside.iterdir()] == ["kept"]


@pytest.mark.parametrize("linked", ["saes", "saes/faithful", "checkpoints", "checkpoints/faithful"])
def test_training_in_a_strangers_run_folder_follows_no_link_out_of_it(
    tiny_config: dict[str, Any], tmp_path: Path, linked: str
) -> None:
    outside = tmp_path / "outside"
    (outside / "documents").mkdir(parents=True)
    (outside / "documents" / "thesis").write_text("kept")
    link = tmp_path / "run" / linked
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    config = ExperimentConfig.from_dict({**tiny_config, "n_checkpoints": 2})
    with pytest.raises(RunError, match="outside the run folder, by a link"):
        run(config, output=tmp_path / "run", until="saes")
    assert [path.relative_to(outside).as_posix() for path in sorted(outside.rglob("*"))] == [
        "documents", "documents/thesis",
    ]  # fmt: skip


def test_the_run_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with RunFolder(tmp_path / "run").writing(Step("results/a", {}, {})) as partial:
        (partial / "x").write_text("x")
    assert (tmp_path / "disk" / "results" / "a" / "x").read_text() == "x"


def test_a_strangers_manifest_cannot_have_other_files_shown(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "secret.txt").write_text("a secret")
    folder.results_file.write_text("")
    manifest = {
        "model": "m",
        "versions": {},
        "device": "cpu",
        "threads": 1,
        "summary": "s",
        "sources": [],
        "evaluators": [],
    }
    for key in ("evaluators", "sources"):
        folder.manifest_file.write_text(json.dumps({**manifest, key: ["../.."]}))
        with pytest.raises((UsageError, RunError), match="cannot name a folder"):
            write_report(folder)
    folder.manifest_file.write_text(json.dumps({**manifest, "evaluators": ["mine"]}))
    (folder.root / "results").mkdir()
    (folder.root / "results" / "mine").symlink_to(tmp_path)
    with pytest.raises(RunError, match="outside the run folder"):
        write_report(folder)
