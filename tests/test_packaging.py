"""The wheel in an environment that has SAELens, and a stranger's plugin beside it."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("sae_faithful", "__editable__")


def call(*command: str | Path, **environment: str) -> str:
    """Run a command and return what it prints; shows its errors when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    call(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ROOT,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scratch environment with everything this one has, but for this project; its `bin`."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (installed,) = (Path(path) for path in site.getsitepackages() if path.endswith("site-packages"))
    for entry in installed.iterdir():
        if not entry.name.startswith(OURS):
            (packages / entry.name).symlink_to(entry)
    return folder / "bin"


def freeze(environment: Path) -> set[str]:
    return set(call(environment / "python", "-m", "pip", "list", "--format=freeze").splitlines())


def install(environment: Path, package: Path) -> None:
    call(
        environment / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation",
        "--disable-pip-version-check", package,
    )  # fmt: skip


@pytest.fixture(scope="module")
def with_wheel(environment: Path, wheel: Path) -> tuple[Path, set[str], set[str]]:
    before = freeze(environment)
    install(environment, wheel)
    return environment, before, freeze(environment)


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sae_faithful", "sae_faithful_plugins"}
    for marker in ("sae_faithful/py.typed", "sae_faithful_plugins/py.typed"):
        assert marker in names
    for path in (ROOT / "sae_faithful" / "report" / "page").iterdir():
        assert f"sae_faithful/report/page/{path.name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installing_the_wheel_beside_saelens_adds_packages_and_changes_none(
    with_wheel: tuple[Path, set[str], set[str]],
) -> None:
    _, before, after = with_wheel
    assert any(line.startswith("sae-lens==") for line in before)
    assert before <= after
    assert {line.partition("==")[0] for line in after - before} == {"sae-faithful"}


def test_the_installed_command_lists_the_bundled_plugins(with_wheel: tuple[Path, set[str], set[str]]) -> None:
    listed = call(with_wheel[0] / "sae-faithful", "plugins")
    for name in (
        "self_generated",
        "hub_dataset",
        "text_files",
        "shared_features",
        "fake_features",
        "reconstruction",
    ):
        assert name in listed


def test_a_third_party_plugin_is_installed_listed_and_used_from_a_config(
    with_wheel: tuple[Path, set[str], set[str]], tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    environment = with_wheel[0]
    copy = tmp_path / "custom_plugin"
    copy.mkdir()
    for path in (ROOT / "examples" / "custom_plugin").iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    install(environment, copy)
    listed = [line.split() for line in call(environment / "sae-faithful", "plugins").splitlines()]
    assert ["source", "dice", "sae-faithful-dice", "0.1"] in [words[:4] for words in listed]

    config = {
        **tiny_config,
        "sources": {"thrown": {"plugin": "dice", "sides": 8}},
        "evaluators": ["largest_activation"],
    }
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(config))
    call(environment / "sae-faithful", "run", file, "--output", tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    values = {row["seed"]: row["value"] for row in rows if row["evaluator"] == "largest_activation"}
    assert set(values) == {0, 1}
    assert all(value > 0 for value in values.values())


def test_the_example_plugin_is_complete_in_under_forty_lines() -> None:
    files = [path for path in (ROOT / "examples" / "custom_plugin").iterdir() if path.is_file()]
    assert {path.name for path in files} == {"pyproject.toml", "dice.py"}
    assert sum(len(path.read_text().splitlines()) for path in files) < 40


def test_what_is_imported_is_declared(wheel: Path) -> None:
    """Every top-level package that the code imports is this project's, the standard library's or a dependency."""
    import ast
    import tomllib
    from importlib.metadata import packages_distributions

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        line.partition(">")[0].partition("=")[0].lower().replace("_", "-")
        # Triton is imported only where it is found.
        for line in [*project["dependencies"], *project["optional-dependencies"]["triton"]]
    }
    imported: set[str] = set()
    for path in [*(ROOT / "sae_faithful").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        for_types_only = {
            node
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if node in for_types_only:
                continue
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
    strangers = imported - set(sys.stdlib_module_names) - {"sae_faithful", "sae_faithful_plugins"}
    owners = packages_distributions()
    undeclared = {
        name
        for name in strangers
        if not {owner.lower().replace("_", "-") for owner in owners[name]} & declared
    }
    assert undeclared == set()
