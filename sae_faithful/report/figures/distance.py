"""SFR and FFR of each source against how far its text is from the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful.report.figures.figure import Figure, make_figure, shown
from sae_faithful.report.figures.numbers import OVER_SAES, bars, values
from sae_faithful.report.figures.style import COLOURS, SYMBOLS, axis, layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.report.distance import Trend
    from sae_faithful.report.figures.numbers import Row
    from sae_faithful.report.run_data import RunData


def distance_figures(runs: Sequence[RunData]) -> list[Figure]:
    """One figure for each primary number of each run, hook and variant that has sources enough."""
    drawn = [(run, one) for run in runs for one in run.trends if one.primary and one.spearman is not None]
    places = {(one.hook, one.variant) for _, one in drawn}
    return [_figure(run, one, several=len(places) > 1) for run, one in drawn]


def _figure(run: RunData, trend: Trend, *, several: bool) -> Figure:
    label = trend.statement.partition(" (")[0]
    where = f", at {trend.hook}/{trend.variant}" if several else ""
    whose = f"{run.label}: " if run.label else ""
    return make_figure(
        parts=("distance", run.label, trend.metric, *((trend.hook, trend.variant) if several else ())),
        title=f"{whose}{label} and the distance of the text{where}",
        caption=f"{trend.sentence} {OVER_SAES}",
        section="distance",
        data=_points(run, trend),
        layout=layout(
            x=axis("|typicality gap| of the text trained on (nats/token)", rangemode="tozero"),
            y=axis(f"{label} ({trend.condition.replace('>', ' > ')}, share)"),
            height=380,
        ),
    )


def _points(run: RunData, trend: Trend) -> list[dict[str, Any]]:
    """A trace a source: the means over its SAEs."""
    found = values(
        [
            row
            for row in run.rows
            if (row["metric"], row["subset"], row["condition"], row["hook"], row["variant"])
            == (trend.metric, trend.subset, trend.condition, trend.hook, trend.variant)
        ],
        _source,
    )
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": shown(run.named(source)),
            "x": [distance],
            "y": [found[source].value],
            "error_y": bars([found[source]], COLOURS[number % len(COLOURS)]),
            "text": [found[source].text],
            "hovertemplate": "%{text}, distance %{x:.4g}<extra>%{fullData.name}</extra>",
            "marker": {
                "color": COLOURS[number % len(COLOURS)],
                "symbol": SYMBOLS[number % len(SYMBOLS)],
                "size": 11,
            },
        }
        for number, (source, distance) in enumerate(zip(trend.sources, trend.distances, strict=True))
        if source in found
    ]


def _source(row: Row) -> str:
    return row["source"]
