"""What probes read from each representation, and the paired differences."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sae_faithful.report.figures.figure import Figure, Trace, make_figure, shown
from sae_faithful.report.figures.numbers import bars, hooks, place_text, rows_of, values
from sae_faithful.report.figures.series import all_series
from sae_faithful.report.figures.style import GREY, axis, layout, names_axis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sae_faithful.report.figures.numbers import Row, Value
    from sae_faithful.report.figures.series import Series
    from sae_faithful.report.run_data import RunData

METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1", "auc": "AUC", "mcc": "MCC"}
ROW = 16
"""Pixels of a bar."""
GAP = 0.6
"""Between representations, in bars."""


def probing_figures(runs: Sequence[RunData]) -> list[Figure]:
    """For each task and hook, every representation's score and the differences between representations."""
    found: list[Figure] = []
    at_hooks = hooks(runs, "probing")
    tasks = dict.fromkeys(
        row["dataset"] for run in runs for row in run.rows if row["evaluator"] == "probing" and row["dataset"]
    )
    for task in tasks:
        metric = _main_metric(runs, task)
        for hook in at_hooks:
            made = (
                _scores(runs, task, metric, hook, at_hooks),
                _differences(runs, task, metric, hook, at_hooks),
            )
            found += [figure for figure in made if figure is not None]
    return found


def _main_metric(runs: Sequence[RunData], task: str) -> str:
    """The metric that most of the task's headlines are in."""
    named = Counter(
        row["condition"].partition(":")[0]
        for run in runs
        for row in rows_of(run, "probing", "probe_difference", dataset=task, headline=True)
    )
    return max(named, key=lambda metric: named[metric], default="accuracy")


def _scores(
    runs: Sequence[RunData], task: str, metric: str, hook: str, at_hooks: Sequence[str]
) -> Figure | None:
    drawn: list[tuple[str, str, str, Mapping[str, Value]]] = []
    for run in runs:
        # Words and class shares have no hook; activations no source.
        rows = [
            row
            for row in rows_of(run, "probing", f"probe_{metric}", dataset=task, source=None)
            if row["hook"] in (hook, None)
        ]
        name = f"no SAE, {shown(run.label)}" if run.label else "no SAE"
        drawn.append((name, GREY, "", values(rows, _condition)))
    for series in all_series(runs):
        rows = rows_of(series.run, "probing", f"probe_{metric}", dataset=task, hook=hook)
        found = values([row for row in rows if series.of(row)], _condition)
        drawn.append((series.look.name, series.look.colour, series.look.pattern, found))
    drawn = [one for one in drawn if one[3]]
    if not any(colour != GREY for _, colour, _, _ in drawn):
        return None
    conditions = list(dict.fromkeys(name for *_, found in reversed(drawn) for name in found))
    at, middles = _places(drawn, conditions)
    return make_figure(
        parts=("probing", task, "scores", hook if len(at_hooks) > 1 else None),
        title=f"{task}: {METRICS.get(metric, metric)} of probes{place_text(hook, at_hooks)}",
        caption=(
            f"Logistic regressions on each representation of the texts of {task}, on test texts (`probe_{metric}`). "
            "`latents` are all latents of an SAE, `latents,k=…` the k that tell the classes apart best; `raw` are the "
            "activations, `pca,k=…` their first principal components. Grey: no SAE has a part in it. Intervals are "
            "95 %: over SAEs and test texts for a source, over test texts where there is one SAE, or none."
        ),
        section="probing",
        data=[_bar(*one, at) for one in drawn],
        layout=layout(
            x=axis(f"{METRICS.get(metric, metric)} ({_unit(runs, metric, task)})"),
            y=names_axis(
                [shown(name) for name in conditions],
                tickvals=middles,
                range=[max(at.values()) + 0.8, -0.8],
            ),
            height=110 + round(ROW * (len(at) + GAP * len(conditions))),
            barmode="overlay",
        ),
    )


def _bar(
    name: str, colour: str, pattern: str, found: Mapping[str, Value], at: Mapping[tuple[str, str], float]
) -> Trace:
    scores = list(found.values())
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": [one.value for one in scores],
        "y": [at[name, condition] for condition in found],
        "width": 0.8,
        "error_x": bars(scores),
        "customdata": [[shown(condition), one.text] for condition, one in found.items()],
        "hovertemplate": "%{customdata[0]}: %{customdata[1]}<extra>%{fullData.name}</extra>",
        "marker": {
            "color": colour,
            "opacity": 0.85,
            "pattern": {
                "shape": pattern,
                "fillmode": "overlay",
                "fgcolor": "#ffffff",
                "solidity": 0.2,
                "size": 6,
            },
        },
    }


def _places(
    drawn: Sequence[tuple[str, str, str, Mapping[str, Value]]], conditions: Sequence[str]
) -> tuple[dict[tuple[str, str], float], list[float]]:
    """Where each bar stands, and the middle of each condition's: as many bars as it has, then a gap."""
    at: dict[tuple[str, str], float] = {}
    middles: list[float] = []
    place = 0.0
    for condition in conditions:
        of = [name for name, _, _, found in drawn if condition in found]
        at |= {(name, condition): place + i for i, name in enumerate(of)}
        middles.append(place + (len(of) - 1) / 2)
        place += len(of) + GAP
    return at, middles


def _differences(
    runs: Sequence[RunData], task: str, metric: str, hook: str, at_hooks: Sequence[str]
) -> Figure | None:
    drawn: list[tuple[Series, Mapping[str, Value]]] = []
    for series in all_series(runs):
        rows = [
            row
            for row in rows_of(series.run, "probing", "probe_difference", dataset=task, hook=hook)
            if series.of(row) and row["condition"].startswith(f"{metric}: ")
        ]
        found = values(rows, lambda row: row["condition"].partition(": ")[2])
        if found:
            drawn.append((series, found))
    if not drawn:
        return None
    pairs = list(dict.fromkeys(name for _, found in drawn for name in found))
    # Sources beside each other, a little apart.
    step = 0.5 / len(drawn)
    traces: list[dict[str, Any]] = []
    for place, (series, found) in enumerate(drawn):
        kept = [(at, found[one]) for at, one in enumerate(pairs) if one in found]
        scores = [one for _, one in kept]
        look = series.look
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": look.name,
                "x": [one.value for one in scores],
                "y": [at + step * (place - (len(drawn) - 1) / 2) for at, _ in kept],
                "error_x": bars(scores, look.colour),
                "customdata": [[shown(pairs[at]), one.text] for at, one in kept],
                "hovertemplate": "%{customdata[0]}: %{customdata[1]}<extra>%{fullData.name}</extra>",
                "marker": {"color": look.colour, "symbol": look.symbol, "size": 8},
            }
        )
    return make_figure(
        parts=("probing", task, "differences", hook if len(at_hooks) > 1 else None),
        title=f"{task}: paired differences in {METRICS.get(metric, metric)}{place_text(hook, at_hooks)}",
        caption=(
            "One representation minus another on the same test texts (`probe_difference`), mean over SAEs; right of 0 "
            "the first is better. `latents of A - latents of B` compares sources, SAEs of one seed paired, and stands "
            "under A. Intervals are 95 %, over SAEs and test texts; an interval that contains 0 decides nothing, and "
            "where there is none nothing is drawn."
        ),
        section="probing",
        data=traces,
        layout=layout(
            x=axis(
                f"difference in {METRICS.get(metric, metric)} ({_unit(runs, metric, task)})",
                zeroline=True,
                zerolinewidth=2,
            ),
            y=names_axis(
                [shown(name).replace(" - ", "<br>− ") for name in pairs], range=[len(pairs) - 0.4, -0.6]
            ),
            height=110 + 42 * len(pairs),
        ),
    )


def _condition(row: Row) -> str:
    return row["condition"]


def _unit(runs: Sequence[RunData], metric: str, task: str) -> str:
    units = (row["unit"] for run in runs for row in rows_of(run, "probing", f"probe_{metric}", dataset=task))
    return next(units, "")
