"""How near to the target patching brings the model: KL against features, and against the size of the edit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_faithful.report.figures.figure import Figure, Trace, make_figure, shown
from sae_faithful.report.figures.numbers import place_text
from sae_faithful.report.figures.series import all_series
from sae_faithful.report.figures.style import DASHES, GREY, SYMBOLS, axis, faint, layout, limit_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_faithful.report.run_data import RunData

Curve = dict[str, Any]


@dataclass(frozen=True)
class _Drawn:
    name: str
    group: str
    colour: str
    dash: str
    symbol: str
    points: Sequence[dict[str, Any]]


def patching_figures(runs: Sequence[RunData]) -> list[Figure]:
    """Two figures a hook."""
    unpatched = [
        (run, artifact["kl_unpatched"])
        for run in runs
        if (artifact := run.artifact("ioi_patching", "curves"))
    ]
    at_hooks = list(dict.fromkeys(curve["hook"] for run, _ in unpatched for curve in _curves(run)))
    found: list[Figure] = []
    for hook in at_hooks:
        drawn = [one for run, _ in unpatched for one in _of_run(runs, run, hook)]
        if drawn:
            found += [_figure(drawn, unpatched, hook, at_hooks, against) for against in ("edit", "features")]
    return found


def _curves(run: RunData) -> list[Curve]:
    return (run.artifact("ioi_patching", "curves") or {}).get("curves", [])


def _of_run(runs: Sequence[RunData], run: RunData, hook: str) -> list[_Drawn]:
    """SAEs in the colour of their series, comparisons grey."""
    series = {(one.source, one.variant): one for one in all_series(runs) if one.run is run}
    curves = [curve for curve in _curves(run) if curve["hook"] == hook]
    compared = list(dict.fromkeys(curve["variant"] for curve in curves if curve["comparison"]))
    several = len({curve["seed"] for curve in curves if not curve["comparison"]}) > 1
    drawn: list[_Drawn] = []
    for curve in curves:
        of_series = series.get((curve["source"], curve["variant"]))
        if curve["comparison"]:
            mark = compared.index(curve["variant"]) + 1
            of_source = f", {shown(run.named(curve['source']))}" if len(run.sources) > 1 or run.label else ""
            name = f"{shown(curve['variant'])}{of_source}"
            drawn.append(
                _Drawn(name, name, GREY, DASHES[mark % len(DASHES)], SYMBOLS[-mark], curve["points"])
            )
        elif of_series is not None:
            look = of_series.look
            name = f"{look.name}, seed {curve['seed']}" if several else look.name
            drawn.append(_Drawn(name, look.name, look.colour, look.dash, look.symbol, curve["points"]))
    return drawn


def _figure(
    drawn: Sequence[_Drawn],
    unpatched: Sequence[tuple[RunData, float]],
    hook: str,
    at_hooks: Sequence[str],
    against: str,
) -> Figure:
    x = "size of the edit (activation units)" if against == "edit" else "features patched"
    return make_figure(
        parts=("patching", against, hook if len(at_hooks) > 1 else None),
        title=f"KL against {'the size of the edit' if against == 'edit' else 'features patched'}"
        f"{place_text(hook, at_hooks)}",
        caption=(
            "KL divergence of the patched model's prediction from the target's, mean over prompt pairs that did not "
            f"choose the features, against {'the mean length of the edit' if against == 'edit' else 'their number'}; "
            "lower, and further left, is better. Each mark is a set of features, each set part of the next. Grey: "
            "principal components in the features' place. Dashed line: no patch. Bands are 95 % intervals over prompt "
            "pairs, the chosen features as given; with few pairs there are none."
        ),
        section="patching",
        data=[trace for one in drawn for trace in _traces(one, against)],
        layout=layout(
            x=axis(x, rangemode="tozero"),
            y=axis("KL(patched ‖ target) (nats)", rangemode="tozero"),
            height=400,
            shapes=[limit_line(kl, text=shown(run.label) or "no patch", across="x") for run, kl in unpatched],
        ),
    )


def _traces(one: _Drawn, against: str) -> list[Trace]:
    points = [point for point in one.points if point["kl"] is not None and point[against] is not None]
    x = [point[against] for point in points]
    line: Trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": one.name,
        "legendgroup": one.name,
        "x": x,
        "y": [point["kl"] for point in points],
        "customdata": [[point["features"], point["edit"], _interval(point)] for point in points],
        "hovertemplate": "KL %{y:.3f}%{customdata[2]}<br>%{customdata[0]} features, edit %{customdata[1]:.3~g}"
        "<extra>%{fullData.name}</extra>",
        "line": {"color": one.colour, "dash": one.dash, "width": 2},
        "marker": {"color": one.colour, "symbol": one.symbol, "size": 7},
    }
    within = [point for point in points if point["kl_ci_low"] is not None]
    if not within:
        return [line]
    there = [point[against] for point in within]
    band: Trace = {
        "type": "scatter",
        "mode": "lines",
        "name": f"{one.name}, 95 %",
        "legendgroup": one.name,
        "showlegend": False,
        "x": there + there[::-1],
        "y": [point["kl_ci_high"] for point in within] + [point["kl_ci_low"] for point in within][::-1],
        "fill": "toself",
        "fillcolor": faint(one.colour, 0.12),
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    return [band, line]


def _interval(point: dict[str, Any]) -> str:
    if point["kl_ci_low"] is None:
        return ""
    return f" [{point['kl_ci_low']:.3f}, {point['kl_ci_high']:.3f}]"
