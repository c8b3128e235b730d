"""The table of headline numbers: which numbers, in which columns, and what is marked as better."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sae_faithful.report.differences import HIGHER_IS_BETTER
from sae_faithful.report.headlines import Cell, Headlines, headlines
from sae_faithful.report.run_data import read_runs

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def of_source(number: Any) -> Any:
    """A source's row, with an interval, and those of its SAEs, by seed."""

    def make(metric: str, source: str, values: list[float], half: float = 0.5, **fields: Any) -> list[Any]:
        mean = sum(values) / len(values)
        bounds = {"ci_low": mean - half, "ci_high": mean + half, "headline": True}
        saes = [
            number("some", metric, value, source, seed=seed, **fields) for seed, value in enumerate(values)
        ]
        return [number("some", metric, mean, source, **bounds, **fields), *saes]

    return make


def only_line(table: Headlines) -> list[Cell | None]:
    ((line,),) = table.groups.values()
    return line.cells


def marks(table: Headlines) -> list[list[str]]:
    return [cell.better for cell in only_line(table) if cell is not None]


def test_a_better_one_is_marked_by_the_paired_difference_though_intervals_overlap(
    of_source: Any, write_run: Any
) -> None:
    # Differences .010, .011, .012: mean .011, SD .001, half width 4.302653 · .001 / √3 = .0024842.
    rows = [
        *of_source("explained_variance", "faithful", [0.810, 0.911, 1.012]),
        *of_source("explained_variance", "news", [0.800, 0.900, 1.000]),
    ]
    table = headlines(read_runs([write_run(rows)]))
    assert marks(table) == [["news (+0.0110 [+0.0085, +0.0135])"], []]


def test_separate_intervals_mark_nothing_where_the_paired_difference_is_undecided(
    of_source: Any, write_run: Any
) -> None:
    # Differences .1, .9, -.1: mean .3, whose interval holds zero, whatever the sources' own intervals are.
    rows = [
        *of_source("explained_variance", "faithful", [0.6, 1.4, 0.4], half=0.01),
        *of_source("explained_variance", "news", [0.5, 0.5, 0.5], half=0.01),
    ]
    assert marks(headlines(read_runs([write_run(rows)]))) == [[], []]


@pytest.mark.parametrize(
    ("metric", "better"), [("ce_difference", "news"), ("ce_loss_score", "faithful"), ("l0", None)]
)
def test_which_side_is_better_depends_on_the_metric(
    of_source: Any, write_run: Any, metric: str, better: str | None
) -> None:
    rows = [*of_source(metric, "faithful", [1.0, 1.1, 1.2]), *of_source(metric, "news", [0.5, 0.61, 0.69])]
    table = headlines(read_runs([write_run(rows)]))
    marked = [column.source for column, mark in zip(table.columns, marks(table), strict=True) if mark]
    assert marked == ([better] if better else [])


def test_numbers_of_pairs_are_compared_pair_by_pair(number: Any, write_run: Any) -> None:
    pairs = [(0, 1), (0, 2), (1, 2)]
    rows = [
        row
        for source, values in (("faithful", (0.4, 0.41, 0.42)), ("news", (0.3, 0.3, 0.3)))
        for row in (
            number("shared_features", "sfr", sum(values) / 3, source, headline=True, reason="r"),
            *(number("shared_features", "sfr", value, source, seed=i, other_seed=j)
              for (i, j), value in zip(pairs, values, strict=True)),
        )
    ]  # fmt: skip
    # As test_markdown's verdict: .11, jackknife SE .0115470, t with two degrees 4.3027.
    assert marks(headlines(read_runs([write_run(rows)]))) == [["news (+0.1100 [+0.0603, +0.1597])"], []]


def test_of_three_sources_each_is_held_against_each_other(of_source: Any, write_run: Any) -> None:
    rows = [
        *of_source("fvu", "a", [0.10, 0.11, 0.12]),
        *of_source("fvu", "b", [0.20, 0.22, 0.21]),
        *of_source("fvu", "c", [0.30, 0.33, 0.31]),
    ]
    table = headlines(read_runs([write_run(rows, sources=["a", "b", "c"])]))
    assert [[mark.partition(" ")[0] for mark in of_cell] for of_cell in marks(table)] == [
        ["b", "c"],
        ["c"],
        [],
    ]


def test_sources_of_different_runs_are_beside_each_other_and_not_compared(
    of_source: Any, write_run: Any
) -> None:
    runs = read_runs(
        [
            write_run(of_source("fvu", "faithful", values), name=name, sources=["faithful"])
            for name, values in (("one", [0.1, 0.11, 0.12]), ("two", [0.3, 0.31, 0.33]))
        ]
    )
    table = headlines(runs)
    assert [column.heading for column in table.columns] == ["one: faithful", "two: faithful"]
    assert [cell.text.partition(" ")[0] for cell in only_line(table) if cell] == ["0.1100", "0.3133"]
    assert marks(table) == [[], []]


def test_chance_stands_in_the_cell_and_reasons_in_notes(number: Any, write_run: Any) -> None:
    rows = [
        number("shared_features", "sfr", 0.5, "faithful", condition="c", headline=True, reason="one pair"),
        number("shared_features", "sfr_null", 0.01, "faithful", condition="c", headline=True, ci_low=0.0, ci_high=0.02),
        number("shared_features", "sfr_null", 0.7, "faithful", condition="other", headline=True, reason="x"),
        number("fake_features", "ffr", 0.2, "news", headline=True, reason="one SAE"),
        number("fake_features", "ffr_random_sae", 0.3, "news", reason="y"),
    ]  # fmt: skip
    table = headlines(read_runs([write_run(rows)]))
    ((sfr,), (ffr,)) = table.groups.values()
    assert (sfr.metric, ffr.metric) == ("sfr", "ffr")
    assert sfr.cells[0] == Cell("0.5000", 0.5, "0.0100 [0.0000, 0.0200]", [], 1)
    assert sfr.cells[1] is None
    assert ffr.cells[1] == Cell("0.2000", 0.2, "0.3000", [], 2)
    assert table.notes == {"one pair": 1, "one SAE": 2}


def test_variants_are_columns_while_they_are_few_and_lines_when_they_are_many(
    number: Any, write_run: Any
) -> None:
    def table(n: int) -> Headlines:
        rows = [
            number("some", "l0", 1.0, "faithful", variant=f"v{i}", headline=True, ci_low=0.0, ci_high=2.0)
            for i in range(n)
        ]
        return headlines(read_runs([write_run(rows, name=str(n), sources=["faithful"])]))

    few, many = table(10), table(11)
    assert [column.heading for column in few.columns] == [f"faithful, v{i}" for i in range(10)]
    assert not few.places
    assert [column.heading for column in many.columns] == ["faithful"]
    assert [line.place for line in many.groups["some"]] == [f"v{i}" for i in range(11)]


def test_what_claims_are_judged_by_is_there_even_if_no_evaluator_marked_it(
    number: Any, write_run: Any
) -> None:
    rows = [
        number("probing", "probe_accuracy", 0.8, "faithful", condition="latents", dataset="sst2", reason="r"),
        number("probing", "probe_accuracy", 0.9, "faithful", condition="raw", dataset="sst2", reason="r"),
        number("probing", "probe_accuracy", 0.7, "faithful", condition="latents", dataset="sst2", seed=0),
    ]
    (cell,) = only_line(headlines(read_runs([write_run(rows)])))
    assert cell is not None
    assert cell.value == 0.8


def test_directions_are_those_of_the_docs() -> None:
    text = "".join(
        f"{page.read_text(encoding='utf-8')}\n## \n"
        for page in [DOCS / "metrics.md", *sorted((DOCS / "evaluators").glob("*.md"))]
    )
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", text, re.M | re.S))
    said = {
        name: higher == "Higher"
        for name, section in sections.items()
        for higher in re.findall(
            r"\b(Higher|Lower) is (?:better|more reproducible|more interpretable)", section
        )
        if not name.endswith("_borderline")
    }
    # The four ratios of fake_features have theirs in the section's first paragraph.
    assert "For all ratios the unit is share of latents and lower is better." in text
    ratios = dict.fromkeys(("ffr", "ffr_fire", "ffr_relative", "ffr_contrast"), False)
    assert said | ratios == HIGHER_IS_BETTER
