"""What has one line in a figure, and how all figures show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_faithful.report.figures.figure import shown
from sae_faithful.report.figures.style import COLOURS, DASHES, GREY, PATTERNS, SYMBOLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.report.figures.numbers import Row
    from sae_faithful.report.run_data import RunData


@dataclass(frozen=True)
class Look:
    """A series as all figures show it; colour is never the only thing that tells two apart."""

    name: str
    """In plotly's HTML."""
    colour: str
    dash: str
    symbol: str
    pattern: str


@dataclass(frozen=True, eq=False)
class Series:
    """The SAEs of a source and variant."""

    run: RunData
    source: str
    variant: str
    baseline: bool
    """Whether it was fitted, not trained."""
    look: Look

    def of(self, row: Row) -> bool:
        """Whether a row of the run's results is of it."""
        return row["source"] == self.source and row["variant"] == self.variant


def all_series(runs: Sequence[RunData]) -> list[Series]:
    """Every source and variant of every run that has rows, trained variants before baselines.

    Sources have the colours; where there is one source in all, variants have them. Baselines are grey.
    """
    sources = [(run.label, source) for run in runs for source in run.sources]
    places = [(run, source, variant) for run in runs for source, variant in _places(run)]
    variants = list(dict.fromkeys(variant for run, _, variant in places if not _is_baseline(run, variant)))
    several = len({variant for _, _, variant in places}) > 1
    found: list[Series] = []
    for mark, (run, source, variant) in enumerate(places):
        baseline = _is_baseline(run, variant)
        if baseline:
            colour = GREY
        else:
            at = sources.index((run.label, source)) if len(sources) > 1 else variants.index(variant)
            colour = COLOURS[at % len(COLOURS)]
        name = shown(run.named(source))
        if several:
            name = f"{name} · {shown(variant)}" if len(sources) > 1 else shown(variant)
        look = Look(
            name,
            colour,
            DASHES[mark % len(DASHES)],
            SYMBOLS[mark % len(SYMBOLS)],
            PATTERNS[mark % len(PATTERNS)],
        )
        found.append(Series(run, source, variant, baseline, look))
    return found


def _places(run: RunData) -> list[tuple[str, str]]:
    found = dict.fromkeys(
        (row["source"], row["variant"])
        for row in run.rows
        if row["source"] in run.sources and row["variant"] is not None
    )
    order = list(run.sources)
    return sorted(found, key=lambda place: (order.index(place[0]), _is_baseline(run, place[1])))


def _is_baseline(run: RunData, variant: str) -> bool:
    # Older runs have none.
    return variant in run.manifest.get("baselines", {})
