"""Finding the other environment: what is wrong is said with the commands that set one up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sae_faithful import UsageError
from sae_faithful_plugins.sae_probes_benchmark.environment import SETUP, VARIABLE, Environment

DATASETS = {
    "7_b": pd.DataFrame({"prompt": ["NA", "two\nlines", ""], "target": [1, 0, 1]}),
    "5_a": pd.DataFrame({"prompt": ["x"], "target": [1]}),
}


def test_what_it_holds(environment: Callable[..., Path]) -> None:
    python = environment(DATASETS)
    found = Environment.find()
    assert found.python == python
    assert found.datasets == ["7_b", "5_a"]
    assert found.versions["sae-probes"] == "0.4.2"
    assert found.texts(["7_b"]) == {"7_b": ["NA", "two\nlines", ""]}


def test_a_link_is_not_followed(
    environment: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter of a virtual environment links to one that has none of its packages."""
    link = tmp_path / "link"
    link.symlink_to(environment(DATASETS))
    monkeypatch.setenv(VARIABLE, str(link))
    assert Environment.find().python == link


def no_such_file(folder: Path) -> Path:
    return folder / "python"


def no_python(folder: Path) -> Path:
    return script(folder, "echo some noise; echo this is no python >&2; exit 3")


def without_sae_probes(folder: Path) -> Path:
    # The sixth argument is the answer's file: -I -u WORKER ACTION REQUEST ANSWER.
    return script(folder, """echo '{"versions": {}, "datasets": []}' > "$6" """)


def script(folder: Path, line: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_such_file, "does not run"),
        (no_python, "this is no python"),
        (without_sae_probes, "has no sae-probes"),
    ],
)
def test_an_interpreter_that_will_not_do(
    make: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(make(tmp_path)))
    with pytest.raises(UsageError, match=message) as info:
        Environment.find()
    assert " && ".join(SETUP) in str(info.value)
    assert "\n" not in str(info.value)


def test_another_version(environment: Callable[..., Path]) -> None:
    environment(DATASETS, version="0.5.0")
    with pytest.raises(UsageError, match=r"has sae-probes 0\.5\.0, not 0\.4\.2"):
        Environment.find()


def test_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UsageError, match="an environment of its own; set one up: python -m venv"):
        Environment.find()


def test_the_commands_stand_in_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs/evaluators/sae_probes_benchmark.md").read_text(encoding="utf-8")
    for command in SETUP:
        assert command in page
