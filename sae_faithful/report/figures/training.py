"""What monitors saw inside training, from one look to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful.monitors import read_monitor_rows
from sae_faithful.report.figures.figure import Figure, Trace, make_figure
from sae_faithful.report.figures.numbers import bars, place_text, values
from sae_faithful.report.figures.series import all_series
from sae_faithful.report.figures.style import axis, layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.report.figures.numbers import Row, Value
    from sae_faithful.report.figures.series import Series
    from sae_faithful.report.run_data import RunData

Number = tuple[str, str, str, str | None, str | None, str]
"""Metric, subset, hook, condition, text and unit."""


def training_figures(runs: Sequence[RunData]) -> list[Figure]:
    """A figure for each headline number that was looked at more than once."""
    rows: dict[str, list[Row]] = {}
    curves: dict[Number, list[tuple[Series, dict[int, Value]]]] = {}
    for series in all_series(runs):
        key = f"{series.run.label}/{series.source}"
        if key not in rows:
            rows[key] = read_monitor_rows(series.run.folder.monitors_dir, series.source)
        of_series = [row for row in rows[key] if series.of(row)]
        for number in dict.fromkeys(_number(row, series) for row in of_series if row["headline"]):
            points = values(
                [row for row in of_series if _number(row, series) == number], lambda row: row["call"]
            )
            if points:
                curves.setdefault(number, []).append((series, points))
    at_hooks = list(dict.fromkeys(number[2] for number in curves))
    return [
        _figure(number, drawn, at_hooks)
        for number, drawn in curves.items()
        if len({call for _, points in drawn for call in points}) > 1
    ]


def _number(row: Row, series: Series) -> Number:
    text = row["dataset"] and series.run.named(row["dataset"])
    return row["metric"], row["subset"], row["hook"], row["condition"], text, row["unit"]


def _figure(
    number: Number, drawn: Sequence[tuple[Series, dict[int, Value]]], at_hooks: Sequence[str]
) -> Figure:
    metric, subset, hook, condition, text, unit = number
    which = [*([condition] if condition else []), *([f"{subset} latents"] if subset != "all" else [])]
    named = metric + (f" ({', '.join(which)})" if which else "") + (f" on {text}" if text else "")
    return make_figure(
        parts=("training", metric, subset, condition, text, hook if len(at_hooks) > 1 else None),
        title=f"{named} during training{place_text(hook, at_hooks)}",
        caption=(
            f"`{named}` as its monitor measured it, on few tokens of held-out text, at each look from the beginning "
            "of training to its end. A mean over the SAEs of a source that are trained together; intervals are 95 %, "
            "over these SAEs, and where there is none nothing is drawn. A look that was left out for want of time or "
            "memory has no point. The numbers after training are elsewhere in the report."
        ),
        section="training",
        data=[_trace(series, points) for series, points in drawn],
        layout=layout(
            x=axis("look", dtick=1 if _looks(drawn) <= 10 else None),
            y=axis(unit, rangemode="tozero"),
            height=300,
        ),
    )


def _looks(drawn: Sequence[tuple[Series, dict[int, Value]]]) -> int:
    return max(len(points) for _, points in drawn)


def _trace(series: Series, points: dict[int, Value]) -> Trace:
    look = series.look
    calls = sorted(points)
    found: list[Any] = [points[call] for call in calls]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": look.name,
        "x": calls,
        "y": [one.value for one in found],
        "error_y": bars(found, look.colour),
        "text": [one.text for one in found],
        "hovertemplate": "look %{x}: %{text}<extra>%{fullData.name}</extra>",
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "marker": {"color": look.colour, "symbol": look.symbol, "size": 7},
    }
