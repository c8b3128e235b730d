"""No call of ours runs what it reads; names of folders are names; links lead nowhere else."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import Artifact, ExperimentConfig, RunError, UsageError, hookimpl, load_plugins, run
from sae_faithful.experiment import dry_run
from sae_faithful.names import check_name
from sae_faithful.report import write_report
from sae_faithful.run_folder import RunFolder, Step, data_path, result_path, sae_path, write_text

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


@pytest.mark.parametrize("linked", ["64", "1024", "final_2048"])
def test_a_link_among_a_strangers_checkpoints_is_not_written_through(
    tiny_config: dict[str, Any], tmp_path: Path, linked: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "cfg.json").write_text("kept")
    link = tmp_path / "run" / "checkpoints" / "faithful" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    config = ExperimentConfig.from_dict(
        {**tiny_config, "training_tokens": 2048, "n_checkpoints": 1, "save_final_checkpoint": True}
    )
    run(config, output=tmp_path / "run", until="saes")
    assert not link.is_symlink()
    assert [path.name for path in outside.iterdir()] == ["cfg.json"]
    assert (outside / "cfg.json").read_text() == "kept"


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
