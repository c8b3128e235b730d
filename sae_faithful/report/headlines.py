"""The one table of headline numbers: a line a number, a column a source; where one source's is better, that is said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sae_faithful.report.differences import HIGHER_IS_BETTER, Paired, cells_of, paired
from sae_faithful.report.sae_card import NULLS
from sae_faithful.report.tables import difference_text, value_text
from sae_faithful.report.verdicts import CLAIMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sae_faithful.report.run_data import RunData

Row = dict[str, Any]
Place = tuple[str, str, str]
"""Source, hook, variant."""

MOST_COLUMNS = 10
"""With more, variants are lines instead."""


@dataclass(frozen=True, order=True)
class Column:
    """SAEs of one source of one run, and of one variant where those are columns."""

    run: int
    source: str
    variant: str | None
    name: str
    """Of the source, as the report calls it."""

    @property
    def heading(self) -> str:
        """Source, and variant where that is told."""
        return self.name if self.variant is None else f"{self.name}, {self.variant}"


@dataclass(frozen=True)
class Cell:
    """One number."""

    text: str
    value: float | None
    chance: str
    """What the metric gives by chance, with its interval; empty where that was not measured."""
    better: list[str]
    """Than which sources it is better: their names, each with the paired difference whose interval excludes zero."""
    note: int | None
    """Number of the note that says why it has no interval."""


@dataclass(frozen=True)
class Line:
    """One number of every column that has it."""

    metric: str
    condition: str
    subset: str
    dataset: str
    place: str
    """Hook, and variant where that is no column; empty where the runs have one only."""
    unit: str
    direction: str
    """`higher` or `lower` is better; or neither."""
    cells: list[Cell | None]


@dataclass(frozen=True)
class Headlines:
    """The table."""

    columns: list[Column]
    groups: dict[str, list[Line]] = field(default_factory=dict[str, list[Line]])
    """Lines by evaluator."""
    notes: dict[str, int] = field(default_factory=dict[str, int])
    """Reasons for having no interval, numbered."""

    @property
    def places(self) -> bool:
        """Whether lines differ in their place."""
        return any(line.place for lines in self.groups.values() for line in lines)


def headlines(runs: Sequence[RunData]) -> Headlines:
    """The numbers of sources that their evaluators marked for a short table, and those that claims are judged by."""
    rows = [[row for row in run.rows if _is_headline(row, run.sources)] for run in runs]
    columns = _columns(runs, rows)
    by_variant = any(column.variant is not None for column in columns)
    table = Headlines(columns)
    several_hooks = len({row["hook"] for of_run in rows for row in of_run}) > 1
    several_variants = len({row["variant"] for of_run in rows for row in of_run}) > 1 and not by_variant
    lines: dict[tuple[str, ...], dict[Column, tuple[int, Row]]] = {}
    for number, of_run in enumerate(rows):
        for row in of_run:
            place = "/".join([row["hook"]] * several_hooks + [row["variant"]] * several_variants)
            key = (
                row["evaluator"], row["metric"], row["condition"] or "", row["subset"], row["dataset"] or "",
                place, row["unit"],
            )  # fmt: skip
            variant = row["variant"] if by_variant else None
            column = Column(number, row["source"], variant, runs[number].named(row["source"]))
            lines.setdefault(key, {})[column] = (number, row)
    indexes = [_Index(run.rows) for run in runs]
    for (evaluator, *key), found in lines.items():
        cells = [
            _cell(found[column][1], indexes[found[column][0]], runs[found[column][0]], table.notes)
            if column in found
            else None
            for column in columns
        ]
        direction = {True: "higher", False: "lower", None: ""}[HIGHER_IS_BETTER.get(key[0])]
        table.groups.setdefault(evaluator, []).append(Line(*key, direction=direction, cells=cells))
    return table


class _Index:
    """Rows of one run, found by what they are of."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.of_saes: dict[tuple[str, Place], list[Row]] = {}
        self.of_sources: dict[tuple[Any, ...], Row] = {}
        for row in rows:
            place = (row["source"], row["hook"], row["variant"])
            if row["seed"] is None:
                self.of_sources[(row["metric"], place, row["subset"], row["condition"], row["dataset"])] = row
            else:
                self.of_saes.setdefault((row["metric"], place), []).append(row)

    def null(self, row: Row) -> Row | None:
        """What `row`'s metric gives by chance."""
        place = (row["source"], row["hook"], row["variant"])
        same = (place, row["subset"], row["condition"], row["dataset"])
        found = (self.of_sources.get((row["metric"] + ending, *same)) for ending in NULLS)
        return next((null for null in found if null is not None), None)

    def difference(self, row: Row, other: str) -> Paired | str:
        """Of `row`'s source and another, at the same hook and variant, paired by seed."""
        sides = [
            self.of_saes.get((row["metric"], (source, row["hook"], row["variant"])), [])
            for source in (row["source"], other)
        ]
        of_pairs = any(one["other_seed"] is not None for side in sides for one in side)
        one, two = (
            cells_of(side, subset=row["subset"], condition=row["condition"], of_pairs=of_pairs)
            for side in sides
        )
        if row["dataset"] not in one or row["dataset"] not in two:
            return "it was not measured for both"
        return paired(one, two, [row["dataset"]])


def _is_headline(row: Row, sources: Sequence[str]) -> bool:
    """Rows of sources; what chance gives stands in the cell of its metric."""
    if row["seed"] is not None or row["source"] not in sources or row["hook"] is None:
        return False
    if row["metric"].endswith(NULLS):
        return False
    claimed = (row["metric"], row["subset"], row["condition"])
    return row["headline"] or any(
        claimed == (claim.metric, claim.subset, claim.condition) for claim in CLAIMS if claim.primary
    )


def _columns(runs: Sequence[RunData], rows: Sequence[Sequence[Row]]) -> list[Column]:
    """Sources in the order of their runs and configs; by variant, too, while that is not too many."""
    by_source = [
        Column(number, source, None, run.named(source))
        for number, run in enumerate(runs)
        for source in run.sources
        if any(row["source"] == source for row in rows[number])
    ]
    by_variant = [
        Column(column.run, column.source, variant, column.name)
        for column in by_source
        for variant in dict.fromkeys(
            row["variant"] for row in rows[column.run] if row["source"] == column.source
        )
    ]
    several = len({column.variant for column in by_variant}) > 1
    return by_variant if several and len(by_variant) <= MOST_COLUMNS else by_source


def _cell(row: Row, index: _Index, run: RunData, notes: dict[str, int]) -> Cell:
    null = index.null(row)
    without = row["ci_low"] is None and row["reason"]
    return Cell(
        text=value_text(row),
        value=row["value"],
        chance="" if null is None else value_text(null),
        better=list(_better_than(row, index, run)),
        note=notes.setdefault(row["reason"], len(notes) + 1) if without else None,
    )


def _better_than(row: Row, index: _Index, run: RunData) -> Iterable[str]:
    """Only by paired differences: intervals that overlap or not say nothing of a difference between paired SAEs."""
    higher = HIGHER_IS_BETTER.get(row["metric"])
    if higher is None or row["value"] is None:
        return
    for other in run.sources:
        if other == row["source"]:
            continue
        difference = index.difference(row, other)
        if isinstance(difference, str):
            continue
        low, high, _ = difference.interval
        if low is None or high is None:
            continue
        if low > 0 if higher else high < 0:
            yield f"{run.named(other)} ({difference_text(difference.mean, low, high)})"
