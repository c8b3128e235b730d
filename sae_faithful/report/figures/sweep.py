"""Sparsity against what is lost: every SAE of a sweep a point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful.report.figures.figure import Figure, Trace, make_figure, shown
from sae_faithful.report.figures.numbers import Value, bars, place_text
from sae_faithful.report.figures.series import all_series
from sae_faithful.report.figures.style import axis, layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.report.figures.series import Series
    from sae_faithful.report.run_data import RunData

Point = dict[str, Any]
SETTINGS = ("architecture", "d_sae", "k", "l1_coefficient")


def sweep_figures(runs: Sequence[RunData]) -> list[Figure]:
    """A figure for each hook and text, where SAEs of several variants or baselines were measured."""
    points = [
        (series, point)
        for series in all_series(runs)
        for point in (series.run.artifact("reconstruction", "sweep") or {}).get("points", ())
        if series.of(point) and point.get("l0") is not None and point.get("fvu") is not None
    ]
    at_hooks = list(dict.fromkeys(point["hook"] for _, point in points))
    places = dict.fromkeys((point["hook"], series.run.named(point["dataset"])) for series, point in points)
    found: list[Figure] = []
    for hook, text in places:
        here = [
            (series, point)
            for series, point in points
            if (point["hook"], series.run.named(point["dataset"])) == (hook, text)
        ]
        if len({series.variant for series, _ in here}) > 1:
            found.append(_figure(here, hook, text, at_hooks))
    return found


def _figure(here: Sequence[tuple[Series, Point]], hook: str, text: str, at_hooks: Sequence[str]) -> Figure:
    drawn = list(dict.fromkeys(series for series, _ in here))
    return make_figure(
        parts=("sweep", hook if len(at_hooks) > 1 else None, text),
        title=f"Sparsity against variance lost, on {text}{place_text(hook, at_hooks)}",
        caption=(
            f"Each point is one SAE, or one baseline, on the held-out text of {text}: the mean number of active "
            "latents a token (`l0`) and the fraction of variance unexplained (`fvu`); nearer the lower left corner is "
            "better. Baselines are grey. Intervals are 95 %, over sequences of the text, of that one SAE."
        ),
        section="faithfulness",
        data=[_trace(one, [point for series, point in here if series is one]) for one in drawn],
        layout=layout(
            x=axis("L0 (latents/token, log scale)", type="log", dtick=1),
            y=axis("FVU (share)", rangemode="tozero"),
            height=400,
        ),
    )


def _trace(series: Series, points: Sequence[Point]) -> Trace:
    look = series.look
    found = [
        Value(point["fvu"], point.get("fvu_low"), point.get("fvu_high"), None, of_one=False)
        for point in points
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": look.name,
        "x": [point["l0"] for point in points],
        "y": [one.value for one in found],
        "error_y": bars(found, look.colour),
        "customdata": [[f"seed {point['seed']}", _settings(point), one.text]
                       for point, one in zip(points, found, strict=True)],
        "hovertemplate": "L0 %{x:.4~g}, FVU %{customdata[2]}<br>%{customdata[0]}, %{customdata[1]}"
        "<extra>%{fullData.name}</extra>",
        "marker": {"color": look.colour, "symbol": look.symbol, "size": 9},
    }  # fmt: skip


def _settings(point: Point) -> str:
    """What its file says of its training."""
    return shown(", ".join(f"{name} {point[name]}" for name in SETTINGS if point.get(name) is not None))
