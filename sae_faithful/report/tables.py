"""Numbers as every form of the report writes them, and tables in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NONE = "–"
"""Where there is no value."""
Notes = dict[str, int]
"""Reasons why numbers have no interval, each with the number it has in brackets."""


def value_text(row: Mapping[str, Any], notes: Notes | None = None) -> str:
    """A row's value with its interval; without one, with the number of its reason, which is added to `notes`."""
    value = NONE if row["value"] is None else number_text(row["value"])
    if row["ci_low"] is not None:
        return f"{value} [{number_text(row['ci_low'])}, {number_text(row['ci_high'])}]"
    if notes is not None and row["reason"]:
        return f"{value} [{notes.setdefault(row['reason'], len(notes) + 1)}]"
    return value


def number_text(value: float) -> str:
    """Four decimals, or one where the number is large."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def difference_text(value: float, low: float | None, high: float | None) -> str:
    """A difference with its sign, and its interval where it has one."""
    bounds = f" [{low:+.4f}, {high:+.4f}]" if low is not None and high is not None else ""
    return f"{value:+.4f}{bounds}"


def noted(table: str, notes: Notes) -> str:
    """A table with its notes below it."""
    return "\n\n".join([table, *(f"[{number}] {reason}" for reason, number in notes.items())])


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]], *, drop_empty: bool = False) -> str:
    """Cells are padded, so that it reads well as text too; `drop_empty` leaves out columns without a value."""
    used = [i for i in range(len(header)) if not drop_empty or any(line[i] for line in body)]
    cells = [[line[i].replace("|", r"\|") for i in used] for line in (header, *body)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(used))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
    ]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join(["| " + lines[0] + " |", "|" + rule + "|", *("| " + line + " |" for line in lines[1:])])
