"""The report's files: verdicts, correlations with distance, the report as text and page; one page of several runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from sae_faithful.interfaces import UsageError
from sae_faithful.report.html import render_page
from sae_faithful.report.markdown import render
from sae_faithful.report.run_data import read_runs
from sae_faithful.run_folder import RunFolder, write_text
from sae_faithful.stored import reading

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sae_faithful.report.distance import Trend
    from sae_faithful.report.verdicts import Verdict


def write_report(folder: RunFolder, page: Path | None = None) -> Path:
    """Write `verdicts.jsonl`, `distance.jsonl`, `report.md` and the page from what is in the folder.

    Args:
        folder: of a finished run.
        page: where the page goes; none: `report.html` in the folder.

    Returns:
        The page.

    Raises:
        UsageError: the folder holds no finished run.
        RunError: one of its files is damaged.
    """
    with reading(str(folder.root)):
        (run,) = read_runs([folder])
        verdicts, trends = _lines(run.verdicts), _lines(run.trends)
        markdown, html = render(folder), render_page([run])
    page = page or folder.html_file
    write_text(folder.verdicts_file, verdicts)
    write_text(folder.distance_file, trends)
    write_text(folder.report_file, markdown)
    write_text(page, html)
    return page


def _lines(rows: Sequence[Verdict | Trend]) -> str:
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def write_comparison(folders: Sequence[RunFolder], page: Path | None = None) -> Path:
    """Write one page with several runs side by side; their own reports stay as they are.

    Args:
        folders: of finished runs, in the order of the page.
        page: where it goes; none: `comparison.html` in the first folder.

    Returns:
        The page.

    Raises:
        UsageError: a folder holds no finished run, or is there twice.
        RunError: a file of it is damaged.
    """
    for number, folder in enumerate(folders):
        if folder.root.resolve() in (other.root.resolve() for other in folders[:number]):
            raise UsageError(f"{folder.root} is given twice; a comparison is of different runs")
    with reading("a run folder"):
        html = render_page(read_runs(folders))
    page = page or folders[0].comparison_file
    write_text(page, html)
    return page
