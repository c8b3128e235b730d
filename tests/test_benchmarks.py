"""The benchmarks of sparse training run to their end at sizes whose figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def figures(script: str, folder: Path, *options: str) -> tuple[str, Any]:
    """What a benchmark prints, and the JSON that it writes."""
    file = folder / "figures.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options, "--json", str(file)],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_sparse_step(tmp_path: Path) -> None:
    small = ["--sizes", "64", "--tokens", "32", "--d", "16", "--k", "4", "--repeats", "1"]
    printed, found = figures("sparse_step.py", tmp_path, *small)
    (result,) = found["results"]
    rows = {(row["level"], row["provider"], row.get("dead")): row for row in result["rows"]}
    for key in (("decode", "ours", None), ("step", "sparse_topk", False), ("step", "sparse_batchtopk", True)):
        assert rows[key]["ms"] > 0
        assert rows[key]["output_error"] < 1e-5
        assert rows[key]["gradient_error"] < 1e-4
    assert result["goals"] == []  # they hold for other sizes
    assert "raises" in found["machine"]["SAELens's COO with rescaling"]
    assert "sparse_topk, fused Adam" in printed


def test_gpu_sparse_step(tmp_path: Path) -> None:
    # No job begins in the last 40 seconds: what there is no time for is named.
    limits = ["--rounds", "1", "--seconds", "0.05", "--minutes", "1.0"]
    printed, found = figures("gpu_sparse_step.py", tmp_path, "--device", "cpu", "--tiny", *limits)
    assert [check for check in found["checks"] if check["passed"] is False] == []
    assert len(found["checks"]) > 30
    assert {"decode"} <= {row["level"] for row in found["rows"]}
    assert any("no time" in name for name in found["skipped"])
    assert {goal["verdict"] for goal in found["goals"]} <= {"met", "missed", "not measured"}
    assert "no goal above means anything" in printed


def test_gpu_sparse_step_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu_sparse_step.py")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "no GPU here: run with --device cpu --tiny to try the logic"
