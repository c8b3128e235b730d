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


def decode(shape: str, provider: str, ms: float, **more: Any) -> dict[str, Any]:
    law = more.get("law", "uniform")
    return {
        "level": "decode", "shape": shape, "law": law, "dtype": "torch.float32", "provider": provider, "ms": ms,
        "p20": ms * 0.9, "p80": ms * 2, "rounds": 30, "forward_ms": ms / 4, "backward_ms": ms * 0.75, "error": 2e-7,
        "gb_s": 1234.0, "memory_mb": 70.6, "job": f"decode {shape}, {law}, float32", **more,
    }  # fmt: skip


def step(provider: str, ms: float, job: str, level: str = "step") -> dict[str, Any]:
    return {
        "level": level, "shape": "B", "precision": "autocast", "dead": False, "provider": provider, "ms": ms,
        "p20": ms * 0.9, "p80": ms * 2, "rounds": 13, "memory_mb": 1500.4, "job": job,
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
            {
                "level": "decode", "shape": "C", "law": "uniform", "dtype": "torch.float32", "provider": "ours",
                "missing": "OutOfMemoryError: much", "job": "decode C, uniform, float32",
            },
            decode("A", "dense", 10.0), decode("B", "dense autocast", 8.0, job="decode B, compiled dense"),
            decode("B", "dense autocast, compiled", 4.0, job="decode B, compiled dense"),
            decode("B, D=5120", "dense", 90.0), decode("B, D=5120", "F.embedding_bag", 4.5),
            decode("B, D=5120", "ours", 3.0), decode("B", "ours", 2.0, law="8 hot"),
            decode("B", "ours", 7.5, dtype="torch.bfloat16", law="zipf"),
            decode("A", "ours", 1.0, level="laws", job="laws A"),
            decode("A", "ours", 1.25, level="laws", law="8 hot", job="laws A"),
            step("SAELens topk", 22.0, "step B, autocast"), step("sparse_topk", 5.5, "step B, autocast"),
            step("SAELens batchtopk", 30.0, "step B, autocast, batchtopk"),
            step("sparse_batchtopk", 6.0, "step B, autocast, batchtopk"),
            step("SAELens's way", 12.0, "model B, autocast", "model"), step("ours", 3.0, "model B, autocast", "model"),
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
    # Median, percentiles, rounds, times faster, both passes, rate, memory, error; a table in the order of the shapes.
    assert (
        "| decode, float32 |  | ms | p20 – p80 | rounds | times faster "
        "| forward, ms | backward, ms | GB/s | MB | error |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| A | dense | 10 | 9 – 20 | 30 | 1 | 2.5 | 7.5 | 1,234 | 71 | 2.0e-07 |\n"
        "| B | dense | 60 | 54 – 120 | 30 | 1 | 15 | 45 | 1,234 | 71 | 2.0e-07 |\n"
        "| B | ours | 1.25 | 1.12 – 2.5 | 30 | 48 | 0.312 | 0.938 | 1,234 | 71 | 2.0e-07 |\n"
        "| C | dense | 250 | 225 – 500 | 30 | 1 | 62.5 | 188 | 1,234 | 71 | 2.0e-07 |\n"
        "| C | ours | missing: OutOfMemoryError |  |  |  |  |  |  |  |  |\n\n"
    ) in page
    # What is compiled, and batchtopk, beside what took turns with it.
    assert "| B | dense autocast, compiled | 4 | 3.6 – 8 | 30 | 2 |" in page
    assert (
        "| SAELens's `SAETrainer.step`, autocast |  | ms | p20 – p80 | rounds | times faster | MB |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| B | SAELens topk | 22 | 19.8 – 44 | 13 | 1 | 1,500 |\n"
        "| B | sparse_topk | 5.5 | 4.95 – 11 | 13 | 4 | 1,500 |\n\n"
    ) in page
    assert "| B | sparse_batchtopk | 6 | 5.4 – 12 | 13 | 5 | 1,500 |" in page
    assert "| loss and gradients in plain torch, autocast |  | ms |" in page
    assert "| B | ours | 3 | 2.7 – 6 | 13 | 4 | 1,500 |" in page
    # At other sizes and by other laws only those that are fast.
    assert "| B, D=5120 | dense |" not in page
    assert "| B, D=5120 | ours | 3 | 2.7 – 6 | 30 | 1.5 | 0.75 | 2.25 | 1,234 | 71 | 2.0e-07 |" in page
    assert "| B, 8 hot | ours | 2 | 1.8 – 4 | 30 | 1 |" in page
    assert "| decode at other sizes and by other laws, bfloat16 |  | ms |" in page
    assert "| B, zipf | ours | 7.5 |" in page
    assert "| A, 8 hot | ours | 1.25 | 1.12 – 2.5 | 30 | 0.8 |" in page
    assert "| copy, GB/s read and written | 4,300 |" in page
    assert "Not measured yet: gpu_pipeline, gpu_sanitize." in page
    assert "Left out: decode B, compiled dense (no time)." in page
    assert json.loads((generator.RESULTS / "gpu_sparse_step.json").read_text()) == measured
    # From what was kept, the same; a changed figure is seen.
    assert generator.main(["--check"]) == 0
    generator.PAGE.write_text(page.replace("| 48 |", "| 49 |"))
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
