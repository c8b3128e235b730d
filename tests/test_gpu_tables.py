"""What was measured on a GPU reaches docs/performance.md by a program, and a dry run does not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = DOCS / "gen" / "gpu_tables.py"


@pytest.fixture
def generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program, with a page and kept results of its own."""
    spec = importlib.util.spec_from_file_location("gpu_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "performance")
    module.PAGE.write_text(f"before\n{module.BEGIN}old\n{module.END}after\n")
    return module


def decode(shape: str, provider: str, ms: float, job: str = "decode", **more: Any) -> dict[str, Any]:
    return {
        "level": "decode", "shape": shape, "law": "uniform", "dtype": "torch.float32", "provider": provider, "ms": ms,
        "error": 2e-7, "gb_s": 1234.0, "job": job, **more,
    }  # fmt: skip


def step(provider: str, ms: float, job: str) -> dict[str, Any]:
    return {
        "level": "step", "shape": "B", "precision": "autocast", "dead": False, "provider": provider, "ms": ms,
        "memory_mb": 1500.4, "job": job,
    }  # fmt: skip


@pytest.fixture
def measured() -> dict[str, Any]:
    """Results as a GPU would give them, in round numbers."""
    return {
        "machine": {
            "command": "gpu_sparse_step.py --json figures.json", "date": "2026-12-24", "device": "NVIDIA H200",
            "driver": "580.1", "torch": "2.11.0", "SAELens's COO with rescaling": "raises an error",
        },
        "options": {"tiny": False}, "seconds": 512.3, "skipped": ["decode B, compiled dense (no time)"],
        "shapes": {"A": [1, 2, 3, 4], "B": [4096, 2048, 65536, 64]},
        "providers": {"ours": "sparse_decode"},
        "ceilings": {"copy, GB/s read and written": 4300.0},
        "checks": [
            {"check": "odd", "passed": True}, {"check": "worse", "passed": False}, {"check": "x", "passed": None},
        ],
        "rows": [
            decode("B", "dense", 60.0), decode("B", "ours", 1.25), decode("C", "dense", 250.0),
            decode("C", "ours", 1.0, missing="OutOfMemoryError: much"),
            decode("B, D=5120", "ours", 3.0), decode("B, D=5120", "F.embedding_bag", 4.5),
            step("SAELens topk", 22.0, "step B, autocast"), step("sparse_topk", 5.5, "step B, autocast"),
            step("SAELens batchtopk", 30.0, "step B, autocast, batchtopk"),
            step("sparse_batchtopk", 6.0, "step B, autocast, batchtopk"),
        ],
        "goals": [
            {"goal": "decode B", "limit": 40, "at_most": False, "value": 48.0, "verdict": "met"},
            {"goal": "hot", "limit": 1.5, "at_most": True, "value": 1.75, "verdict": "missed", "reason": "sort 60 %"},
        ],
    }  # fmt: skip


def test_the_page_is_up_to_date() -> None:
    assert subprocess.run([sys.executable, SCRIPT, "--check"], check=False).returncode == 0


def test_what_is_measured_is_written_and_kept(
    generator: Any, measured: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "any_name.json"
    file.write_text(json.dumps(measured))
    assert generator.main([str(file)]) == 0
    page = generator.PAGE.read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert (
        "`gpu_sparse_step.py --json figures.json`: date 2026-12-24, device NVIDIA H200, driver 580.1, torch 2.11.0; "
        "SAELens's COO with rescaling raises an error; 512 s. Checks: 3, failed: worse."
    ) in page
    assert "Goals met: 1 of 2." in page
    assert "- ours: sparse_decode\n" in page
    assert "| hot | ≤ 1.5 | 1.75 | **missed** | sort 60 % |" in page
    assert "| dense | 60 (1×), 2.0e-07 | 250 (1×), 2.0e-07 |" in page
    assert "| ours | 1.25 (48×), 2.0e-07 | missing: OutOfMemoryError |" in page
    assert "| sparse_topk | 5.5 (4×), 1,500 MB |" in page
    # Beside the architecture that ran with it.
    assert "| sparse_batchtopk | 6 (5×), 1,500 MB |" in page
    assert "| B, D=5120, uniform | 3 | 1,234 | 4.5 |  |  |" in page
    assert "| copy, GB/s read and written | 4,300 |" in page
    assert "Not measured yet: gpu_pipeline, gpu_sanitize." in page
    assert "Left out: decode B, compiled dense (no time)." in page
    assert json.loads((generator.RESULTS / "gpu_sparse_step.json").read_text()) == measured
    # From what was kept, the same; a changed figure is seen.
    assert generator.main(["--check"]) == 0
    generator.PAGE.write_text(page.replace("48×", "49×"))
    assert generator.main(["--check"]) == 1
    assert generator.main([]) == 0
    assert generator.PAGE.read_text() == page


def test_the_other_two(generator: Any, tmp_path: Path) -> None:
    found = {
        "gpu_pipeline": {
            "rows": [
                {
                    "what": "matching", "setting": "many", "seconds": 30.0, "least_seconds": 0.6, "share": 0.02,
                    "certified": False,
                },
                {"what": "generate", "setting": "vllm", "missing": "not installed"},
                {"what": "generate", "setting": "static", "seconds": 2.0, "tokens_per_second": 65432.1},
            ],
            "ceilings": {}, "skipped": [],
        },
        "gpu_sanitize": {"tools": {"memcheck": "nothing found", "racecheck": "FOUND SOMETHING"}},
    }  # fmt: skip
    files: list[str] = []
    for kind, results in found.items():
        machine = {"command": f"{kind}.py", "device": "NVIDIA H200"}
        (tmp_path / f"{kind}_in.json").write_text(json.dumps({"machine": machine, **results}))
        files.append(str(tmp_path / f"{kind}_in.json"))
    assert generator.main(files) == 0
    page = generator.PAGE.read_text()
    assert "| matching | many | 30, NOT certified | 0.6 | 2.0% |  |" in page
    assert "| generate | vllm | missing: not installed |  |  |  |" in page
    assert "| generate | static | 2 |  |  | 65,432 |" in page
    assert "memcheck: nothing found; racecheck: FOUND SOMETHING." in page
    assert "dry run" not in page


@pytest.mark.parametrize("change", [{"device": "cpu"}, {}])
def test_a_dry_run_is_marked_and_stays_out_of_the_page(
    generator: Any, measured: dict[str, Any], tmp_path: Path, change: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    measured["machine"] |= change
    measured["options"]["tiny"] = not change
    file = tmp_path / "dry.json"
    file.write_text(json.dumps(measured))
    before = generator.PAGE.read_text()
    with pytest.raises(SystemExit):
        generator.main([str(file)])
    assert "a dry run on a CPU does not belong into performance.md" in capsys.readouterr().err
    assert generator.PAGE.read_text() == before
    elsewhere = tmp_path / "elsewhere.md"
    assert generator.main([str(file), "--page", str(elsewhere)]) == 0
    assert "no figure means anything" in elsewhere.read_text()
    assert not generator.RESULTS.exists()


def test_other_files_are_refused(generator: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"machine": {"command": "matching.py", "device": "cpu"}}')
    with pytest.raises(SystemExit):
        generator.main([str(file)])
    assert "written by 'matching'" in capsys.readouterr().err
