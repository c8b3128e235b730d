"""All rows of a run in one piece, for scripts."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sae_faithful.interfaces import EvalResult, UsageError
from sae_faithful.registry import unknown
from sae_faithful.stored import read_results

if TYPE_CHECKING:
    from sae_faithful.run_folder import RunFolder

FORMATS = ("json", "csv")


def rows_of(folder: RunFolder) -> list[dict[str, Any]]:
    """Every row of `results.jsonl`.

    Raises:
        UsageError: there is none.
        RunError: it is damaged.
    """
    if not folder.results_file.exists():
        raise UsageError(f"{folder.root} holds no finished run: there is no {folder.results_file.name}")
    return read_results(folder.results_file)


def rows_as(folder: RunFolder, form: str) -> str:
    """The rows of `results.jsonl` as one JSON list, or as CSV with a header; what is missing is null, or empty.

    Raises:
        UsageError: an unknown format, or no finished run in the folder.
    """
    if form not in FORMATS:
        raise UsageError(unknown("format", form, FORMATS))
    rows = rows_of(folder)
    if form == "json":
        return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, [entry.name for entry in fields(EvalResult)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
