"""Rows for scripts."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sae_faithful import EvalResult, UsageError
from sae_faithful.cli import main
from sae_faithful.report import rows_as
from sae_faithful.run_folder import RunFolder, write_text

ROWS = [
    EvalResult(metric="sfr", value=0.25, unit="share", ci_low=0.125, ci_high=0.5, source="news", seed=None),
    EvalResult(
        metric="area", value=None, unit="share", reason='none, and no "why"', condition="minus pca, all"
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    write_text(tmp_path / "results.jsonl", "".join(json.dumps(asdict(row)) + "\n" for row in ROWS))
    return RunFolder(tmp_path)


def test_json_is_one_list_of_the_rows(folder: RunFolder) -> None:
    assert json.loads(rows_as(folder, "json")) == [asdict(row) for row in ROWS]


def test_csv_has_a_header_and_leaves_empty_what_is_missing(folder: RunFolder) -> None:
    first, second = csv.DictReader(io.StringIO(rows_as(folder, "csv")))
    assert list(first) == list(asdict(ROWS[0]))
    assert (first["value"], first["ci_high"], first["seed"]) == ("0.25", "0.5", "")
    assert (second["value"], second["condition"], second["reason"]) == ("", "minus pca, all", ROWS[1].reason)


def test_the_command_prints_rows_and_writes_nothing(folder: RunFolder) -> None:
    before = sorted(folder.root.iterdir())
    printed: Any = CliRunner().invoke(main, ["report", str(folder.root), "--format", "csv"])
    assert (printed.exit_code, printed.output) == (0, rows_as(folder, "csv"))
    assert sorted(folder.root.iterdir()) == before


def test_another_format_is_refused_by_name(folder: RunFolder) -> None:
    with pytest.raises(UsageError, match="unknown format 'xml'; choices: json, csv"):
        rows_as(folder, "xml")


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no finished run"):
        rows_as(RunFolder(tmp_path), "json")
